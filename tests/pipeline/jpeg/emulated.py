"""The decoder's kernels on a CPU: a chunk of files through every launch, each buffer between guards."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.jit.source import KernelSource
from int4core.preprocess import quantize_table
from pipeline.jpeg.launches import Addresses, Call, Orders, calls
from pipeline.jpeg.parse import HEADER, parse
from pipeline.jpeg.plan import ALIGNMENT, Plan, Sampling, place
from tests.kernels.emulator.driver import Emulated

Bytes = npt.NDArray[np.uint8]
POISON = 0xA5


class Guarded:
    """Poisoned memory that ends where no page is: what is read or written behind it stops the process."""

    def __init__(self, size: int, content: Bytes | None = None, slack: int = 0) -> None:
        page = mmap.PAGESIZE
        whole = -(-(size + slack) // page) * page
        self._map = mmap.mmap(-1, whole + page)
        array = np.frombuffer(self._map, np.uint8)
        _protect(array.ctypes.data + whole, page)
        self.array: Bytes = array[(whole - size - slack) // ALIGNMENT * ALIGNMENT :][: size + slack]
        self.array[:] = POISON
        if content is not None:
            self.array[: len(content)] = content

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)


def _protect(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0) == 0


@dataclass
class Decoded:
    """A chunk's results: `damage` by file, and each file's output."""

    damage: npt.NDArray[np.uint32]
    outputs: list[npt.NDArray[Any]]


@dataclass
class EmulatedDevice:
    """A Device (pipeline/jpeg/device.py) whose memory is the host's; all is done at once."""

    folder: Path
    arch: int = 750
    flags: int = 0
    free_bytes: int = 1 << 30
    launched: list[str] = field(default_factory=list)
    _built: dict[KernelSource, Emulated] = field(default_factory=dict)

    def load(self, sources: Iterable[KernelSource]) -> None:
        assert len(set(sources)) > 6

    def stream(self) -> None: ...

    def allocate(self, size: int) -> tuple[int, Any]:
        memory = Guarded(size)
        return memory.address, memory

    def pinned(self, size: int) -> Bytes:
        return np.full(size, POISON, np.uint8)

    def empty(self, shape: tuple[int, ...]) -> Bytes:
        return np.full(shape, POISON, np.uint8)

    def address(self, array: npt.NDArray[Any]) -> int:
        return int(array.ctypes.data)

    def begin(self, stream: None) -> None: ...

    def upload(self, address: int, source: npt.NDArray[Any], stream: None) -> None:
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def download(self, target: npt.NDArray[Any], address: int, stream: None) -> None:
        ctypes.memmove(target.ctypes.data, address, target.nbytes)

    def clear(self, address: int, size: int, stream: None) -> None:
        ctypes.memset(address, 0, size)

    def launch(self, call: Call, stream: None) -> None:
        self.launched.append(str(call.source))
        if call.source not in self._built:
            self._built[call.source] = Emulated(call.source, self.folder, self.arch)
        self._built[call.source](call.grid, call.threads, call.arguments, self.flags)

    def wait(self, stream: None) -> None: ...


@dataclass
class EmulatedDecoder:
    """Decodes chunks, with every buffer between guards; kernels are built in `folder` as if for `arch`."""

    folder: Path
    arch: int = 750
    sampling: Sampling = field(default_factory=Sampling)
    flags: int = 0

    def __post_init__(self) -> None:
        self._device = EmulatedDevice(self.folder, self.arch, self.flags)

    def samples(self, files: Sequence[bytes], lanes: int = 32) -> Decoded:
        """int8 (3, size, size) each."""
        return self._decode(files, lanes, self.sampling)

    def rgb(self, files: Sequence[bytes], lanes: int = 32) -> Decoded:
        """uint8 (height, width, 3) each."""
        return self._decode(files, lanes, None)

    def _decode(self, files: Sequence[bytes], lanes: int, sampling: Sampling | None) -> Decoded:
        headers = np.frombuffer(b"".join(map(parse, files)), HEADER)
        plan = Plan.of(headers, sampling, lanes)
        images = plan.images
        shapes = [(int(h["height"]), int(h["width"]), 3) for h in headers]
        if sampling is not None:
            shapes = [(3, sampling.size, sampling.size)] * len(files)
        held: list[Guarded] = []

        def guarded(size: int, content: Bytes | None = None, slack: int = 0) -> int:
            held.append(Guarded(size, content, slack))
            return held[-1].address

        # Every part of every image between guards of its own, as far as a part has no business with another.
        for i in range(len(files)):
            one = images[i : i + 1]
            for name, size in plan.sizes.items():
                place(one, {name: size[i : i + 1]}, guarded(int(size[i])))
            file = np.frombuffer(files[i], np.uint8)
            one["scan"] = guarded(-(-len(file) // ALIGNMENT) * ALIGNMENT, file) + int(headers["scan_begin"][i])
        outputs = [Guarded(int(np.prod(shape))) for shape in shapes]
        images["out"] = [output.address for output in outputs]

        orders = Orders.of(images, plan.fused)
        bits, damage = np.full(len(files), 0xA5A5A5A5, np.uint32), np.zeros(len(files), np.uint32)
        table = quantize_table()
        at = Addresses(*(int(a.ctypes.data) for a in (images, orders.numbers, bits, damage, table)))
        for call in calls(len(files), orders, at, sampling):
            self._device.launch(call, None)
        kind = np.uint8 if sampling is None else np.int8
        return Decoded(damage, [o.array.view(kind).reshape(s) for o, s in zip(outputs, shapes, strict=True)])

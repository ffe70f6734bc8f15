"""The decoder's kernels on a CPU: a chunk of files through every launch, each buffer between guards."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.source import KernelSource
from pipeline.jpeg.launches import Addresses, Orders, calls
from pipeline.jpeg.parse import HEADER, parse
from pipeline.jpeg.plan import ALIGNMENT, Sampling, place, plan_samples, plan_scans, plan_whole, sizes_of
from pipeline.samples.preprocess import quantize_table
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
class EmulatedDecoder:
    """Decodes chunks; kernels are built in `folder` as if for `arch`."""

    folder: Path
    arch: int = 750
    sampling: Sampling = field(default_factory=Sampling)
    flags: int = 0
    _built: dict[KernelSource, Emulated] = field(default_factory=dict)

    def samples(self, files: Sequence[bytes], lanes: int = 32) -> Decoded:
        """int8 (3, size, size) each."""
        return self._decode(files, lanes, self.sampling)

    def rgb(self, files: Sequence[bytes], lanes: int = 32) -> Decoded:
        """uint8 (height, width, 3) each."""
        return self._decode(files, lanes, None)

    def _decode(self, files: Sequence[bytes], lanes: int, sampling: Sampling | None) -> Decoded:
        headers = np.frombuffer(b"".join(map(parse, files)), HEADER)
        images = plan_scans(headers, lanes)
        fused = np.ones(len(files), np.bool_)
        if sampling is None:
            plan_whole(images)
            shapes = [(int(h["height"]), int(h["width"]), 3) for h in headers]
        else:
            fused = plan_samples(images, sampling)
            shapes = [(3, sampling.size, sampling.size)] * len(files)
        sizes = sizes_of(images, sampling, fused)
        held: list[Guarded] = []

        def guarded(size: int, content: Bytes | None = None, slack: int = 0) -> int:
            held.append(Guarded(size, content, slack))
            return held[-1].address

        # Every part of every image between guards of its own, as far as a part has no business with another.
        for i in range(len(files)):
            one = images[i : i + 1]
            for name, size in sizes.items():
                place(one, {name: size[i : i + 1]}, guarded(int(size[i])))
            file = np.frombuffer(files[i], np.uint8)
            one["scan"] = guarded(-(-len(file) // ALIGNMENT) * ALIGNMENT, file) + int(headers["scan_begin"][i])
        outputs = [Guarded(int(np.prod(shape))) for shape in shapes]
        images["out"] = [output.address for output in outputs]

        orders = Orders.of(images, fused)
        bits, damage = np.full(len(files), 0xA5A5A5A5, np.uint32), np.zeros(len(files), np.uint32)
        table = quantize_table()
        at = Addresses(*(int(a.ctypes.data) for a in (images, orders.numbers, bits, damage, table)))
        for call in calls(len(files), orders, at, sampling):
            self._kernel(call.source)(call.grid, call.threads, call.arguments, self.flags)
        kind = np.uint8 if sampling is None else np.int8
        return Decoded(damage, [o.array.view(kind).reshape(s) for o, s in zip(outputs, shapes, strict=True)])

    def _kernel(self, source: KernelSource) -> Emulated:
        if source not in self._built:
            self._built[source] = Emulated(source, self.folder, self.arch)
        return self._built[source]

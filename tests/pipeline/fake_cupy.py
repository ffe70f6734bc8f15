"""As much of CuPy as `pipeline.device` uses, on the host: host addresses, copies at once, kernels emulated."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from int4core.backends.cuda.jit.source import KernelSource
from tests.kernels.emulator.driver import Emulated
from tests.pipeline.fake_device import best_of


class CUDARuntimeError(RuntimeError):
    pass


class FakeStream:
    ptr = 7

    def __init__(self, **_options: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


class FakeEvent:
    done = True

    def __init__(self, **_options: Any) -> None:
        pass

    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakePinned(ctypes.Array):  # type: ignore[type-arg]
    _type_ = ctypes.c_byte
    _length_ = 1 << 20

    @property
    def ptr(self) -> int:
        return ctypes.addressof(self)


class FakeRuntime:
    CUDARuntimeError = CUDARuntimeError
    memcpyHostToDevice, memcpyDeviceToHost = 1, 2  # noqa: N815

    def __init__(self, refuse: bool) -> None:
        self.refuse = refuse
        self.registered: set[int] = set()
        self.copies: list[int] = []

    def hostRegister(self, address: int, _size: int, flags: int) -> None:  # noqa: N802
        if self.refuse:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        assert flags == 3
        self.registered.add(address)

    def hostUnregister(self, address: int) -> None:  # noqa: N802
        self.registered.remove(address)

    def pointerGetAttributes(self, address: int) -> Any:  # noqa: N802
        return SimpleNamespace(devicePointer=address)

    def memcpyAsync(self, target: int, source: int, size: int, _kind: int, _stream: int) -> None:  # noqa: N802
        self.copies.append(size)
        ctypes.memmove(target, source, size)

    def deviceSynchronize(self) -> None:  # noqa: N802
        pass


def fake_cupy(refuse: bool = False) -> Any:
    cuda = SimpleNamespace(
        Stream=FakeStream,
        Event=FakeEvent,
        runtime=FakeRuntime(refuse),
        alloc_pinned_memory=lambda _size: FakePinned(),
    )
    return SimpleNamespace(cuda=cuda)


class _Array:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.data = SimpleNamespace(ptr=array.ctypes.data)


class FakeBatch:
    """The class of a sample is in its first four bytes; `best_of` says which come after it."""

    def __init__(self, n: int, sample_bytes: int, top: int) -> None:
        self.n = n
        self.top_ids = _Array(np.full((n, top), -1, dtype=np.int32))
        self.top_scores = _Array(np.full((n, top), -1, dtype=np.float32))
        self.input = _Array(np.full((n, sample_bytes), -1, dtype=np.int8))
        self.top1 = _Array(np.full(n, -1, dtype=np.int32))

    def run(self, stream: Any) -> None:
        self.top1.array[:] = self.input.array[:, :4].copy().view(np.int32)[:, 0]
        ids, scores = best_of(self.top1.array, self.top_ids.array.shape[1])
        self.top_ids.array[:], self.top_scores.array[:] = ids, scores


class FakeNetwork:
    notice = "a fake network"

    def __init__(self, cupy: Any, sample_bytes: int, most: int = 1 << 30, *, folder: Path = Path()) -> None:
        """`folder`: where kernels are built, for a CPU."""
        from int4core.errors import EngineError

        self.cupy = cupy
        self._folder = folder
        self.device = SimpleNamespace(use=lambda: None)
        self._sample_bytes = sample_bytes
        self._most = most
        self._error = EngineError

    def function(self, source: KernelSource) -> Any:
        """The kernel itself: device addresses are host addresses."""
        kernel = Emulated(source, self._folder)
        return lambda grid, block, arguments: kernel((*grid, 1, 1), *block, arguments)

    def batch(self, n: int, top: int = 0) -> FakeBatch:
        if n > self._most:
            raise self._error(f"no device memory for 9 MiB of activations for batches of {n}")
        return FakeBatch(n, self._sample_bytes, top)

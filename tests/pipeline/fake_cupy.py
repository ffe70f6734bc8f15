"""As much of CuPy as `pipeline.device` uses, on the host: addresses are host addresses, copies happen at once."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np


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


class FakeRawModule:
    """Its one function does what gather.cu says, on host addresses."""

    def __init__(self, **_options: Any) -> None:
        pass

    def get_function(self, name: str) -> Any:
        assert name == "gather"

        def launch(grid: Any, block: Any, arguments: Any) -> None:
            arena, slots, out, slot_words, sample_words, count = map(int, arguments)
            for sample in range(count):
                slot = ctypes.c_int32.from_address(slots + 4 * sample).value
                source = arena + slot * slot_words * 16
                ctypes.memmove(out + sample * sample_words * 16, source, sample_words * 16)

        return launch


def fake_cupy(refuse: bool = False) -> Any:
    cuda = SimpleNamespace(
        Stream=FakeStream,
        Event=FakeEvent,
        runtime=FakeRuntime(refuse),
        alloc_pinned_memory=lambda _size: FakePinned(),
        compiler=SimpleNamespace(CompileException=RuntimeError),
    )
    return SimpleNamespace(cuda=cuda, RawModule=FakeRawModule)


class _Array:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.data = SimpleNamespace(ptr=array.ctypes.data)


class FakeBatch:
    """The class of a sample is in its first four bytes."""

    def __init__(self, n: int, sample_bytes: int) -> None:
        self.n = n
        self.input = _Array(np.full((n, sample_bytes), -1, dtype=np.int8))
        self.top1 = _Array(np.full(n, -1, dtype=np.int32))

    def run(self, stream: Any) -> None:
        self.top1.array[:] = self.input.array[:, :4].copy().view(np.int32)[:, 0]


class FakeNetwork:
    notice = "a fake network"

    def __init__(self, cupy: Any, sample_bytes: int, most: int = 1 << 30) -> None:
        from int4core.errors import EngineError

        self.cupy = cupy
        self.device = SimpleNamespace(use=lambda: None)
        self._sample_bytes = sample_bytes
        self._most = most
        self._error = EngineError

    def batch(self, n: int) -> FakeBatch:
        if n > self._most:
            raise self._error(f"9 MiB of activations for batches of {n} does not fit device memory")
        return FakeBatch(n, self._sample_bytes)

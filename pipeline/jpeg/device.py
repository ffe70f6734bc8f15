"""What the decoder asks of a GPU, and CuPy's answer to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.device import chip_at, load_cupy
from int4core.backends.cuda.jit.compiler import Compiled, compile_all
from int4core.backends.cuda.jit.source import KernelSource
from int4core.errors import EngineError
from pipeline.jpeg.launches import Call

HostBytes: TypeAlias = npt.NDArray[np.uint8]
Stream: TypeAlias = Any


class Device(Protocol):
    """Memory is given and taken by address; all work goes on streams, but what says otherwise."""

    @property
    def free_bytes(self) -> int: ...

    def load(self, sources: Iterable[KernelSource]) -> None:
        """Have these kernels ready."""
        ...

    def stream(self) -> Stream: ...

    def allocate(self, size: int) -> tuple[int, Any]:
        """The address of `size` bytes, and what keeps them."""
        ...

    def pinned(self, size: int) -> HostBytes: ...

    def empty(self, shape: tuple[int, ...]) -> Any:
        """A uint8 array on the device, as users get it."""
        ...

    def address(self, array: Any) -> int:
        """Of such an array's first element."""
        ...

    def begin(self, stream: Stream) -> None:
        """What follows on `stream` comes after all that the caller has under way."""
        ...

    def upload(self, address: int, source: npt.NDArray[Any], stream: Stream) -> None: ...

    def download(self, target: npt.NDArray[Any], address: int, stream: Stream) -> None: ...

    def clear(self, address: int, size: int, stream: Stream) -> None: ...

    def launch(self, call: Call, stream: Stream) -> None: ...

    def wait(self, stream: Stream) -> None:
        """Until all on `stream` is done."""
        ...


class Gpu:
    """A CUDA GPU.

    Attributes:
        compiled: what of its kernels was in the cache.
    """

    def __init__(self, index: int) -> None:
        """Raises EngineError without CuPy or without a GPU."""
        self.cupy = load_cupy()
        self.chip = chip_at(self.cupy, index)
        self.device = self.cupy.cuda.Device(index)
        self.compiled = Compiled({}, 0, 0.0)
        self._functions: dict[KernelSource, Any] = {}

    @property
    def free_bytes(self) -> int:
        with self.device:
            return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def load(self, sources: Iterable[KernelSource]) -> None:
        self.compiled = compile_all(sources, self.chip.arch)
        with self.device:
            for source, file in self.compiled.files.items():
                try:
                    self._functions[source] = self.cupy.RawModule(path=str(file)).get_function(source.function)
                except self.cupy.cuda.driver.CUDADriverError as error:
                    raise EngineError(f"{file}: the driver does not load this binary ({error}); remove it") from error

    def stream(self) -> Stream:
        with self.device:
            return self.cupy.cuda.Stream(non_blocking=True)

    def allocate(self, size: int) -> tuple[int, Any]:
        with self.device, self._memory_errors(size):
            memory = self.cupy.cuda.alloc(size)
        return int(memory.ptr), memory

    @contextmanager
    def _memory_errors(self, size: int) -> Iterator[None]:
        try:
            yield
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            mib = f"{size / 2**20:,.0f} MiB of device memory"
            raise EngineError(f"{mib} to decode JPEGs are not free: decode fewer at a time ({error})") from error

    def pinned(self, size: int) -> HostBytes:
        with self.device:
            return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def empty(self, shape: tuple[int, ...]) -> Any:
        with self.device, self._memory_errors(math.prod(shape)):
            return self.cupy.empty(shape, np.uint8)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def begin(self, stream: Stream) -> None:
        with self.device:
            stream.wait_event(self.cupy.cuda.get_current_stream().record())

    def upload(self, address: int, source: npt.NDArray[Any], stream: Stream) -> None:
        runtime = self.cupy.cuda.runtime
        runtime.memcpyAsync(address, source.ctypes.data, source.nbytes, runtime.memcpyHostToDevice, stream.ptr)

    def download(self, target: npt.NDArray[Any], address: int, stream: Stream) -> None:
        runtime = self.cupy.cuda.runtime
        runtime.memcpyAsync(target.ctypes.data, address, target.nbytes, runtime.memcpyDeviceToHost, stream.ptr)

    def clear(self, address: int, size: int, stream: Stream) -> None:
        self.cupy.cuda.runtime.memsetAsync(address, 0, size, stream.ptr)

    def launch(self, call: Call, stream: Stream) -> None:
        with self.device, stream:
            function = self._functions[call.source]
            function(call.grid, (call.threads, 1, 1), call.arguments, shared_mem=call.shared_bytes)

    def wait(self, stream: Stream) -> None:
        stream.synchronize()

"""Samples from the arena to a batch on the device: three ways, one chosen by measuring.

- `gather`: one kernel reads the mapped arena by slot. One launch whatever the slots are; it takes a few
  multiprocessors from the network.
- `runs`: neighbouring slots are one copy, and all copies of a batch are one call where the driver has it. The copy
  engines do the work.
- `staged`: the host copies samples into a pinned buffer first. For machines that cannot pin the arena.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.network import DeviceNetwork
from int4core.errors import EngineError
from pipeline.arrays import Slots
from pipeline.memory.arena import Arena

H2d: TypeAlias = Literal["auto", "gather", "runs", "staged"]
H2D_CHOICES: tuple[H2d, ...] = get_args(H2d)

KERNEL = KernelSource.of(str(Path(__file__).resolve().parent / "kernels" / "gather.cu"), "gather", {})
THREADS = 256
WORD_BYTES = 16

# Blocks of the gather kernel: 16 x 256 threads x 8 words keep half a megabyte under way, several times what a
# PCIe 5 link has in flight.
BLOCKS = 16

_STREAM_ORDER = 1
_PREFER_OVERLAP = 1

Int64Array = npt.NDArray[np.int64]
Addresses: TypeAlias = npt.NDArray[np.uint64]


class Transfer(Protocol):
    """One way to fill a batch."""

    @property
    def name(self) -> str: ...

    def __call__(self, slots: Slots, slots_address: int, batch: Any, stream: Any) -> None:
        """Copy the samples of `slots` (n,) into the first n places of `batch.input`, in the order of `stream`.

        `slots_address` is where the device finds the slots, 0 where it cannot.
        """


def merge_runs(slots: Slots, contiguous: bool = True) -> tuple[Int64Array, Int64Array]:
    """Runs of neighbouring slots: the place in `slots` (n,) where each begins, and its length; int64 (runs,) each.

    With `contiguous` False, where samples are not back to back in the arena, every sample is a run of its own.
    """
    count = len(slots)
    if not contiguous or count == 1:
        return np.arange(count, dtype=np.int64), np.ones(count, dtype=np.int64)
    bounds = np.concatenate(([0], np.flatnonzero(slots[1:] != slots[:-1] + 1) + 1, [count]))
    return bounds[:-1], bounds[1:] - bounds[:-1]


@dataclass(frozen=True)
class Gather:
    """See the module. `base` is the arena's address on the device."""

    cupy: Any
    arena: Arena
    base: int
    kernel: Any
    name: str = "gather"

    @classmethod
    def load(cls, network: DeviceNetwork, arena: Arena, base: int) -> Gather:
        """Take the kernel from the network's cache, compiled if it is not there.

        Raises EngineError when it cannot be had, or samples are not whole 16-byte words.
        """
        if arena.spec.sample_bytes % WORD_BYTES:
            raise EngineError(f"samples of {arena.spec.sample_bytes} bytes cannot be gathered in words of {WORD_BYTES}")
        try:
            kernel = network.function(KERNEL)
        except EngineError as error:
            raise EngineError(f"--h2d gather: {error}; or choose --h2d runs, which needs no kernel") from error
        return cls(network.cupy, arena, base, kernel)

    def __call__(self, slots: Slots, slots_address: int, batch: Any, stream: Any) -> None:
        spec = self.arena.spec
        arguments = (
            np.uint64(self.base),
            np.uint64(slots_address),
            np.uint64(batch.input.data.ptr),
            np.int64(spec.slot_bytes // WORD_BYTES),
            np.int32(spec.sample_bytes // WORD_BYTES),
            np.int32(len(slots)),
        )
        with stream:
            self.kernel((BLOCKS,), (THREADS,), arguments)


@dataclass(frozen=True)
class Runs:
    """See the module. `base` is the arena's address on the host."""

    cupy: Any
    arena: Arena
    base: int
    name: str = "runs"

    def __call__(self, slots: Slots, slots_address: int, batch: Any, stream: Any) -> None:
        spec = self.arena.spec
        begins, lengths = merge_runs(slots, spec.slot_bytes == spec.sample_bytes)
        runtime = self.cupy.cuda.runtime
        if len(begins) == 1:  # a batch of one sample, most often, where every microsecond shows
            source, size = self.base + int(slots[0]) * spec.slot_bytes, len(slots) * spec.sample_bytes
            runtime.memcpyAsync(batch.input.data.ptr, source, size, runtime.memcpyHostToDevice, stream.ptr)
            return
        sources = self.base + slots[begins].astype(np.uint64) * np.uint64(spec.slot_bytes)
        targets = batch.input.data.ptr + begins.astype(np.uint64) * np.uint64(spec.sample_bytes)
        copy_all(self.cupy, targets, sources, lengths.astype(np.uint64) * np.uint64(spec.sample_bytes), stream)


def copy_all(cupy: Any, targets: Addresses, sources: Addresses, sizes: Addresses, stream: Any) -> None:
    """Copy pieces of pinned memory to the device: addresses and bytes, uint64 (n,) each; in one call if it can be."""
    copy_many = _copy_many()
    if copy_many is not None:
        copy_many(targets, sources, sizes, stream.ptr)
        return
    runtime = cupy.cuda.runtime
    for target, source, size in zip(targets.tolist(), sources.tolist(), sizes.tolist(), strict=True):
        runtime.memcpyAsync(target, source, size, runtime.memcpyHostToDevice, stream.ptr)


class Staged:
    """See the module."""

    name = "staged"

    def __init__(self, cupy: Any, arena: Arena) -> None:
        self._cupy = cupy
        self._arena = arena
        self._buffers: WeakKeyDictionary[Any, tuple[Any, npt.NDArray[np.int8]]] = WeakKeyDictionary()

    def __call__(self, slots: Slots, slots_address: int, batch: Any, stream: Any) -> None:
        pinned, buffer = self._buffer_of(batch)
        np.copyto(buffer[: len(slots)], self._arena.gather(slots))
        runtime = self._cupy.cuda.runtime
        size = len(slots) * self._arena.spec.sample_bytes
        runtime.memcpyAsync(batch.input.data.ptr, pinned.ptr, size, runtime.memcpyHostToDevice, stream.ptr)

    def _buffer_of(self, batch: Any) -> tuple[Any, npt.NDArray[np.int8]]:
        """A batch's own buffer: it is free when the batch is."""
        if batch not in self._buffers:
            shape = (batch.n, *self._arena.spec.sample_shape)
            pinned = self._cupy.cuda.alloc_pinned_memory(batch.n * self._arena.spec.sample_bytes)
            view = np.frombuffer(pinned, dtype=np.int8, count=batch.n * self._arena.spec.sample_bytes)
            self._buffers[batch] = (pinned, view.reshape(shape))
        return self._buffers[batch]


class _Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes."""

    _fields_ = (
        ("source_order", ctypes.c_int),
        ("source_hint", _Location),
        ("target_hint", _Location),
        ("flags", ctypes.c_uint),
    )


@cache
def _copy_many() -> Any:
    """The driver's cuMemcpyBatchAsync as a function of (targets, sources, sizes: uint64 (n,), stream), or None.

    It came with CUDA 12.8; since 13.0 a second version has no index of the copy that failed.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    function, has_index = getattr(driver, "cuMemcpyBatchAsync_v2", None), False
    if function is None:
        function, has_index = getattr(driver, "cuMemcpyBatchAsync", None), True
    if function is None:
        return None
    attributes = _Attributes(_STREAM_ORDER, _Location(), _Location(), _PREFER_OVERLAP)
    applies_from, failed = ctypes.c_size_t(0), ctypes.c_size_t(0)

    def copy(targets: Any, sources: Any, sizes: Any, stream: int) -> None:
        arguments: list[Any] = [ctypes.c_void_p(array.ctypes.data) for array in (targets, sources, sizes)]
        arguments += [ctypes.c_size_t(len(sizes)), ctypes.byref(attributes), ctypes.byref(applies_from)]
        arguments += [ctypes.c_size_t(1), *([ctypes.byref(failed)] if has_index else []), ctypes.c_void_p(stream)]
        status = function(*arguments)
        if status:
            raise EngineError(f"the driver does not take a batch of {len(sizes)} copies: CUDA error {status}")

    return copy

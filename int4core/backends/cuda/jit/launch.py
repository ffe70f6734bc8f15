"""A kernel with its arguments, ready to go on any stream.

From compute capability 9.0 on, kernels are launched so that one's start (barriers, weights) runs under the end of the
one before: CUDA's programmatic dependent launch, see kernels/ptx/dependency.cuh. CuPy has no call for it, so the
driver's own, cuLaunchKernelEx, is used.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from int4core.backends.cuda.families.kernel import Arguments, Grid
from int4core.backends.cuda.jit.driver import load_driver
from int4core.errors import EngineError

OVERLAP_CAPABILITY = (9, 0)
"""The first chips with programmatic dependent launch."""

_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, and a union of 64 bytes of which this uses the first integer."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((f"{what}_{axis}", ctypes.c_uint) for what in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


@dataclass(frozen=True, eq=False)
class Launch:
    """Calling it launches the kernel on CuPy's current stream.

    Attributes:
        name: the operation's, for messages.
        function: a cupy.RawKernel.
        overlap: whether it may start before the kernel before it on the stream is over.
        workspace: memory that only this launch uses, if it needs any; held here.
    """

    cupy: Any = field(repr=False)
    name: str
    function: Any
    grid: Grid
    threads: int
    arguments: Arguments
    shared_bytes: int
    overlap: bool
    workspace: Any = field(default=None, repr=False)

    def __call__(self) -> None:
        if not self.overlap:
            self.function(self.grid, (self.threads, 1, 1), self.arguments, shared_mem=self.shared_bytes)
            return
        held = [np.ascontiguousarray(value) for value in self.arguments]  # NumPy scalars have no address of their own
        values = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
        attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, b"", 1, b"")
        stream = self.cupy.cuda.get_current_stream().ptr
        config = _Config(*self.grid, self.threads, 1, 1, self.shared_bytes, stream, ctypes.pointer(attribute), 1)
        function = ctypes.c_void_p(self.function.kernel.ptr)
        status = load_driver().cuLaunchKernelEx(ctypes.byref(config), function, values, None)
        if status:
            raise EngineError(f"{self.name}: the driver does not launch its kernel: CUDA error {status}")

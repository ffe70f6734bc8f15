"""Named ranges for NVIDIA's profilers: NVTX through CuPy where it is installed, nothing where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Nsight Systems sets it in the processes that it follows.
_NSYS_SESSION = "NSYS_PROFILING_SESSION_ID"


@dataclass(frozen=True)
class Ranges:
    """Opens and closes ranges of the calling thread. A range costs well under a microsecond when nothing listens."""

    push: Callable[[str], object]
    pop: Callable[[], object]
    listening: bool

    @classmethod
    def load(cls) -> Ranges:
        """NVTX by CuPy, or ranges that do nothing without CuPy or with a CuPy that was built without NVTX."""
        try:
            from cupy.cuda import nvtx
        except ImportError:
            return cls.silent()
        if not nvtx.available:
            return cls.silent()
        return cls(nvtx.RangePush, nvtx.RangePop, True)

    @classmethod
    def when_profiled(cls) -> Ranges:
        """NVTX under Nsight Systems, else nothing: for processes that would import CuPy for this alone."""
        return cls.load() if _NSYS_SESSION in os.environ else cls.silent()

    @classmethod
    def silent(cls) -> Ranges:
        return cls(lambda name: None, lambda: None, False)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.push(name)
        try:
            yield
        finally:
            self.pop()


@contextmanager
def captured(cupy: Any) -> Iterator[None]:
    """The window that a profiler captures when it waits for cudaProfilerStart (`tools.nsys_profile --capture-api`)."""
    cupy.cuda.runtime.profilerStart()
    try:
        yield
    finally:
        cupy.cuda.runtime.profilerStop()

"""The CUDA driver's own calls, for what CuPy has none for."""

from __future__ import annotations

import ctypes
from functools import cache

from int4core.errors import EngineError


@cache
def load_driver() -> ctypes.CDLL:
    """libcuda. Raises EngineError where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise EngineError(f"the CUDA driver cannot be loaded ({error}): install the NVIDIA driver") from error

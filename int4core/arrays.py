"""Arrays of any library that speaks DLPack: where they lie, and answers of the same kind."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np

from int4core.errors import EngineError
from int4core.layers import Int8Array

_CUDA, _CUDA_MANAGED = 2, 13
"""Device types of dlpack.h."""


def check_images(x: Any, shape: tuple[int, ...]) -> None:
    """Raises EngineError unless `x` is int8 (N, *shape), an array of NumPy or of what has `__dlpack__`."""
    if not isinstance(x, np.ndarray) and not all(hasattr(x, name) for name in ("__dlpack__", "dtype", "shape")):
        raise EngineError(f"input is {type(x).__name__}, but must be an array of int8: NumPy, CuPy, torch, any DLPack")
    dtype = str(x.dtype).rpartition(".")[2]  # torch.int8
    if dtype != "int8":
        raise EngineError(f"input is {dtype}, but must be int8")
    if tuple(x.shape[1:]) != shape or len(x.shape) != 1 + len(shape):
        raise EngineError(f"input has shape {tuple(x.shape)}, but must be (N, {', '.join(map(str, shape))})")


def gpu_of(x: Any) -> int | None:
    """The number of the GPU that `x` lies on, as CUDA counts them; None in host memory.

    Raises EngineError where its library cannot say.
    """
    if isinstance(x, np.ndarray):
        return None
    try:
        kind, number = x.__dlpack_device__()
    except Exception as error:  # each library has its own
        raise _refused(x, error) from error
    return int(number) if kind in (_CUDA, _CUDA_MANAGED) else None


def on_host(x: Any) -> Int8Array:
    """`x`, which lies in host memory, as NumPy sees it: no copy. Raises EngineError where its library gives none."""
    if isinstance(x, np.ndarray):
        return x
    try:
        return cast("Int8Array", np.from_dlpack(x))
    except Exception as error:  # each library has its own
        raise _refused(x, error) from error


def _refused(x: Any, error: Exception) -> EngineError:
    why = str(error).partition("\n")[0]
    return EngineError(f"input is {type(x).__name__}, which its library does not give by DLPack: {why}")


def alike(x: Any, answer: Any) -> Any:
    """`answer`, a NumPy or CuPy array, as an array of the library that `x` is of, without a copy.

    As it is where that library has no `from_dlpack`. An array of a class that is derived from a library's is of it.
    """
    own = _libraries(answer)[0]
    for library in _libraries(x):
        if library == own:
            break
        if convert := getattr(sys.modules.get(library), "from_dlpack", None):
            return convert(answer)
    return answer


def _libraries(x: Any) -> list[str]:
    """The top-level modules of the class of `x` and of what it is derived from, the nearest first."""
    return [kind.__module__.partition(".")[0] for kind in type(x).__mro__]


def is_torch(x: Any) -> bool:
    return "torch" in _libraries(x)

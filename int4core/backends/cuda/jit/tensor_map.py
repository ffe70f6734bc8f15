"""Tensor maps: how the copy engine of sm_90 sees an NHWC tensor whose windows it fetches."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.jit.driver import load_driver
from int4core.errors import EngineError

TENSOR_MAP = np.dtype(("V", 128))
"""A CUtensorMap by value, as a kernel argument."""

_UINT8 = 0
_NO_INTERLEAVE = 0
_NO_SWIZZLE = 0
_L2_PROMOTION_128B = 2
_FILL_ZERO = 0


def im2col_map(
    pointer: int, shape: tuple[int, int, int, int], taps: int, stride: int, pad: int,
    row_bytes: int, pixels: int,
) -> npt.NDArray[Any]:  # fmt: skip
    """Encode the map of a byte tensor (n, h, w, bytes per pixel) read in the order of a convolution's outputs.

    Args:
        pointer: device address of the tensor, a multiple of 16.
        shape: (n, h, w, bytes per pixel).
        taps, stride, pad: the square window's size, its step and its padding.
        row_bytes: bytes one copy takes of each pixel.
        pixels: pixels one copy takes.

    Raises:
        EngineError: the driver refuses the map, or there is no driver.
    """
    n, h, w, c = shape
    upper = pad - (taps - 1)
    arguments = (
        (ctypes.c_int * 2)(-pad, -pad),
        (ctypes.c_int * 2)(upper, upper),
        ctypes.c_uint32(row_bytes),
        ctypes.c_uint32(pixels),
        (ctypes.c_uint32 * 4)(1, stride, stride, 1),
    )
    what = f"{shape}, {taps}x{taps} stride {stride}"
    return _encode("cuTensorMapEncodeIm2col", pointer, (c, w, h, n), arguments, what)


def box_map(pointer: int, shape: tuple[int, int, int, int], box: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Encode the map of a byte tensor (n, h, w, bytes per pixel) read in boxes of one image.

    Args:
        pointer: device address of the tensor, a multiple of 16.
        shape: (n, h, w, bytes per pixel).
        box: (rows, columns, bytes per pixel) of a copy, each at most 256.

    Raises:
        EngineError: the driver refuses the map, or there is no driver.
    """
    n, h, w, c = shape
    rows, columns, row_bytes = box
    arguments = ((ctypes.c_uint32 * 4)(row_bytes, columns, rows, 1), (ctypes.c_uint32 * 4)(1, 1, 1, 1))
    return _encode("cuTensorMapEncodeTiled", pointer, (c, w, h, n), arguments, f"{shape} in boxes of {box}")


def _encode(
    function: str, pointer: int, dims: tuple[int, int, int, int], arguments: tuple[Any, ...], what: str
) -> npt.NDArray[Any]:
    c, w, h, _ = dims
    storage = np.zeros(192, np.uint8)
    start = -storage.ctypes.data % 64
    status = getattr(load_driver(), function)(
        ctypes.c_void_p(storage.ctypes.data + start),
        ctypes.c_int(_UINT8),
        ctypes.c_uint32(4),
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * 4)(*dims),
        (ctypes.c_uint64 * 3)(c, w * c, h * w * c),
        *arguments,
        ctypes.c_int(_NO_INTERLEAVE),
        ctypes.c_int(_NO_SWIZZLE),
        ctypes.c_int(_L2_PROMOTION_128B),
        ctypes.c_int(_FILL_ZERO),
    )
    if status:
        raise EngineError(f"{function} refused {what}: CUDA error {status}")
    return storage[start : start + 128].view(TENSOR_MAP)[0:1].reshape(()).copy()

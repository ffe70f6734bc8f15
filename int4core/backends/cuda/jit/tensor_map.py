"""Tensor maps: how the copy engine of sm_90 sees an NHWC tensor whose windows it fetches."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.jit.driver import load_driver
from int4core.errors import EngineError

TENSOR_MAP = np.dtype(("V", 128))
"""A CUtensorMap by value, as a kernel argument."""

_UINT8 = 0
_NO_INTERLEAVE = 0
_NO_SWIZZLE, _SWIZZLE_128B = 0, 3
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


def box_map(
    pointer: int, shape: tuple[int, int, int, int], box: tuple[int, int, int], step: int = 1
) -> npt.NDArray[Any]:
    """Encode the map of a byte tensor (n, h, w, bytes per pixel) read in boxes of one image.

    Args:
        pointer: device address of the tensor, a multiple of 16.
        shape: (n, h, w, bytes per pixel).
        box: (rows, columns, bytes per pixel) of a copy, each at most 256, columns times `step` too.
        step: from one of a copy's columns to the next, at most 8.

    Raises:
        EngineError: the driver refuses the map, or there is no driver.
    """
    n, h, w, c = shape
    rows, columns, row_bytes = box
    arguments = ((ctypes.c_uint32 * 4)(row_bytes, columns * step, rows, 1), (ctypes.c_uint32 * 4)(1, step, 1, 1))
    return _encode("cuTensorMapEncodeTiled", pointer, (c, w, h, n), arguments, f"{shape} in boxes of {box}")


def rows_map(
    pointer: int, shape: tuple[int, int], box: tuple[int, int], *, swizzled: bool = False
) -> npt.NDArray[Any]:  # fmt: skip
    """Encode the map of a byte tensor (rows, bytes per row) read and written in boxes.

    Args:
        pointer: device address of the tensor, a multiple of 16.
        shape: (rows, bytes per row).
        box: (rows, bytes per row) of a copy, each at most 256.
        swizzled: the sixteen-byte pieces of a box's rows of 128 bytes change places in shared memory: piece i of row r
            lies at place i xor (r mod 8).

    Raises:
        EngineError: the driver refuses the map, or there is no driver.
    """
    rows, row_bytes = shape
    arguments = ((ctypes.c_uint32 * 2)(box[1], box[0]), (ctypes.c_uint32 * 2)(1, 1))
    what = f"{shape} in boxes of {box}"
    return _encode("cuTensorMapEncodeTiled", pointer, (row_bytes, rows), arguments, what, swizzled)


def _encode(
    function: str, pointer: int, dims: tuple[int, ...], arguments: tuple[Any, ...], what: str, swizzled: bool = False
) -> npt.NDArray[Any]:
    rank = len(dims)
    strides = [math.prod(dims[: i + 1]) for i in range(rank - 1)]
    storage = np.zeros(192, np.uint8)
    start = -storage.ctypes.data % 64
    status = getattr(load_driver(), function)(
        ctypes.c_void_p(storage.ctypes.data + start),
        ctypes.c_int(_UINT8),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * rank)(*dims),
        (ctypes.c_uint64 * (rank - 1))(*strides),
        *arguments,
        ctypes.c_int(_NO_INTERLEAVE),
        ctypes.c_int(_SWIZZLE_128B if swizzled else _NO_SWIZZLE),
        ctypes.c_int(_L2_PROMOTION_128B),
        ctypes.c_int(_FILL_ZERO),
    )
    if status:
        raise EngineError(f"{function} refused {what}: CUDA error {status}")
    return storage[start : start + 128].view(TENSOR_MAP)[0:1].reshape(()).copy()

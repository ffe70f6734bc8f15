"""Tensors as bytes: little-endian, row-major; two s4 values a byte, the first in the low nibble."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.format.schema import Declared

Array: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]

STORED = {"s4": "int8", "s8": "int8", "s16": "<i2", "u16": "<u2", "s32": "<i4", "f32": "<f4"}
"""NumPy's name for each tensor type; s4 lies in memory as int8, one value a byte."""


def unpack(raw: Bytes, declared: Declared) -> Array:
    """The declared tensor from its bytes, read-only. Takes over `raw`; s4 needs twice its size besides.

    Raises ValueError when an odd number of s4 values leaves a last high nibble that is not 0.
    """
    if declared.dtype == "s4":
        flat: Array = _unpack_s4(raw, declared.count)
    else:
        flat = raw.view(STORED[declared.dtype])
        if sys.byteorder == "big":
            flat = flat.astype(flat.dtype.newbyteorder("="))
    array = flat.reshape(declared.dims)
    array.setflags(write=False)
    return array


def pack(array: Array, dtype: str) -> bytes:
    """The bytes of `array`, whose values must fit `dtype`."""
    if dtype != "s4":
        return np.ascontiguousarray(array, STORED[dtype]).tobytes()
    nibbles = np.zeros(array.size + array.size % 2, np.uint8)
    nibbles[: array.size] = np.ascontiguousarray(array, np.int8).ravel().view(np.uint8) & 0x0F
    return (nibbles[0::2] | nibbles[1::2] << 4).tobytes()


def _unpack_s4(raw: Bytes, count: int) -> npt.NDArray[np.int8]:
    nibbles = np.empty(2 * raw.size, np.uint8)
    # Each value goes to the top of its byte; the arithmetic shift down then extends the sign.
    np.left_shift(raw, 4, out=nibbles[0::2])
    np.bitwise_and(raw, 0xF0, out=nibbles[1::2])
    values = nibbles.view(np.int8)
    np.right_shift(values, 4, out=values)
    if count % 2 and values[count]:
        raise ValueError(f"leaves the unused high nibble of its last byte at {values[count] & 15}, not 0")
    return values[:count]

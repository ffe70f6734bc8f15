"""The fixed-point arithmetic of the network, once, as NumPy integers: what every backend must equal.

Everything below the first rule is exact 64-bit integer arithmetic on plain arrays. `FloatRescale`
is the same arithmetic in floating point for executors that live on BLAS; it states when it is exact
and refuses to be built when it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.dtypes import IntType
from int4core.errors import EngineError

Int64Array: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[Any]

MAX_SHIFT = 62
"""The largest shift whose rounding constant still leaves room for a 47-bit product in 64 bits."""

MANTISSA = {np.dtype(np.float32): 1 << 24, np.dtype(np.float64): 1 << 53}
"""Every integer up to this magnitude is a value of the type."""


def requantize(x: npt.ArrayLike, factor: npt.ArrayLike, shift: int, out: IntType) -> Int64Array:
    """Rescale `x` by factor / 2^shift, rounding halves away from zero, into the range of `out`.

    sign(v) * ((|v| + half) >> shift) with v = x * factor, half = 2^shift / 2 (0 for shift 0). Types of
    up to 8 bits saturate; u31 and s32 have no clamp, and a value outside them is an error.

    Args:
        x: integers of up to 32 bits, any shape.
        factor: integers of up to 16 bits, 0..65535, broadcast against `x`.
        shift: 0..62.
        out: the type of the result.

    Raises:
        EngineError: a result leaves u31 or s32, or `shift` is out of range.
    """
    half = rounding_half(shift)
    v = np.asarray(x, np.int64) * np.asarray(factor, np.int64)
    magnitude = (np.abs(v) + half) >> shift
    result = np.where(v < 0, -magnitude, magnitude)
    if out.bits <= 8:
        return clamp(result, out)
    if result.size and (result.min() < out.lo or result.max() > out.hi):
        raise EngineError(f"requantised value {_worst(result)} does not fit {out.name}, which has no clamp")
    return result


def rounding_half(shift: int) -> int:
    """2^shift / 2 in integers: 0 for shift 0. Raises EngineError when `shift` is not in 0..62."""
    if not 0 <= shift <= MAX_SHIFT:
        raise EngineError(f"shift_bits={shift} is out of range: 0..{MAX_SHIFT} are possible")
    return (1 << shift) >> 1


def clamp(x: npt.ArrayLike, out: IntType) -> Int64Array:
    """`x` limited to the range of `out`."""
    limited: Int64Array = np.clip(np.asarray(x, np.int64), out.lo, out.hi)
    return limited


def relu(x: npt.ArrayLike) -> Int64Array:
    """max(x, 0)."""
    positive: Int64Array = np.maximum(np.asarray(x, np.int64), 0)
    return positive


def rounded_mean(total: npt.ArrayLike, count: int, out: IntType) -> Int64Array:
    """total / count rounded half up, limited to the range of `out`; `count` values made `total`."""
    return clamp((2 * np.asarray(total, np.int64) + count) // (2 * count), out)


def dequantize_logits(accumulators: npt.ArrayLike, out_scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The last layer: int32 accumulator / out_scale, one IEEE float32 division per class."""
    scale = np.asarray(out_scale, np.float32)
    logits: npt.NDArray[np.float32] = np.divide(np.asarray(accumulators).astype(np.float32), scale)
    return logits


def _worst(x: Int64Array) -> int:
    flat = x.ravel()
    return int(flat[np.argmax(np.abs(flat))])


@dataclass(frozen=True, eq=False)
class FloatRescale:
    """`requantize` of integers that lie in a float array, without leaving floating point.

    The product x * factor and the rounding constant are integers over 2^shift. Where the result does
    not saturate, |x * factor| + half < (hi + 1) * 2^shift (2^20 for u4 and 2^23 for u7 at shift 16), so
    both are exact in a float32 and so is their sum. Where it does saturate, the product may be rounded,
    but rounding keeps the order and (hi + 1) * 2^shift is itself a float, so it still saturates.
    A float64 holds every 47-bit product, and with a shift so large that the sum is rounded, the result
    is 0 or +-1 either way.

    Attributes:
        scale: (C,) factor * 2^-shift, exact.
        half: 2^shift / 2 over 2^shift: 0.5, or 0.0 for shift 0.
        out: the type of the result.
    """

    scale: FloatArray
    half: float
    out: IntType

    @staticmethod
    def is_exact(dtype: np.dtype[Any], factor: npt.ArrayLike, shift: int, out: IntType, bound: int) -> bool:
        """Whether floats of `dtype` give `requantize` exactly for every |x| <= bound.

        Raises EngineError when u31 or s32 results could leave their type.
        """
        largest = int(np.max(np.asarray(factor, np.int64), initial=0)) * bound
        if out.bits > 8 and (largest + rounding_half(shift)) >> shift > out.hi:
            raise EngineError(f"rescaled values could reach {largest >> shift}, over {out.name}'s {out.hi}")
        if np.dtype(dtype) == np.float64:
            return largest < 1 << 47
        reach = largest + rounding_half(shift)
        if out.bits <= 8:
            reach = min(reach, (out.hi + 1) << shift)
        return bound < MANTISSA[np.dtype(dtype)] and reach <= MANTISSA[np.dtype(dtype)]

    @classmethod
    def build(cls, dtype: np.dtype[Any], factor: npt.ArrayLike, shift: int, out: IntType, bound: int) -> FloatRescale:
        """The rescale for |x| <= bound. Raises EngineError when it would not be exact in `dtype`."""
        if not cls.is_exact(dtype, factor, shift, out, bound):
            raise EngineError(f"rescaling |x| <= {bound} to {out.name} is not exact in {np.dtype(dtype)}")
        scale = np.ldexp(np.asarray(factor, np.float64), -shift).astype(dtype)
        return cls(scale=scale, half=0.5 if shift else 0.0, out=out)

"""The fixed-point arithmetic against the formula in Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int4core.dtypes import S8, S32, U4, U7, U31, IntType
from int4core.errors import EngineError
from int4core.quantize import (
    MAX_SHIFT,
    FloatRescale,
    clamp,
    dequantize_logits,
    relu,
    requantize,
    rounded_mean,
    rounding_half,
)

S32_VALUES = st.integers(-(1 << 31), (1 << 31) - 1)
FACTORS = st.integers(0, 65535)
SHIFTS = st.integers(0, MAX_SHIFT)
NARROW = st.sampled_from([U4, U7, S8])


def plain(x: int, factor: int, shift: int) -> int:
    """The rule before clamping: magnitude rounding, in unbounded integers."""
    v = x * factor
    magnitude = (abs(v) + 2**shift // 2) // 2**shift
    return -magnitude if v < 0 else magnitude


@given(x=S32_VALUES, factor=FACTORS, shift=SHIFTS, out=NARROW)
def test_narrow_types_saturate(x: int, factor: int, shift: int, out: IntType) -> None:
    assert requantize(x, factor, shift, out) == min(max(plain(x, factor, shift), out.lo), out.hi)


@given(x=S32_VALUES, factor=FACTORS, shift=SHIFTS, out=st.sampled_from([U31, S32]))
def test_wide_types_never_wrap(x: int, factor: int, shift: int, out: IntType) -> None:
    expected = plain(x, factor, shift)
    if out.lo <= expected <= out.hi:
        assert requantize(x, factor, shift, out) == expected
    else:
        with pytest.raises(EngineError, match=f"does not fit {out.name}"):
            requantize(x, factor, shift, out)


@given(steps=st.integers(-130, 130), shift=st.integers(1, 20))
def test_ties_round_away_from_zero(steps: int, shift: int) -> None:
    x = (2 * steps + 1) * 2 ** (shift - 1)
    away = steps + 1 if steps >= 0 else steps
    assert requantize(x, 1, shift, S8) == min(max(away, -128), 127)
    assert requantize(x, 1, shift, S32) == away


def test_shift_zero_has_no_rounding_constant() -> None:
    np.testing.assert_array_equal(requantize([-3, 0, 2], 18881, 0, S32), [-56643, 0, 37762])
    assert rounding_half(0) == 0


@pytest.mark.parametrize("x", [(1 << 31) - 1, -(1 << 31)])
def test_the_whole_47_bit_product_counts(x: int) -> None:
    assert requantize(x, 65535, 16, S32) == plain(x, 65535, 16)
    assert requantize(x, 65535, 46, S8) == plain(x, 65535, 46)
    assert requantize(x, 65535, 16, U4) == (15 if x > 0 else 0)


def test_s8_keeps_minus_128() -> None:
    np.testing.assert_array_equal(requantize([-129, -128, 127, 128], 1, 0, S8), [-128, -128, 127, 127])


def test_factor_broadcasts_over_channels() -> None:
    x = np.arange(-6, 6).reshape(1, 2, 2, 3)
    factor = np.array([100, 300]).reshape(1, 2, 1, 1)
    found = requantize(x, factor, 7, S32)
    assert found.shape == x.shape
    for index, value in np.ndenumerate(x):
        assert found[index] == plain(int(value), (100, 300)[index[1]], 7)


@pytest.mark.parametrize("shift", [-1, MAX_SHIFT + 1])
def test_impossible_shift_is_an_error(shift: int) -> None:
    with pytest.raises(EngineError, match="shift_bits"):
        requantize(1, 1, shift, U4)


@given(total=st.integers(0, 49 * 127), count=st.integers(1, 64))
def test_mean_rounds_half_up(total: int, count: int) -> None:
    quotient, rest = divmod(total, count)
    assert rounded_mean(total, count, U7) == min(quotient + (2 * rest >= count), 127)


def test_relu_and_clamp() -> None:
    np.testing.assert_array_equal(relu([-5, 0, 5]), [0, 0, 5])
    np.testing.assert_array_equal(clamp([-5, 7, 99], U4), [0, 7, 15])


def test_scale_divides() -> None:
    logits = dequantize_logits(np.array([[10, -7]], np.int32), np.array([4.0, 2.0], np.float32))
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [[2.5, -3.5]])


def rescaled(rescale: FloatRescale, x: np.ndarray) -> np.ndarray:
    """The rule of FloatRescale, written out: halves away from zero by a signed constant."""
    scaled = x * rescale.scale
    scaled += np.copysign(scaled.dtype.type(rescale.half), scaled)
    narrow = rescale.out.bits <= 8
    return np.clip(np.trunc(scaled), rescale.out.lo, rescale.out.hi) if narrow else np.trunc(scaled)


@given(
    xs=st.lists(st.integers(-(1 << 24) + 1, (1 << 24) - 1), min_size=1, max_size=20),
    factor=FACTORS, shift=SHIFTS, out=st.sampled_from([U4, U7, S8, S32]),
    dtype=st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)]),
)  # fmt: skip
def test_float_rescale_is_exact_or_refuses(
    xs: list[int], factor: int, shift: int, out: IntType, dtype: np.dtype
) -> None:
    bound = max(map(abs, xs))
    try:
        exact = FloatRescale.is_exact(dtype, factor, shift, out, bound)
    except EngineError:
        assert plain(bound, factor, shift) > out.hi
        return
    if not exact:
        assert dtype == np.float32
        with pytest.raises(EngineError, match="not exact"):
            FloatRescale.build(dtype, factor, shift, out, bound)
        return
    found = rescaled(FloatRescale.build(dtype, factor, shift, out, bound), np.array(xs, dtype))
    np.testing.assert_array_equal(found, requantize(xs, factor, shift, out))


def test_the_usual_layers_fit_float32() -> None:
    """Shift 16 to u4, u7 or s8 is exact in float32 for every factor and every sum below 2^24."""
    for out in (U4, U7, S8):
        assert FloatRescale.is_exact(np.dtype(np.float32), 65535, 16, out, (1 << 24) - 1)
    assert not FloatRescale.is_exact(np.dtype(np.float32), 1, 16, U4, 1 << 24)
    assert not FloatRescale.is_exact(np.dtype(np.float32), 65535, 24, U4, (1 << 24) - 1)

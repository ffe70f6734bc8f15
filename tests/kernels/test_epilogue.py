"""The Hopper convolution's memory layouts and constants, against plain index arithmetic; no GPU needed."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from int4core.backends.cuda.families.epilogue import (
    MAGIC,
    OFFSET_BASE,
    channel_constants,
    check_sums,
    rescale_base,
    residual_constants,
    s8_residual_constants,
)
from int4core.backends.cuda.families.layouts import arrange_wgmma, block_channels, tile_channels
from int4core.backends.cuda.plan.ops import Branch, Limits
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.backends.cuda.plan.saturate import saturating_line
from int4core.dtypes import S8, S32, U4, U31
from int4core.errors import EngineError
from int4core.quantize import requantize

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("tile_n", [64, 128, 256])
def test_a_thread_owns_consecutive_output_channels(tile_n: int) -> None:
    channels = tile_channels(tile_n)
    assert sorted(channels) == list(range(tile_n))
    for quad in range(4):
        columns = [8 * j + 2 * quad + e for j in range(tile_n // 8) for e in range(2)]
        assert channels[columns].tolist() == list(range(quad * tile_n // 4, (quad + 1) * tile_n // 4))


@pytest.mark.parametrize("k_bytes", [16, 32, 64])
def test_unpacked_words_meet_their_channels(k_bytes: int) -> None:
    """Unpack a row as the threads do, and read it back through the order of K."""
    row = RNG.integers(0, 16, 2 * k_bytes)
    packed = (row[0::2] | row[1::2] << 4).astype(np.uint8)
    words = k_bytes // 16
    places = np.zeros(2 * k_bytes, np.int64)
    for quad in range(4):
        mine = packed[quad * k_bytes // 4 :][: k_bytes // 4].reshape(words, 4)
        for i in range(words):
            places[32 * i + 4 * quad :][:4] = mine[i] & 15
            places[32 * i + 16 + 4 * quad :][:4] = mine[i] >> 4
    assert places.tolist() == row[block_channels(k_bytes)].tolist()


def test_arranged_weights_give_the_convolution() -> None:
    k, c, taps, tile_n, k_bytes = 128, 128, 3, 64, 32
    weight = RNG.integers(-8, 8, (k, c, taps, taps)).astype(np.int8)
    window = RNG.integers(0, 16, (taps, taps, c))
    arranged = arrange_wgmma(weight, tile_n, k_bytes).astype(np.int64)
    blocks = c // (2 * k_bytes)
    order = block_channels(k_bytes)
    got = np.zeros(k, np.int64)
    for tile in range(k // tile_n):
        for block in range(taps * taps * blocks):
            tap, part = divmod(block, blocks)
            values = window[tap // taps, tap % taps, part * 2 * k_bytes :][: 2 * k_bytes][order]
            columns = np.einsum("kni,ki->n", arranged[tile, block], values.reshape(-1, 16))
            got[tile * tile_n + tile_channels(tile_n)] += columns
    assert got.tolist() == np.einsum("kcrs,rsc->k", weight.astype(np.int64), window).tolist()


def _floor(value: Fraction) -> int:
    return value.numerator // value.denominator


@pytest.mark.parametrize("shift", [1, 8, 16, 22])
def test_one_rounded_multiply_add_is_the_requantisation(shift: int) -> None:
    """The kernel's arithmetic in exact fractions: rounding down in units of 2^-149 is floor."""
    factor = np.concatenate([[0, 1, 2, 3, 3641, 32768, 49152, 65535], RNG.integers(0, 65536, 120)])
    factor = np.minimum(factor, (1 << shift) - 1)
    bias = RNG.integers(-30000, 30000, 128)
    pairs = channel_constants(bias.astype(np.int16), Rescale(factor.astype(np.uint16), shift), 128)
    channel = tile_channels(128)
    offset, scale = pairs["offset"].ravel(), pairs["factor"].ravel()
    correction = pairs["correction"].ravel().view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    halves = [(2 * n + 1) * (1 << shift) // (2 * max(int(factor[3]), 1)) for n in range(17)]
    for column, c in enumerate(channel):
        for x in [0, 1, -1, 524287, -524288, *halves, *RNG.integers(-70000, 70000, 8).tolist()]:
            total = int(x) - int(bias[c]) + int(offset[column])
            if not 0 <= total < 1 << 24:
                continue
            result = _floor(total * Fraction(float(scale[column])) - int(correction[column]))
            clamped = min(max(result, 0), 15)
            want = requantize(max(int(x), 0), int(factor[c]), shift, U4)
            assert clamped == int(want), (x, factor[c])


def _nearest_even(value: Fraction) -> int:
    return round(value)


@pytest.mark.parametrize("shift", [0, 4, 10])
def test_residual_rescaling_rounds_halves_away_from_zero(shift: int) -> None:
    down = np.array([3641, 1, 65535, 32768, 4096, 2048, 1024, 3072] * 8, np.uint16)
    up = RNG.integers(0, min(65535, OFFSET_BASE << shift >> 7), 64).astype(np.uint16)
    bias = np.zeros(64, np.int16)
    pairs = residual_constants(bias, Rescale(down, 16), Rescale(up, shift), 64)
    assert (pairs["offset"] == MAGIC).all()
    channel = tile_channels(64)
    for column, c in enumerate(channel):
        narrow_factor = Fraction(float(pairs["down"].ravel()[column]))
        up_factor = Fraction(float(pairs["up"].ravel()[column]))
        ties = [int((2 * n + 1) * 32768 // int(down[c])) for n in range(-129, 129, 7)]
        for x in [0, 8, -8, 16, -16, 24, -24, 70000, -70000, *ties]:
            narrow = min(max(_nearest_even(x * narrow_factor), -128), 127)
            want = requantize(x, int(down[c]), 16, S8)
            assert narrow == int(want), (x, down[c])
            wide = _nearest_even(narrow * up_factor)
            assert wide == int(requantize(narrow, int(up[c]), shift, S32)), (narrow, up[c])


def branch_of(down: Rescale, up: Rescale) -> Branch:
    k = len(down.factor)
    return Branch("branch", np.zeros((k, 32, 1, 1), np.int8), np.zeros(k, np.int16), down, up, Limits(-70000, 70000))


@pytest.mark.parametrize("shift", [0, 2, 3, 16])
def test_every_s8_is_rescaled_and_added_to_in_one_multiply_add(shift: int) -> None:
    """rescale_s8.cuh's second half: all 2^8 values, all 2^16 factors."""
    factors = np.arange(1 << 16).astype(np.uint16)
    branch = branch_of(Rescale(np.ones_like(factors), 16), Rescale(factors, shift))
    wide = factors.astype(np.int64)
    added = np.where(
        wide % 2, 1 - (-128 * wide >> shift), (1 << 24) - 2 - (127 * wide >> shift)
    )  # the least or the most
    # Tiles of eight are in the order of channels. Products of 24 bits are exact in float64.
    pairs = s8_residual_constants(branch, 8, added)
    up, start = pairs["up"].ravel().astype(np.float64), np.ldexp(pairs["start"].ravel().astype(np.float64), 149)
    for n in range(-128, 128):
        found = np.floor((n + 128 + rescale_base(branch)) * up + start)
        assert np.array_equal(found, requantize(np.int64(n), factors, shift, S32) + added), n


def test_sums_are_rescaled_to_s8_in_a_float_that_is_clamped_as_an_integer() -> None:
    """rescale_s8.cuh's first half where there is no saturating line: a float that is rounded once."""
    factors = np.array(
        [0, 1, 2, 3, 4, 1024, 2048, 3072, 3641, 4096, 6001, 16384, 32768, 49152, 65534, 65535], np.uint16
    )
    x = np.arange(-70000, 70001)
    magic = np.int32(MAGIC).view(np.float32)
    for factor, down in zip(factors, Rescale(factors, 16).nudged, strict=True):
        rounded = (x.astype(np.float64) * np.float64(down) + np.float64(magic)).astype(np.float32).view(np.int32)
        narrow = np.maximum(np.minimum(rounded + np.int32(128 - MAGIC), 255), 0) - 128
        assert np.array_equal(narrow, requantize(x, int(factor), 16, S8)), factor


def test_constants_of_a_first_half_are_a_line_s_or_an_offset_and_a_factor() -> None:
    down, ones = Rescale(np.array([3641, 41] * 4, np.uint16), 16), Rescale(np.ones(8, np.uint16), 0)
    bias = np.full(8, -144, np.int16)
    without = replace(branch_of(down, ones), bias=bias)
    pairs = s8_residual_constants(without, 8, np.full(8, 1000))
    assert saturating_line(without) is None
    assert (pairs["begin"].view(np.int32) == MAGIC - 144).all()
    assert pairs["down"].ravel().tolist() == down.nudged.tolist()
    having = replace(without, down=Rescale(np.full(8, 3641, np.uint16), 16))
    pairs = s8_residual_constants(having, 8, np.full(8, 1000))
    line = saturating_line(having)
    assert line is not None
    assert pairs["begin"].ravel().tolist() == line.start.tolist()
    assert pairs["down"].ravel().tolist() == line.slope.tolist()


def test_rescalings_beyond_the_linear_range_are_refused() -> None:
    ones, most = Rescale(np.ones(64, np.uint16), 16), Rescale(np.full(64, 65535, np.uint16), 0)
    room = np.full(64, 1 << 23)
    s8_residual_constants(branch_of(ones, most), 64, room)
    for branch, added in (
        (branch_of(Rescale(np.full(64, 60000, np.uint16), 2), ones), room),
        (branch_of(ones, Rescale(ones.factor, 17)), room),
        (branch_of(ones, most), room - 128),
        (branch_of(ones, most), room + 65663),
    ):
        with pytest.raises(EngineError, match="need 64 bits"):
            s8_residual_constants(branch, 64, added)


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 16, 22])
def test_a_u4_residual_is_rescaled_halves_up(shift: int) -> None:
    factor = np.concatenate([[0, 1, 2, 3, 4, 6, 16384, 32768, 49152, 65535], RNG.integers(0, 65536, 54)])
    kept = Rescale(factor.astype(np.uint16), shift)
    pairs = channel_constants(np.zeros(64, np.int16), Rescale(np.ones(64, np.uint16), 16), 64, kept)
    scale = pairs["residual_factor"].ravel()
    for column, c in enumerate(tile_channels(64)):
        position = c % 8 if c % 8 < 6 else c % 8 - 6
        for value in range(16):
            got = _nearest_even(value * 16**position * Fraction(float(scale[column])))
            assert got == int(requantize(value, int(factor[c]), shift, U31)), (value, factor[c])


def test_requantisations_the_kernel_cannot_do_are_refused() -> None:
    bias = np.zeros(64, np.int16)
    with pytest.raises(EngineError, match="shift 0"):
        channel_constants(bias, Rescale(np.ones(64, np.uint16), 0), 64)
    with pytest.raises(EngineError, match="residual shift 23"):
        channel_constants(bias, Rescale(np.ones(64, np.uint16), 16), 64, Rescale(np.ones(64, np.uint16), 23))
    up = Rescale(np.full(64, 40000, np.uint16), 0)
    with pytest.raises(EngineError, match="too large"):
        residual_constants(bias, Rescale(np.ones(64, np.uint16), 16), up, 64)


def test_sums_beyond_the_linear_range_are_refused() -> None:
    check_sums(-552_960 - 32768, 552_960 + 491_513 + 32767, 16)
    with pytest.raises(EngineError, match="leave the range"):
        check_sums(-OFFSET_BASE - 1, 0, 16)
    with pytest.raises(EngineError, match="leave the range"):
        check_sums(0, (1 << 24) - OFFSET_BASE - 32768, 16)

"""Which requantisation an operation can use, and its constants: epilogue/requantize.cuh and epilogue/narrow.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.families.layouts import spread_channels
from int4core.backends.cuda.plan.ops import Branch, ConvOp, StemOp
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.backends.cuda.plan.saturate import saturating_line
from int4core.errors import EngineError
from int4core.layers import Int16Array

StructArray: TypeAlias = npt.NDArray[Any]

OFFSET_BASE = 1 << 22
"""Accumulators are shifted up by about this much, so that they are not negative."""

LINEAR = 1 << 24
"""Below it, the bits of a float are proportional to its value."""

MAGIC = 0x4B400000
"""The bits of the float 1.5 * 2^23, whose unit is 1."""

RESIDUAL_SHIFT = 22
"""Largest shift of a u4 residual: scaled by 16^-5 as well, the smallest factor is still a normal float."""

CHANNEL_PAIR = np.dtype(
    [("offset", "<i4", 2), ("factor", "<f4", 2), ("correction", "<f4", 2), ("residual_factor", "<f4", 2)]
)
"""What the requantisation in one multiply-add needs of two neighbouring channels.

offset: bias + offset, less what a residual convolution left in the accumulator; factor: requant factor / 2^shift;
correction: -floor(offset * factor / 2^shift) * 2^-149; residual_factor: of the residual tensor, over 2^shift, and over
16^position of the nibble.
"""

RESIDUAL_PAIR = np.dtype([("offset", "<i4", 2), ("down", "<f4", 2), ("up", "<f4", 2), ("unused", "<f4", 2)])
"""What rescaling a residual convolution needs of two neighbouring channels.

offset: bias + the bits of 1.5 * 2^23; down: factor of the first requantisation, to s8: the float above requant factor /
2^shift; up: of the second: likewise, or the plain factor for shift 0.
"""

S8_RESIDUAL_PAIR = np.dtype([("begin", "<f4", 2), ("down", "<f4", 2), ("up", "<f4", 2), ("start", "<f4", 2)])
"""What rescaling a residual convolution on sm_90 needs of two neighbouring channels.

begin, down: start and slope of `saturating_line`; where there is none, offset and down of RESIDUAL_PAIR, the offset as
the bits of a float; up: requant factor of the second requantisation, plus 2^-S8_FRACTION, over 2^shift; start: bias and
offset of the outputs less 128 times the plain factor, times 2^-149.
"""

WIDE_PAIR = np.dtype(
    [("bias", "<i4", 2), ("factor", "<u4", 2), ("residual_factor", "<u4", 2), ("shift", "<i4"),
     ("residual_shift", "<i4")]
)  # fmt: skip
"""What the requantisation in 64 bits needs of two neighbouring channels."""

WIDE_RESIDUAL_PAIR = np.dtype(
    [("bias", "<i4", 2), ("down", "<u4", 2), ("up", "<u4", 2), ("down_shift", "<i4"), ("up_shift", "<i4")]
)
"""What rescaling a residual convolution in 64 bits needs of two neighbouring channels."""

ELEMENTS = {
    "ChannelPair": CHANNEL_PAIR,
    "ResidualPair": RESIDUAL_PAIR,
    "S8ResidualPair": S8_RESIDUAL_PAIR,
    "WidePair": WIDE_PAIR,
    "WideResidualPair": WIDE_RESIDUAL_PAIR,
}
"""By their names in kernels/epilogue/."""

NARROW_SUMS = 1 << 22
"""Sums of a residual convolution that a float32 near 1.5 * 2^23 holds: below this in magnitude."""

S8_FRACTION = 8
"""Bits that are added to a factor's in epilogue/rescale_s8.cuh: |n| <= 128 is less than their unit."""

S8_SHIFT = 16
"""Largest shift from s8: the base of epilogue/rescale_s8.cuh is below LINEAR."""

NARROW_SHIFT = 16
"""Largest shift to s8 for which the next float above a factor moves halves, and nothing else."""


@dataclass(frozen=True, eq=False)
class Constants:
    """Arrays of the epilogue: of the output's channels, and of a residual convolution's (empty without)."""

    channels: StructArray
    residual: StructArray


def narrow_constants(op: StemOp | ConvOp, tile_n: int) -> Constants:
    """CHANNEL_PAIR and RESIDUAL_PAIR arrays, for the requantisation in one multiply-add.

    Raises:
        EngineError: it would not be exact for this operation; the message says why.
    """
    kept, branch = (op.kept, op.branch) if isinstance(op, ConvOp) else (None, None)
    check_sums(op.limits.low, op.limits.high, op.rescale.shift)
    channels = channel_constants(op.bias, op.rescale, tile_n, kept, branch is not None)
    if branch is None:
        return Constants(channels, channels[:0])
    check_branch(branch)
    return Constants(channels, residual_constants(branch.bias, branch.down, branch.up, tile_n))


def s8_constants(op: ConvOp, tile_n: int) -> Constants:
    """As `narrow_constants`, with S8_RESIDUAL_PAIR for a residual convolution."""
    branch = op.branch
    if branch is None:
        return narrow_constants(op, tile_n)
    check_sums(op.limits.low, op.limits.high, op.rescale.shift)
    check_branch(branch)
    start = op.bias + accumulator_offset(op.rescale.wide, op.rescale.shift)
    return Constants(channel_constants(op.bias, op.rescale, tile_n), s8_residual_constants(branch, tile_n, start))


def s8_options(op: ConvOp) -> dict[str, int]:
    """Constants of a kernel that rescales a residual convolution's sums by epilogue/rescale_s8.cuh."""
    branch = op.branch
    if branch is None:
        return {"RESCALE_BASE": 0, "SATURATED": 0}
    return {"RESCALE_BASE": rescale_base(branch), "SATURATED": int(saturating_line(branch) is not None)}


def rescale_base(branch: Branch) -> int:
    """What is added to the 256 values that epilogue/rescale_s8.cuh multiplies, so that products are rounded."""
    base: int = (1 << S8_FRACTION - 1 + branch.up.shift) - 128
    return base


def check_branch(branch: Branch) -> None:
    """Whether one float32 multiply-add rounds a residual convolution's sums exactly. Raises EngineError."""
    if max(-branch.limits.low, branch.limits.high) >= NARROW_SUMS:
        raise EngineError(f"{branch.name}: sums of {branch.limits.low} to {branch.limits.high} need 64 bits")
    if branch.down.shift > NARROW_SHIFT:
        raise EngineError(f"{branch.name}: a shift of {branch.down.shift} to s8 needs 64 bits")


def wide_constants(op: StemOp | ConvOp, tile_n: int) -> Constants:
    """WIDE_PAIR and WIDE_RESIDUAL_PAIR arrays: exact for every network of the format."""
    kept, branch = (op.kept, op.branch) if isinstance(op, ConvOp) else (None, None)
    channels = _pairs(WIDE_PAIR, op.bias, {"factor": op.rescale}, tile_n)
    channels["shift"] = op.rescale.shift
    if kept is not None:
        channels["residual_factor"] = spread_channels(kept.wide, tile_n)
        channels["residual_shift"] = kept.shift
    if branch is None:
        return Constants(channels, channels[:0])
    residual = _pairs(WIDE_RESIDUAL_PAIR, branch.bias, {"down": branch.down, "up": branch.up}, tile_n)
    residual["down_shift"], residual["up_shift"] = branch.down.shift, branch.up.shift
    return Constants(channels, residual)


def needs_wide(op: StemOp | ConvOp) -> bool:
    """Whether only 64 bits requantise this operation exactly."""
    try:
        narrow_constants(op, 32)
    except EngineError:
        return True
    return False


def _pairs(dtype: np.dtype[np.void], bias: Int16Array, rescales: dict[str, Rescale], tile_n: int) -> StructArray:
    pairs = np.zeros((len(bias) // tile_n, tile_n // 2), dtype)
    pairs["bias"] = spread_channels(bias.astype(np.int64), tile_n)
    for name, rescale in rescales.items():
        pairs[name] = spread_channels(rescale.wide, tile_n)
    return pairs


def accumulator_offset(factor: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
    """Offsets from OFFSET_BASE on: offset * factor / 2^shift = integer + 1/2, where factor is not 0."""
    half = 1 << (shift - 1)
    low_bit = np.where(factor > 0, factor & -factor, 1)
    offset: npt.NDArray[np.int64] = OFFSET_BASE + half // np.minimum(low_bit, half)
    return offset


def check_sums(low: int, high: int, shift: int) -> None:
    """Whether the kernel is exact for accumulators (bias and residual included) of low .. high.

    Planners call it with bounds from the weights; 0 must lie between them.

    Raises:
        EngineError: a sum could leave the range in which a float's bits are proportional to its value.
    """
    most = high + OFFSET_BASE + (1 << max(shift - 1, 0))
    if low < -OFFSET_BASE or most >= LINEAR:
        raise EngineError(f"sums of {low} to {high} leave the range in which one multiply-add is exact")


def channel_constants(
    bias: Int16Array,
    rescale: Rescale,
    tile_n: int,
    kept: Rescale | None = None,
    convolved: bool = False,
) -> StructArray:
    """CHANNEL_PAIR (K / tile_n, tile_n / 2) of the convolution, its own bias and final requantisation.

    `kept` rescales a residual tensor (Residual.U4); `convolved` says that the residual is a convolution.

    Raises:
        EngineError: a requantisation is none the one-instruction rounding can do exactly.
    """
    wide, shift = rescale.wide, rescale.shift
    if not 1 <= shift <= 22:
        raise EngineError(f"requantisation shift {shift}: one multiply-add takes 1..22")
    if (OFFSET_BASE * int(wide.max(initial=0))) >> shift >= LINEAR // 2:
        raise EngineError(f"requant factor {wide.max()} / 2^{shift}: too large for one multiply-add")
    offset = accumulator_offset(wide, shift)
    if np.any((offset * wide) % (1 << shift) != np.where(wide > 0, (1 << shift) >> 1, 0)):
        raise EngineError(f"a requant factor is a multiple of 2^{shift}: one multiply-add takes none")
    correction = (offset * wide) >> shift
    pairs = np.zeros((len(wide) // tile_n, tile_n // 2), CHANNEL_PAIR)
    start = bias.astype(np.int64) + offset - (MAGIC if convolved else 0)
    pairs["offset"] = spread_channels(start, tile_n)
    pairs["factor"] = spread_channels(rescale.scale, tile_n)
    pairs["correction"] = spread_channels(_units(-correction), tile_n)
    if kept is not None:
        if kept.shift > RESIDUAL_SHIFT:
            raise EngineError(f"residual shift {kept.shift}: one multiply-add takes at most {RESIDUAL_SHIFT}")
        place = np.arange(len(wide)) % 8
        scale = np.ldexp(kept.nudged, -4 * np.where(place < 6, place, place - 6))
        pairs["residual_factor"] = spread_channels(scale, tile_n)
    return pairs


def residual_constants(bias: Int16Array, down: Rescale, up: Rescale, tile_n: int) -> StructArray:
    """RESIDUAL_PAIR (K / tile_n, tile_n / 2) of a residual convolution: its bias, to s8, and back to s32.

    Raises:
        EngineError: a rescaled residual could leave the range the kernel's float32 arithmetic is exact in.
    """
    if 128 * int(up.wide.max(initial=0)) >> up.shift >= OFFSET_BASE:
        raise EngineError(f"residual factor {up.wide.max()} / 2^{up.shift}: too large for one multiply-add")
    pairs = np.zeros((len(bias) // tile_n, tile_n // 2), RESIDUAL_PAIR)
    pairs["offset"] = spread_channels(bias.astype(np.int64) + MAGIC, tile_n)
    pairs["down"] = spread_channels(down.nudged, tile_n)
    pairs["up"] = spread_channels(up.nudged, tile_n)
    return pairs


def s8_residual_constants(branch: Branch, tile_n: int, added: npt.NDArray[np.int64]) -> StructArray:
    """S8_RESIDUAL_PAIR (K / tile_n, tile_n / 2) of a residual convolution, with `added` (K,) in its rescaled sums.

    Raises:
        EngineError: what is clamped, or what is added to, could leave the range of exact floats.
    """
    most = max(-branch.limits.low, branch.limits.high) * int(branch.down.wide.max(initial=0)) >> branch.down.shift
    up = branch.up
    # An exact 0 would be rounded down to -0, whose bits are no 0.
    least_sum = int(((-128 * up.wide >> up.shift) + added).min())
    most_sum = int(((127 * up.wide >> up.shift) + 1 + added).max())
    if most >= LINEAR // 2 or up.shift > S8_SHIFT or least_sum < 1 or most_sum >= LINEAR:
        raise EngineError(
            f"{branch.name}: sums rescaled to {most}, and to {least_sum} to {most_sum} over 2^{up.shift}, need 64 bits"
        )
    pairs = np.zeros((len(branch.bias) // tile_n, tile_n // 2), S8_RESIDUAL_PAIR)
    line = saturating_line(branch)
    if line:
        begin, down = line.start, line.slope
    else:
        begin, down = (branch.bias + np.int32(MAGIC)).astype(np.int32).view(np.float32), branch.down.nudged
    pairs["begin"], pairs["down"] = spread_channels(begin, tile_n), spread_channels(down, tile_n)
    pairs["up"] = spread_channels(np.ldexp((up.wide << S8_FRACTION) + 1, -S8_FRACTION - up.shift), tile_n)
    pairs["start"] = spread_channels(_units(added - 128 * up.wide), tile_n)
    return pairs


def _units(values: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Integers below LINEAR in magnitude, times 2^-149: the bits of those that are not negative are the integers."""
    return np.ldexp(values.astype(np.float64), -149).astype(np.float32)

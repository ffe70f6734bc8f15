"""Which requantisation an operation can use, and its constants: epilogue/requantize.cuh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from int4core.backends.cuda.ops import ConvOp, StemOp
from int4core.backends.cuda.sm90_layout import (
    Rescale,
    StructArray,
    channel_constants,
    check_sums,
    residual_constants,
    spread_channels,
)
from int4core.errors import EngineError
from int4core.layers import Int16Array

WIDE_PAIR = np.dtype(
    [("bias", "<i4", 2), ("factor", "<u4", 2), ("residual_factor", "<u4", 2), ("shift", "<i4"),
     ("residual_shift", "<i4")]
)  # fmt: skip
"""`WidePair` in epilogue/requantize.cuh."""

WIDE_RESIDUAL_PAIR = np.dtype(
    [("bias", "<i4", 2), ("down", "<u4", 2), ("up", "<u4", 2), ("down_shift", "<i4"), ("up_shift", "<i4")]
)
"""`WideResidualPair` in epilogue/requantize.cuh."""

NARROW_SUMS = 1 << 22
"""Sums of a residual convolution that a float32 near 1.5 * 2^23 holds: below this in magnitude."""

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
    if max(-branch.limits.low, branch.limits.high) >= NARROW_SUMS:
        raise EngineError(f"{branch.name}: sums of {branch.limits.low} to {branch.limits.high} need 64 bits")
    if branch.down.shift > NARROW_SHIFT:
        raise EngineError(f"{branch.name}: a shift of {branch.down.shift} to s8 needs 64 bits")
    return Constants(channels, residual_constants(branch.bias, branch.down, branch.up, tile_n))


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

"""Memory layouts of the Hopper convolution kernels: weights, and what the epilogue needs of each channel.

Plain NumPy, so that every layout is testable without a GPU. The kernels are
`int4core/kernels/sm90_conv_u4s8.cu` and `sm90_conv3x3_rows_u4s8.cu`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.errors import EngineError
from int4core.layers import Int8Array, Int16Array, UInt16Array

OFFSET_BASE = 1 << 22
"""Accumulators are shifted up by about this much, so that they are not negative."""

LINEAR = 1 << 24
"""Below it, the bits of a float are proportional to its value."""

MAGIC = 0x4B400000
"""The bits of the float 1.5 * 2^23, whose unit is 1."""

RESIDUAL_SHIFT = 22
"""Largest shift of a u4 residual: scaled by 16^-5 as well, the smallest factor is still a normal float."""

StructArray: TypeAlias = npt.NDArray[Any]

CHANNEL_PAIR = np.dtype(
    [("offset", "<i4", 2), ("factor", "<f4", 2), ("correction", "<u4", 2), ("residual_factor", "<f4", 2)]
)
"""`ChannelPair` in epilogue/sm90_requantize.cuh; corrections are kept as bits, because they are denormal."""

RESIDUAL_PAIR = np.dtype([("offset", "<i4", 2), ("down", "<f4", 2), ("up", "<f4", 2), ("unused", "<f4", 2)])
"""`ResidualPair` in epilogue/sm90_requantize.cuh."""


def tile_channels(tile_n: int) -> npt.NDArray[np.intp]:
    """Column of the wgmma tile -> channel inside the tile, so that a thread owns tile_n / 4 consecutive ones.

    Of columns 8j .. 8j+7, thread `quad` holds 8j + 2*quad + e with e = 0, 1 (wgmma's accumulator layout).
    """
    j, quad, e = np.meshgrid(np.arange(tile_n // 8), np.arange(4), np.arange(2), indexing="ij")
    return (quad * (tile_n // 4) + 2 * j + e).ravel()


def block_channels(k_bytes: int) -> npt.NDArray[np.intp]:
    """Place in a block of K -> input channel of the block.

    Thread `quad` reads bytes quad * k_bytes/4 ... of a packed row; of its 32-bit word i, the low nibbles
    are places 32i + 4*quad ..., the high nibbles 16 places further (wgmma's layout of A).
    """
    words = k_bytes // 16
    i, high, quad, b = np.meshgrid(np.arange(words), np.arange(2), np.arange(4), np.arange(4), indexing="ij")
    return (quad * 8 * words + 8 * i + 2 * b + high).ravel()


def arrange_weights(weight: Int8Array, tile_n: int, k_bytes: int) -> Int8Array:
    """int8 (K, C, R, S) -> the bytes the kernel copies: (K / tile_n, blocks, k_bytes / 8, tile_n, 16).

    Blocks run over R, S, then C. Sixteen places of K of eight channels are a core matrix of wgmma.
    """
    k, c, r, s = weight.shape
    block = 2 * k_bytes
    tiles = weight.reshape(k // tile_n, tile_n, c // block, block, r, s)
    ordered = tiles[:, tile_channels(tile_n)][:, :, :, block_channels(k_bytes)]
    ordered = ordered.transpose(0, 4, 5, 2, 3, 1)  # tile, r, s, channel block, place, column
    shape = (k // tile_n, r * s * (c // block), block // 16, 16, tile_n)
    return np.ascontiguousarray(ordered.reshape(shape).transpose(0, 1, 2, 4, 3))


def accumulator_offset(factor: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
    """Offsets near OFFSET_BASE with offset * factor / 2^shift = integer + 1/2, where factor is not 0."""
    half = 1 << (shift - 1)
    low_bit = np.where(factor > 0, factor & -factor, 1)
    offset: npt.NDArray[np.int64] = OFFSET_BASE + half // np.minimum(low_bit, half)
    return offset


def join_weights(main: Int8Array, residual: Int8Array) -> Int8Array:
    """The arranged weights of a residual convolution and of the one it is added to, as one K."""
    return np.concatenate((residual, main), axis=1)


@dataclass(frozen=True, eq=False)
class Rescale:
    """A requantisation: factors (K,) over 2^shift."""

    factor: UInt16Array
    shift: int

    @property
    def wide(self) -> npt.NDArray[np.int64]:
        return self.factor.astype(np.int64)

    @property
    def scale(self) -> npt.NDArray[np.float64]:
        scale: npt.NDArray[np.float64] = np.ldexp(self.factor.astype(np.float64), -self.shift)
        return scale

    @property
    def nudged(self) -> npt.NDArray[np.float32]:
        """The next float32 above each factor / 2^shift; the plain value where no half can occur (shift 0)."""
        plain = self.scale.astype(np.float32)
        return plain if self.shift == 0 else np.nextafter(plain, np.float32(np.inf))


def spread_channels(values: npt.NDArray[Any], tile_n: int) -> npt.NDArray[Any]:
    """(K,) -> (K / tile_n, tile_n / 2, 2): pairs of channels in the order the threads read them."""
    return values.reshape(-1, tile_n)[:, tile_channels(tile_n)].reshape(-1, tile_n // 2, 2)


def check_sums(low: int, high: int, shift: int) -> None:
    """Whether the kernel is exact for accumulators (bias and residual included) of low .. high.

    Planners call it with bounds from the weights; 0 must lie between them.

    Raises:
        EngineError: a sum could leave the range in which a float's bits are proportional to its value.
    """
    most = high + OFFSET_BASE + (1 << max(shift - 1, 0))
    if low < -OFFSET_BASE or most >= LINEAR:
        raise EngineError(f"sums of {low} to {high} leave the range the sm_90a kernel is exact in")


def channel_constants(
    bias: Int16Array, rescale: Rescale, tile_n: int, kept: Rescale | None = None, convolved: bool = False
) -> StructArray:
    """CHANNEL_PAIR (K / tile_n, tile_n / 2) of the convolution, its own bias and final requantisation.

    `kept` rescales a residual tensor (Residual.U4); `convolved` says that the residual is a convolution.

    Raises:
        EngineError: a requantisation is none the one-instruction rounding can do exactly.
    """
    wide, shift = rescale.wide, rescale.shift
    if not 1 <= shift <= 22:
        raise EngineError(f"requantisation shift {shift}: the sm_90a kernel takes 1..22")
    if (OFFSET_BASE * int(wide.max(initial=0))) >> shift >= LINEAR // 2:
        raise EngineError(f"requant factor {wide.max()} / 2^{shift}: too large for the sm_90a kernel")
    offset = accumulator_offset(wide, shift)
    if np.any((offset * wide) % (1 << shift) != np.where(wide > 0, (1 << shift) >> 1, 0)):
        raise EngineError(f"a requant factor is a multiple of 2^{shift}: the sm_90a kernel takes none")
    correction = (offset * wide) >> shift
    pairs = np.zeros((len(wide) // tile_n, tile_n // 2), CHANNEL_PAIR)
    start = bias.astype(np.int64) + offset - (MAGIC if convolved else 0)
    pairs["offset"] = spread_channels(start, tile_n)
    pairs["factor"] = spread_channels(rescale.scale, tile_n)
    pairs["correction"] = spread_channels(np.where(correction > 0, correction | (1 << 31), 0), tile_n)
    if kept is not None:
        if kept.shift > RESIDUAL_SHIFT:
            raise EngineError(f"residual shift {kept.shift}: the sm_90a kernel takes at most {RESIDUAL_SHIFT}")
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
        raise EngineError(f"residual factor {up.wide.max()} / 2^{up.shift}: too large for the sm_90a kernel")
    pairs = np.zeros((len(bias) // tile_n, tile_n // 2), RESIDUAL_PAIR)
    pairs["offset"] = spread_channels(bias.astype(np.int64) + MAGIC, tile_n)
    pairs["down"] = spread_channels(down.nudged, tile_n)
    pairs["up"] = spread_channels(up.nudged, tile_n)
    return pairs

"""What every fused operation is made of: matrix products of a tile, and their way back to bytes.

All arithmetic is on integers that the float type holds exactly: `Products.bound` is proved from the
weights, and an operation takes float64 where float32 would not do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from int4core.backends.numpy.tiles import Array, Tile, Window, Workspace
from int4core.dtypes import S32, IntType
from int4core.errors import EngineError
from int4core.layers import Conv2d, Quantize
from int4core.network import LayerShape
from int4core.quantize import MANTISSA, FloatRescale, rounding_half

Recorder: TypeAlias = Callable[[str, Tile, Array], None]
"""Called with a layer's name, a tile and its values (images, rows, W, C) when a run is traced."""

FLOAT32: np.dtype[Any] = np.dtype(np.float32)
FLOAT64: np.dtype[Any] = np.dtype(np.float64)

TILE_VALUES = 1 << 17
"""Products in a tile: 512 KB of float32, half of a usual second-level cache."""
TILE_PIXELS = 384
"""Fewest pixels in a tile: below this, reading the weights costs more than the products."""
RUN_VALUES = 1 << 14
"""Values in one inner loop over a per-channel vector; a short loop costs more than its arithmetic."""


def tile_pixels(channels: int) -> int:
    """Pixels for a tile with `channels` outputs a pixel."""
    return max(TILE_PIXELS, TILE_VALUES // channels)


def expect_32_bits(bound: int, what: str) -> None:
    """Raises EngineError when magnitudes of up to `bound` do not fit s32."""
    if bound > S32.hi:
        raise EngineError(f"{what} could reach {bound}, which does not fit 32 bits")


class ChannelVector:
    """One value a channel, repeated over as many pixels as make a long inner loop."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self._repeated: dict[int, Array] = {}

    def apply(self, ufunc: np.ufunc, data: Array) -> None:
        """data = ufunc(data, this), in place; `data` is (pixels, C), C-contiguous."""
        run = self._repeated.get(data.shape[0])
        if run is None:
            run = self._repeated[data.shape[0]] = np.tile(self.values, self._repeats(data.shape[0]))
        rows = data.reshape(-1, run.size)
        ufunc(rows, run, out=rows)

    def _repeats(self, pixels: int) -> int:
        most = max(1, RUN_VALUES // self.values.size)
        return next(r for r in range(min(most, pixels), 0, -1) if pixels % r == 0)


class Products:
    """A convolution as one matrix product a tile.

    Attributes:
        bias_values: int64 (K,).
        bound: no sum, with or without its bias, nor any part of one, is larger than this.
    """

    def __init__(self, conv: Conv2d, shape: LayerShape, source: IntType) -> None:
        self.name = conv.name
        self.output = shape.output
        self.window = Window(conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        self._weight = _dense_weight(conv)
        self.bias_values = conv.bias.astype(np.int64)
        largest = max(source.hi, -source.lo)
        sums = np.abs(self._weight.astype(np.int64)).sum(axis=0) * largest + np.abs(self.bias_values)
        self.bound = int(sums.max())
        expect_32_bits(self.bound, f"{conv.name}: sums")

    def prepare(self, dtype: np.dtype[Any]) -> None:
        """Fix the float type; to be called once, before `run`."""
        self.weight = self._weight.astype(dtype)
        self.bias = ChannelVector(self.bias_values.astype(dtype))
        del self._weight

    @property
    def channels(self) -> int:
        return self.output.channels

    def run(self, windows: Array, tile: Tile, space: Workspace, name: str) -> Array:
        """Sums without bias for one tile: (pixels, K), valid until `name` is taken again."""
        source = windows[tile.index]
        matrix = space.take("windows", source.shape, self.weight.dtype)
        np.copyto(matrix, source)
        sums = space.take(name, (tile.pixels, self.channels), self.weight.dtype)
        np.matmul(matrix.reshape(tile.pixels, -1), self.weight, out=sums)
        return sums

    def record(self, record: Recorder, tile: Tile, sums: Array) -> None:
        record(self.name, tile, unflatten(sums + self.bias.values, tile))


def _dense_weight(conv: Conv2d) -> Array:
    """Weights as a matrix (R * S * C, K); a grouped convolution has zeros outside its groups."""
    k, c, r, s = conv.weight.shape
    dense = np.zeros((r, s, c * conv.groups, k), np.int8)
    each = k // conv.groups
    for group in range(conv.groups):
        rows, columns = slice(group * c, (group + 1) * c), slice(group * each, (group + 1) * each)
        dense[:, :, rows, columns] = conv.weight[columns].transpose(2, 3, 1, 0)
    return dense.reshape(-1, k)


def unflatten(data: Array, tile: Tile) -> Array:
    """(pixels, C) -> (images, rows, W, C)."""
    return data.reshape(tile.images.stop - tile.images.start, tile.rows.stop - tile.rows.start, tile.width, -1)


class Rectify:
    """bias + ReLU + Quantize to an unsigned type, in place, leaving bytes-to-be below hi + 1.

    With o = bias * factor + half, the result is floor((x * factor + o) / 2^shift) limited to 0..hi. Where
    it is not limited, |x * factor| <= (hi + 1) * 2^shift + |o|; if such sums are exact in the float type for
    every channel, the bias costs nothing; otherwise it is added first. Where it is limited, rounding keeps
    the order, as `FloatRescale` argues.
    """

    def __init__(self, quantize: Quantize, out: IntType, bias: Array, bound: int, dtype: np.dtype[Any]) -> None:
        factor = quantize.requant_factor.astype(np.int64)
        shift = quantize.shift_bits
        rescale = FloatRescale.build(dtype, factor, shift, out, bound)
        self.name = quantize.name
        self.hi = out.hi
        self.scale = ChannelVector(rescale.scale)
        reach = ((out.hi + 1) << shift) + 2 * int(np.abs(bias * factor).max()) + rounding_half(shift)
        self.bias: ChannelVector | None = None
        offset = np.full(factor.shape, rescale.half)
        if reach <= MANTISSA[dtype]:
            offset += np.ldexp((bias * factor).astype(np.float64), -shift)
        else:
            self.bias = ChannelVector(bias.astype(dtype))
        self.offset = ChannelVector(offset.astype(dtype))

    def run(self, sums: Array) -> None:
        if self.bias is not None:
            self.bias.apply(np.add, sums)
        self.scale.apply(np.multiply, sums)
        self.offset.apply(np.add, sums)
        np.clip(sums, 0, self.hi, out=sums)

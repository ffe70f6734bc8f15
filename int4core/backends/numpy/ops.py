"""The fused operations of the NumPy executor: a convolution and all that follows it, tile by tile.

A tile's windows are cast from bytes into a float matrix, multiplied by the weights, and rescaled back to
bytes while the products are still in the cache. Each operation proves from its weights, when it is built,
that float32 holds all its integers, and takes float64 where it would not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from int4core.backends.numpy.products import (
    FLOAT32,
    FLOAT64,
    ChannelVector,
    Products,
    Recorder,
    Rectify,
    expect_32_bits,
    tile_pixels,
    unflatten,
)
from int4core.backends.numpy.tiles import Array, FeatureMap, Tile, Workspace, tiles
from int4core.dtypes import IntType
from int4core.layers import Conv2d, Int32Array, Linear, MaxPool2d, Pair, Quantize
from int4core.network import LayerShape, Shape
from int4core.quantize import MANTISSA, FloatRescale, rounding_half


@dataclass(frozen=True, eq=False)
class ConvRectify:
    """Convolution, ReLU and Quantize: the stem, and the first two convolutions of a block."""

    products: Products
    rectify: Rectify

    @classmethod
    def build(cls, conv: Conv2d, quantize: Quantize, shape: LayerShape, source: IntType, out: IntType) -> ConvRectify:
        products = Products(conv, shape, source)
        factor, shift = quantize.requant_factor, quantize.shift_bits
        narrow = FloatRescale.is_exact(FLOAT32, factor, shift, out, products.bound)
        dtype = FLOAT32 if narrow else FLOAT64
        products.prepare(dtype)
        return cls(products, Rectify(quantize, out, products.bias_values, products.bound, dtype))

    @property
    def output(self) -> Shape:
        return self.products.output

    def run(self, source: FeatureMap, target: FeatureMap, space: Workspace, record: Recorder | None) -> None:
        windows = source.windows(self.products.window, self.output)
        inside = target.inside
        for tile in tiles(len(inside), self.output, tile_pixels(self.products.channels)):
            sums = self.products.run(windows, tile, space, "sums")
            if record:
                self.products.record(record, tile, sums)
            self.rectify.run(sums)
            np.copyto(inside[tile.index], unflatten(sums, tile), casting="unsafe")
            if record:
                record(self.rectify.name, tile, inside[tile.index])


class KeptResidual:
    """The residual branch that is one Quantize: the block's input, rescaled to 31 bits."""

    def __init__(self, quantize: Quantize, source: IntType, out: IntType) -> None:
        self.quantize, self.source, self.out = quantize, source, out
        factor = quantize.requant_factor.astype(np.int64)
        shift = quantize.shift_bits
        self.bound = (source.hi * int(factor.max()) + rounding_half(shift)) >> shift

    def exact_in(self, dtype: np.dtype[Any]) -> bool:
        q = self.quantize
        return FloatRescale.is_exact(dtype, q.requant_factor, q.shift_bits, self.out, self.source.hi)

    def prepare(self, dtype: np.dtype[Any]) -> None:
        q = self.quantize
        rescale = FloatRescale.build(dtype, q.requant_factor, q.shift_bits, self.out, self.source.hi)
        self.dtype, self.half = dtype, rescale.half
        self.scale = ChannelVector(rescale.scale)
        self.offset = ChannelVector(np.full_like(rescale.scale, rescale.half))

    def bind(self, source: FeatureMap) -> Array:
        return source.inside

    def run(self, source: Array, tile: Tile, space: Workspace, record: Recorder | None) -> Array:
        kept = source[tile.index]
        values = space.take("residual", kept.shape, self.dtype)
        np.copyto(values, kept)
        flat = values.reshape(tile.pixels, -1)
        self.scale.apply(np.multiply, flat)
        if self.half:
            self.offset.apply(np.add, flat)
            np.floor(flat, out=flat)
        if record:
            record(self.quantize.name, tile, values)
        return flat


class ConvResidual:
    """The residual branch with weights: convolution, Quantize to s8, Quantize back to 32 bits."""

    def __init__(
        self, conv: Conv2d, down: Quantize, up: Quantize, shape: LayerShape,
        source: IntType, middle: IntType, out: IntType,
    ) -> None:  # fmt: skip
        self.products = Products(conv, shape, source)
        self.down, self.up, self.middle, self.out = down, up, middle, out
        self.widest = max(middle.hi, -middle.lo)
        reach = self.widest * int(up.requant_factor.max(initial=0)) + rounding_half(up.shift_bits)
        self.bound = reach >> up.shift_bits

    def exact_in(self, dtype: np.dtype[Any]) -> bool:
        steps = ((self.down, self.middle, self.products.bound), (self.up, self.out, self.widest))
        return all(FloatRescale.is_exact(dtype, q.requant_factor, q.shift_bits, out, bound) for q, out, bound in steps)

    def prepare(self, dtype: np.dtype[Any]) -> None:
        self.products.prepare(dtype)
        down, up = self.down, self.up
        self.to_middle = FloatRescale.build(
            dtype, down.requant_factor, down.shift_bits, self.middle, self.products.bound
        )
        self.to_out = FloatRescale.build(dtype, up.requant_factor, up.shift_bits, self.out, self.widest)
        self.down_scale = ChannelVector(self.to_middle.scale)
        self.up_scale = ChannelVector(self.to_out.scale)

    def bind(self, source: FeatureMap) -> Array:
        return source.windows(self.products.window, self.products.output)

    def run(self, windows: Array, tile: Tile, space: Workspace, record: Recorder | None) -> Array:
        values = self.products.run(windows, tile, space, "residual")
        if record:
            self.products.record(record, tile, values)
        self.products.bias.apply(np.add, values)
        self.down_scale.apply(np.multiply, values)
        _round_away(values, self.to_middle.half, space)
        np.clip(values, self.middle.lo, self.middle.hi, out=values)
        if record:
            record(self.down.name, tile, unflatten(values, tile))
        self.up_scale.apply(np.multiply, values)
        _round_away(values, self.to_out.half, space)
        if record:
            record(self.up.name, tile, unflatten(values, tile))
        return values


def _round_away(values: Array, half: float, space: Workspace) -> None:
    """Round to the nearest integer in place, halves away from zero; nothing to do when half is 0."""
    if half:
        signed_half = space.take("signed half", values.shape, values.dtype)
        np.copysign(values.dtype.type(half), values, out=signed_half)
        values += signed_half
        np.trunc(values, out=values)


@dataclass(frozen=True, eq=False)
class BlockTail:
    """quantize3(relu(conv3 + residual)): the end of a bottleneck, one tile of both branches at a time."""

    products: Products
    residual: KeptResidual | ConvResidual
    rectify: Rectify

    @classmethod
    def build(
        cls, products: Products, residual: KeptResidual | ConvResidual, quantize: Quantize, out: IntType
    ) -> BlockTail:
        bound = products.bound + residual.bound
        expect_32_bits(bound, f"{products.name}: sums with the residual")
        factor, shift = quantize.requant_factor, quantize.shift_bits
        narrow = residual.exact_in(FLOAT32) and FloatRescale.is_exact(FLOAT32, factor, shift, out, bound)
        dtype = FLOAT32 if narrow else FLOAT64
        products.prepare(dtype)
        residual.prepare(dtype)
        return cls(products, residual, Rectify(quantize, out, products.bias_values, bound, dtype))

    @property
    def output(self) -> Shape:
        return self.products.output

    def run(
        self, block_input: FeatureMap, source: FeatureMap, target: FeatureMap, space: Workspace,
        record: Recorder | None,
    ) -> None:  # fmt: skip
        windows = source.windows(self.products.window, self.output)
        kept = self.residual.bind(block_input)
        inside = target.inside
        for tile in tiles(len(inside), self.output, tile_pixels(self.products.channels)):
            sums = self.products.run(windows, tile, space, "sums")
            if record:
                self.products.record(record, tile, sums)
            sums += self.residual.run(kept, tile, space, record)
            self.rectify.run(sums)
            np.copyto(inside[tile.index], unflatten(sums, tile), casting="unsafe")
            if record:
                record(self.rectify.name, tile, inside[tile.index])


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Maximum over windows of unsigned bytes, one axis after the other."""

    layer: MaxPool2d
    output: Shape

    @property
    def border(self) -> Pair:
        """Zeros around the input: the padding, and what a partial last window (ceil_mode) reaches over."""
        width = self.layer.padding + (self.layer.stride if self.layer.ceil_mode else 0)
        return width, width

    def run(self, source: FeatureMap, target: FeatureMap, space: Workspace) -> None:
        pool, padded = self.layer, source.padded
        start = self.border[0] - pool.padding
        offsets = [start + tap * pool.dilation for tap in range(pool.kernel_size)]
        n, _, width, channels = padded.shape
        tall = space.take("pooled rows", (n, self.output.height, width, channels), np.uint8)
        rows, columns = self.output.height * pool.stride, self.output.width * pool.stride
        _maximum([padded[:, o : o + rows : pool.stride] for o in offsets], tall)
        _maximum([tall[:, :, o : o + columns : pool.stride] for o in offsets], target.inside)


def _maximum(views: list[Array], out: Array) -> None:
    np.copyto(out, views[0])
    for view in views[1:]:
        np.maximum(out, view, out=out)


class Classifier:
    """The linear layer as one matrix product."""

    def __init__(self, linear: Linear, source: IntType) -> None:
        weight, bias = linear.weight.astype(np.int64), linear.bias.astype(np.int64)
        sums = np.abs(weight).sum(axis=1) * max(source.hi, -source.lo) + np.abs(bias)
        bound = int(sums.max())
        expect_32_bits(bound, f"{linear.name}: sums")
        dtype = FLOAT32 if bound < MANTISSA[FLOAT32] else FLOAT64
        self.name = linear.name
        self.weight = np.ascontiguousarray(weight.T, dtype)
        self.bias = bias.astype(dtype)

    def run(self, features: Array) -> Int32Array:
        """Integers (n, in_features) -> int32 (n, classes)."""
        sums = features.astype(self.weight.dtype) @ self.weight
        sums += self.bias
        result: Int32Array = sums.astype(np.int32)
        return result

"""The PyTorch executor's program: a ResNet compiled to convolutions and passes, run on a few images at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from int4core.backends.numpy.products import FLOAT32, FLOAT64, expect_32_bits
from int4core.backends.numpy.program import Shapes, output_type, residual_layers
from int4core.backends.numpy.tiles import Array, even_cuts
from int4core.backends.torch import passes
from int4core.backends.torch.convolution import Convolution, Fused, Weights, channels_first, channels_last
from int4core.dtypes import U7, IntType
from int4core.errors import EngineError
from int4core.layers import Block, Conv2d, Int8Array, Int32Array, MaxPool2d, Quantize, ResNet
from int4core.network import LayerShape, Shape
from int4core.quantize import FloatRescale, rounded_mean, rounding_half

Recorder: TypeAlias = Callable[[str, slice, Array], None]
"""Called with a layer's name, which images, and their values (images, H, W, C) when a run is traced."""

TAIL_VALUES = 1 << 20
"""Most sums of a tail at once, if they are not of one image: with fewer, calls cost more than a nearer cache saves."""


@dataclass(frozen=True, eq=False)
class Rescale:
    """A Quantize as the passes take it: scale (C,), and half, lo and hi of the scale's type."""

    name: str
    scale: Array
    half: Any
    lo: Any
    hi: Any


@dataclass(frozen=True)
class Step:
    """A Quantize of a pass, its output's type, and the largest magnitude it gets."""

    quantize: Quantize
    out: IntType
    bound: int

    def exact_in(self, dtype: np.dtype[Any]) -> bool:
        quantize = self.quantize
        return FloatRescale.is_exact(dtype, quantize.requant_factor, quantize.shift_bits, self.out, self.bound)

    def rescale(self, dtype: np.dtype[Any]) -> Rescale:
        quantize, kind = self.quantize, dtype.type
        exact = FloatRescale.build(dtype, quantize.requant_factor, quantize.shift_bits, self.out, self.bound)
        return Rescale(quantize.name, exact.scale, kind(exact.half), kind(self.out.lo), kind(self.out.hi))

    @property
    def largest(self) -> int:
        """The largest result, were it not limited."""
        shift = self.quantize.shift_bits
        return (self.bound * int(self.quantize.requant_factor.max(initial=0)) + rounding_half(shift)) >> shift


def rescales(*steps: Step) -> list[Rescale]:
    """Steps of one pass, in float32 where that is exact for all of them, else in float64."""
    dtype = FLOAT32 if all(step.exact_in(FLOAT32) for step in steps) else FLOAT64
    return [step.rescale(dtype) for step in steps]


class ConvRectify:
    """Convolution, ReLU and Quantize: the stem, and all but the last convolution of a block."""

    def __init__(self, conv: Convolution, quantize: Quantize, out: IntType) -> None:
        self.conv, self.name = conv, quantize.name
        self.fused: Fused | None = conv.fuse(quantize, out)
        if self.fused is None:
            (self.rescale,) = rescales(Step(quantize, out, conv.bound))

    def run(self, x: torch.Tensor, record: Recorder | None) -> torch.Tensor:
        sums = self.conv.sums(x) if record or self.fused is None else None
        if self.fused is not None:
            result = self.conv.bytes(x, self.fused)
        else:
            assert sums is not None
            done = np.empty(sums.shape, np.uint8)
            passes.rectify(flat(sums), self.rescale.scale, self.rescale.half, self.rescale.hi, flat(done))
            result = channels_first(done)
        if record and sums is not None:
            record(self.conv.name, slice(None), sums)
            record(self.name, slice(None), channels_last(result))
        return result


class KeptResidual:
    """The residual branch that is one Quantize: the block's input, rescaled to 31 bits."""

    def __init__(self, quantize: Quantize, source: IntType, out: IntType) -> None:
        self.steps = (Step(quantize, out, source.hi),)

    def prepare(self, up: Rescale) -> None:
        self.up = up

    def add(self, sums: Array, x: torch.Tensor, last: Rescale, out: Array) -> None:
        up = self.up
        passes.add_kept(flat(sums), flat(channels_last(x)), up.scale, up.half, last.scale, last.half, last.hi, out)


class ConvResidual:
    """The residual branch with weights: convolution, Quantize to s8, Quantize back to 32 bits."""

    def __init__(self, conv: Convolution, down: Quantize, up: Quantize, middle: IntType, out: IntType) -> None:
        self.conv = conv
        self.steps = (Step(down, middle, conv.bound), Step(up, out, max(middle.hi, -middle.lo)))

    def prepare(self, down: Rescale, up: Rescale) -> None:
        self.down, self.up = down, up

    def add(self, sums: Array, x: torch.Tensor, last: Rescale, out: Array) -> None:
        branch, down, up = self.conv.sums(x), self.down, self.up
        passes.add_convolved(
            flat(sums), flat(branch), down.scale, down.half, down.lo, down.hi, up.scale, up.half,
            last.scale, last.half, last.hi, out,
        )  # fmt: skip


class Tail:
    """The last convolution of a block, the residual, ReLU and Quantize, of some images at a time."""

    def __init__(
        self, conv: Convolution, residual: KeptResidual | ConvResidual, quantize: Quantize, out: IntType, output: Shape
    ) -> None:
        self.conv, self.residual, self.output = conv, residual, output
        bound = conv.bound + residual.steps[-1].largest
        expect_32_bits(bound, f"{conv.name}: sums with the residual")
        *first, self.last = rescales(*residual.steps, Step(quantize, out, bound))
        residual.prepare(*first)
        self.images = max(1, TAIL_VALUES // output.elements)

    def run(self, x: torch.Tensor, source: torch.Tensor, record: Recorder | None) -> torch.Tensor:
        """`x` is the block's input, `source` that of its last convolution."""
        n = len(x)
        done = np.empty((n, self.output.height, self.output.width, self.output.channels), np.uint8)
        for some in even_cuts(n, -(-n // self.images)):
            sums = self.conv.sums(source[some])
            if record:
                record(self.conv.name, some, sums)
            self.residual.add(sums, x[some], self.last, flat(done[some]))
        if record:
            record(self.last.name, slice(None), done)
            if isinstance(self.residual, ConvResidual):
                record(self.residual.conv.name, slice(None), self.residual.conv.sums(x))
        return channels_first(done)


@dataclass(frozen=True, eq=False)
class BlockProgram:
    """One residual block."""

    heads: tuple[ConvRectify, ...]
    tail: Tail

    def run(self, x: torch.Tensor, record: Recorder | None) -> torch.Tensor:
        source = x
        for head in self.heads:
            source = head.run(source, record)
        return self.tail.run(x, source, record)


class Program:
    """A whole network for one input size. `run` is safe from several threads.

    Args:
        net: the network.
        layers: its layers' shapes.
        group: how many images `run` usually gets.
    """

    def __init__(self, net: ResNet, layers: tuple[LayerShape, ...], group: int) -> None:
        self._shapes: Shapes = {layer.name: layer for layer in layers}
        self._group = group
        source = output_type(self._shapes, net.quantize1)
        self.stem = self._rectified(net.conv1, net.quantize1, layers[0].input_type)
        self.maxpool: MaxPool2d = net.maxpool
        self.pooled = self._shapes[net.maxpool.name].output
        blocks = []
        for block in net.blocks:
            blocks.append(self._block(block, source))
            source = output_type(self._shapes, block.quantizes[-1])
        self.blocks = tuple(blocks)
        if net.avgpool.padding:
            raise EngineError(f"{net.avgpool.name}: padding={net.avgpool.padding} is not supported, only 0")
        self.avgpool = net.avgpool
        self.pooled_type = self._shapes[net.avgpool.name].output_type or U7
        self.fc = net.fc.name
        self.classifier = Convolution(Weights.of(net.fc), self.pooled_type, (group, net.fc.in_features, 1, 1))

    def _convolution(self, conv: Conv2d, source: IntType) -> Convolution:
        taken = self._shapes[conv.name].input
        images = (self._group, taken.channels, taken.height, taken.width)
        return Convolution(Weights.of(conv), source, images)

    def _rectified(self, conv: Conv2d, quantize: Quantize, source: IntType) -> ConvRectify:
        out = output_type(self._shapes, quantize)
        return ConvRectify(self._convolution(conv, source), quantize, out)

    def _block(self, block: Block, source: IntType) -> BlockProgram:
        heads, entered = [], source
        for conv, quantize in zip(block.convs[:-1], block.quantizes[:-1], strict=True):
            heads.append(self._rectified(conv, quantize, entered))
            entered = output_type(self._shapes, quantize)
        last, quantize = block.convs[-1], block.quantizes[-1]
        out, output = output_type(self._shapes, quantize), self._shapes[last.name].output
        tail = Tail(self._convolution(last, entered), self._residual(block, source), quantize, out, output)
        return BlockProgram(tuple(heads), tail)

    def _residual(self, block: Block, source: IntType) -> KeptResidual | ConvResidual:
        branch = block.downsample
        if isinstance(branch, Quantize):
            return KeptResidual(branch, source, output_type(self._shapes, branch))
        conv, down, up = residual_layers(branch)
        types = output_type(self._shapes, down), output_type(self._shapes, up)
        return ConvResidual(self._convolution(conv, source), down, up, *types)

    def run(self, x: Int8Array, record: Recorder | None = None) -> Int32Array:
        """int8 (n, C, H, W) -> int32 (n, classes); every intermediate goes to `record` if there is one."""
        n, channels, height, width = x.shape
        image = np.empty((n, height, width, channels), np.uint8)
        passes.to_unsigned(x, image)
        stem = channels_last(self.stem.run(channels_first(image), record))
        pool, shape = self.maxpool, self.pooled
        pooled = np.empty((n, shape.height, shape.width, shape.channels), np.uint8)
        passes.max_pool(stem, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pooled)
        if record:
            record(pool.name, slice(None), pooled)
        current = channels_first(pooled)
        for block in self.blocks:
            current = block.run(current, record)
        return self._head(channels_last(current), record)

    def _head(self, features: Array, record: Recorder | None) -> Int32Array:
        kernel = self.avgpool.kernel_size
        totals = features[:, :kernel, :kernel].sum(axis=(1, 2), dtype=np.int32)
        mean = rounded_mean(totals, kernel * kernel, self.pooled_type).astype(np.uint8)[:, None, None, :]
        sums = self.classifier.sums(channels_first(mean))
        if record:
            record(self.avgpool.name, slice(None), mean)
            record(self.fc, slice(None), sums)
        result: Int32Array = sums[:, 0, 0].astype(np.int32)
        return result


def flat(values: Array) -> Array:
    """(n, H, W, C) -> (pixels, C)."""
    return values.reshape(-1, values.shape[-1])

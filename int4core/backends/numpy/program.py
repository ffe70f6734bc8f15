"""The NumPy executor's program: a ResNet compiled to fused operations, run on a few images at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from int4core.backends.numpy.ops import (
    BlockTail,
    Classifier,
    ConvRectify,
    ConvResidual,
    KeptResidual,
    MaxPool,
)
from int4core.backends.numpy.products import Products, Recorder
from int4core.backends.numpy.tiles import Array, FeatureMap, Tile, Workspace
from int4core.dtypes import U7, IntType
from int4core.errors import EngineError, shown
from int4core.layers import Block, Conv2d, Int8Array, Int32Array, Pair, Quantize, ResNet, Sequential
from int4core.network import LayerShape, Shape
from int4core.quantize import rounded_mean

Shapes: TypeAlias = dict[str, LayerShape]


@dataclass(frozen=True, eq=False)
class BlockProgram:
    """One residual block: rectified convolutions, one or two, and the tail that adds the residual."""

    heads: tuple[ConvRectify, ...]
    tail: BlockTail

    @classmethod
    def build(cls, block: Block, shapes: Shapes, source: IntType) -> BlockProgram:
        heads, entered = [], source
        for conv, quantize in zip(block.convs[:-1], block.quantizes[:-1], strict=True):
            out = output_type(shapes, quantize)
            heads.append(ConvRectify.build(conv, quantize, shapes[conv.name], entered, out))
            entered = out
        last, quantize = block.convs[-1], block.quantizes[-1]
        products = Products(last, shapes[last.name], entered)
        residual = residual_branch(block, shapes, source)
        tail = BlockTail.build(products, residual, quantize, output_type(shapes, quantize))
        return cls(tuple(heads), tail)

    @property
    def input_border(self) -> Pair:
        """The border that serves conv1 and, when it has weights, the residual branch."""
        paddings = [self.heads[0].products.window.padding]
        if isinstance(self.tail.residual, ConvResidual):
            paddings.append(self.tail.residual.products.window.padding)
        return max(p[0] for p in paddings), max(p[1] for p in paddings)

    def run(self, source: FeatureMap, target: FeatureMap, space: Workspace, record: Recorder | None) -> None:
        n, current = len(source.padded), source
        takers = (*(head.products for head in self.heads[1:]), self.tail.products)
        for head, taker, name in zip(self.heads, takers, ("narrow", "mixed"), strict=False):
            inner = FeatureMap.take(space, name, n, head.output, taker.window.padding)
            head.run(current, inner, space, record)
            current = inner
        self.tail.run(source, current, target, space, record)


def output_type(shapes: Shapes, quantize: Quantize) -> IntType:
    found = shapes[quantize.name].output_type
    if found is None:
        raise EngineError(f"{quantize.name}: compute_mode {shown(quantize.compute_mode)} has no integer output")
    return found


def residual_branch(block: Block, shapes: Shapes, source: IntType) -> KeptResidual | ConvResidual:
    branch = block.downsample
    if isinstance(branch, Quantize):
        return KeptResidual(branch, source, output_type(shapes, branch))
    conv, down, up = residual_layers(branch)
    middle, out = output_type(shapes, down), output_type(shapes, up)
    return ConvResidual(conv, down, up, shapes[conv.name], source, middle, out)


def residual_layers(branch: Sequential) -> tuple[Conv2d, Quantize, Quantize]:
    """A residual branch's convolution, its Quantize to s8 and that back to 32 bits. Raises EngineError for others."""
    if [type(layer) for layer in branch.children] != [Conv2d, Quantize, Quantize]:
        raise EngineError(f"{branch.name}: a residual branch is Conv2d, Quantize, Quantize, or one Quantize")
    conv, down, up = branch.children
    assert isinstance(conv, Conv2d)
    assert isinstance(down, Quantize)
    assert isinstance(up, Quantize)
    return conv, down, up


class Program:
    """A whole network for one input size. `run` is safe from several threads, a workspace each."""

    def __init__(self, net: ResNet, layers: tuple[LayerShape, ...]) -> None:
        shapes = {layer.name: layer for layer in layers}
        self.input = layers[0].input
        stem_type = output_type(shapes, net.quantize1)
        self.stem = ConvRectify.build(net.conv1, net.quantize1, shapes[net.conv1.name], layers[0].input_type, stem_type)
        self.maxpool = MaxPool(net.maxpool, shapes[net.maxpool.name].output)
        blocks = []
        source = stem_type
        for block in net.blocks:
            blocks.append(BlockProgram.build(block, shapes, source))
            source = output_type(shapes, block.quantizes[-1])
        self.blocks = tuple(blocks)
        if net.avgpool.padding:
            raise EngineError(f"{net.avgpool.name}: padding={net.avgpool.padding} is not supported, only 0")
        self.avgpool = net.avgpool
        self.pooled_type = shapes[net.avgpool.name].output_type or U7
        self.classifier = Classifier(net.fc, self.pooled_type)

    def run(self, x: Int8Array, space: Workspace, record: Recorder | None = None) -> Int32Array:
        """int8 (n, 3, H, W) -> int32 (n, classes); every intermediate goes to `record` if there is one."""
        n = len(x)
        image = FeatureMap.take(space, "mixed", n, self.input, self.stem.products.window.padding, np.int8)
        np.copyto(image.inside, x.transpose(0, 2, 3, 1))
        stem = FeatureMap.take(space, "narrow", n, self.stem.output, self.maxpool.border)
        self.stem.run(image, stem, space, record)

        current = FeatureMap.take(space, "block 0", n, self.maxpool.output, self.blocks[0].input_border)
        self.maxpool.run(stem, current, space)
        if record:
            record(self.maxpool.layer.name, whole(n, self.maxpool.output), current.inside)
        for i, block in enumerate(self.blocks):
            border = self.blocks[i + 1].input_border if i + 1 < len(self.blocks) else (0, 0)
            target = FeatureMap.take(space, f"block {(i + 1) % 2}", n, block.tail.output, border)
            block.run(current, target, space, record)
            current = target
        return self.head(current.inside, record)

    def head(self, features: Array, record: Recorder | None) -> Int32Array:
        n, _, _, channels = features.shape
        kernel = self.avgpool.kernel_size
        totals = features[:, :kernel, :kernel].sum(axis=(1, 2), dtype=np.int32)
        pooled = rounded_mean(totals, kernel * kernel, self.pooled_type)
        sums = self.classifier.run(pooled)
        if record:
            point = Shape(channels, 1, 1)
            record(self.avgpool.name, whole(n, point), pooled.reshape(n, 1, 1, channels))
            record(self.classifier.name, whole(n, point), sums.reshape(n, 1, 1, -1))
        return sums


def whole(n: int, shape: Shape) -> Tile:
    """The tile of `n` complete maps."""
    return Tile(slice(0, n), slice(0, shape.height), shape.width)

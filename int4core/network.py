"""Shapes and order: what a ResNet computes for one image of a given size, layer by layer.

Planners and executors read shapes here and nowhere else, so that an input size which the strides do
not allow is refused in one place, with the layer's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from int4core.dtypes import INT_TYPES, IntType, split_mode
from int4core.errors import EngineError, shown
from int4core.layers import (
    AvgPool2d,
    Block,
    Conv2d,
    Layer,
    Linear,
    MaxPool2d,
    Pair,
    Quantize,
    ReLU,
    ResNet,
    Scale,
    Sequential,
    walk,
)

MAX_SIDE = 1 << 15
"""Most rows and columns of an input."""

Leaf: TypeAlias = Conv2d | Quantize | ReLU | MaxPool2d | AvgPool2d | Linear | Scale


@dataclass(frozen=True)
class Shape:
    """One image's feature map: channels, height, width (logical order CHW)."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def elements(self) -> int:
        return self.channels * self.pixels

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"


@dataclass(frozen=True, eq=False)
class LayerShape:
    """One leaf layer with what goes in and out of it for one image.

    Attributes:
        layer: the layer itself; `name` and `kind` are its name and class name.
        block: name of the residual block it belongs to, or `` for the stem and the head.
        input, output: shapes for one image.
        input_type, output_type: integer types of the values; None for the float32 logits.
    """

    layer: Leaf
    block: str
    input: Shape
    output: Shape
    input_type: IntType
    output_type: IntType | None

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def kind(self) -> str:
        return type(self.layer).__name__

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image; 0 for layers that are not products with weights."""
        if isinstance(self.layer, Conv2d):
            k, c, r, s = self.layer.weight.shape
            return int(k * c * r * s) * self.output.pixels
        return self.layer.weight.size if isinstance(self.layer, Linear) else 0

    @property
    def weight_bits(self) -> int:
        """Bits of the weights at their declared width, without biases and factors."""
        if isinstance(self.layer, Conv2d):
            return self.layer.weight.size * INT_TYPES[self.layer.weight_dtype].bits
        return self.layer.weight.size * 8 if isinstance(self.layer, Linear) else 0

    @property
    def input_bytes(self) -> int:
        """Bytes of one image's input with every value packed: u4 takes 4 bits, u7 and s8 take 8."""
        return packed_bytes(self.input, self.input_type)


def packed_bytes(shape: Shape, dtype: IntType) -> int:
    """Bytes of a map whose values take 4, 8, 16 or 32 bits, whichever first holds `dtype`."""
    width = next(bits for bits in (4, 8, 16, 32) if bits >= dtype.bits)
    return (shape.elements * width + 7) // 8


def default_input_size(net: ResNet) -> Pair:
    """The (H, W) that leaves exactly one average-pool window: kernel times the product of all strides.

    224 x 224 for ResNet-50 (a window of 7 and a total stride of 32).

    Raises:
        EngineError: that is more than MAX_SIDE pixels a side.
    """
    height = width = net.avgpool.kernel_size * net.maxpool.stride
    for conv in (net.conv1, *(block.strided for block in net.blocks)):
        height, width = height * conv.stride[0], width * conv.stride[1]
        if max(height, width) > MAX_SIDE:
            raise EngineError(
                f"the strides up to {shown(conv.name)} make the network's own input size larger than {MAX_SIDE} pixels "
                "a side, the most that is computed; give an input size, or check the strides"
            )
    return height, width


def trace_shapes(net: ResNet, size: Pair | None = None) -> tuple[LayerShape, ...]:
    """Every leaf layer in running order, with its shapes for one image of `size` = (H, W).

    `size` defaults to `default_input_size(net)`. Inside a bottleneck the order is conv1, quantize1,
    conv2, quantize2, conv3, the residual branch, relu, quantize3; a basic block ends with conv2.

    Raises:
        EngineError: the size is larger than MAX_SIDE, or does not fit: a map smaller than a window, a residual
            branch whose shape differs from the last convolution's, or an average pool that leaves more than one pixel.
    """
    height, width = default_input_size(net) if size is None else size
    if height < 1 or width < 1:
        raise EngineError(f"input size {height}x{width} is not positive")
    if max(height, width) > MAX_SIDE:
        size_said = shown(f"{height}x{width}")
        raise EngineError(f"input size {size_said} is over {MAX_SIDE} pixels a side, the most that is computed")
    tracer = _Tracer(net, f"{height}x{width}")
    tracer.run(Shape(net.conv1.in_channels, height, width))
    return tuple(tracer.found)


class _Tracer:
    """Walks the network once; `found` is what it has seen, `size` only serves messages."""

    def __init__(self, net: ResNet, size: str) -> None:
        self.net = net
        self.size = size
        self.block = ""
        self.found: list[LayerShape] = []

    def run(self, shape: Shape) -> None:
        net = self.net
        shape = self.leaves(shape, net.conv1, net.quantize1, net.relu, net.maxpool)
        for block in net.blocks:
            self.block = block.name
            shape = self.residual_block(block, shape)
        self.block = ""
        pooled = self.leaves(shape, net.avgpool)
        if pooled.pixels != 1:
            why = f"leaves {pooled.height}x{pooled.width} pixels of a {shape} map, and fc needs one"
            raise self.misfit(net.avgpool, why)
        self.leaves(pooled, net.fc, net.scale)

    def residual_block(self, block: Block, shape: Shape) -> Shape:
        inner = zip(block.convs[:-1], block.quantizes[:-1], strict=True)
        main = self.leaves(shape, *(layer for pair in inner for layer in pair), block.convs[-1])
        branch = block.downsample
        layers = walk(branch) if isinstance(branch, Sequential) else [branch]
        residual = self.leaves(shape, *(layer for layer in layers if isinstance(layer, Leaf)))
        if residual != main:
            raise self.misfit(branch, f"gives a {residual} residual, but {block.convs[-1].name} gives {main}")
        return self.leaves(main, block.relu, block.quantizes[-1])

    def leaves(self, shape: Shape, *layers: Leaf) -> Shape:
        for layer in layers:
            output = self.output_shape(layer, shape)
            names = split_mode(layer.compute_mode)
            last = INT_TYPES.get(names[-1])
            first = INT_TYPES[names[0]]
            self.found.append(LayerShape(layer, self.block, shape, output, first, last))
            shape = output
        return shape

    def output_shape(self, layer: Leaf, shape: Shape) -> Shape:
        if isinstance(layer, Conv2d):
            self.expect_channels(layer, shape, layer.in_channels)
            h, w = (
                self.windows(layer, extent, kernel, stride, pad, dilation, False)
                for extent, kernel, stride, pad, dilation in zip(
                    (shape.height, shape.width),
                    layer.kernel_size,
                    layer.stride,
                    layer.padding,
                    layer.dilation,
                    strict=True,
                )
            )
            return Shape(layer.out_channels, h, w)
        if isinstance(layer, (MaxPool2d, AvgPool2d)):
            dilation = layer.dilation if isinstance(layer, MaxPool2d) else 1
            h, w = (
                self.windows(layer, extent, layer.kernel_size, layer.stride, layer.padding, dilation, layer.ceil_mode)
                for extent in (shape.height, shape.width)
            )
            return Shape(shape.channels, h, w)
        if isinstance(layer, Linear):
            self.expect_channels(layer, shape, layer.in_features)
            return Shape(layer.out_features, 1, 1)
        if isinstance(layer, Quantize):
            self.expect_channels(layer, shape, layer.channels)
        return shape

    def windows(
        self, layer: Leaf, extent: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool
    ) -> int:
        """How many windows fit along one axis (PyTorch's rule, `ceil_mode` included)."""
        span = dilation * (kernel - 1) + 1
        free = extent + 2 * pad - span
        if free < 0:
            raise self.misfit(layer, f"needs {span} pixels and its padded input has {extent + 2 * pad}")
        count = free // stride + 1
        # A partial window counts only when it starts inside the map or its left padding.
        if ceil_mode and free % stride and count * stride < extent + pad:
            count += 1
        return count

    def expect_channels(self, layer: Leaf, shape: Shape, channels: int) -> None:
        if shape.channels != channels:
            raise EngineError(f"{layer.name} takes {channels} channels and gets {shape.channels}")

    def misfit(self, layer: Layer, why: str) -> EngineError:
        return EngineError(f"input size {self.size} does not fit this network: {layer.name} {why}")

"""Typed layers of a quantised ResNet, exactly as the model directory describes them.

A layer is its file: the same fields, in the same order, so that a model that is read and
written again gives the same bytes. Tensors are NumPy arrays in their logical (unpacked) type;
how they lie on disk is the business of `int4core.format`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Int8Array: TypeAlias = npt.NDArray[np.int8]
Int16Array: TypeAlias = npt.NDArray[np.int16]
Int32Array: TypeAlias = npt.NDArray[np.int32]
UInt16Array: TypeAlias = npt.NDArray[np.uint16]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Convolution plus bias: u4/s8 activations x s4/s8 weights -> s32.

    weight: int8 (K, C // groups, R, S), values of `weight_dtype` (`s4` or `s8`).
    bias: int16 (K,).
    """

    name: str
    compute_mode: str
    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bias: Int16Array
    weight: Int8Array
    weight_dtype: str


@dataclass(frozen=True, eq=False)
class Quantize:
    """Fixed-point rescale: (x * requant_factor[c] rounded >> shift_bits), clamped to the output type.

    requant_factor: uint16 (C,), stored as `1 C 1 1`; `max_requant` is its maximum.
    """

    name: str
    compute_mode: str
    output_bits: int
    shift_bits: int
    max_requant: int
    requant_factor: UInt16Array

    @property
    def channels(self) -> int:
        return int(self.requant_factor.shape[0])


@dataclass(frozen=True, eq=False)
class ReLU:
    """max(x, 0) on s32."""

    name: str
    compute_mode: str
    inplace: bool


@dataclass(frozen=True, eq=False)
class MaxPool2d:
    """Maximum over a square window of u4 values; padding never wins, because values are >= 0."""

    name: str
    compute_mode: str
    kernel_size: int
    stride: int
    padding: int
    dilation: int
    return_indices: bool
    ceil_mode: bool


@dataclass(frozen=True, eq=False)
class AvgPool2d:
    """Mean over a square window of u7 values, rounded half up to u7."""

    name: str
    compute_mode: str
    kernel_size: int
    stride: int
    padding: int
    ceil_mode: bool
    count_include_pad: bool


@dataclass(frozen=True, eq=False)
class Linear:
    """Fully connected layer: u7 activations x s8 weights + s32 bias -> s32.

    weight: int8 (out_features, in_features); bias: int32 (out_features,).
    """

    name: str
    compute_mode: str
    in_features: int
    out_features: int
    bias: Int32Array
    weight: Int8Array


@dataclass(frozen=True, eq=False)
class Scale:
    """logits = s32 accumulator / out_scale (it divides). out_scale: float32 (classes,)."""

    name: str
    compute_mode: str
    out_scale: Float32Array


@dataclass(frozen=True, eq=False)
class Sequential:
    """Children `NAME_0`, `NAME_1`, ... one after the other."""

    name: str
    children: tuple[Layer, ...]


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """One residual block (`BottleneckQuantized` in the format).

    out = quantize3(relu(conv3(q2(relu(conv2(q1(relu(conv1(x)))))) + downsample(x))), the sum in s32.
    `downsample` always exists: a Sequential of (Conv2d, Quantize to s8, Quantize back to s32), or one
    Quantize (u4 -> u31). `stride` is the block's; it equals conv2's.
    """

    name: str
    stride: int
    downsample_layer: bool
    conv1: Conv2d
    quantize1: Quantize
    conv2: Conv2d
    quantize2: Quantize
    conv3: Conv2d
    quantize3: Quantize
    relu: ReLU
    downsample: Sequential | Quantize

    @property
    def convs(self) -> tuple[Conv2d, ...]:
        """Its convolutions in running order, without the residual branch's; the last one's sums get the residual."""
        return self.conv1, self.conv2, self.conv3

    @property
    def quantizes(self) -> tuple[Quantize, ...]:
        """What follows each of `convs`."""
        return self.quantize1, self.quantize2, self.quantize3

    @property
    def strided(self) -> Conv2d:
        """The convolution that has the block's stride."""
        return self.conv2


@dataclass(frozen=True, eq=False)
class BasicBlock:
    """One residual block of two 3x3 convolutions (`BasicBlockQuantized`), as in ResNet-18 and 34.

    This project's extension: the published format has bottlenecks only.
    out = quantize2(relu(conv2(q1(relu(conv1(x)))) + downsample(x))), the sum in s32. `downsample` and `stride` are as
    in Bottleneck; the stride equals conv1's.
    """

    name: str
    stride: int
    downsample_layer: bool
    conv1: Conv2d
    quantize1: Quantize
    conv2: Conv2d
    quantize2: Quantize
    relu: ReLU
    downsample: Sequential | Quantize

    @property
    def convs(self) -> tuple[Conv2d, ...]:
        """As Bottleneck's."""
        return self.conv1, self.conv2

    @property
    def quantizes(self) -> tuple[Quantize, ...]:
        """What follows each of `convs`."""
        return self.quantize1, self.quantize2

    @property
    def strided(self) -> Conv2d:
        """The convolution that has the block's stride."""
        return self.conv1


Block: TypeAlias = Bottleneck | BasicBlock


@dataclass(frozen=True, eq=False)
class ResNet:
    """The whole network (`ResNetQuantized`, the file named `model`)."""

    compute_mode: str
    conv1: Conv2d
    quantize1: Quantize
    relu: ReLU
    maxpool: MaxPool2d
    layer1: Sequential
    layer2: Sequential
    layer3: Sequential
    layer4: Sequential
    avgpool: AvgPool2d
    fc: Linear
    scale: Scale

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every residual block, in the order they run."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return tuple(b for stage in stages for b in stage.children if isinstance(b, Block))

    @property
    def classes(self) -> int:
        return self.fc.out_features


Layer: TypeAlias = (
    Conv2d | Quantize | ReLU | MaxPool2d | AvgPool2d | Linear | Scale | Sequential | Bottleneck | BasicBlock
)


def children(layer: Any) -> Iterator[Layer]:
    """The direct children of a Sequential, a block or a ResNet, in running order; none for a leaf."""
    if isinstance(layer, Sequential):
        yield from layer.children
    elif isinstance(layer, Block):
        for conv, quantize in zip(layer.convs[:-1], layer.quantizes[:-1], strict=True):
            yield from (conv, quantize)
        yield from (layer.convs[-1], layer.downsample, layer.relu, layer.quantizes[-1])
    elif isinstance(layer, ResNet):
        yield from (layer.conv1, layer.quantize1, layer.relu, layer.maxpool)
        yield from (layer.layer1, layer.layer2, layer.layer3, layer.layer4)
        yield from (layer.avgpool, layer.fc, layer.scale)


def walk(layer: Any) -> Iterator[Layer]:
    """Every layer below `layer`, parents first."""
    for child in children(layer):
        yield child
        yield from walk(child)

"""A ResNet with random weights, in exactly the published format: untrained, for tests and trials.

Nothing is run to choose its factors. Each layer's sums are taken as normal, with a spread that follows
from its weights and from the moments of its input, and each factor puts that spread into the range of
the output type, as training would. Biases cancel the mean that positive activations bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, pi, sqrt
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.dtypes import INT_TYPES
from int4core.layers import (
    AvgPool2d,
    BasicBlock,
    Block,
    Bottleneck,
    Conv2d,
    Int8Array,
    Linear,
    MaxPool2d,
    Quantize,
    ReLU,
    ResNet,
    Scale,
    Sequential,
)
from int4core.model import Model
from int4core.validate import check_network

Float64Array: TypeAlias = npt.NDArray[np.float64]

EXPANSION = 4
"""Output channels of a bottleneck over its inner width (He et al. 2015, arXiv 1512.03385)."""

IMAGE_SPREAD = 48.0
"""Standard deviation of the s8 input: 127 / 2.64 for images normalised to a deviation of 1."""

S4_SPREAD, S8_SPREAD = 1.6, 18.0
"""Standard deviations of the weights; those of the published model are 1.0 to 1.9 and 17 to 20."""

U16_MAX = 65535
S16_MAX = 32767

REACH = 2.5
"""A factor puts this many deviations above the mean at the top of the output range."""

S8_REACH = 16.0
"""Deviation of the s8 values between the two Quantize layers of a residual branch."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a tensor's values, over channels and images."""

    mean: float
    spread: float


def random_model(
    *,
    blocks: Sequence[int] = (1, 1, 1, 1),
    width: int = 16,
    classes: int = 16,
    stem_channels: int | None = None,
    pool: int = 7,
    seed: int = 0,
    basic: bool = False,
) -> Model:
    """An untrained ResNet: its answers mean nothing, its arithmetic is that of a trained one.

    ResNet-50 is `blocks=(3, 4, 6, 3), width=64, classes=1000`, ResNet-34 the same with
    `basic=True`. The same arguments give the same model.

    Args:
        blocks: residual blocks of each of the four stages, each at least 1; the strides are 1, 2, 2, 2.
        width: inner channels of the first stage; they double with each stage.
        classes: outputs.
        stem_channels: outputs of the first convolution; `width` if None.
        pool: side of the last map, and so of the average pool: inputs are 32 * pool pixels square.
        seed: of the weights.
        basic: blocks of two 3x3 convolutions instead of bottlenecks.

    Raises:
        ModelError: the sizes make no valid network.
        ValueError: `blocks` does not name four stages.
    """
    if len(blocks) != 4:
        raise ValueError(f"blocks={tuple(blocks)} must name four stages")
    network = _Maker(seed, basic).network(blocks, width, classes, stem_channels or width, pool)
    check_network(network)
    return Model(network)


class _Maker:
    """Makes layers in running order; `seen` are the moments of the tensor that the next one takes."""

    def __init__(self, seed: int, basic: bool) -> None:
        self.random = np.random.default_rng(seed)
        self.basic = basic
        self.expansion = 1 if basic else EXPANSION
        self.seen = Moments(0.0, IMAGE_SPREAD)

    def network(self, blocks: Sequence[int], width: int, classes: int, stem_channels: int, pool: int) -> ResNet:
        conv1, spread = self.conv("conv1", "s8s8s32", 3, stem_channels, 7, 2)
        quantize1 = self.quantize("quantize1", "u31u16u4", np.zeros(stem_channels), spread)
        channels, stages = stem_channels, []
        for i, count in enumerate(blocks):
            made = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                last = i == 3 and j == count - 1
                made.append(self.block(f"layer{i + 1}_{j}", channels, width << i, stride, last))
                channels = (width << i) * self.expansion
            stages.append(Sequential(f"layer{i + 1}", tuple(made)))
        fc, spread = self.linear(channels, classes)
        return ResNet(
            compute_mode="s8f32",
            conv1=conv1,
            quantize1=quantize1,
            relu=ReLU("relu", "s32u31", True),
            maxpool=MaxPool2d("maxpool", "u4u4", 3, 2, 1, 1, False, False),
            layer1=stages[0],
            layer2=stages[1],
            layer3=stages[2],
            layer4=stages[3],
            avgpool=AvgPool2d("avgpool", "u7u7", pool, 1, 0, False, True),
            fc=fc,
            scale=Scale("scale", "s32f32f32", (np.maximum(spread, 1.0) / 2).astype(np.float32)),
        )

    def block(self, name: str, channels: int, inner: int, stride: int, last: bool) -> Block:
        outer = inner * self.expansion
        plan = [(channels, inner, 3, stride), (inner, outer, 3, 1)]
        if not self.basic:
            plan = [(channels, inner, 1, 1), (inner, inner, 3, stride), (inner, outer, 1, 1)]
        entered = self.seen
        parts: dict[str, Any] = {}
        for i, (c, k, kernel, step) in enumerate(plan, start=1):
            conv, spread = self.conv(f"{name}_conv{i}", "u4s4s32", c, k, kernel, step)
            parts[f"conv{i}"] = conv
            if i < len(plan):
                parts[f"quantize{i}"] = self.quantize(f"{name}_quantize{i}", "u31u16u4", np.zeros(k), spread)
        left, self.seen = self.seen, entered
        downsample: Sequential | Quantize
        if stride == 1 and channels == outer:
            downsample, means, added = self.identity(f"{name}_downsample", spread)
        else:
            downsample, means, added = self.projection(f"{name}_downsample", channels, outer, stride, spread)
        self.seen = left
        # Half of the residual's mean stays: without any, a deep network would lose it block by block.
        np.subtract(conv.bias, np.rint(means / 2).clip(0, S16_MAX // 2).astype(np.int16), out=conv.bias)
        mode, i = "u31u16u7" if last else "u31u16u4", len(plan)
        parts[f"quantize{i}"] = self.quantize(f"{name}_quantize{i}", mode, means / 2, np.hypot(spread, added))
        kind = BasicBlock if self.basic else Bottleneck
        relu = ReLU(f"{name}_relu", "s32u31", True)
        return kind(name=name, stride=stride, downsample_layer=True, relu=relu, downsample=downsample, **parts)

    def identity(self, name: str, target: Float64Array) -> tuple[Quantize, Float64Array, Float64Array]:
        """A residual as wide as `target`; with it the mean and deviation that it has by its factors."""
        factor = _u16(2 * target / self.seen.spread * self.jitter(len(target)))
        rescale = factor / 2.0
        layer = Quantize(name, "u4u16u31", 31, 1, int(factor.max()), factor)
        return layer, self.seen.mean * rescale, self.seen.spread * rescale

    def projection(
        self, name: str, channels: int, outer: int, stride: int, target: Float64Array
    ) -> tuple[Sequential, Float64Array, Float64Array]:
        """A convolution as the residual, through s8; otherwise as `identity`."""
        conv, spread = self.conv(f"{name}_0", "u4s4s32", channels, outer, 1, stride)
        down = _u16(S8_REACH / spread * 2**16)
        spread = spread * down / 2**16
        up = _u16(target / spread * 2**10 * self.jitter(outer))
        parts = (
            conv,
            Quantize(f"{name}_1", "s32u16s8", 7, 16, int(down.max()), down),
            Quantize(f"{name}_2", "s8u16s32", 31, 10, int(up.max()), up),
        )
        return Sequential(name, parts), np.zeros(outer), spread * up / 2**10

    def conv(
        self, name: str, mode: str, channels: int, outputs: int, kernel: int, stride: int
    ) -> tuple[Conv2d, Float64Array]:
        """The convolution, and the deviation of each output's sum; biases centre the sums."""
        dtype = "s8" if mode.startswith("s8") else "s4"
        weight = self.weights((outputs, channels, kernel, kernel), dtype)
        total, spread = self.response(weight)
        bias = np.rint(self.random.normal(0.0, 0.2, outputs) * spread - self.seen.mean * total)
        layer = Conv2d(
            name=name,
            compute_mode=mode,
            in_channels=channels,
            out_channels=outputs,
            kernel_size=(kernel, kernel),
            stride=(stride, stride),
            padding=(kernel // 2, kernel // 2),
            dilation=(1, 1),
            groups=1,
            bias=bias.clip(-S16_MAX // 2, S16_MAX // 2).astype(np.int16),
            weight=weight,
            weight_dtype=dtype,
        )
        return layer, spread

    def linear(self, channels: int, classes: int) -> tuple[Linear, Float64Array]:
        weight = self.weights((classes, channels), "s8")
        total, spread = self.response(weight)
        bias = np.rint(-self.seen.mean * total).astype(np.int32)
        return Linear("fc", "u7s8s32", channels, classes, bias, weight), spread

    def quantize(self, name: str, mode: str, mean: Float64Array, spread: Float64Array) -> Quantize:
        """From sums of this mean and deviation, after ReLU, to u4 or u7."""
        top = 127 if mode.endswith("u7") else 15
        rescale = top / (mean + REACH * spread) * self.jitter(len(spread))
        factor = _u16(rescale * 2**16)
        self.seen = _rectified(mean * factor / 2**16, spread * factor / 2**16)
        return Quantize(name, mode, 7 if top == 127 else 4, 16, int(factor.max()), factor)

    def weights(self, shape: tuple[int, ...], dtype: str) -> Int8Array:
        """Nearly normal weights, drawn a byte each from a table of quantiles.

        The ends of the table are the limits of the type, so that every model has weights of -8 and 7.
        """
        normal = NormalDist(0.0, S8_SPREAD if dtype == "s8" else S4_SPREAD)
        table = np.rint([normal.inv_cdf((i + 0.5) / 256) for i in range(256)]).astype(np.int8)
        table[0], table[-1] = INT_TYPES[dtype].lo, INT_TYPES[dtype].hi
        weights: Int8Array = table[self.random.integers(0, 256, shape, np.uint8)]
        return weights

    def response(self, weight: Int8Array) -> tuple[Float64Array, Float64Array]:
        """For each output: the sum of its weights, and its deviation for independent inputs as `seen`."""
        rows = weight.reshape(len(weight), -1)
        squares = np.einsum("kc,kc->k", rows, rows, dtype=np.float64)
        spread = np.sqrt(np.maximum(squares, 1.0)) * self.seen.spread
        return rows.sum(axis=1, dtype=np.float64), spread

    def jitter(self, channels: int) -> Float64Array:
        """Factors of trained channels differ; these do by about a quarter."""
        return np.asarray(self.random.uniform(0.75, 1.25, channels))


def _u16(x: Float64Array) -> npt.NDArray[np.uint16]:
    return np.rint(x).clip(1, U16_MAX).astype(np.uint16)


def _rectified(mean: Float64Array, spread: Float64Array) -> Moments:
    """Moments of max(z, 0) for normal z, taken together over channels; the upper clamp is left out."""
    normal = NormalDist()
    first = second = 0.0
    for m, s in zip(mean.tolist(), spread.tolist(), strict=True):
        below, density = normal.cdf(m / s), exp(-((m / s) ** 2) / 2) / sqrt(2 * pi)
        first += m * below + s * density
        second += (m * m + s * s) * below + m * s * density
    first, second = first / len(mean), second / len(mean)
    return Moments(first, sqrt(max(second - first * first, 1e-6)))

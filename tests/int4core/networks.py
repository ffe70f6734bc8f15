"""Small random networks of any shape, and a plain int64 reference that shares no code with the engine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from int4core.layers import (
    AvgPool2d,
    BasicBlock,
    Bottleneck,
    Conv2d,
    Linear,
    MaxPool2d,
    Quantize,
    ReLU,
    ResNet,
    Scale,
    Sequential,
)


class Maker:
    """Draws layers with full-range weights and factors that leave most results unsaturated."""

    def __init__(self, seed: int, shift: int = 16, bias: int = 300) -> None:
        self.rng = np.random.default_rng(seed)
        self.shift = shift
        self.bias = bias

    def conv(self, name: str, c: int, k: int, kernel: int = 1, stride: int = 1, **more) -> Conv2d:
        bits = more.pop("bits", 4)
        groups = more.get("groups", 1)
        dilation = more.pop("dilation", 1)
        high = 1 << (bits - 1)
        conv = Conv2d(
            name=name, compute_mode="s8s8s32" if bits == 8 else "u4s4s32", in_channels=c, out_channels=k,
            kernel_size=(kernel, kernel), stride=(stride, stride), groups=groups, dilation=(dilation,) * 2,
            padding=(dilation * (kernel // 2),) * 2, weight_dtype=f"s{bits}",
            bias=self.rng.integers(-self.bias, self.bias + 1, k).astype(np.int16),
            weight=self.rng.integers(-high, high, (k, c // groups, kernel, kernel)).astype(np.int8),
        )  # fmt: skip
        return replace(conv, **more)

    def quantize(self, name: str, mode: str, bits: int, spread: float, channels: int) -> Quantize:
        """`spread` is a usual |x|; the largest factors send it near the top of the output range."""
        top = (1 << bits) * 2.0**self.shift / spread
        factor = np.clip(self.rng.uniform(0.3, 2.0, channels) * top, 0, 65535).astype(np.uint16)
        return Quantize(name, mode, bits, self.shift, int(factor.max()), factor)

    def bottleneck(self, name: str, c: int, width: int, stride: int, last: bool, dilation: int, groups: int):
        out = 4 * width
        spread = 35 * np.sqrt(width)
        conv1 = self.conv(f"{name}_conv1", c, width)
        conv2 = self.conv(f"{name}_conv2", width, width, 3, stride, dilation=dilation, groups=groups)
        conv3 = self.conv(f"{name}_conv3", width, out)
        mode, bits = ("u31u16u7", 7) if last else ("u31u16u4", 4)
        branch = self.branch(name, c, out, stride)
        return Bottleneck(
            name, stride, isinstance(branch, Sequential),
            conv1, self.quantize(f"{name}_quantize1", "u31u16u4", 4, 35 * np.sqrt(c), width),
            conv2, self.quantize(f"{name}_quantize2", "u31u16u4", 4, 3 * spread, width),
            conv3,
            self.quantize(f"{name}_quantize3", mode, bits, 3000, out),
            ReLU(f"{name}_relu", "s32u31", True), branch,
        )  # fmt: skip

    def basic(self, name: str, c: int, width: int, stride: int, last: bool) -> BasicBlock:
        mode, bits = ("u31u16u7", 7) if last else ("u31u16u4", 4)
        branch = self.branch(name, c, width, stride)
        conv1 = self.conv(f"{name}_conv1", c, width, 3, stride)
        conv2 = self.conv(f"{name}_conv2", width, width, 3)
        return BasicBlock(
            name, stride, isinstance(branch, Sequential),
            conv1, self.quantize(f"{name}_quantize1", "u31u16u4", 4, 105 * np.sqrt(c), width),
            conv2, self.quantize(f"{name}_quantize2", mode, bits, 3000, width),
            ReLU(f"{name}_relu", "s32u31", True), branch,
        )  # fmt: skip

    def branch(self, name: str, c: int, out: int, stride: int) -> Sequential | Quantize:
        if stride != 1 or c != out:
            up = Quantize(f"{name}_downsample_2", "s8u16s32", 31, 0, 0, self.rng.integers(0, 40, out).astype(np.uint16))
            return Sequential(f"{name}_downsample", (
                self.conv(f"{name}_downsample_0", c, out, 1, stride),
                self.quantize(f"{name}_downsample_1", "s32u16s8", 7, 35 * np.sqrt(c), out),
                replace(up, max_requant=int(up.requant_factor.max())),
            ))  # fmt: skip
        factor = self.rng.integers(0, 400, out).astype(np.uint16)
        return Quantize(f"{name}_downsample", "u4u16u31", 31, 1, int(factor.max()), factor)


def random_network(
    seed: int = 0, blocks: tuple[int, ...] = (1, 1, 1, 1), width: int = 8, classes: int = 5, *,
    shift: int = 16, bias: int = 300, dilation: int = 1, groups: int = 1, ceil_mode: bool = False,
    pool: int = 2, basic: bool = False,
) -> ResNet:  # fmt: skip
    """A network of the format's shape whose default input is 32 * `pool` pixels high and wide.

    `dilation` and `groups` are of bottlenecks.
    """
    make = Maker(seed, shift, bias)
    channels, stages = width, []
    for i, count in enumerate(blocks):
        children = []
        for j in range(count):
            stride = 2 if i and not j else 1
            last = i == len(blocks) - 1 and j == count - 1
            sizes = f"layer{i + 1}_{j}", channels, width << i, stride, last
            children.append(make.basic(*sizes) if basic else make.bottleneck(*sizes, dilation, groups))
            channels = (1 if basic else 4) * (width << i)
        stages.append(Sequential(f"layer{i + 1}", tuple(children)))
    rng = make.rng
    return ResNet(
        "s8f32",
        make.conv("conv1", 3, width, 7, 2, bits=8),
        make.quantize("quantize1", "u31u16u4", 4, 60_000, width),
        ReLU("relu", "s32u31", True),
        MaxPool2d("maxpool", "u4u4", 3, 2, 1, 1, False, ceil_mode),
        *stages,
        AvgPool2d("avgpool", "u7u7", pool, 1, 0, False, True),
        Linear(
            "fc", "u7s8s32", channels, classes, rng.integers(-9999, 9999, classes).astype(np.int32),
            rng.integers(-128, 128, (classes, channels)).astype(np.int8),
        ),
        Scale("scale", "s32f32f32", rng.uniform(50, 5000, classes).astype(np.float32)),
    )  # fmt: skip


def as_model(net: ResNet) -> SimpleNamespace:
    """What the engine needs of a model."""
    return SimpleNamespace(network=net, path=None)


def random_input(net: ResNet, n: int, seed: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
    """int8 (n, 3, H, W) over the whole range, -128 and 127 included."""
    height, width = size or (32 * net.avgpool.kernel_size,) * 2
    x = np.random.default_rng(seed).integers(-128, 128, (n, 3, height, width)).astype(np.int8)
    x[:, :, :2, :2], x[:, :, -2:, -2:] = -128, 127
    return x


def reference_trace(net: ResNet, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every layer's output by name, the rules of the format written out in int64."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str, values: np.ndarray) -> np.ndarray:
        seen[name] = values
        return values

    def conv(layer: Conv2d, x: np.ndarray) -> np.ndarray:
        (ph, pw), (sh, sw), (dh, dw) = layer.padding, layer.stride, layer.dilation
        r, s = layer.kernel_size
        x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        views = sliding_window_view(x, (dh * (r - 1) + 1, dw * (s - 1) + 1), axis=(2, 3))
        views = views[:, :, ::sh, ::sw, ::dh, ::dw]
        each_in, each_out = x.shape[1] // layer.groups, layer.out_channels // layer.groups
        parts = [
            np.einsum(
                "nchwrs,kcrs->nkhw",
                views[:, g * each_in : (g + 1) * each_in],
                layer.weight[g * each_out : (g + 1) * each_out].astype(np.int64),
                optimize=True,
            )
            for g in range(layer.groups)
        ]
        return keep(layer.name, np.concatenate(parts, axis=1) + layer.bias[:, None, None].astype(np.int64))

    def quantize(layer: Quantize, x: np.ndarray) -> np.ndarray:
        low, high = {"u4": (0, 15), "u7": (0, 127), "s8": (-128, 127)}.get(
            layer.compute_mode[-2:], (-(2**31), 2**31 - 1)
        )
        v = x * layer.requant_factor[:, None, None].astype(np.int64)
        rounded = np.sign(v) * ((np.abs(v) + 2**layer.shift_bits // 2) // 2**layer.shift_bits)
        return keep(layer.name, np.clip(rounded, low, high))

    def rectified(c: Conv2d, q: Quantize, x: np.ndarray) -> np.ndarray:
        return quantize(q, np.maximum(conv(c, x), 0))

    x = rectified(net.conv1, net.quantize1, x.astype(np.int64))
    pool = net.maxpool
    spare = pool.stride - 1 if pool.ceil_mode else 0
    x = np.pad(x, ((0, 0), (0, 0)) + ((pool.padding, pool.padding + spare),) * 2)
    views = sliding_window_view(x, (pool.kernel_size,) * 2, axis=(2, 3))[:, :, :: pool.stride, :: pool.stride]
    x = keep("maxpool", views.max(axis=(4, 5)))
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage.children:
            main = x
            for c, q in zip(block.convs[:-1], block.quantizes[:-1], strict=True):
                main = rectified(c, q, main)
            main = conv(block.convs[-1], main)
            if isinstance(block.downsample, Sequential):
                first, down, up = block.downsample.children
                kept = quantize(up, quantize(down, conv(first, x)))
            else:
                kept = quantize(block.downsample, x)
            x = quantize(block.quantizes[-1], np.maximum(main + kept, 0))
    k = net.avgpool.kernel_size
    total = x[:, :, :k, :k].sum(axis=(2, 3))
    mean = np.minimum((2 * total + k * k) // (2 * k * k), 127)
    keep("avgpool", mean[:, :, None, None])
    keep("fc", mean @ net.fc.weight.T.astype(np.int64) + net.fc.bias)
    return seen

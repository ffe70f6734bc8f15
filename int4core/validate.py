"""The rules of a network beyond the grammar of its files: what fits what, and what the integers can hold.

The same rules hold for a network that was read (errors then name file and line) and for one made in
memory and about to be written (errors name the layer).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.dtypes import INT_TYPES, S8, S32, U4, U7, IntType, split_mode
from int4core.errors import ModelError, shown
from int4core.layers import (
    AvgPool2d,
    BasicBlock,
    Block,
    Bottleneck,
    Conv2d,
    Layer,
    Linear,
    MaxPool2d,
    Quantize,
    ReLU,
    ResNet,
    Scale,
    Sequential,
)

Locate: TypeAlias = Callable[[str, str], "tuple[str | Path, int]"]
"""(layer name, key) -> the file and line to name in an error."""

Bounds: TypeAlias = npt.NDArray[np.int64]

MAX_WINDOW = 255
"""Largest kernel side: an average over 255 x 255 u7 values still sums below 2^24."""

MAX_SHIFT = 47
"""Largest shift of a requantisation: products have 47 bits, so any larger shift always gives 0."""

OUTPUT_BITS = {"u4": 4, "u7": 7, "s8": 7, "u31": 31, "s32": 31}
"""`output_bits` of a Quantize for each output type: the bits of the magnitude."""

_CHUNK = 1 << 18


def check_network(network: ResNet, locate: Locate | None = None) -> None:
    """Check every rule; costs about one pass over the weights.

    Raises ModelError at the first rule that is broken. Without `locate` its `file` is the layer's name.
    """
    _Checker(locate or (lambda name, key: (name, 0))).network(network)


class _Checker:
    """`channels` and `source` in the methods below: how many channels arrive, and the layer they are from."""

    def __init__(self, locate: Locate) -> None:
        self.locate = locate

    def expect(self, ok: bool | np.bool_, name: str, key: str, why: str) -> None:
        if not ok:
            raise ModelError(*self.locate(name, key), why)

    def network(self, net: ResNet) -> None:
        self.mode("model", net.compute_mode, "s8f32")
        channels = self.stem(net)
        blocks = self.blocks(net)
        source = net.maxpool.name
        for block, name in blocks:
            last = block is blocks[-1][0]
            channels, source = self.block(block, name, channels, source, U7 if last else U4), name
        self.avgpool(net.avgpool)
        self.linear(net.fc, channels, source)
        self.scale(net.scale, net.fc)

    def stem(self, net: ResNet) -> int:
        conv = net.conv1
        sums = self.conv(conv, "conv1", "s8s8s32", 3, "an RGB image", S8)
        for axis in (0, 1):
            kernel, stride, padding = (x[axis] for x in (conv.kernel_size, conv.stride, conv.padding))
            self.window("conv1", kernel, stride, padding)
            why = f"padding={padding} must be smaller than the kernel: a window may not see zeros only"
            self.expect(padding < kernel, "conv1", "padding", why)
        self.quantize(net.quantize1, "quantize1", "u31u16u4", len(sums), "conv1")
        self.relu(net.relu, "relu")
        self.maxpool(net.maxpool)
        return len(sums)

    def blocks(self, net: ResNet) -> list[tuple[Block, str]]:
        found: list[tuple[Block, str]] = []
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        for name, stage in zip(("layer1", "layer2", "layer3", "layer4"), stages, strict=True):
            self.layer(stage, name, Sequential)
            self.expect(len(stage.children) > 0, name, "children_count", "a stage needs at least one block")
            for i, block in enumerate(stage.children):
                self.layer(block, f"{name}_{i}", BasicBlock if isinstance(block, BasicBlock) else Bottleneck)
                assert isinstance(block, Block)
                found.append((block, f"{name}_{i}"))
        return found

    def block(self, block: Block, name: str, channels: int, source: str, out: IntType) -> int:
        self.expect(
            block.downsample_layer is True,
            name,
            "downsample_layer",
            "downsample_layer must be True: every block has a residual branch",
        )
        self.expect(1 <= block.stride <= 3, name, "stride", f"stride={block.stride} must be 1, 2 or 3")
        kernels = (3, 3) if isinstance(block, BasicBlock) else (1, 3, 1)
        width, giver = channels, source
        for i, (conv, kernel) in enumerate(zip(block.convs, kernels, strict=True), start=1):
            conv_name = f"{name}_conv{i}"
            sums = self.conv(conv, conv_name, "u4s4s32", width, giver, U4)
            self.block_window(conv, conv_name, kernel, block.stride if conv is block.strided else 1, block)
            width, giver = len(sums), conv_name
            if i < len(kernels):
                self.quantize(block.quantizes[i - 1], f"{name}_quantize{i}", "u31u16u4", width, giver)
        residual = self.residual(block, f"{name}_downsample", channels, source, sums)
        worst = int((sums + residual).max())
        why = f"with the residual its sums could reach {worst}, and must fit 32 bits ({S32.hi})"
        self.expect(worst <= S32.hi, giver, "weight", why)
        self.relu(block.relu, f"{name}_relu")
        self.quantize(block.quantizes[-1], f"{name}_quantize{len(kernels)}", f"u31u16{out.name}", width, giver)
        return width

    def residual(self, block: Block, name: str, channels: int, source: str, main: Bounds) -> Bounds:
        """The largest magnitude that the residual branch gives to each channel."""
        branch = block.downsample
        if isinstance(branch, Quantize):
            self.quantize(branch, name, "u4u16u31", channels, source)
            why = (
                f"one Quantize keeps the {channels} channels of {source}, but {block.convs[-1].name} gives {len(main)}"
            )
            self.expect(channels == len(main), name, "", f"{why}: a convolution is needed")
            why = f"one Quantize keeps the map's size, but the block has stride={block.stride}"
            self.expect(block.stride == 1, name, "", f"{why}: a convolution is needed")
            return _rescaled(branch, U4.hi)
        self.layer(branch, name, Sequential)
        why = "a residual branch is one Quantize, or Conv2d, Quantize to s8, Quantize to s32"
        self.expect(len(branch.children) == 3, name, "children_count", why)
        conv, to_s8, to_s32 = branch.children
        for layer, i, kind in ((conv, 0, Conv2d), (to_s8, 1, Quantize), (to_s32, 2, Quantize)):
            self.layer(layer, f"{name}_{i}", kind)
        assert isinstance(conv, Conv2d)
        assert isinstance(to_s8, Quantize)
        assert isinstance(to_s32, Quantize)
        sums = self.conv(conv, f"{name}_0", "u4s4s32", channels, source, U4)
        self.block_window(conv, f"{name}_0", 1, block.stride, block)
        why = f"out_channels={len(sums)}, but {block.convs[-1].name}, which it is added to, gives {len(main)}"
        self.expect(len(sums) == len(main), f"{name}_0", "out_channels", why)
        self.quantize(to_s8, f"{name}_1", "s32u16s8", len(sums), f"{name}_0")
        self.quantize(to_s32, f"{name}_2", "s8u16s32", len(sums), f"{name}_1")
        return _rescaled(to_s32, -S8.lo)

    def conv(self, conv: Conv2d, name: str, mode: str, channels: int, source: str, x: IntType) -> Bounds:
        """The largest magnitude of each output channel's sum, bias included; at least 1 channel."""
        self.layer(conv, name, Conv2d)
        self.mode(name, conv.compute_mode, mode)
        why = f"in_channels={conv.in_channels}, but {source} has {channels} channels"
        self.expect(conv.in_channels == channels, name, "in_channels", why)
        self.expect(conv.out_channels >= 1, name, "out_channels", "at least one output channel is needed")
        self.equal(name, "dilation", conv.dilation, (1, 1), "the engine computes no other")
        self.equal(name, "groups", conv.groups, 1, "the engine computes no other")
        for kernel in conv.kernel_size:
            self.window(name, kernel, 1, 0)
        weight = INT_TYPES[split_mode(mode)[1]]
        why = f"weights are {conv.weight_dtype}, but compute_mode={mode} takes {weight.name}"
        self.expect(conv.weight_dtype == weight.name, name, "weight", why)
        shape = (conv.out_channels, conv.in_channels, *conv.kernel_size)
        self.tensor(name, "weight", conv.weight, np.int8, shape, "out_channels, in_channels and kernel_size")
        self.tensor(name, "bias", conv.bias, np.int16, shape[:1], "out_channels")
        if weight.bits < 8:
            lo, hi = int(conv.weight.min()), int(conv.weight.max())
            why = f"weights go from {lo} to {hi}, and {weight.name} holds {weight.lo}..{weight.hi}"
            self.expect(weight.lo <= lo and hi <= weight.hi, name, "weight", why)
        return self.sums(name, conv.weight, conv.bias, x)

    def sums(self, name: str, weight: Any, bias: Any, x: IntType) -> Bounds:
        """sum |w| * max |x| + |bias| of each row of `weight`, which must fit 32 bits."""
        bounds: Bounds = _magnitudes(weight) * max(-x.lo, x.hi) + np.abs(bias.astype(np.int64))
        row = int(bounds.argmax())
        why = f"the sum of output {row} could reach {bounds[row]}, and must fit 32 bits ({S32.hi})"
        self.expect(bounds[row] <= S32.hi, name, "weight", why)
        return bounds

    def quantize(self, layer: Quantize, name: str, mode: str, channels: int, source: str) -> None:
        self.layer(layer, name, Quantize)
        self.mode(name, layer.compute_mode, mode)
        out = split_mode(mode)[-1]
        self.equal(name, "output_bits", layer.output_bits, OUTPUT_BITS[out], f"compute_mode={mode}")
        why = f"shift_bits={layer.shift_bits} is out of range: 0..{MAX_SHIFT} are possible"
        self.expect(0 <= layer.shift_bits <= MAX_SHIFT, name, "shift_bits", why)
        factor = layer.requant_factor
        self.tensor(name, "requant_factor", factor, np.uint16, (channels,), f"the channels of {source}")
        largest = int(factor.max())
        self.equal(name, "max_requant", layer.max_requant, largest, "the largest requant_factor")

    def relu(self, layer: ReLU, name: str) -> None:
        self.layer(layer, name, ReLU)
        self.mode(name, layer.compute_mode, "s32u31")

    def maxpool(self, layer: MaxPool2d) -> None:
        name = "maxpool"
        self.layer(layer, name, MaxPool2d)
        self.mode(name, layer.compute_mode, "u4u4")
        self.window(name, layer.kernel_size, layer.stride, layer.padding)
        why = f"padding={layer.padding} may be at most half of kernel_size={layer.kernel_size}"
        self.expect(2 * layer.padding <= layer.kernel_size, name, "padding", why)
        self.equal(name, "dilation", layer.dilation, 1, "the engine computes no other")
        self.equal(name, "return_indices", layer.return_indices, False, "the engine returns values only")

    def avgpool(self, layer: AvgPool2d) -> None:
        name = "avgpool"
        self.layer(layer, name, AvgPool2d)
        self.mode(name, layer.compute_mode, "u7u7")
        self.window(name, layer.kernel_size, layer.stride, layer.padding)
        self.equal(name, "padding", layer.padding, 0, "every mean is over a whole window")
        self.equal(name, "ceil_mode", layer.ceil_mode, False, "every mean is over a whole window")

    def linear(self, layer: Linear, channels: int, source: str) -> None:
        name = "fc"
        self.layer(layer, name, Linear)
        self.mode(name, layer.compute_mode, "u7s8s32")
        why = f"in_features={layer.in_features}, but {source} has {channels} channels"
        self.expect(layer.in_features == channels, name, "in_features", why)
        self.expect(layer.out_features >= 1, name, "out_features", "at least one class is needed")
        shape = (layer.out_features, layer.in_features)
        self.tensor(name, "weight", layer.weight, np.int8, shape, "out_features and in_features")
        self.tensor(name, "bias", layer.bias, np.int32, shape[:1], "out_features")
        self.sums(name, layer.weight, layer.bias, U7)

    def scale(self, layer: Scale, fc: Linear) -> None:
        name = "scale"
        self.layer(layer, name, Scale)
        self.mode(name, layer.compute_mode, "s32f32f32")
        out_scale = layer.out_scale
        self.tensor(name, "out_scale", out_scale, np.float32, (fc.out_features,), "out_features of fc")
        with np.errstate(all="ignore"):
            good = np.isfinite(out_scale) & (out_scale > 0) & np.isfinite(np.float32(-S32.lo) / out_scale)
        index = int(good.argmin())
        why = f"out_scale of class {index} is {out_scale[index]}; a finite divisor above 1e-29 is needed"
        self.expect(good.all(), name, "out_scale", why)

    def layer(self, layer: Layer, name: str, kind: type) -> None:
        why = f"{type(layer).__name__} cannot be here, only {kind.__name__}"
        self.expect(isinstance(layer, kind), name, "", why)
        self.expect(layer.name == name, name, "", f"the layer in this place is called {shown(layer.name)}")

    def mode(self, name: str, found: str, wanted: str) -> None:
        why = f"compute_mode={shown(found)} makes no sense here, {wanted} does"
        self.expect(found == wanted, name, "compute_mode", why)

    def equal(self, name: str, key: str, found: object, wanted: object, because: str) -> None:
        self.expect(found == wanted, name, key, f"{key}={found} must be {wanted}: {because}")

    def tensor(self, name: str, key: str, array: Any, dtype: type, shape: tuple[int, ...], because: str) -> None:
        found, wanted = (" ".join(map(str, dims)) for dims in (array.shape, shape))
        self.expect(array.shape == shape, name, key, f"{key} is {found}, but {because} make it {wanted}")
        why = f"{key} is {array.dtype} in memory, but must be {np.dtype(dtype)}"
        self.expect(array.dtype == dtype, name, key, why)

    def window(self, name: str, kernel: int, stride: int, padding: int) -> None:
        why = f"kernel_size={kernel} is out of range: 1..{MAX_WINDOW} are possible"
        self.expect(1 <= kernel <= MAX_WINDOW, name, "kernel_size", why)
        why = f"stride={stride} is out of range: 1..{kernel}, the kernel, are possible"
        self.expect(1 <= stride <= kernel, name, "stride", why)
        self.expect(padding >= 0, name, "padding", f"padding={padding} is negative")

    def block_window(self, conv: Conv2d, name: str, kernel: int, stride: int, block: Block) -> None:
        """A block's convolutions: their kernels, and strides that only the block's stride allows."""
        kind = "basic block" if isinstance(block, BasicBlock) else "bottleneck"
        self.equal(name, "kernel_size", conv.kernel_size, (kernel, kernel), f"{block.name} is a {kind}")
        strided = block.strided.name.rpartition("_")[2]
        why = f"{block.name} has stride={block.stride}, for {strided} and the residual branch only"
        self.equal(name, "stride", conv.stride, (stride, stride), why)
        self.equal(name, "padding", conv.padding, (kernel // 2, kernel // 2), "only the stride shrinks a map")


def _magnitudes(weight: Any) -> Bounds:
    """sum |w| of each row, a chunk at a time: a copy of a whole tensor would double what loading takes."""
    rows = weight.reshape(len(weight), -1)
    step = max(1, _CHUNK // rows.shape[1])
    total: Bounds = np.zeros(len(rows), np.int64)
    for i in range(0, len(rows), step):
        for j in range(0, rows.shape[1], _CHUNK):
            # |-128| overflows int8 to the same bits, which read as uint8 are 128.
            magnitude = np.abs(rows[i : i + step, j : j + _CHUNK]).view(np.uint8)
            total[i : i + step] += magnitude.sum(axis=1, dtype=np.int64)
    return total


def _rescaled(layer: Quantize, largest: int) -> Bounds:
    """|x| <= largest after rescaling, for each channel; the result types of residuals have no clamp."""
    half = (1 << layer.shift_bits) >> 1
    bounds: Bounds = (layer.requant_factor.astype(np.int64) * largest + half) >> layer.shift_bits
    return bounds

"""A network of real steps made one of the format: sums in integers, u16 factors and shifts, biases of 16 bits.

The format's Quantize multiplies sums by factor / 2^shift, where the network divides by a real step: the factor is
rounded, and the largest error that this makes is reported. A negative gain (of a batch norm) turns its weights' signs.
A channel that is constant, or moves by less than half an output step, has no gain that 16 bits could hold: its weights
become 0, and what it moved by counts as an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from int4core.dtypes import INT_TYPES, S8, S16, S32, U4, U7, IntType
from int4core.errors import EngineError, ModelError, shown
from int4core.layers import (
    AvgPool2d,
    BasicBlock,
    Block,
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
from int4core.network import trace_shapes
from int4core.preprocess import INPUT_RANGE, INT8_LIMIT
from int4core.validate import check_network
from tools.onnx.errors import OnnxFileError
from tools.onnx.meaning import read_meaning
from tools.onnx.values import Image, Logits, MaxPooled, Mean, Quantised, Reals, Sums, Total

INPUT_STEP = INPUT_RANGE / INT8_LIMIT
"""Real units of one step of the images that the pipeline prepares."""

FACTOR_MAX = 65535

SHIFTS = {"u4": 20, "u7": 16, "s8": 16, "u31": 16, "s32": 16}
"""Most shift of a Quantize to each type: (hi + 1) * 2^shift <= 2^24 keeps float32 exact, and more adds little."""

BIAS_ROOM = 32000
"""Units of a sum that a bias may have after its channel's 8-bit weights were made coarser."""

STAGES = 4


@dataclass
class Findings:
    """What an import has to say.

    Attributes:
        factor_error: the largest relative error of a rounded factor that matters, and its layer.
        step_error: the largest error of a value, in steps of what it is rounded to, and its layer: of a factor at the
            top of its range, of a rounded bias, of a channel that became constant.
        constant: layer -> how many channels became constant.
        nodes: name of a Quantize -> the node that rounds in the graph; none for those that have no counterpart.
        notes: sentences about what else is not the graph's very arithmetic.
    """

    factor_error: tuple[float, str] = (0.0, "")
    step_error: tuple[float, str] = (0.0, "")
    constant: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        (relative, first), (steps, second) = self.factor_error, self.step_error
        said = [f"largest error of a factor {relative:.2e} ({first}), of a value {steps:.4f} steps ({second})"]
        said += [
            f"{name}: {count} channels move by less than half a step: constant" for name, count in self.constant.items()
        ]
        return said + self.notes


def import_foreign(
    path: Path, model: onnx.ModelProto, input_step: float | None = INPUT_STEP
) -> tuple[ResNet, Findings]:
    """The network of a QCDQ or QONNX graph of a ResNet, and what was rounded on the way.

    input_step: real units of one step of the int8 images it will get; None takes the graph's own.

    Raises OnnxFileError, naming the node, for what the format does not hold.
    """
    logits, size = read_meaning(path, model)
    builder = _Builder(path, input_step)
    net = builder.network(logits, size)
    try:
        check_network(net)
        trace_shapes(net, size)
    except (ModelError, EngineError) as error:
        raise OnnxFileError(path, 0, f"makes a network that the format refuses: {error}") from None
    return net, builder.found


@dataclass(frozen=True, eq=False)
class _Block:
    """A residual block, first to last convolution; `shortcut` is the input itself or comes from one more."""

    convs: tuple[Sums, ...]
    total: Total
    out: Quantised
    entered: Quantised

    @property
    def branch(self) -> Sums | None:
        origin = self.total.shortcut.origin
        return None if self.total.shortcut is self.entered else origin if isinstance(origin, Sums) else None


class _Builder:
    def __init__(self, path: Path, input_step: float | None) -> None:
        self.path = path
        self.input_step = input_step
        self.found = Findings()

    def refuse(self, node: str, why: str) -> NoReturn:
        raise OnnxFileError(self.path, 0, f"node {shown(node)}: {why}")

    # The order of things, backwards from the output

    def network(self, logits: Logits, size: tuple[int, int] | None) -> ResNet:
        mean = logits.source
        blocks: list[_Block] = []
        value = mean.source
        while isinstance(value.origin, Total):
            blocks.insert(0, self.block_before(value, value.origin))
            value = blocks[0].entered
        pooled, stem_out = value.origin if isinstance(value.origin, MaxPooled) else None, value
        if pooled is not None:
            stem_out = pooled.source
        stem = stem_out.origin
        if not isinstance(stem, Sums) or not isinstance(stem.source.origin, Image):
            self.refuse(value.node, "what leads to it is no residual block, and no first convolution of the image")
        if len(blocks) < STAGES:
            self.refuse(
                logits.node, f"{len(blocks)} residual blocks lead to it; the format has {STAGES} stages of one or more"
            )
        conv1, quantize1 = self.stem(stem, stem_out)
        stages = self.stages(blocks)
        avgpool = self.avgpool(mean, size, stem, pooled, blocks)
        fc, scale = self.linear(logits, mean.source.step)
        pool = pooled.pool if pooled is not None else None
        layer1, layer2, layer3, layer4 = stages
        return ResNet(
            compute_mode="s8f32", conv1=conv1, quantize1=quantize1, relu=ReLU("relu", "s32u31", True),
            maxpool=MaxPool2d("maxpool", "u4u4", pool.kernel, pool.stride, pool.padding, 1, False, pool.ceil_mode)
            if pool is not None else MaxPool2d("maxpool", "u4u4", 1, 1, 0, 1, False, False),
            layer1=layer1, layer2=layer2, layer3=layer3, layer4=layer4, avgpool=avgpool, fc=fc, scale=scale,
        )  # fmt: skip

    def block_before(self, out: Quantised, total: Total) -> _Block:
        """The block that ends in `total`: convolutions up to where its shortcut begins."""
        shortcut = total.shortcut
        branch = shortcut.origin
        entered = branch.source if isinstance(branch, Sums) and not branch.rectified and shortcut.lo < 0 else shortcut
        convs = [total.main]
        while convs[0].source is not entered:
            before = convs[0].source.origin
            if not isinstance(before, Sums) or len(convs) == 3:
                self.refuse(
                    total.node, "no chain of 2 or 3 convolutions leads from its shortcut's begin to its other input"
                )
            convs.insert(0, before)
        if len(convs) < 2:
            self.refuse(total.node, f"a block of {len(convs)} convolution; the format's have 2 or 3")
        return _Block(tuple(convs), total, out, entered)

    def stages(self, blocks: list[_Block]) -> list[Sequential]:
        """Blocks in four stages: each block whose shortcut has a convolution begins one, where that makes four."""
        starts = [0, *(i for i, block in enumerate(blocks) if i and block.branch is not None)]
        if len(starts) != STAGES:
            starts = [len(blocks) * i // STAGES for i in range(STAGES)]
        ends = [*starts[1:], len(blocks)]
        return [
            Sequential(f"layer{i}", tuple(
                self.block(f"layer{i}_{j}", block, U7 if block is blocks[-1] else U4)
                for j, block in enumerate(blocks[start:end])
            ))
            for i, (start, end) in enumerate(zip(starts, ends, strict=True), start=1)
        ]  # fmt: skip

    # Layers

    def stem(self, sums: Sums, out: Quantised) -> tuple[Conv2d, Quantize]:
        image = sums.source
        if image.hi != S8.hi or image.lo not in (S8.lo, -S8.hi):
            self.refuse(image.node, f"images of {image.lo}..{image.hi}; the format's are signed, of 8 bits")
        if self.input_step is not None and abs(image.step / self.input_step - 1) > 1e-3:
            self.found.notes.append(
                f"the graph rounds images to steps of {image.step:.6f}, and will get steps of {self.input_step:.6f}: "
                "its first layer's values differ by that rounding (--input-step graph keeps the graph's)"
            )
        ratio = 1.0 if self.input_step is None else self.input_step / image.step
        return self.rectified("conv1", "quantize1", sums, out, U4, S8, ratio)

    def rectified(
        self, conv: str, quantize: str, sums: Sums, out: Quantised, kind: IntType, source: IntType, ratio: float = 1.0
    ) -> tuple[Conv2d, Quantize]:
        self.expect_range(out, kind, rectified=sums.rectified)
        layer, unit = self.conv(conv, sums, source, out.step, np.zeros(len(sums.gain)), ratio)
        self.found.nodes[quantize] = out.node
        return layer, self.quantize(quantize, unit / out.step, kind, kind.hi)

    def block(self, name: str, block: _Block, kind: IntType) -> Block:
        total, out, entered = block.total, block.out, block.entered
        parts: dict[str, Any] = {}
        for i, (sums, taker) in enumerate(pairwise(block.convs), start=1):
            layers = self.rectified(f"{name}_conv{i}", f"{name}_quantize{i}", sums, taker.source, U4, U4)
            parts[f"conv{i}"], parts[f"quantize{i}"] = layers
        self.expect_range(out, kind, rectified=total.rectified)
        shortcut, last, end = total.shortcut, block.convs[-1], len(block.convs)
        conv, unit = self.conv(f"{name}_conv{end}", last, U4, out.step, np.full(len(last.gain), shortcut.step))
        parts[f"conv{end}"] = conv
        downsample: Sequential | Quantize
        branch = f"{name}_downsample"
        if block.branch is None:
            self.expect_range(entered, U4, rectified=True)
            downsample = self.quantize(branch, shortcut.step / unit, INT_TYPES["u31"], U4.hi * shortcut.step / out.step)
        else:
            if (shortcut.lo, shortcut.hi) != (S8.lo, S8.hi):
                why = (
                    f"a shortcut of {shortcut.lo}..{shortcut.hi}; with a convolution it has 8 bits, signed, -128 to 127"
                )
                self.refuse(shortcut.node, why)
            conv, small = self.conv(f"{branch}_0", block.branch, U4, shortcut.step, np.zeros(len(unit)))
            self.found.nodes[f"{branch}_1"] = shortcut.node
            reach = S8.hi * shortcut.step / out.step
            downsample = Sequential(branch, (
                conv, self.quantize(f"{branch}_1", small / shortcut.step, S8, reach),
                self.quantize(f"{branch}_2", shortcut.step / unit, S32, reach),
            ))  # fmt: skip
        self.found.nodes[f"{name}_quantize{end}"] = out.node
        parts[f"quantize{end}"] = self.quantize(f"{name}_quantize{end}", unit / out.step, kind, kind.hi)
        stride = block.convs[-2].stride[0]
        relu, made = ReLU(f"{name}_relu", "s32u31", True), Bottleneck if end == 3 else BasicBlock
        return made(name=name, stride=stride, downsample_layer=True, relu=relu, downsample=downsample, **parts)

    def expect_range(self, out: Quantised, kind: IntType, *, rectified: bool) -> None:
        if (out.lo, out.hi) != (kind.lo, kind.hi):
            where = "the last block's output" if kind is U7 else "activations here"
            self.refuse(
                out.node, f"a range of {out.lo}..{out.hi}; {where} go from {kind.lo} to {kind.hi} in the format"
            )
        # Limiting to 0 at the bottom is a ReLU, whether there is one before it or not.
        assert rectified or out.lo == 0

    def conv(
        self, name: str, sums: Sums, source: IntType, out_step: float, beside: Reals, ratio: float = 1.0
    ) -> tuple[Conv2d, Reals]:
        """The layer, and the real units of one of its sums, for each channel.

        beside: what will be added to the sums, in real units of one step of it; its ratio to a sum's unit must fit.
        """
        kind = S8 if source is S8 else INT_TYPES["s4"]
        weight, gain = sums.weight.ints * np.where(sums.gain < 0, -1, 1)[:, None, None, None], sums.gain * ratio
        unit = np.abs(gain)
        with np.errstate(divide="ignore", invalid="ignore"):
            crowded = (np.abs(sums.bias) > unit * S16.hi) | (beside > unit * FACTOR_MAX / 2)
        moves = unit * np.abs(weight).reshape(len(weight), -1).sum(axis=1) * max(source.hi, -source.lo) / out_step
        if kind is S8 and (tight := crowded & (moves >= 0.5)).any():
            # Of 8 bits some can be spared; finetune widens steps for the same reason.
            wider = np.where(tight, np.abs(sums.bias) / np.where(tight, unit, 1) / BIAS_ROOM, 1.0)
            weight, unit = np.rint(weight / wider[:, None, None, None]).astype(np.int64), unit * wider
            crowded &= ~tight
            self.found.notes.append(
                f"{name}: weights of {int(tight.sum())} channels rounded to steps up to {wider.max():.2f} times as "
                "wide, so that their biases fit 16 bits"
            )
        if wrong := np.flatnonzero(crowded & (moves >= 0.5)).tolist():
            units = abs(sums.bias[wrong[0]]) / unit[wrong[0]]
            why = f"channel {wrong[0]}: its bias is {units:,.0f} units of its sums; the format holds {S16.hi:,}"
            self.refuse(sums.node, why)
        if crowded.any():
            self.found.constant[name] = int(crowded.sum())
            self.found.step_error = max(self.found.step_error, (float(moves[crowded].max()), name))
            weight = np.where(crowded[:, None, None, None], 0, weight)
            unit = np.where(crowded, np.maximum(np.abs(sums.bias) / (S16.hi // 2), out_step / 256), unit)
        if weight.min() < kind.lo or weight.max() > kind.hi:
            found = f"weights of {weight.min()}..{weight.max()} (after the signs of its gains)"
            why = f"{found}; the format holds {kind.lo}..{kind.hi} here"
            self.refuse(sums.node, why)
        bias = np.rint(sums.bias / unit)
        off = float((np.abs(bias * unit - sums.bias) / out_step).max())
        self.found.step_error = max(self.found.step_error, (off, name))
        k, c, r, s = weight.shape
        layer = Conv2d(
            name=name, compute_mode="s8s8s32" if source is S8 else "u4s4s32", in_channels=c, out_channels=k,
            kernel_size=(r, s), stride=sums.stride, padding=sums.padding, dilation=(1, 1), groups=1,
            bias=bias.astype(np.int16), weight=weight.astype(np.int8), weight_dtype=kind.name,
        )  # fmt: skip
        return layer, unit

    def quantize(self, name: str, ratio: Reals, kind: IntType, reach: float) -> Quantize:
        """reach: the most output steps of the block that a value of it can be, for what an error there means."""
        most = float(ratio.max())
        shift = SHIFTS[kind.name]
        while shift and most * 2.0**shift > FACTOR_MAX:
            shift -= 1
        if most * 2.0**shift > FACTOR_MAX + 0.5:
            self.refuse(name, f"a factor of {most:,.0f}; u16 holds {FACTOR_MAX:,}")
        factor = np.rint(ratio * 2.0**shift).clip(0, FACTOR_MAX).astype(np.uint16)
        relative = np.abs(factor / (ratio * 2.0**shift) - 1)
        self.found.factor_error = max(self.found.factor_error, (float(relative.max()), name))
        self.found.step_error = max(self.found.step_error, (float(relative.max()) * reach, name))
        mode = {"u4": "u31u16u4", "u7": "u31u16u7", "s8": "s32u16s8", "u31": "u4u16u31", "s32": "s8u16s32"}[kind.name]
        bits = {"u4": 4, "u7": 7, "s8": 7, "u31": 31, "s32": 31}[kind.name]
        return Quantize(name, mode, bits, shift, int(factor.max()), factor)

    def avgpool(
        self, mean: Mean, size: tuple[int, int] | None, stem: Sums, pooled: MaxPooled | None, blocks: list[_Block]
    ) -> AvgPool2d:
        kernel = mean.pool.kernel
        if not kernel:
            if size is None or size[0] != size[1]:
                self.refuse(mean.node, "the average of a whole map, and the graph's input has no fixed square size")
            kernel = size[0]
            convs = [stem, *(conv for block in blocks for conv in block.convs)]
            for i, conv in enumerate(convs):
                kernel = (kernel + 2 * conv.padding[0] - conv.weight.ints.shape[2]) // conv.stride[0] + 1
                if i == 0 and pooled is not None:
                    pool = pooled.pool
                    kernel = (kernel + 2 * pool.padding - pool.kernel) // pool.stride + 1
        self.found.notes.append("the average is rounded to 7 bits before the last layer, as the format does")
        return AvgPool2d("avgpool", "u7u7", kernel, mean.pool.stride, 0, False, True)

    def linear(self, logits: Logits, step: float) -> tuple[Linear, Scale]:
        unit = step * logits.weight.scale
        weight, bias = logits.weight.ints, np.rint(logits.bias / unit)
        if weight.min() < S8.lo or weight.max() > S8.hi:
            self.refuse(logits.node, f"weights of {weight.min()}..{weight.max()}; the format holds {S8.lo}..{S8.hi}")
        if np.abs(bias).max() > S32.hi:
            self.refuse(
                logits.node, f"a bias of {np.abs(bias).max():,.0f} units of its sums; the format holds {S32.hi:,}"
            )
        k, c = weight.shape
        fc = Linear("fc", "u7s8s32", c, k, bias.astype(np.int32), weight.astype(np.int8))
        return fc, Scale("scale", "s32f32f32", (1 / unit).astype(np.float32))

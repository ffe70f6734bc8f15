"""The fake-quantised network: a Quantize exactly where the INT4 format has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from int4core.preprocess import INPUT_RANGE, INT8_LIMIT
from tools.finetune.fakequant import QuantConv, QuantLinear, Range, requantize, rescale, round_ste
from tools.finetune.resnet import Architecture, Block, ResNet

INPUT_STEP = INPUT_RANGE / INT8_LIMIT
"""Real (normalised) units of one int8 input step."""

Trace = dict[str, torch.Tensor]
"""Layer name -> its integers, filled by a forward pass; the names are those of `Engine.trace`."""


def quantize_input(images: torch.Tensor) -> torch.Tensor:
    """Normalised images to the int8 input's integers: round half to even, clamp to -127..127."""
    return torch.clamp(torch.round(images * (INT8_LIMIT / INPUT_RANGE)), -INT8_LIMIT, INT8_LIMIT)


class QuantBlock(nn.Module):
    """BottleneckQuantized or BasicBlockQuantized: integers and their step in, integers and their step out."""

    def __init__(self, block: Block, out_hi: int) -> None:
        super().__init__()
        self.name = block.name
        self.count = block.count
        for i, (conv, _) in enumerate(block.pairs(), start=1):
            self.add_module(f"conv{i}", QuantConv(conv, bits=4))
            self.add_module(f"quantize{i}", Range(out_hi if i == self.count else 15))
        self.downsample: QuantConv | None = None
        if block.downsample is not None:
            self.downsample = QuantConv(block.downsample[0], bits=4)
            self.downsample_1 = Range(127)

    def convs(self) -> list[QuantConv]:
        """In running order, without the shortcut's."""
        return [getattr(self, f"conv{i}") for i in range(1, self.count + 1)]

    def quantizes(self) -> list[Range]:
        """What follows each of `convs`."""
        return [getattr(self, f"quantize{i}") for i in range(1, self.count + 1)]

    def forward(
        self, x: torch.Tensor, step: torch.Tensor, dtype: torch.dtype, trace: Trace | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def seen(name: str, value: torch.Tensor) -> torch.Tensor:
            if trace is not None:
                trace[f"{self.name}_{name}"] = value
            return value

        *inner, last = self.convs()
        *ranges, out_range = self.quantizes()
        y, entered = x, step
        for i, (conv, tensor_range) in enumerate(zip(inner, ranges, strict=True), start=1):
            acc = seen(f"conv{i}", conv(y, entered, dtype))
            y = seen(f"quantize{i}", requantize(acc, conv.unit(entered) / tensor_range.step, 0, 15))
            entered = tensor_range.step
        acc, unit = seen(f"conv{self.count}", last(y, entered, dtype)), last.unit(entered)
        if self.downsample is None:
            shortcut = seen("downsample", rescale(x.to(acc.dtype), step / unit))
        else:
            branch_step = self.downsample_1.step
            branch = seen("downsample_0", self.downsample(x, step, dtype))
            small = requantize(branch, self.downsample.unit(step) / branch_step, -128, 127)
            shortcut = seen("downsample_2", rescale(seen("downsample_1", small), branch_step / unit))
        out = requantize(acc + shortcut, unit / out_range.step, 0, out_range.hi)
        # bf16 holds these integers exactly, and halves the traffic between blocks.
        return seen(f"quantize{self.count}", out).to(dtype), out_range.step


RunBlock = Callable[
    [QuantBlock, torch.Tensor, torch.Tensor, torch.dtype, Trace | None], tuple[torch.Tensor, torch.Tensor]
]


def run_block(
    block: QuantBlock, x: torch.Tensor, step: torch.Tensor, dtype: torch.dtype, trace: Trace | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`block(...)` as a function: compiled once, it serves all blocks of one shape (9 in a ResNet-50)."""
    found: tuple[torch.Tensor, torch.Tensor] = block(x, step, dtype, trace)
    return found


class QuantResNet(nn.Module):
    """images: float (N, 3, H, W), normalised as for the parent; returns real logits (N, classes)."""

    def __init__(self, parent: ResNet) -> None:
        super().__init__()
        self.arch: Architecture = parent.arch
        self.conv1 = QuantConv(parent.conv1, bits=8)
        self.quantize1 = Range(15)
        blocks = parent.blocks()
        self.blocks = nn.ModuleList(QuantBlock(b, 127 if b is blocks[-1] else 15) for b in blocks)
        self.fc = QuantLinear(parent.fc)

    def convolutions(self) -> Iterator[tuple[str, QuantConv]]:
        """Every convolution under its name in the format, in running order."""
        yield "conv1", self.conv1
        for block in self.blocks:
            for i, conv in enumerate(block.convs(), start=1):
                yield f"{block.name}_conv{i}", conv
            if block.downsample is not None:
                yield f"{block.name}_downsample_0", block.downsample

    def ranges(self) -> Iterator[tuple[str, Range]]:
        """Every tensor range under the name of its Quantize layer, in running order."""
        yield "quantize1", self.quantize1
        for block in self.blocks:
            *inner, last = block.quantizes()
            for i, tensor_range in enumerate(inner, start=1):
                yield f"{block.name}_quantize{i}", tensor_range
            if block.downsample is not None:
                yield f"{block.name}_downsample_1", block.downsample_1
            yield f"{block.name}_quantize{block.count}", last

    def forward(
        self,
        images: torch.Tensor,
        dtype: torch.dtype = torch.float32,
        trace: Trace | None = None,
        run: RunBlock = run_block,
    ) -> torch.Tensor:
        """dtype: of the convolutions: float64 is exact, bfloat16 rounds sums. run: see `run_block`."""
        step = torch.full((), INPUT_STEP, dtype=torch.float32, device=images.device)
        acc = self.conv1(quantize_input(images), step, dtype)
        x = requantize(acc, self.conv1.unit(step) / self.quantize1.step, 0, 15)
        if trace is not None:
            trace["conv1"], trace["quantize1"] = acc, x
        step = self.quantize1.step
        x = F.max_pool2d(x.to(dtype), 3, stride=2, padding=1)
        for block in self.blocks:
            x, step = run(block, x, step, dtype, trace)
        total = x.to(torch.promote_types(dtype, torch.float32)).sum((2, 3))
        pooled = round_ste(total / (x.shape[2] * x.shape[3]))
        logits = self.fc(pooled, step, dtype)
        if trace is not None:
            trace["avgpool"], trace["fc"] = pooled, logits
        return logits * (step * self.fc.step)


def exact(model: QuantResNet, images: torch.Tensor, trace: Trace | None = None) -> torch.Tensor:
    """A forward pass in float64, in which every integer of the format is exact. No gradients."""
    with torch.no_grad():
        return model(images, torch.float64, trace)

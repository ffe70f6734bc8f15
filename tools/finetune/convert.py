"""From the FP32 parent to the fake-quantised network: fold batch norms, set steps, re-estimate statistics.

Folding: w' = w * gamma / sigma, b' = beta - mean * gamma / sigma. With a weight step for each output
channel the folded weights quantise to the same integers as the unfolded ones (a negative gamma flips
their sign), so nothing is lost by folding first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tools.finetune.fakequant import QuantConv, by_channel
from tools.finetune.qresnet import INPUT_STEP, QuantResNet
from tools.finetune.resnet import ResNet

BIAS_ROOM = 16000
"""Weight steps are widened until |bias| is at most this many accumulator units: half of s16."""

RATIO_ROOM = 16000.0
"""Likewise for the residual: one step of the shortcut is at most this many units of the last accumulator."""

FACTOR_ROOM = 1.25
"""And the s8 step of a residual branch is at least this many units of its accumulator."""


def weight_steps(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """(K,): for each output channel the step of least squared rounding error, out of 64 candidates."""
    flat = weight.detach().flatten(1)
    top = 1 << (bits - 1)
    largest = flat.abs().amax(1).clamp(min=1e-12)
    best_step, best_error = largest / (top - 1), torch.full_like(largest, torch.inf)
    for k in range(64):
        step = largest * (1.02 - k / 96) / (top - 1)
        ints = torch.clamp(torch.round(flat / step[:, None]), -top, top - 1)
        error = ((ints * step[:, None] - flat) ** 2).sum(1)
        better = error < best_error
        best_step, best_error = torch.where(better, step, best_step), torch.where(better, error, best_error)
    return best_step


def parent_norms(parent: ResNet, model: QuantResNet) -> dict[QuantConv, nn.BatchNorm2d]:
    """The batch norm that each convolution of `model` folds in."""
    norms = {model.conv1: parent.bn1}
    for block, source in zip(model.blocks, parent.blocks(), strict=True):
        norms |= {conv: norm for conv, (_, norm) in zip(block.convs(), source.pairs(), strict=True)}
        if block.downsample is not None and source.downsample is not None:
            norms[block.downsample] = source.downsample[1]
    return norms


def build(parent: ResNet, steps: dict[str, float]) -> QuantResNet:
    """Fold `parent` and quantise it; `steps` has the step of every tensor range, by layer name."""
    model = QuantResNet(parent)
    model.to(next(parent.parameters()).device)
    with torch.no_grad():
        _fold(model, parent, steps)
        make_room(model)
    return model


def _fold(model: QuantResNet, parent: ResNet, steps: dict[str, float]) -> None:
    for name, tensor_range in model.ranges():
        tensor_range.base.fill_(steps[name])
    for conv, norm in parent_norms(parent, model).items():
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight.mul_(gain.reshape(-1, 1, 1, 1))
        conv.bias.copy_(norm.bias - norm.running_mean * gain)
        conv.step.copy_(weight_steps(conv.weight, conv.bits))
    model.fc.step.copy_(weight_steps(model.fc.weight, bits=8))


def make_room(model: QuantResNet) -> None:
    """Widen the weight steps of channels whose bias or residual factor would not fit its integer.

    Those are channels that are constant, or nearly: their weights round to zero at the wider step. The
    s8 step of a residual branch is widened to its accumulator's unit where that is larger, which only
    narrow layers need. Call it without gradients.
    """

    def widen(conv: QuantConv, in_step: torch.Tensor, shortcut_step: torch.Tensor | None = None) -> None:
        least = conv.bias.abs() / (in_step * BIAS_ROOM)
        if shortcut_step is not None:
            least = torch.maximum(least, shortcut_step / (in_step * RATIO_ROOM))
        conv.step.copy_(torch.maximum(conv.step, least))

    widen(model.conv1, torch.full_like(model.quantize1.base, INPUT_STEP))
    step = model.quantize1.step
    for block in model.blocks:
        shortcut = entered = step
        *inner, last = block.convs()
        for conv, tensor_range in zip(inner, block.quantizes(), strict=False):
            widen(conv, entered)
            entered = tensor_range.step
        if block.downsample is not None:
            widen(block.downsample, step)
            branch = block.downsample_1
            branch.base.copy_(torch.maximum(branch.base, FACTOR_ROOM * block.downsample.unit(step).max()))
            shortcut = branch.step
        widen(last, entered, shortcut)
        step = block.quantizes()[-1].step


class _Statistics:
    """Stands in for a convolution's bias: normalises by the batch, as the parent's batch norm did."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.norm = norm
        self.batches = 0
        self.mean = torch.zeros_like(norm.running_mean)
        self.variance = torch.zeros_like(norm.running_var)

    def gain(self, variance: torch.Tensor) -> torch.Tensor:
        """What brings channels of this variance, after folding, to the parent's deviation |gamma|."""
        norm = self.norm
        folded = norm.running_var + norm.eps
        unfold = folded / (norm.weight**2).clamp(min=1e-12)
        return torch.sqrt(folded / (variance * unfold + norm.eps)).clamp(0.25, 4.0)

    def __call__(self, conv: QuantConv, acc: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        real = acc * by_channel(unit)
        variance, mean = torch.var_mean(real, dim=(0, 2, 3), correction=0)
        self.mean += mean
        self.variance += variance
        self.batches += 1
        shifted = (real - by_channel(mean)) * by_channel(self.gain(variance)) + by_channel(self.norm.bias)
        return shifted / by_channel(unit)

    def apply(self, conv: QuantConv) -> None:
        gain = self.gain(self.variance / self.batches)
        conv.weight.mul_(gain.reshape(-1, 1, 1, 1))
        conv.step.mul_(gain)
        conv.bias.copy_(self.norm.bias - self.mean / self.batches * gain)


def reestimate(model: QuantResNet, parent: ResNet, batches: Iterable[torch.Tensor]) -> None:
    """Give each convolution, under quantisation, the mean and deviation its batch norm had in the parent.

    Rounding weights and activations to 4 bits shifts both; this is re-estimating the batch norms' running
    statistics with the quantised network, and folding them again.
    """
    found = {conv: _Statistics(norm) for conv, norm in parent_norms(parent, model).items()}
    for conv, statistics in found.items():
        conv.statistics = statistics
    with torch.no_grad():
        for images in batches:
            model(images)
        for conv, statistics in found.items():
            conv.statistics = None
            statistics.apply(conv)
        make_room(model)

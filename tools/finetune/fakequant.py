"""Fake quantisation that is the integer arithmetic itself, with straight-through gradients.

Values between layers are the format's integers, held in a float tensor, beside one step (real units an
integer step). A convolution of integers gives the accumulator; factor, shift and bias are rounded as
the format stores them. So one forward pass both trains (bf16 or float32) and, in float64, gives the
engine's integers exactly: nothing is modelled twice.

Rounding passes gradients straight through (Bengio, Leonard and Courville 2013); clamping stops them
outside its range, which is what lets steps learn (Esser et al. 2020, LSQ).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

FACTOR_MAX = 65535
SHIFT = 16
"""The shift of every Quantize whose output is u4, u7 or s8."""


def straight_through(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`value` forward, the gradient of `x` backward."""
    return x + (value - x).detach()


def round_ste(x: torch.Tensor) -> torch.Tensor:
    """Nearest integer, halves away from zero, as the format's Quantize rounds."""
    return straight_through(torch.sign(x) * torch.floor(torch.abs(x) + 0.5), x)


def by_channel(x: torch.Tensor) -> torch.Tensor:
    """(C,) -> (1, C, 1, 1)."""
    return x.reshape(1, -1, 1, 1)


def requantize(acc: torch.Tensor, ratio: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    """Accumulators to integers lo..hi: the format's Quantize with shift 16.

    ratio: (C,) accumulator units over output step; the factor is its multiple of 2**16, rounded.
    """
    factor = round_ste(ratio * (1 << SHIFT))
    scaled = acc * by_channel(factor) * (1.0 / (1 << SHIFT))
    return round_ste(torch.clamp(scaled, lo, hi))


def residual_shift(ratio: torch.Tensor) -> torch.Tensor:
    """The largest shift, 0..16, at which every factor round(ratio * 2**shift) still fits 16 bits.

    It counts comparisons, because a logarithm may differ in its last bit between a CPU and a GPU.
    """
    powers = 2.0 ** torch.arange(1, SHIFT + 1, device=ratio.device)
    return (ratio.detach().max() * powers <= FACTOR_MAX).sum().to(ratio.dtype)


def rescale(x: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Integers of the residual branch into units of conv3's accumulator: Quantize to u31 or s32."""
    scale = torch.exp2(residual_shift(ratio))
    factor = round_ste(ratio * scale)
    return round_ste(x * by_channel(factor) / scale)


class QuantConv(nn.Module):
    """Convolution of integers by s4 or s8 weights, with the batch norm folded in.

    Attributes:
        weight, bias: real, after folding; trained.
        step: float32 (K,), real units of one weight step; fixed when the weights are first quantised.
        statistics: set while batch statistics are re-estimated (see `fold`), else None.
    """

    def __init__(self, conv: nn.Conv2d, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.stride, self.padding = conv.stride, conv.padding
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(conv.out_channels))
        self.step: torch.Tensor
        self.register_buffer("step", torch.ones(conv.out_channels))
        self.statistics: Callable[[QuantConv, torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def int_weight(self) -> torch.Tensor:
        """(K, C, R, S): the integers the format stores."""
        top = 1 << (self.bits - 1)
        return round_ste(torch.clamp(self.weight / self.step.reshape(-1, 1, 1, 1), -top, top - 1))

    def unit(self, in_step: torch.Tensor) -> torch.Tensor:
        """(K,): real units of one step of the accumulator."""
        return in_step * self.step

    def forward(self, x: torch.Tensor, in_step: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Accumulators with bias, in float32 or better, of the integers `x` whose step is `in_step`."""
        wide = torch.promote_types(dtype, torch.float32)
        weight = self.int_weight().to(dtype)
        acc = F.conv2d(x.to(dtype), weight, stride=self.stride, padding=self.padding).to(wide)
        unit = self.unit(in_step)
        if self.statistics is not None:
            return self.statistics(self, acc, unit)
        return acc + by_channel(round_ste(self.bias / unit))


class QuantLinear(nn.Module):
    """Fully connected layer: u7 by s8, with a step for each class; `fc` of the format."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.bias = nn.Parameter(linear.bias.detach().clone())
        self.step: torch.Tensor
        self.register_buffer("step", torch.ones(linear.out_features))

    def int_weight(self) -> torch.Tensor:
        return round_ste(torch.clamp(self.weight / self.step.reshape(-1, 1), -128, 127))

    def forward(self, x: torch.Tensor, in_step: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        return F.linear(x.to(dtype), self.int_weight().to(dtype)).to(wide) + round_ste(
            self.bias / (in_step * self.step)
        )


class Range(nn.Module):
    """The step of one quantised tensor: what calibration found, times a gain that training learns.

    Products alone, no logarithm, so that a CPU and a GPU get the same step to the last bit.
    """

    def __init__(self, hi: int) -> None:
        super().__init__()
        self.hi = hi
        self.base: torch.Tensor
        self.register_buffer("base", torch.ones(()))
        self.gain = nn.Parameter(torch.ones(()))

    @property
    def step(self) -> torch.Tensor:
        return self.base * self.gain.clamp(min=0.05)

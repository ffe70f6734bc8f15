"""Convolutions with random contents, and what they give in NumPy integers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual, Source
from int4core.backends.cuda.plan.ops import Branch, ConvOp, Limits, PairOp, PooledOp, PoolOp
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.dtypes import S8, S32, U4, U7, U31
from int4core.quantize import requantize

POISON = 0xA5

MOST_UP = 28_000
"""Factors back from s8 are below it: with a 3x3 convolution of 512 channels, 32 bits still requantise the sums."""


def draws() -> np.random.Generator:
    """Random numbers: the same each time, unless all there is to test is to be tested."""
    return np.random.default_rng(None if os.environ.get("INT4CORE_TEST_ALL") else 0)


class Problem:
    """Weights of 4 bits, constants and inputs over the whole range; factors with which ties happen.

    `wide` makes the requantisation one that only 64 bits compute.
    """

    def __init__(self, conv: Convolution, rng: np.random.Generator, *, wide: bool = False) -> None:
        self.conv = conv
        k = conv.k
        self.weight = rng.integers(-8, 8, (k, conv.c, conv.taps, conv.taps)).astype(np.int8)
        self.bias = rng.integers(-3000, 3000, k).astype(np.int16)
        self.rescale = factors(rng, k, 100 if conv.residual else 600)
        if wide:
            self.rescale = Rescale(rng.integers(0, 65536, k).astype(np.uint16), 26)
        self.input = rng.integers(0, 256, (conv.n, conv.h, conv.w, conv.c // 2), np.uint8)
        self.residual = np.zeros(16, np.uint8)
        self.kept: Rescale | None = None
        self.branch: Branch | None = None
        if conv.residual == Residual.U4:
            self.kept = Rescale(rng.integers(0, 65536, k).astype(np.uint16), int(rng.integers(0, 4)))
            self.residual = rng.integers(0, 256, (conv.n, conv.p, conv.q, k // 2), np.uint8)
        if conv.source:
            src = conv.source
            weight = rng.integers(-8, 8, (k, src.c, 1, 1)).astype(np.int8)
            bias = rng.integers(-3000, 3000, k).astype(np.int16)
            up = Rescale(rng.integers(0, MOST_UP, k).astype(np.uint16), int(rng.integers(0, 4)))
            limits = Limits.of(weight, bias, 0, 15)
            self.branch = Branch("branch", weight, bias, factors(rng, k, 6000), up, limits)
            self.residual = rng.integers(0, 256, (conv.n, src.h, src.w, src.c // 2), np.uint8)

    @property
    def op(self) -> ConvOp:
        limits = Limits.of(self.weight, self.bias, 0, 15)
        if self.kept:
            limits += Limits(0, 15 * 65535)
        if self.branch:
            limits += Limits(-128 * MOST_UP, 128 * MOST_UP)
        residual = "residual" if self.conv.residual else ""
        return ConvOp(
            "conv", "input", residual, "output", self.conv, self.weight, self.bias, self.rescale, limits,
            self.kept, self.branch,
        )  # fmt: skip

    @property
    def output(self) -> np.ndarray[Any, Any]:
        """An output tensor that nobody has written yet."""
        conv = self.conv
        return np.full((conv.n, conv.p, conv.q, conv.k // (2 if conv.output == Output.U4 else 1)), POISON, np.uint8)

    def expected(self) -> np.ndarray[Any, Any]:
        conv = self.conv
        sums = convolve(self.input, self.weight, conv.stride, conv.pad) + self.bias
        if self.kept:
            sums = sums + requantize(unpack(self.residual), self.kept.factor, self.kept.shift, U31)
        if self.branch and conv.source:
            branch = convolve(self.residual, self.branch.weight, conv.source.stride, 0) + self.branch.bias
            narrow = requantize(branch, self.branch.down.factor, self.branch.down.shift, S8)
            sums = sums + requantize(narrow, self.branch.up.factor, self.branch.up.shift, S32)
        out = U7 if conv.output == Output.U7 else U4
        result = requantize(np.maximum(sums, 0), self.rescale.factor, self.rescale.shift, out)
        packed = result if out is U7 else result[..., 0::2] | result[..., 1::2] << 4
        return packed.astype(np.uint8)


class PairProblem:
    """A convolution with a residual tensor, and a 1x1 convolution to `k` channels of what it gives."""

    def __init__(self, conv: Convolution, k: int, rng: np.random.Generator) -> None:
        self.first = Problem(conv, rng)
        self.second = Problem(Convolution(conv.n, conv.p, conv.q, conv.k, k, 1, 1, 0), rng)
        self.second.input = self.first.expected()

    @property
    def op(self) -> PairOp:
        first, second = replace(self.first.op, target="wide"), replace(self.second.op, source="wide", target="narrow")
        return PairOp(first, replace(second, name="second"))

    def expected(self) -> dict[str, np.ndarray[Any, Any]]:
        return {"wide": self.second.input, "narrow": self.second.expected()}


class PooledProblem:
    """A convolution to u7 with a residual tensor, and the mean of every image of it."""

    def __init__(self, conv: Convolution, rng: np.random.Generator) -> None:
        self.first = Problem(conv, rng)
        self.pool = PoolOp("pool", "output", "pooled", conv.n, conv.p, conv.q, conv.k, conv.p)

    @property
    def op(self) -> PooledOp:
        return PooledOp(self.first.op, self.pool)

    def expected(self) -> dict[str, np.ndarray[Any, Any]]:
        conv = self.first.conv
        totals, count = self.first.expected().astype(np.int64).sum((1, 2)), conv.p * conv.q
        return {"pooled": ((2 * totals + count) // (2 * count)).astype(np.uint8)}


def factors(rng: np.random.Generator, k: int, top: int) -> Rescale:
    """Over 2^16: random ones below `top`, with zeros, powers of two and the largest among them."""
    values = rng.integers(0, top, k)
    special = rng.choice([0, 1, 4096, 32768, 49152, 65535], k)
    return Rescale(np.where(rng.integers(0, 6, k) == 0, special, values).astype(np.uint16), 16)


def unpack(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)


def convolve(packed: np.ndarray[Any, Any], weight: np.ndarray[Any, Any], stride: int, pad: int) -> Any:
    """Packed u4 (N, H, W, C / 2) by (K, C, R, R) -> int64 (N, P, Q, K); float64 is exact for these sums."""
    values = np.pad(unpack(packed).astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    taps = weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(values, (taps, taps), (1, 2))[:, ::stride, ::stride]
    products = np.tensordot(windows, weight.astype(np.float64), ((3, 4, 5), (1, 2, 3)))
    return products.astype(np.int64)


def resnet50_convolutions() -> list[Convolution]:
    """Those of one image after the stem, each shape once."""
    found: dict[Convolution, None] = {}
    size, channels = 56, 64
    for layer, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if layer and not block else 1
            last = layer == 3 and block == blocks - 1
            found[Convolution(1, size, size, channels, width, 1, 1, 0)] = None
            found[Convolution(1, size, size, width, width, 3, stride, 1)] = None
            wide = Convolution(1, size // stride, size // stride, width, 4 * width, 1, 1, 0)
            if block:
                wide = replace(wide, residual=Residual.U4, output=Output.U7 if last else Output.U4)
            else:
                source = Source(size, size, channels, stride)
                wide = replace(wide, residual=Residual.CONVOLUTION, source=source)
            found[wide] = None
            size, channels = size // stride, 4 * width
    return list(found)


def resnet34_convolutions() -> list[Convolution]:
    """Likewise of a ResNet-34: 3x3 convolutions, half of them with a residual."""
    found: dict[Convolution, None] = {}
    size, channels = 56, 64
    for layer, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if layer and not block else 1
            output = Output.U7 if layer == 3 and block == blocks - 1 else Output.U4
            found[Convolution(1, size, size, channels, width, 3, stride, 1)] = None
            after = Convolution(1, size // stride, size // stride, width, width, 3, 1, 1, output, Residual.U4)
            if stride > 1:
                source = Source(size, size, channels, stride)
                after = replace(after, residual=Residual.CONVOLUTION, source=source)
            found[after] = None
            size, channels = size // stride, width
    return list(found)

"""Convolutions by oneDNN through PyTorch: bytes in, and exact sums or the next layer's bytes out.

oneDNN multiplies uint8 by int8 and adds in int32, turns a sum into float32, times a scale and plus a bias a channel,
limits it and, where bytes are asked for, rounds to the nearest integer, halves to the even one. Nothing of it is
inexact here, which is proved from the weights when a convolution is built:

- Sums below 2^24 are values of float32. Larger ones, which no ResNet has, are computed in float64, and that is said.
- `Fused` has Quantize in the scale and the bias, so that no value is half way between two integers.
- A CPU without VNNI adds pairs of products in 16 bits, which saturate. Pairs of u4 times s4, and of u7 times s8, fit.
  The stem's may not: s8 comes as uint8. It is tried with the input that is the first to saturate, and where it does,
  the input is taken in two halves of four bits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from int4core.backends.numpy.products import FLOAT32, FLOAT64, expect_32_bits
from int4core.backends.numpy.tiles import Array
from int4core.dtypes import U4, IntType
from int4core.errors import EngineError
from int4core.layers import Conv2d, Linear, Pair, Quantize
from int4core.quantize import MANTISSA, requantize

LOGGER = logging.getLogger("int4core")

EXACT = MANTISSA[FLOAT32]

OFFSET = 128
"""Added to s8 values, which oneDNN's convolution takes as uint8."""


@dataclass(frozen=True, eq=False)
class Weights:
    """What a convolution or a linear layer computes with. weight: int8 (K, C // groups, R, S); bias: int64 (K,)."""

    name: str
    weight: Array
    bias: Array
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, layer: Conv2d | Linear) -> Weights:
        weight, bias = np.array(layer.weight, order="C"), layer.bias.astype(np.int64)  # copies: torch wants to write
        if isinstance(layer, Linear):
            return cls(layer.name, weight[:, :, None, None], bias)
        return cls(layer.name, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def bound(self, source: IntType) -> int:
        """No sum, with or without its bias, nor any part of one, is larger. Raises EngineError over 32 bits."""
        sums = np.abs(self.weight.astype(np.int64)).sum(axis=(1, 2, 3)) * max(source.hi, -source.lo)
        bound = int((sums + np.abs(self.bias)).max())
        expect_32_bits(bound, f"{self.name}: sums")
        return bound


@dataclass(frozen=True, eq=False)
class Fused:
    """ReLU and Quantize as oneDNN's scale, bias and limit.

    Attributes:
        scale: float32 (K,), factor / 2^shift.
        bias: float32 (K,), bias * factor / 2^shift, and half of 1 / 2^shift where shift is not 0: a value is then an
            odd number of such halves. Without the half it was at least one off the middle of two integers, or in the
            middle, from where it now goes up.
        hi: the largest result.
    """

    scale: torch.Tensor
    bias: torch.Tensor
    hi: int

    @classmethod
    def of(cls, quantize: Quantize, out: IntType, bias: Array) -> Fused | None:
        """None where float32 does not hold all of it.

        With 1 / 2^shift cut in two, a sum x comes to p + o with p = 2 * x * factor and o = 2 * bias * factor + 1.
        Where the result is not limited, 0 <= p + o <= 2 * hi * 2^shift, so that |p| is at most that and |o|: if this
        is a value of float32, as every integer up to 2^24 is, all of it is exact. Where the result is limited, rounding
        keeps the order, as in `FloatRescale`.
        """
        shift, below = quantize.shift_bits, int(quantize.shift_bits > 0)
        factor = quantize.requant_factor.astype(np.int64)
        offset = ((bias * factor) << below) + below
        if (out.hi << shift + below) + int(np.abs(offset).max()) > EXACT:
            return None
        scale = np.ldexp(factor.astype(np.float64), -shift).astype(FLOAT32)
        added = np.ldexp(offset.astype(np.float64), -shift - below).astype(FLOAT32)
        return cls(torch.from_numpy(scale), torch.from_numpy(added), out.hi)


class Kernel:
    """oneDNN's convolution of one layer.

    Args:
        weights: of the layer.
        zero: what stands for 0 in its uint8 images, padding included.
        images: (n, C, H, W) that the weights are laid out for; others work too.
    """

    def __init__(self, weights: Weights, zero: int, images: tuple[int, ...]) -> None:
        channels = len(weights.weight)
        self._zero = zero
        self._window = list(weights.stride), list(weights.padding), list(weights.dilation), weights.groups
        self._zeros = torch.zeros(channels, dtype=torch.int32)
        self._packed = torch.ops.onednn.qconv_prepack(
            torch.from_numpy(weights.weight), torch.ones(channels), 1.0, zero, *self._window, list(images)
        )

    def sums(self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """uint8 (n, C, H, W), channels last -> float32 (n, K, Ho, Wo): sums * scale + bias."""
        return self._run(x, scale, bias, torch.float32, "none", [])

    def bytes(self, x: torch.Tensor, fused: Fused) -> torch.Tensor:
        """uint8 (n, C, H, W), channels last -> uint8 (n, K, Ho, Wo)."""
        return self._run(x, fused.scale, fused.bias, torch.uint8, "hardtanh", [0.0, float(fused.hi)])

    def _run(
        self,
        x: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        dtype: torch.dtype,
        limit: str,
        ends: list[float],
    ) -> torch.Tensor:
        done: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, self._zero, self._packed, scale, self._zeros, bias, *self._window, 1.0, 0, dtype, limit, ends, ""
        )
        return done


class Convolution:
    """A convolution whose every sum is exact.

    Args:
        weights: of the layer.
        source: type of its input; s8 comes as uint8, each value and OFFSET.
        images: (n, C, H, W) of its usual input.

    Attributes:
        bound: no sum, with or without its bias, nor any part of one, is larger than this.

    Raises:
        EngineError: a sum could leave 32 bits.
    """

    def __init__(self, weights: Weights, source: IntType, images: tuple[int, ...]) -> None:
        self.weights = weights
        self.bound = weights.bound(source)
        self._sums = self._choose(source, images)

    @property
    def name(self) -> str:
        return self.weights.name

    def fuse(self, quantize: Quantize, out: IntType) -> Fused | None:
        """What `bytes` takes for the layer's Quantize, or None where only `sums` are exact."""
        return Fused.of(quantize, out, self.weights.bias) if isinstance(self._sums, Direct) else None

    def bytes(self, x: torch.Tensor, fused: Fused) -> torch.Tensor:
        """uint8 (n, C, H, W), channels last -> ReLU and Quantize of the sums, uint8 (n, K, Ho, Wo)."""
        assert isinstance(self._sums, Direct)
        return self._sums.kernel.bytes(x, fused)

    def sums(self, x: torch.Tensor) -> Array:
        """uint8 (n, C, H, W), channels last -> float32 or float64 (n, Ho, Wo, K): sums with bias."""
        return channels_last(self._sums(x))

    def _choose(self, source: IntType, images: tuple[int, ...]) -> Direct | Halves | Wide:
        weights, zero = self.weights, OFFSET if source.signed else 0
        if self.bound >= EXACT:
            LOGGER.warning(
                "%s: sums could reach %d, which float32 does not hold exactly: computed in float64, slowly",
                weights.name, self.bound,
            )  # fmt: skip
            return Wide(weights, zero)
        direct = Direct(weights, zero, images)
        largest = source.hi + zero
        if 2 * largest * int(np.abs(weights.weight.astype(np.int64)).max()) < 1 << 15:
            return direct
        # A pair saturates with both inputs at their largest, or never: one product alone fits 16 bits.
        x = torch.full((1, *images[1:]), largest, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        halves = Halves(weights, zero, images)
        if torch.equal(direct(x), halves(x)):
            return direct
        LOGGER.warning("%s: products saturate on this CPU, which lacks VNNI: computed in two halves", weights.name)
        return halves


class Direct:
    """Sums by one call of oneDNN's."""

    def __init__(self, weights: Weights, zero: int, images: tuple[int, ...]) -> None:
        self.kernel = Kernel(weights, zero, images)
        self._ones, self._bias = torch.ones(len(weights.weight)), torch.from_numpy(weights.bias.astype(FLOAT32))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernel.sums(x, self._ones, self._bias)


class Halves:
    """16 times the sums of the upper four bits, and those of the lower four."""

    def __init__(self, weights: Weights, zero: int, images: tuple[int, ...]) -> None:
        self._upper, self._lower = Kernel(weights, zero >> 4, images), Kernel(weights, zero & 15, images)
        self._bias = torch.from_numpy(weights.bias.astype(FLOAT32))
        self._ones, self._zeros = torch.ones_like(self._bias), torch.zeros_like(self._bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        sums = self._upper.sums(x >> 4, 16 * self._ones, self._bias)
        return sums.add_(self._lower.sums(x & 15, self._ones, self._zeros))


class Wide:
    """Sums in float64, which holds all of 32 bits."""

    def __init__(self, weights: Weights, zero: int) -> None:
        self._weight, self._bias = (torch.from_numpy(part.astype(FLOAT64)) for part in (weights.weight, weights.bias))
        self._window = weights.stride, weights.padding, weights.dilation, weights.groups
        self._zero = zero

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.double() - self._zero, self._weight, self._bias, *self._window)


def channels_last(x: torch.Tensor) -> Array:
    """(n, C, H, W) -> (n, H, W, C) of NumPy, C-contiguous; without a copy where its channels lie last."""
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


def channels_first(x: Array) -> torch.Tensor:
    """(n, H, W, C) -> (n, C, H, W) of PyTorch, without a copy."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def check_library() -> None:
    """Raises EngineError unless this PyTorch has oneDNN's convolution, and it rounds as `Fused` expects."""
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-8, 8, (16, 16, 1, 1)).astype(np.int8), rng.integers(-9, 10, 16)
    x = rng.integers(0, 16, (1, 8, 8, 16)).astype(np.uint8)
    # Halves and quarters: ties, and their neighbours.
    quantize = Quantize("", "u31u16u4", 4, 16, 0, np.array([1 << 15, 1 << 14, 11000, 0] * 4, np.uint16))
    fused = Fused.of(quantize, U4, bias)
    assert fused is not None
    sums = x.astype(np.int64) @ weight[:, :, 0, 0].T.astype(np.int64) + bias
    try:
        kernel = Direct(Weights("", weight, bias), 0, (1, 16, 8, 8))
        found = [channels_last(kernel(channels_first(x))), channels_last(kernel.kernel.bytes(channels_first(x), fused))]
    except (AttributeError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise EngineError(
            f"PyTorch {torch.__version__} has no oneDNN convolution of integers here ({why}): use backend 'numpy'"
        ) from error
    expected = [sums, requantize(np.maximum(sums, 0), quantize.requant_factor, quantize.shift_bits, U4)]
    if not all(map(np.array_equal, found, expected)):
        raise EngineError(f"PyTorch {torch.__version__} does not round as the network needs it: use backend 'numpy'")

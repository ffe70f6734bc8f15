"""What runs on the device: a network as a short list of fused operations on named tensors.

Activations are NHWC with the batch outermost and no gaps. u4 tensors are packed, channel 2i in the low nibble of
byte i and channel 2i + 1 in the high one; u7 tensors take a byte a value. Channels are padded to multiples of
32 with zeros, and weights, biases and factors with them. Operations hold NumPy arrays in their logical order; how a
kernel wants them arranged is that kernel's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual
from int4core.backends.cuda.plan.requantise import Rescale
from int4core.layers import Float32Array, Int8Array, Int16Array, Int32Array, Pair

CHANNEL_STEP = 32
"""Channels of every activation are padded to a multiple of this: one k-step of the tensor cores."""

INPUT, CLASSES, TOP1 = "input", "fc", "top1"
"""Tensors that the host writes and reads: int8 images (N, 3, H, W), int32 sums (N, classes), and what TopOp gives."""


def padded(channels: int, step: int = CHANNEL_STEP) -> int:
    return -(-channels // step) * step


@dataclass(frozen=True)
class Tensor:
    """A tensor in device memory: its name is the layer's whose output it is."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Limits:
    """The least and the most that a sum can be, 0 included, over all inputs."""

    low: int
    high: int

    def __add__(self, other: Limits) -> Limits:
        return Limits(self.low + other.low, self.high + other.high)

    @staticmethod
    def of(weight: npt.NDArray[Any], bias: npt.NDArray[Any], low: int, high: int) -> Limits:
        """Of sums of `weight` (K, ...) times inputs in low..high, plus `bias` (K,)."""
        rows = weight.reshape(len(weight), -1)
        positive = rows.clip(min=0).sum(axis=1, dtype=np.int64)
        negative = rows.clip(max=0).sum(axis=1, dtype=np.int64)
        wide = bias.astype(np.int64)
        least, most = positive * low + negative * high + wide, positive * high + negative * low + wide
        return Limits(min(0, int(least.min())), max(0, int(most.max())))


@dataclass(frozen=True, eq=False)
class Branch:
    """A residual branch that is a 1x1 convolution: sums with bias, rescaled to s8 (`down`) and back (`up`).

    `limits` are those of its sums.
    """

    name: str
    weight: Int8Array
    bias: Int16Array
    down: Rescale
    up: Rescale
    limits: Limits


@dataclass(frozen=True, eq=False)
class StemOp:
    """int8 images (N, 3, H, W) -> convolution, ReLU, requantisation to u4, maximum over windows.

    weight (K, 3, R, S); `p`, `q` are the convolution's output size, `pooled` the maximum's; `limits` are those
    of the sums with bias.
    """

    name: str
    source: str
    target: str
    n: int
    h: int
    w: int
    p: int
    q: int
    stride: Pair
    padding: Pair
    weight: Int8Array
    bias: Int16Array
    rescale: Rescale
    limits: Limits
    pool_size: int
    pool_stride: int
    pool_padding: int
    pooled: Pair

    @property
    def k(self) -> int:
        return len(self.weight)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def output(self) -> Tensor:
        return Tensor(self.target, self.n * self.pooled[0] * self.pooled[1] * self.k // 2)

    @property
    def multiply_adds(self) -> int:
        return self.n * self.p * self.q * self.weight.size

    @property
    def activation_bytes(self) -> int:
        return self.n * self.h * self.w * 3 + self.output.bytes

    @property
    def weight_bytes(self) -> int:
        return self.weight.size

    def __str__(self) -> str:
        r, s = self.weight.shape[2:]
        pool = f"max {self.pool_size}x{self.pool_size}/{self.pool_stride}"
        return f"{self.h}x{self.w}x3 {r}x{s}/{self.stride[0]} -> {self.k}, {pool}"


@dataclass(frozen=True, eq=False)
class ConvOp:
    """A convolution of packed u4, plus a residual if there is one, ReLU and requantisation.

    Attributes:
        name: of the convolution's layer, which tuning files use.
        source, residual_source, target: tensors; `residual_source` is `` where there is no residual.
        shape: sizes, and what is added and written.
        weight: (K, C, taps, taps); bias (K,); rescale: to the output type.
        limits: of the sums with bias and residual.
        kept: factors of a residual that is the block's input (Residual.U4).
        branch: the residual that is a convolution (Residual.CONVOLUTION).
    """

    name: str
    source: str
    residual_source: str
    target: str
    shape: Convolution
    weight: Int8Array
    bias: Int16Array
    rescale: Rescale
    limits: Limits
    kept: Rescale | None = None
    branch: Branch | None = None

    def __post_init__(self) -> None:
        conv = self.shape
        assert self.weight.shape == (conv.k, conv.c, conv.taps, conv.taps), self.name
        assert (self.kept is not None) == (conv.residual == Residual.U4), self.name
        assert (self.branch is not None) == (conv.residual == Residual.CONVOLUTION), self.name
        assert bool(self.residual_source) == (conv.residual != Residual.NONE), self.name

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (self.source, self.residual_source))))

    @property
    def output(self) -> Tensor:
        return Tensor(self.target, self.shape.pixels * self.shape.k // (2 if self.shape.output == Output.U4 else 1))

    @property
    def multiply_adds(self) -> int:
        return self.shape.multiply_adds

    @property
    def activation_bytes(self) -> int:
        return self.shape.activation_bytes

    @property
    def weight_bytes(self) -> int:
        return self.shape.weight_bytes

    def __str__(self) -> str:
        conv = self.shape
        window = f"{conv.taps}x{conv.taps}" + (f"/{conv.stride}" if conv.stride > 1 else "")
        text = f"{conv.h}x{conv.w}x{conv.c} {window} -> {conv.k}"
        if self.kept:
            text += " + input"
        if conv.source:
            text += f" + 1x1/{conv.source.stride} of {conv.source.c}"
        return text + (" u7" if conv.output == Output.U7 else "")


@dataclass(frozen=True)
class PoolOp:
    """u7 (N, H, W, C) -> the rounded mean of the first `size` x `size` pixels, u7 (N, C)."""

    name: str
    source: str
    target: str
    n: int
    h: int
    w: int
    c: int
    size: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def features(self) -> int:
        """Values of an output row: channels, padded with zeros to two k-steps."""
        return padded(self.c, 2 * CHANNEL_STEP)

    @property
    def output(self) -> Tensor:
        return Tensor(self.target, self.n * self.features)

    @property
    def multiply_adds(self) -> int:
        return 0

    @property
    def activation_bytes(self) -> int:
        return self.n * self.size**2 * self.c + self.output.bytes

    @property
    def weight_bytes(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"mean {self.size}x{self.size} of {self.c}"


@dataclass(frozen=True, eq=False)
class LinearOp:
    """u7 (N, features) -> int32 (N, classes): the sums with bias. weight (classes, features)."""

    name: str
    source: str
    target: str
    n: int
    features: int
    weight: Int8Array
    bias: Int32Array

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def output(self) -> Tensor:
        return Tensor(self.target, self.n * self.classes * 4)

    @property
    def multiply_adds(self) -> int:
        return self.n * self.weight.size

    @property
    def activation_bytes(self) -> int:
        return self.n * self.features + self.output.bytes

    @property
    def weight_bytes(self) -> int:
        return self.weight.size

    def __str__(self) -> str:
        return f"{self.features} -> {self.classes}"


@dataclass(frozen=True, eq=False)
class TopOp:
    """int32 (N, classes) -> int32 (N,): the first class with the largest float32 quotient by `out_scale`.

    With `k` > 0, the best `k` classes follow, int32 (N, k), and their scores, float32 (N, k), as in `int4core.scores`.
    """

    name: str
    source: str
    target: str
    n: int
    out_scale: Float32Array
    k: int = 0

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def output(self) -> Tensor:
        return Tensor(self.target, self.n * (1 + 2 * self.k) * 4)

    @property
    def multiply_adds(self) -> int:
        return 0

    @property
    def activation_bytes(self) -> int:
        return self.n * len(self.out_scale) * 4 + self.output.bytes

    @property
    def weight_bytes(self) -> int:
        return self.out_scale.nbytes

    def __str__(self) -> str:
        what = f"top-{self.k} with scores" if self.k else "top-1"
        return f"scale and {what} of {len(self.out_scale)}"


@dataclass(frozen=True, eq=False)
class PairOp:
    """The last convolution of a block, with its residual, and the first one of the next block, at once.

    `second` is a 1x1 convolution of what `first` gives. Both outputs are tensors: the next block adds the first one's.
    """

    first: ConvOp
    second: ConvOp

    @property
    def name(self) -> str:
        return f"{self.first.name} + {self.second.name}"

    @property
    def reads(self) -> tuple[str, ...]:
        return self.first.reads

    @property
    def multiply_adds(self) -> int:
        return self.first.multiply_adds + self.second.multiply_adds

    @property
    def activation_bytes(self) -> int:
        return self.first.activation_bytes + self.second.output.bytes

    @property
    def weight_bytes(self) -> int:
        return self.first.weight_bytes + self.second.weight_bytes

    def __str__(self) -> str:
        return f"{self.first} -> {self.second.shape.k}"


@dataclass(frozen=True, eq=False)
class PooledOp:
    """The network's last convolution, to u7 with a residual tensor, and the average pool after it, at once.

    Its output is the pool's: what the convolution gives is no tensor.
    """

    first: ConvOp
    pool: PoolOp

    @property
    def name(self) -> str:
        return f"{self.first.name} + {self.pool.name}"

    @property
    def reads(self) -> tuple[str, ...]:
        return self.first.reads

    @property
    def multiply_adds(self) -> int:
        return self.first.multiply_adds

    @property
    def activation_bytes(self) -> int:
        return self.first.activation_bytes - self.first.output.bytes + self.pool.output.bytes

    @property
    def weight_bytes(self) -> int:
        return self.first.weight_bytes

    def __str__(self) -> str:
        return f"{self.first}, {self.pool}"


SingleOp: TypeAlias = StemOp | ConvOp | PoolOp | LinearOp | TopOp

JointOp: TypeAlias = PairOp | PooledOp

Op: TypeAlias = SingleOp | JointOp


def parts(op: Op) -> tuple[SingleOp, ...]:
    """The operations of one layer each that an operation is, in running order."""
    if isinstance(op, PairOp):
        return op.first, op.second
    return (op.first, op.pool) if isinstance(op, PooledOp) else (op,)


def named(op: Op) -> tuple[str, ...]:
    """The layers that must name an operation's kernel; a pool has no number."""
    return tuple(part.name for part in parts(op) if not isinstance(part, PoolOp))


def outputs(op: Op) -> tuple[Tensor, ...]:
    """The tensors that an operation writes."""
    return (op.pool.output,) if isinstance(op, PooledOp) else tuple(part.output for part in parts(op))


def join(first: SingleOp, second: SingleOp) -> JointOp | None:
    """Two operations that follow one another as one, if they are what a PairOp or a PooledOp is."""
    if not isinstance(first, ConvOp) or first.shape.residual == Residual.NONE:
        return None
    if isinstance(second, PoolOp):
        taken = (first.shape.residual, first.shape.output) == (Residual.U4, Output.U7)
        return PooledOp(first, second) if taken else None
    if not isinstance(second, ConvOp) or second.source != first.target:
        return None
    window = (second.shape.taps, second.shape.stride, second.shape.pad)
    return PairOp(first, second) if window == (1, 1, 0) and second.shape.residual == Residual.NONE else None


def joined(ops: Sequence[SingleOp]) -> tuple[JointOp, ...]:
    """What two operations that follow one another could be, each."""
    return tuple(both for first, second in pairwise(ops) if (both := join(first, second)))

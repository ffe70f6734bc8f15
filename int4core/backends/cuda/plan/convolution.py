"""One fused convolution: its sizes, what is added to its sums and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from int4core.errors import EngineError


class Output(IntEnum):
    """What the epilogue writes: OUTPUT in the kernels."""

    U4 = 0
    U7 = 1


class Residual(IntEnum):
    """What is added before ReLU: RESIDUAL in the kernels."""

    NONE = 0
    U4 = 1
    CONVOLUTION = 2


@dataclass(frozen=True)
class Source:
    """The tensor a residual convolution reads with a 1x1 window: (h, w, c) of an image, and the step."""

    h: int
    w: int
    c: int
    stride: int


@dataclass(frozen=True)
class Convolution:
    """One fused convolution on NHWC tensors; sizes in elements, `pad` and `stride` the same both ways."""

    n: int
    h: int
    w: int
    c: int
    k: int
    taps: int
    stride: int
    pad: int
    output: Output = Output.U4
    residual: Residual = Residual.NONE
    source: Source | None = None

    @property
    def p(self) -> int:
        return (self.h + 2 * self.pad - self.taps) // self.stride + 1

    @property
    def q(self) -> int:
        return (self.w + 2 * self.pad - self.taps) // self.stride + 1

    @property
    def pixels(self) -> int:
        return self.n * self.p * self.q

    @property
    def depth(self) -> int:
        """Multiply-adds of one output."""
        return self.taps * self.taps * self.c + self.source_channels

    @property
    def source_channels(self) -> int:
        return self.source.c if self.source else 0

    @property
    def k_bytes(self) -> int:
        """Packed bytes of a pixel that one block of K takes: 64, 32 or 16."""
        for size in (64, 32, 16):
            if self.c % (2 * size) == 0 and self.source_channels % (2 * size) == 0:
                return size
        raise EngineError(f"{self.c} input channels: the kernels take multiples of 32")

    @property
    def multiply_adds(self) -> int:
        return self.pixels * self.k * self.depth

    @property
    def activation_bytes(self) -> int:
        """Bytes that must cross device memory at least once: input, residual, output."""
        read = self.n * self.h * self.w * self.c // 2
        if self.stride > self.taps:
            read = self.pixels * self.c // 2
        kept = self.pixels * self.k // 2 if self.residual == Residual.U4 else 0
        written = self.pixels * self.k // (2 if self.output == Output.U4 else 1)
        return read + kept + self.pixels * self.source_channels // 2 + written

    @property
    def weight_bytes(self) -> int:
        return self.k * self.depth

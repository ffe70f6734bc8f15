"""Host side of `conv_tile.cuh`: the convolutions that a warp's mma.sync computes, whatever its operands are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.epilogue import ELEMENTS, narrow_constants, needs_wide, wide_constants
from int4core.backends.cuda.families.kernel import Arguments, Grid, address
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.convolution import Convolution, Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

WINDOW = np.dtype([(name, "<i4") for name in ("h", "w", "pieces", "stride", "pad", "taps", "channel_blocks")])
"""How windows of a tensor are read: its image, 16-byte pieces of a pixel, the square window, blocks of K of a tap."""

CONV_SHAPE = np.dtype(
    [("pixels", "<i4"), ("p", "<i4"), ("q", "<i4"), ("input", WINDOW), ("residual", WINDOW),
     ("residual_blocks", "<i4"), ("blocks", "<i4"), ("out_channels", "<i4")]
)  # fmt: skip
"""Pixels of all outputs (n * p * q), and p x q of an image; blocks of K: of the residual convolution, which come before
all others, and of both."""

ENDS_COST = 150
"""What a block's start and end cost for each output, in multiply-adds: an estimate, of no measurement."""

PIECE_CHANNELS = 32
"""Channels of a 16-byte piece of a pixel."""

PAIR_BYTES = 32
"""Of the epilogue's constants for two channels, of each kind."""


@dataclass(frozen=True)
class TileConfig:
    """How a block is cut: warps_m x warps_n warps of warp_m pixels x warp_n channels, and buffers of K."""

    warps_m: int
    warps_n: int
    warp_m: int
    warp_n: int
    stages: int

    @property
    def tile_m(self) -> int:
        return self.warps_m * self.warp_m

    @property
    def tile_n(self) -> int:
        return self.warps_n * self.warp_n

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def cut(self) -> str:
        """In words."""
        warps = f"{self.warps_m}x{self.warps_n} warps of m{self.warp_m} n{self.warp_n}"
        return f"m{self.tile_m} n{self.tile_n}, {warps}, {self.stages} stages"


@dataclass(frozen=True, eq=False)
class TileConv(ABC):
    """A convolution on entry `number` of the table.

    Raises EngineError when the two do not fit, or the chip cannot run them; the message is the reason.
    """

    op: ConvOp
    number: int
    chip: Chip

    name: ClassVar[str]
    """Of the kernel, and of its file."""

    def __post_init__(self) -> None:
        self.check_operands()
        if self.conv.k % self.config.tile_n:
            raise EngineError(f"{self.conv.k} output channels are no multiple of {self.config.tile_n}")
        if self.shared_bytes > self.chip.shared_bytes:
            raise EngineError(f"{self.shared_bytes} bytes of shared memory, the chip has {self.chip.shared_bytes}")
        check_size(self.conv)

    @abstractmethod
    def check_operands(self) -> None:
        """Raises EngineError when the chip has not the instruction, or it does not take these weights."""

    @property
    @abstractmethod
    def config(self) -> TileConfig: ...

    @property
    @abstractmethod
    def k_bytes(self) -> int:
        """Packed bytes of a pixel that a block of K takes."""

    @property
    @abstractmethod
    def weight_bits(self) -> int:
        """Of a weight in memory: 4 or 8."""

    @property
    @abstractmethod
    def constants_of_operands(self) -> dict[str, int]:
        """Compile-time constants besides those of every tile."""

    @property
    @abstractmethod
    def arrange(self) -> Callable[[Int8Array, int, int, int], npt.NDArray[Any]]:
        """(weights, warps_n, warp_n, k_bytes) -> (tiles, blocks of K, bytes)."""

    @property
    def conv(self) -> Convolution:
        return self.op.shape

    @property
    def wide(self) -> bool:
        return needs_wide(self.op)

    @property
    def threads(self) -> int:
        return self.config.threads

    @property
    def shared_bytes(self) -> int:
        config = self.config
        weights = 2 * self.k_bytes * config.tile_n * self.weight_bits // 8
        kinds = 2 if self.conv.residual == Residual.CONVOLUTION else 1
        return config.stages * (config.tile_m * self.k_bytes + weights) + kinds * config.tile_n // 2 * PAIR_BYTES

    @property
    def grid(self) -> Grid:
        return math.ceil(self.conv.pixels / self.config.tile_m) * (self.conv.k // self.config.tile_n), 1, 1

    @property
    def source(self) -> KernelSource:
        config = self.config
        constants = {
            "WARPS_M": config.warps_m, "WARPS_N": config.warps_n, "WARP_M": config.warp_m, "WARP_N": config.warp_n,
            "STAGES": config.stages, "K_BYTES": self.k_bytes, "OUTPUT": int(self.conv.output),
            "RESIDUAL": int(self.conv.residual), "WIDE": int(self.wide), **self.constants_of_operands,
        }  # fmt: skip
        structs = {"Window": WINDOW, "ConvShape": CONV_SHAPE}
        return KernelSource.of(f"{self.name}.cu", self.name, constants, structs, ELEMENTS)

    @property
    def layout(self) -> str:
        return f"{self.name} {self.config.warps_n} {self.config.warp_n} {self.k_bytes}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        op, config = self.op, self.config
        order = (config.warps_n, config.warp_n, self.k_bytes)
        weights = self.arrange(op.weight, *order)
        if op.branch:
            weights = np.concatenate((self.arrange(op.branch.weight, *order), weights), axis=1)
        epilogue = (wide_constants if self.wide else narrow_constants)(op, config.warp_n)
        return weights, epilogue.channels, epilogue.residual

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        residual = tensors[op.residual_source] if op.residual_source else 0
        addresses = (tensors[op.source], residual, *constants, tensors[op.target])
        return (*map(address, addresses), conv_shape(self.conv, self.k_bytes))

    @property
    @abstractmethod
    def product_cost(self) -> float:
        """What a multiply-add costs, in no unit, over the part of the tensor rate that the block's warps keep."""

    @property
    def cost(self) -> float:
        """What the launch costs, in no unit: for comparing configurations that nobody has timed.

        A block's time is its products, plus a start and an end that do not shrink with it; blocks run in waves of one
        a multiprocessor. The weights are estimates, of no measurement: `int4core.tune` measures.
        """
        block = self.config.tile_m * self.config.tile_n * (self.conv.depth * self.product_cost + ENDS_COST)
        return math.ceil(self.grid[0] / self.chip.multiprocessors) * block

    def __str__(self) -> str:
        return f"{self.config}{', 64-bit requantisation' if self.wide else ''}"


def check_size(conv: Convolution) -> None:
    """Raises EngineError when the kernels' 32-bit numbers of pixels, or of 16-byte pieces, would overflow."""
    pieces = conv.n * conv.h * conv.w * (conv.c // PIECE_CHANNELS)
    if conv.source:
        pieces = max(pieces, conv.n * conv.source.h * conv.source.w * (conv.source.c // PIECE_CHANNELS))
    if max(conv.pixels, pieces) >= 1 << 30:
        raise EngineError(f"{conv.n} images of {conv.h}x{conv.w}x{conv.c}: choose a smaller batch")


def conv_shape(conv: Convolution, k_bytes: int) -> npt.NDArray[Any]:
    """CONV_SHAPE of a convolution whose blocks of K are 2 * k_bytes channels of one tap."""
    blocks = conv.c // (2 * k_bytes)
    window = (conv.h, conv.w, conv.c // PIECE_CHANNELS, conv.stride, conv.pad, conv.taps, blocks)
    other, other_blocks = (0,) * len(window), 0
    if conv.source:
        src, other_blocks = conv.source, conv.source.c // (2 * k_bytes)
        other = (src.h, src.w, src.c // PIECE_CHANNELS, src.stride, 0, 1, other_blocks)
    all_blocks = other_blocks + blocks * conv.taps**2
    return np.array((conv.pixels, conv.p, conv.q, window, other, other_blocks, all_blocks, conv.k), CONV_SHAPE)

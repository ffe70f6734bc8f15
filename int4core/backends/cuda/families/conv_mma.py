"""Host side of `conv_mma.cu`: the convolutions of every chip from sm_80 on that has no better route."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.epilogue import narrow_constants, needs_wide, wide_constants
from int4core.backends.cuda.families.kernel import Arguments, Grid, address
from int4core.backends.cuda.families.layouts import K_STEP, arrange_mma
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.convolution import Convolution, Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError

CAPABILITY = (8, 0)
"""The first chips with cp.async and mma.m16n8k32."""

_WINDOW_FIELDS = ("h", "w", "pieces", "stride", "pad", "taps", "channel_blocks")
WINDOW = np.dtype([(name, "<i4") for name in _WINDOW_FIELDS])
"""`Window` in conv_mma.cu."""

CONV_SHAPE = np.dtype(
    [("pixels", "<i4"), ("p", "<i4"), ("q", "<i4"), ("input", WINDOW), ("residual", WINDOW),
     ("residual_blocks", "<i4"), ("blocks", "<i4"), ("out_channels", "<i4")]
)  # fmt: skip
"""`ConvShape` in conv_mma.cu."""

PAIR_BYTES = 32
"""Of the epilogue's constants for two channels, of each kind."""


@dataclass(frozen=True)
class MmaConfig:
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

    def __str__(self) -> str:
        warps = f"{self.warps_m}x{self.warps_n} warps of m{self.warp_m} n{self.warp_n}"
        return f"mma m{self.tile_m} n{self.tile_n}, {warps}, {self.stages} stages"


CONFIGS: tuple[MmaConfig, ...] = (
    MmaConfig(2, 2, 64, 64, 3),
    MmaConfig(2, 2, 64, 64, 4),
    MmaConfig(4, 2, 32, 64, 3),
    MmaConfig(4, 2, 64, 64, 3),
    MmaConfig(2, 4, 64, 64, 3),
    MmaConfig(4, 1, 64, 64, 3),
    MmaConfig(4, 1, 32, 64, 3),
    MmaConfig(4, 1, 32, 64, 4),
    MmaConfig(2, 2, 32, 64, 3),
    MmaConfig(2, 1, 32, 64, 3),
    MmaConfig(2, 2, 32, 32, 3),
    MmaConfig(2, 2, 32, 32, 5),
    MmaConfig(4, 1, 64, 32, 3),
    MmaConfig(4, 1, 32, 32, 3),
    MmaConfig(2, 1, 16, 64, 5),
    MmaConfig(2, 1, 16, 32, 5),
)
"""Numbered from 0: a tuning file names a configuration by its index."""


def check_size(conv: Convolution) -> None:
    """Raises EngineError when the kernels' 32-bit numbers of pixels, or of 16-byte pieces, would overflow."""
    pieces = conv.n * conv.h * conv.w * (conv.c // K_STEP)
    if conv.source:
        pieces = max(pieces, conv.n * conv.source.h * conv.source.w * (conv.source.c // K_STEP))
    if max(conv.pixels, pieces) >= 1 << 30:
        raise EngineError(f"{conv.n} images of {conv.h}x{conv.w}x{conv.c}: choose a smaller batch")


@dataclass(frozen=True, eq=False)
class MmaConv:
    """A convolution on entry `number` of CONFIGS.

    Raises EngineError when the two do not fit, or the chip cannot run them; the message is the reason.
    """

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        if self.chip.capability < CAPABILITY:
            major, minor = self.chip.capability
            raise EngineError(f"compute capability {major}.{minor}: mma.m16n8k32 needs 8.0")
        if self.conv.k % self.config.tile_n:
            raise EngineError(f"{self.conv.k} output channels are no multiple of {self.config.tile_n}")
        if self.shared_bytes > self.chip.shared_bytes:
            raise EngineError(f"{self.shared_bytes} bytes of shared memory, the chip has {self.chip.shared_bytes}")
        check_size(self.conv)

    @property
    def conv(self) -> Convolution:
        return self.op.shape

    @property
    def config(self) -> MmaConfig:
        return CONFIGS[self.number]

    @property
    def wide(self) -> bool:
        return needs_wide(self.op)

    @property
    def k_bytes(self) -> int:
        return self.conv.k_bytes

    @property
    def shared_bytes(self) -> int:
        config = self.config
        stage = config.tile_m * self.k_bytes + 2 * self.k_bytes * config.tile_n
        kinds = 2 if self.conv.residual == Residual.CONVOLUTION else 1
        return config.stages * stage + kinds * config.tile_n // 2 * PAIR_BYTES

    @property
    def threads(self) -> int:
        return self.config.threads

    @property
    def grid(self) -> Grid:
        return math.ceil(self.conv.pixels / self.config.tile_m) * (self.conv.k // self.config.tile_n), 1, 1

    @property
    def source(self) -> KernelSource:
        config = self.config
        constants = {
            "WARPS_M": config.warps_m, "WARPS_N": config.warps_n, "WARP_M": config.warp_m,
            "WARP_N": config.warp_n, "STAGES": config.stages, "K_BYTES": self.k_bytes,
            "OUTPUT": int(self.conv.output), "RESIDUAL": int(self.conv.residual), "WIDE": int(self.wide),
        }  # fmt: skip
        return KernelSource.of("conv_mma.cu", "conv_mma", constants)

    @property
    def layout(self) -> str:
        return f"mma {self.config.warps_n} {self.config.warp_n} {self.k_bytes}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        op, config = self.op, self.config
        order = (config.warps_n, config.warp_n, self.k_bytes)
        weights = arrange_mma(op.weight, *order)
        if op.branch:
            weights = np.concatenate((arrange_mma(op.branch.weight, *order), weights), axis=1)
        epilogue = (wide_constants if self.wide else narrow_constants)(op, config.warp_n)
        return weights, epilogue.channels, epilogue.residual

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op, conv = self.op, self.conv
        residual = tensors[op.residual_source] if op.residual_source else 0
        addresses = (tensors[op.source], residual, *constants, tensors[op.target])
        block = 2 * self.k_bytes
        blocks = conv.c // block
        window = (conv.h, conv.w, conv.c // K_STEP, conv.stride, conv.pad, conv.taps, blocks)
        other, other_blocks = (0,) * len(_WINDOW_FIELDS), 0
        if conv.source:
            src, other_blocks = conv.source, conv.source.c // block
            other = (src.h, src.w, src.c // K_STEP, src.stride, 0, 1, other_blocks)
        all_blocks = other_blocks + blocks * conv.taps**2
        shape = np.array((conv.pixels, conv.p, conv.q, window, other, other_blocks, all_blocks, conv.k), CONV_SHAPE)
        return (*map(address, addresses), shape)

    def __str__(self) -> str:
        return f"{self.config}{', 64-bit requantisation' if self.wide else ''}"


def default_config(op: ConvOp, chip: Chip) -> int:
    """The number of a configuration that should do well, by a model of what a wave of blocks costs.

    A block's time is its products, over what its warps keep of the tensor rate, plus a start and an end that
    do not shrink with it; blocks run in waves of one a multiprocessor.

    Raises:
        EngineError: no configuration takes the convolution.
    """
    best: tuple[float, int] | None = None
    reasons = []
    for number, config in enumerate(CONFIGS):
        try:
            kernel = MmaConv(op, number, chip)
        except EngineError as error:
            reasons.append(str(error))
            continue
        operands = 1 / config.warp_m + 1 / (2 * config.warp_n)  # bytes from shared memory a product
        busy = min(1.0, config.threads / 128)
        block = config.tile_m * config.tile_n * (op.shape.depth * (0.6 + 20 * operands) / busy + 150)
        cost = math.ceil(kernel.grid[0] / chip.multiprocessors) * block
        if best is None or cost < best[0]:
            best = cost, number
    if best is None:
        raise EngineError(f"{op.name}: no mma configuration takes it: {'; '.join(dict.fromkeys(reasons))}")
    return best[1]

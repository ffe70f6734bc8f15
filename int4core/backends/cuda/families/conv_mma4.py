"""Host side of `conv_mma4.cu`: convolutions on the 4-bit tensor cores of Turing, and of Ampere and Ada."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.conv_mma import CONV_SHAPE, PAIR_BYTES, check_size
from int4core.backends.cuda.families.epilogue import narrow_constants, needs_wide, wide_constants
from int4core.backends.cuda.families.kernel import Arguments, Grid, address
from int4core.backends.cuda.families.layouts import HIGH, LOW, arrange_mma4, fits
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.convolution import Convolution, Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError

FIRST_NUMBER = 300
"""The number of CONFIGS' first entry in a tuning file."""

EMULATED_FROM = (9, 0)
"""From here on chips have no 4-bit tensor cores: both instructions compile to something exact and slow."""


class Instruction(Enum):
    """An mma of u4 by s4: rows, and the first chips that have it."""

    M8N8K32 = 8, (7, 5)
    M16N8K64 = 16, (8, 0)

    @property
    def rows(self) -> int:
        return self.value[0]

    @property
    def capability(self) -> tuple[int, int]:
        return self.value[1]

    @property
    def asynchronous(self) -> bool:
        """Whether its chips have cp.async."""
        return self is Instruction.M16N8K64


@dataclass(frozen=True)
class Mma4Config:
    """How a block is cut: warps_m x warps_n warps of warp_m pixels x warp_n channels, and buffers of K.

    Attributes:
        stages: buffers; 2 without cp.async.
        k_bytes: the most packed bytes of a pixel that a buffer holds.
        blocks: how many blocks a multiprocessor should hold at once: registers are given out for that.
    """

    instruction: Instruction
    warps_m: int
    warps_n: int
    warp_m: int
    warp_n: int
    stages: int
    k_bytes: int = 64
    blocks: int = 1

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
        name = self.instruction.name.lower()
        return f"{name} m{self.tile_m} n{self.tile_n}, {warps}, {self.stages} stages of {self.k_bytes} bytes"


_TURING, _AMPERE = Instruction.M8N8K32, Instruction.M16N8K64

CONFIGS: tuple[Mma4Config, ...] = (
    Mma4Config(_TURING, 2, 2, 64, 64, 2, 32, 2),
    Mma4Config(_TURING, 2, 2, 64, 64, 2, 64, 1),
    Mma4Config(_TURING, 4, 1, 64, 64, 2, 32, 2),
    Mma4Config(_TURING, 4, 2, 64, 64, 2, 32, 1),
    Mma4Config(_TURING, 2, 4, 64, 64, 2, 32, 1),
    Mma4Config(_TURING, 4, 2, 32, 64, 2, 32, 2),
    Mma4Config(_TURING, 4, 1, 32, 64, 2, 32, 4),
    Mma4Config(_TURING, 4, 1, 32, 64, 2, 64, 2),
    Mma4Config(_TURING, 2, 2, 32, 64, 2, 32, 4),
    Mma4Config(_TURING, 2, 1, 32, 64, 2, 64, 4),
    Mma4Config(_TURING, 2, 2, 32, 32, 2, 64, 4),
    Mma4Config(_TURING, 4, 1, 32, 32, 2, 64, 4),
    Mma4Config(_TURING, 2, 1, 16, 32, 2, 64, 8),
    Mma4Config(_AMPERE, 2, 2, 64, 64, 3, 64, 2),
    Mma4Config(_AMPERE, 2, 2, 64, 64, 4, 64, 2),
    Mma4Config(_AMPERE, 4, 1, 64, 64, 3, 64, 2),
    Mma4Config(_AMPERE, 4, 2, 64, 64, 3, 64, 1),
    Mma4Config(_AMPERE, 2, 4, 64, 64, 3, 64, 1),
    Mma4Config(_AMPERE, 4, 2, 32, 64, 3, 64, 2),
    Mma4Config(_AMPERE, 4, 1, 32, 64, 3, 64, 4),
    Mma4Config(_AMPERE, 2, 2, 32, 64, 3, 64, 4),
    Mma4Config(_AMPERE, 2, 2, 32, 64, 4, 64, 4),
    Mma4Config(_AMPERE, 2, 1, 32, 64, 3, 64, 4),
    Mma4Config(_AMPERE, 2, 2, 32, 32, 4, 64, 4),
    Mma4Config(_AMPERE, 4, 1, 32, 32, 3, 64, 4),
    Mma4Config(_AMPERE, 2, 1, 16, 32, 4, 64, 8),
)
"""Numbered from FIRST_NUMBER: a tuning file names a configuration by its place."""


def is_native(number: int, chip: Chip) -> bool:
    """Whether entry `number` is made for `chip`: of its own two instructions the larger, and no emulation."""
    if not Instruction.M8N8K32.capability <= chip.capability < EMULATED_FROM:
        return False
    return CONFIGS[number - FIRST_NUMBER].instruction is native_instruction(chip)


@dataclass(frozen=True, eq=False)
class Mma4Conv:
    """A convolution on entry `number` of the table.

    Chips without 4-bit tensor cores (`is_native`) compute the same, slowly.
    Raises EngineError when the two do not fit, or the chip cannot run them; the message is the reason.
    """

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        instruction, capability = self.config.instruction, self.chip.capability
        if capability < instruction.capability:
            needed = "{}.{}".format(*instruction.capability)
            name = instruction.name.lower()
            raise EngineError("compute capability {}.{}: {} needs {}".format(*capability, name, needed))
        if self.conv.k % self.config.tile_n:
            raise EngineError(f"{self.conv.k} output channels are no multiple of {self.config.tile_n}")
        if self.shared_bytes > self.chip.shared_bytes:
            raise EngineError(f"{self.shared_bytes} bytes of shared memory, the chip has {self.chip.shared_bytes}")
        check_size(self.conv)
        for weight in (self.op.weight, *((self.op.branch.weight,) if self.op.branch else ())):
            if not fits(weight):
                span = f"{weight.min()} to {weight.max()}"
                raise EngineError(f"weights of {span}: 4-bit tensor cores take {LOW} to {HIGH}")

    @property
    def conv(self) -> Convolution:
        return self.op.shape

    @property
    def config(self) -> Mma4Config:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def wide(self) -> bool:
        return needs_wide(self.op)

    @property
    def k_bytes(self) -> int:
        return min(self.conv.k_bytes, self.config.k_bytes)

    @property
    def shared_bytes(self) -> int:
        config = self.config
        kinds = 2 if self.conv.residual == Residual.CONVOLUTION else 1
        stage = (config.tile_m + config.tile_n) * self.k_bytes
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
        blocks = 1 if self.wide else config.blocks  # 64 bits take more registers
        constants = {
            "MMA_M": config.instruction.rows, "ASYNC": int(config.instruction.asynchronous),
            "WARPS_M": config.warps_m, "WARPS_N": config.warps_n, "WARP_M": config.warp_m, "WARP_N": config.warp_n,
            "STAGES": config.stages, "K_BYTES": self.k_bytes, "BLOCKS": blocks,
            "OUTPUT": int(self.conv.output), "RESIDUAL": int(self.conv.residual), "WIDE": int(self.wide),
        }  # fmt: skip
        return KernelSource.of("conv_mma4.cu", "conv_mma4", constants)

    @property
    def layout(self) -> str:
        return f"mma4 {self.config.warps_n} {self.config.warp_n} {self.k_bytes}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        op, config = self.op, self.config
        order = (config.warps_n, config.warp_n, self.k_bytes)
        weights = arrange_mma4(op.weight, *order)
        if op.branch:
            weights = np.concatenate((arrange_mma4(op.branch.weight, *order), weights), axis=1)
        epilogue = (wide_constants if self.wide else narrow_constants)(op, config.warp_n)
        return weights, epilogue.channels, epilogue.residual

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        residual = tensors[op.residual_source] if op.residual_source else 0
        addresses = (tensors[op.source], residual, *constants, tensors[op.target])
        return (*map(address, addresses), conv_shape(self.conv, self.k_bytes))

    def __str__(self) -> str:
        return f"{self.config}{', 64-bit requantisation' if self.wide else ''}"


def conv_shape(conv: Convolution, k_bytes: int) -> npt.NDArray[Any]:
    """`ConvShape` of a convolution whose blocks of K are 2 * k_bytes channels of one tap."""
    blocks = conv.c // (2 * k_bytes)
    window = (conv.h, conv.w, conv.c // 32, conv.stride, conv.pad, conv.taps, blocks)
    other, other_blocks = (0,) * len(window), 0
    if conv.source:
        src, other_blocks = conv.source, conv.source.c // (2 * k_bytes)
        other = (src.h, src.w, src.c // 32, src.stride, 0, 1, other_blocks)
    all_blocks = other_blocks + blocks * conv.taps**2
    return np.array((conv.pixels, conv.p, conv.q, window, other, other_blocks, all_blocks, conv.k), CONV_SHAPE)


def default_config(op: ConvOp, chip: Chip) -> int:
    """The number of a configuration that should do well, by a model of what a wave of blocks costs.

    A block's time is its products, over what its warps keep of the tensor rate, plus a start and an end that do not
    shrink with it; blocks run in waves of `blocks` a multiprocessor.

    Raises:
        EngineError: no configuration takes the convolution, or the chip has no 4-bit tensor cores.
    """
    if not Instruction.M8N8K32.capability <= chip.capability < EMULATED_FROM:
        raise EngineError("compute capability {}.{} has no 4-bit tensor cores".format(*chip.capability))
    best: tuple[float, int] | None = None
    reasons = []
    for number in range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS)):
        if not is_native(number, chip):
            continue
        try:
            kernel = Mma4Conv(op, number, chip)
        except EngineError as error:
            reasons.append(str(error))
            continue
        config = kernel.config
        operands = 1 / config.warp_m + 1 / config.warp_n  # half bytes from shared memory a product
        busy = min(1.0, config.threads * config.blocks / 256)
        block = config.tile_m * config.tile_n * (op.shape.depth * (0.3 + 10 * operands) / busy + 150)
        cost = math.ceil(kernel.grid[0] / chip.multiprocessors) * block
        if best is None or cost < best[0]:
            best = cost, number
    if best is None:
        raise EngineError(f"{op.name}: no 4-bit mma configuration takes it: {'; '.join(dict.fromkeys(reasons))}")
    return best[1]


def native_instruction(chip: Chip) -> Instruction:
    """The larger of the two that the chip has. Raises EngineError for chips before sm_75."""
    for instruction in (Instruction.M16N8K64, Instruction.M8N8K32):
        if chip.capability >= instruction.capability:
            return instruction
    raise EngineError("compute capability {}.{}: 4-bit tensor cores begin with 7.5".format(*chip.capability))

"""Host side of `conv_mma4.cu`: convolutions on the 4-bit tensor cores of Turing, and of Ampere and Ada."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_tile import TileConfig, TileConv
from int4core.backends.cuda.families.layouts import HIGH, LOW, arrange_mma4, fits
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

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
class Mma4Config(TileConfig):
    """Of 4-bit operands.

    Attributes:
        stages: 2 without cp.async.
        k_bytes: the most packed bytes of a pixel that a buffer holds.
        blocks: how many blocks a multiprocessor should hold at once: registers are given out for that.
    """

    instruction: Instruction
    k_bytes: int
    blocks: int

    def __str__(self) -> str:
        return f"{self.instruction.name.lower()} {self.cut} of {self.k_bytes} bytes"


_TURING, _AMPERE = Instruction.M8N8K32, Instruction.M16N8K64

CONFIGS: tuple[Mma4Config, ...] = (
    Mma4Config(2, 2, 64, 64, 2, _TURING, 32, 2),
    Mma4Config(2, 2, 64, 64, 2, _TURING, 64, 1),
    Mma4Config(4, 1, 64, 64, 2, _TURING, 32, 2),
    Mma4Config(4, 2, 64, 64, 2, _TURING, 32, 1),
    Mma4Config(2, 4, 64, 64, 2, _TURING, 32, 1),
    Mma4Config(4, 2, 32, 64, 2, _TURING, 32, 2),
    Mma4Config(4, 1, 32, 64, 2, _TURING, 32, 4),
    Mma4Config(4, 1, 32, 64, 2, _TURING, 64, 2),
    Mma4Config(2, 2, 32, 64, 2, _TURING, 32, 4),
    Mma4Config(2, 1, 32, 64, 2, _TURING, 64, 4),
    Mma4Config(2, 2, 32, 32, 2, _TURING, 64, 4),
    Mma4Config(4, 1, 32, 32, 2, _TURING, 64, 4),
    Mma4Config(2, 1, 16, 32, 2, _TURING, 64, 8),
    Mma4Config(2, 2, 64, 64, 3, _AMPERE, 64, 2),
    Mma4Config(2, 2, 64, 64, 4, _AMPERE, 64, 2),
    Mma4Config(4, 1, 64, 64, 3, _AMPERE, 64, 2),
    Mma4Config(4, 2, 64, 64, 3, _AMPERE, 64, 1),
    Mma4Config(2, 4, 64, 64, 3, _AMPERE, 64, 1),
    Mma4Config(4, 2, 32, 64, 3, _AMPERE, 64, 2),
    Mma4Config(4, 1, 32, 64, 3, _AMPERE, 64, 4),
    Mma4Config(2, 2, 32, 64, 3, _AMPERE, 64, 4),
    Mma4Config(2, 2, 32, 64, 4, _AMPERE, 64, 4),
    Mma4Config(2, 1, 32, 64, 3, _AMPERE, 64, 4),
    Mma4Config(2, 2, 32, 32, 4, _AMPERE, 64, 4),
    Mma4Config(4, 1, 32, 32, 3, _AMPERE, 64, 4),
    Mma4Config(2, 1, 16, 32, 4, _AMPERE, 64, 8),
)
"""Numbered from FIRST_NUMBER: a tuning file names a configuration by its place."""


def is_native(number: int, chip: Chip) -> bool:
    """Whether entry `number` is made for `chip`: of its own two instructions the larger, and no emulation."""
    if not Instruction.M8N8K32.capability <= chip.capability < EMULATED_FROM:
        return False
    return CONFIGS[number - FIRST_NUMBER].instruction is native_instruction(chip)


class Mma4Conv(TileConv):
    """On the 4-bit tensor cores. Chips without them (`is_native`) compute the same, slowly."""

    name: ClassVar[str] = "conv_mma4"

    def check_operands(self) -> None:
        instruction, capability = self.config.instruction, self.chip.capability
        if capability < instruction.capability:
            needed = "{}.{}".format(*instruction.capability)
            name = instruction.name.lower()
            raise EngineError("compute capability {}.{}: {} needs {}".format(*capability, name, needed))
        for weight in (self.op.weight, *((self.op.branch.weight,) if self.op.branch else ())):
            if not fits(weight):
                span = f"{weight.min()} to {weight.max()}"
                raise EngineError(f"weights of {span}: 4-bit tensor cores take {LOW} to {HIGH}")

    @property
    def config(self) -> Mma4Config:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def k_bytes(self) -> int:
        return min(self.conv.k_bytes, self.config.k_bytes)

    @property
    def weight_bits(self) -> int:
        return 4

    @property
    def constants_of_operands(self) -> dict[str, int]:
        instruction = self.config.instruction
        blocks = 1 if self.wide else self.config.blocks  # 64 bits take more registers
        return {"MMA_M": instruction.rows, "ASYNC": int(instruction.asynchronous), "BLOCKS_AT_ONCE": blocks}

    @property
    def arrange(self) -> Callable[[Int8Array, int, int, int], npt.NDArray[Any]]:
        return arrange_mma4

    @property
    def product_cost(self) -> float:
        operands = 1 / self.config.warp_m + 1 / self.config.warp_n  # half bytes from shared memory a product
        return (0.3 + 10 * operands) / min(1.0, self.config.threads * self.config.blocks / 256)


def default(op: ConvOp, chip: Chip) -> Mma4Conv:
    """A configuration that should do well.

    Raises:
        EngineError: none takes the convolution, or the chip has no 4-bit tensor cores.
    """
    if not Instruction.M8N8K32.capability <= chip.capability < EMULATED_FROM:
        raise EngineError("compute capability {}.{} has no 4-bit tensor cores".format(*chip.capability))
    numbers = [number for number in range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS)) if is_native(number, chip)]
    what = f"{op.name}: no 4-bit mma configuration"
    return choose(what, numbers, lambda number: Mma4Conv(op, number, chip), lambda kernel: kernel.cost)


def native_instruction(chip: Chip) -> Instruction:
    """The larger of the two that the chip has. Raises EngineError for chips before sm_75."""
    for instruction in (Instruction.M16N8K64, Instruction.M8N8K32):
        if chip.capability >= instruction.capability:
            return instruction
    raise EngineError("compute capability {}.{}: 4-bit tensor cores begin with 7.5".format(*chip.capability))

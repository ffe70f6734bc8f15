"""Host side of `linear_wgmma.cu`: the fully connected layer on Hopper, for batches that fill it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.boxed_teams import ALIGNMENT, BARRIER_BYTES
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_wgmma import check_chip
from int4core.backends.cuda.families.head import LINEAR_SHAPE
from int4core.backends.cuda.families.kernel import Arguments, Grid, address
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.jit.tensor_map import rows_map
from int4core.backends.cuda.plan.ops import LinearOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

FIRST_NUMBER = 260
"""The number of CONFIGS' first entry in a tuning file."""

TILE_N = 64
"""Classes of a block."""

DEPTH = 128
"""Features of a slot."""

MOST_SLOTS = 8


@dataclass(frozen=True)
class LinearConfig:
    """Warpgroups of a block, 64 rows each."""

    teams: int

    @property
    def tile_m(self) -> int:
        """Rows of a block."""
        return 64 * self.teams

    def __str__(self) -> str:
        return f"m{self.tile_m} n{TILE_N}"


CONFIGS: tuple[LinearConfig, ...] = (LinearConfig(1), LinearConfig(2))
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class WgmmaLinear:
    """The fully connected layer on entry `number` of the table. Raises EngineError when it does not fit."""

    op: LinearOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        if self.op.features % DEPTH:
            raise EngineError(f"{self.op.features} features are no multiple of {DEPTH}")
        if self.slots < 2:
            raise EngineError(f"{self.config}: two slots do not fit shared memory")

    @property
    def config(self) -> LinearConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def threads(self) -> int:
        return 128 * self.config.teams + 32

    @property
    def slot_bytes(self) -> int:
        return (self.config.tile_m + TILE_N) * DEPTH

    @property
    def slots(self) -> int:
        room: int = self.chip.shared_bytes - BARRIER_BYTES - ALIGNMENT
        return min(MOST_SLOTS, room // self.slot_bytes)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return ALIGNMENT + self.slots * self.slot_bytes

    @property
    def grid(self) -> Grid:
        return math.ceil(self.op.classes / TILE_N), math.ceil(self.op.n / self.config.tile_m), 1

    @property
    def source(self) -> KernelSource:
        constants = {"TEAMS": self.config.teams, "SLOTS": self.slots}
        return KernelSource.of("linear_wgmma.cu", "linear_wgmma", constants, {"LinearShape": LINEAR_SHAPE})

    @property
    def layout(self) -> str:
        return "linear_wgmma"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return arrange_linear_wgmma(self.op.weight), self.op.bias

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        rows = rows_map(tensors[op.source], (op.n, op.features), (self.config.tile_m, DEPTH), swizzled=True)
        addresses = (*constants, tensors[op.target])
        return (rows, *map(address, addresses), np.array((op.n, op.features, op.classes), LINEAR_SHAPE))

    def __str__(self) -> str:
        return f"linear on wgmma, {self.config}"


def arrange_linear_wgmma(weight: Int8Array) -> Int8Array:
    """int8 (classes, features) -> (tiles, blocks, DEPTH / 16, TILE_N, 16); missing classes are zeros.

    Sixteen places of K of eight classes are a core matrix of wgmma. Of a block's features a thread takes 32 consecutive
    ones, four for each half of four k-steps.
    """
    classes, features = weight.shape
    padded = np.zeros((-(-classes // TILE_N) * TILE_N, features), np.int8)
    padded[:classes] = weight
    # tile, class, block, quad, step, half, place
    split = padded.reshape(-1, TILE_N, features // DEPTH, 4, DEPTH // 32, 2, 4)
    # tile, block, step, half, class, quad, place
    ordered = np.ascontiguousarray(split.transpose(0, 2, 4, 5, 1, 3, 6))
    return ordered.reshape(-1, features // DEPTH, DEPTH // 16, TILE_N, 16)


def default(op: LinearOp, chip: Chip) -> WgmmaLinear:
    """The first entry that takes it. Raises EngineError when none does."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no linear on wgmma", numbers, lambda number: WgmmaLinear(op, number, chip), lambda _: 0)

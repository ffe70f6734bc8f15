"""The Hopper convolutions as entries of the kernel table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.epilogue import narrow_constants
from int4core.backends.cuda.kernel import Arguments, Grid, address
from int4core.backends.cuda.ops import ConvOp
from int4core.backends.cuda.sm90 import CONFIGS, Convolution, Plan, Residual, default_config
from int4core.backends.cuda.sm90_layout import arrange_weights, join_weights
from int4core.backends.cuda.sm90_rows import RowsPlan
from int4core.backends.cuda.source import KernelSource
from int4core.errors import EngineError

CAPABILITY = (9, 0)

FIRST_NUMBER = 100
"""The number of sm90.CONFIGS' first entry in a tuning file."""

FIRST_ROWS = 150
"""The number of ROWS' first entry."""

ROWS: tuple[tuple[int, int], ...] = ((8, 3), (8, 4), (4, 2), (4, 3), (2, 4))
"""Image rows of a tile, and teams of a block, of the kernel for tiles of rows."""


def check_chip(chip: Chip) -> None:
    if chip.capability != CAPABILITY:
        raise EngineError(f"wgmma runs on compute capability 9.0, not {'.'.join(map(str, chip.capability))}")


@dataclass(frozen=True, eq=False)
class Sm90Conv:
    """A convolution on entry `number` of the table. Raises EngineError when they do not fit."""

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        narrow_constants(self.op, self.plan.config.tile_n)
        self.plan.conv.k_bytes  # noqa: B018 - refuses channels that are no multiple of 32

    @property
    def plan(self) -> Plan:
        return Plan(self.op.shape, CONFIGS[self.number - FIRST_NUMBER], self.chip.multiprocessors)

    @property
    def grid(self) -> Grid:
        return (*self.plan.grid, 1)

    @property
    def threads(self) -> int:
        return self.plan.config.threads

    @property
    def shared_bytes(self) -> int:
        return self.plan.shared_bytes

    @property
    def source(self) -> KernelSource:
        return KernelSource.of("sm90_conv_u4s8.cu", "conv_u4s8", self.plan.defines)

    @property
    def layout(self) -> str:
        return f"sm90 {self.plan.config.tile_n} {self.op.shape.k_bytes}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        tile_n, k_bytes = self.plan.config.tile_n, self.op.shape.k_bytes
        weights = arrange_weights(self.op.weight, tile_n, k_bytes)
        if self.op.branch:
            weights = join_weights(weights, arrange_weights(self.op.branch.weight, tile_n, k_bytes))
        epilogue = narrow_constants(self.op, tile_n)
        return weights, epilogue.channels, epilogue.residual

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        residual = tensors[op.residual_source] if op.residual_source else 0
        maps = self.plan.tensor_maps(tensors[op.source], residual)
        return (*maps, *map(address, (*constants, tensors[op.target])), self.plan.shape_argument())

    def __str__(self) -> str:
        return f"wgmma {self.plan.config}"


@dataclass(frozen=True, eq=False)
class Sm90Rows:
    """A 3x3 convolution on tiles of image rows, entry `number`. Raises EngineError when they do not fit."""

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        narrow_constants(self.op, self.plan.tile_n)

    @property
    def plan(self) -> RowsPlan:
        rows, teams = ROWS[self.number - FIRST_ROWS]
        return RowsPlan(self.op.shape, rows, teams, self.chip.multiprocessors)

    @property
    def grid(self) -> Grid:
        return (*self.plan.grid, 1)

    @property
    def threads(self) -> int:
        return self.plan.threads

    @property
    def shared_bytes(self) -> int:
        return self.plan.shared_bytes

    @property
    def source(self) -> KernelSource:
        return KernelSource.of("sm90_conv3x3_rows_u4s8.cu", "conv3x3_rows_u4s8", self.plan.defines)

    @property
    def layout(self) -> str:
        return f"sm90 rows {self.plan.tile_n} {self.plan.k_bytes}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        weights = arrange_weights(self.op.weight, self.plan.tile_n, self.plan.k_bytes)
        return weights, narrow_constants(self.op, self.plan.tile_n).channels

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        source = self.plan.tensor_map(tensors[self.op.source])
        outputs = map(address, (*constants, tensors[self.op.target]))
        return (source, *outputs, self.plan.shape_argument())

    def __str__(self) -> str:
        return f"wgmma tiles of {self.plan.rows} rows, {self.plan.teams} teams"


def default_number(op: ConvOp, chip: Chip) -> int:
    """The entry that is near the best measured ones. Raises EngineError when no entry takes the operation."""
    check_chip(chip)
    conv: Convolution = op.shape
    # Few channels on wide images: nine fetches of every pixel would be limited by L2.
    if conv.taps == 3 and conv.c == 64 and conv.residual == Residual.NONE and conv.w >= 28:
        for number in (FIRST_ROWS + 1, FIRST_ROWS):
            try:
                return Sm90Rows(op, number, chip).number
            except EngineError:
                continue
    number = FIRST_NUMBER + default_config(conv, chip.multiprocessors)
    return Sm90Conv(op, number, chip).number

"""Host side of `residual_wgmma.cu`: 1x1 convolutions of Hopper with a residual tensor, written in whole lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.boxed_teams import BOX_CHANNELS, BOX_ROW, BoxedTeams
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_wgmma import check_chip
from int4core.backends.cuda.families.epilogue import CHANNEL_PAIR, ELEMENTS, narrow_constants
from int4core.backends.cuda.families.kernel import Arguments, address
from int4core.backends.cuda.families.layouts import arrange_wgmma
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.jit.tensor_map import rows_map
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError

FIRST_NUMBER = 190
"""The number of CONFIGS' first entry in a tuning file."""

INPUTS = (64, 128, 256)
"""Input channels that a team's registers hold."""


@dataclass(frozen=True)
class LineConfig:
    """How a block is cut: see the head of residual_wgmma.cu.

    Attributes:
        boxes: 256 output channels, 128 bytes of a pixel, of a block.
        chunk: output channels at a time.
        subtiles: 64-pixel wgmma tiles a team.
        teams: warpgroups of a block, each on its own tile.
        ahead: the product of the next chunk runs under the requantisation of this one.
        begun: the residual is what a product's sums begin with: an addition less an output, and nothing under the
            product. With more than 128 pixels that took longer (an H100: 193 us for 165, entry 198).
    """

    boxes: int
    chunk: int
    subtiles: int
    teams: int
    ahead: bool
    begun: bool = True

    @property
    def tile_n(self) -> int:
        """Output channels of a block."""
        return BOX_CHANNELS * self.boxes

    @property
    def tile_m(self) -> int:
        """Pixels of a team's tile."""
        return 64 * self.subtiles

    def __str__(self) -> str:
        ahead = ", ahead" if self.ahead else ""
        return f"{self.teams} x m{self.tile_m} n{self.tile_n}, {self.chunk} channels at a time{ahead}"


CONFIGS: tuple[LineConfig, ...] = (
    LineConfig(1, 32, 2, 2, True),
    LineConfig(1, 64, 2, 2, False),
    LineConfig(1, 64, 1, 2, True),
    LineConfig(1, 32, 1, 3, True),
    LineConfig(1, 64, 1, 3, False),
    LineConfig(2, 64, 1, 2, True),
    LineConfig(1, 32, 4, 2, False, begun=False),
    LineConfig(1, 32, 4, 2, True, begun=False),
    LineConfig(1, 64, 3, 2, False, begun=False),
    LineConfig(1, 32, 3, 2, True, begun=False),
)
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class WgmmaResidual(BoxedTeams):
    """A 1x1 convolution and residual tensor on entry `number` of the table. Raises EngineError if it does not fit."""

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        conv, config = self.conv, self.config
        if (conv.taps, conv.stride, conv.pad) != (1, 1, 0) or conv.output != Output.U4:
            raise EngineError("whole lines are for 1x1 windows with stride 1, and u4 outputs")
        if conv.residual != Residual.U4:
            raise EngineError("whole lines take the place of a residual tensor, and there is none")
        if conv.c not in INPUTS or conv.k % config.tile_n:
            raise EngineError(
                f"{conv.c} to {conv.k} channels: {config} takes {', '.join(map(str, INPUTS))} to multiples of "
                f"{config.tile_n}"
            )
        self.check_slots()
        narrow_constants(self.op, config.chunk)

    @property
    def conv(self) -> Convolution:
        return self.op.shape

    @property
    def config(self) -> LineConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def teams(self) -> int:
        return self.config.teams

    @property
    def tiles(self) -> int:
        return math.ceil(self.conv.pixels / self.config.tile_m)

    @property
    def columns(self) -> int:
        return self.conv.k // self.config.tile_n

    @property
    def weight_bytes(self) -> int:
        return self.config.tile_n * self.conv.c

    @property
    def slot_bytes(self) -> int:
        """A tile's rows: of the residual, which the outputs replace, and of the input."""
        return self.config.tile_m * (self.config.tile_n + self.conv.c) // 2

    @property
    def static_bytes(self) -> int:
        return self.config.tile_n // 2 * CHANNEL_PAIR.itemsize

    @property
    def source(self) -> KernelSource:
        config = self.config
        constants = {
            "C_IN": self.conv.c, "TILE_N": config.tile_n, "SUBTILES": config.subtiles, "TEAMS": config.teams,
            "SLOTS": self.slots, "CHUNK": config.chunk, "AHEAD": int(config.ahead), "BEGUN": int(config.begun),
        }  # fmt: skip
        return KernelSource.of("residual_wgmma.cu", "residual_wgmma", constants, elements=ELEMENTS)

    @property
    def layout(self) -> str:
        return f"residual_wgmma {self.config.chunk}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        weights = arrange_wgmma(self.op.weight, self.config.chunk, self.conv.c // 2)
        return weights, narrow_constants(self.op, self.config.chunk).channels

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op, rows, tile = self.op, self.conv.pixels, self.config.tile_m
        row = self.conv.c // 2
        wide = (rows, self.conv.k // 2), (tile, BOX_ROW)
        maps = (
            rows_map(tensors[op.source], (rows, row), (tile, row), swizzled=row == BOX_ROW),
            rows_map(tensors[op.residual_source], *wide, swizzled=True),
            rows_map(tensors[op.target], *wide, swizzled=True),
        )
        return (*maps, *map(address, constants), np.int32(self.tiles))

    def __str__(self) -> str:
        return f"wgmma in lines, {self.config}"


def default(op: ConvOp, chip: Chip) -> WgmmaResidual:
    """The first entry that takes it. Raises EngineError when none does."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no lines on wgmma", numbers, lambda number: WgmmaResidual(op, number, chip), lambda _: 0)

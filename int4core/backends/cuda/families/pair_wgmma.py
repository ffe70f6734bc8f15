"""Host side of `pair_wgmma.cu`: two 1x1 convolutions of Hopper at once, the wide result of the first kept on chip."""

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
from int4core.backends.cuda.plan.convolution import Convolution, Output
from int4core.backends.cuda.plan.ops import PairOp
from int4core.errors import EngineError

FIRST_NUMBER = 160
"""The number of CONFIGS' first entry in a tuning file."""

INPUTS, OUTPUTS = (64, 128), (64, 128)
"""Input channels that a team's registers hold, and outputs."""


@dataclass(frozen=True)
class PairConfig:
    """How a block is cut: see the head of pair_wgmma.cu.

    Attributes:
        chunk: wide channels at a time: 32 or 64.
        subtiles: 64-pixel wgmma tiles a team.
        teams: warpgroups of a block, each on its own tile.
        ahead: the first product of the next chunk runs under the requantisation of this one.
    """

    chunk: int
    subtiles: int
    teams: int
    ahead: bool

    @property
    def tile_m(self) -> int:
        """Pixels of a team's tile."""
        return 64 * self.subtiles

    def __str__(self) -> str:
        return f"{self.teams} x m{self.tile_m}, {self.chunk} channels at a time{', ahead' if self.ahead else ''}"


CONFIGS: tuple[PairConfig, ...] = (
    PairConfig(32, 2, 2, True),
    PairConfig(32, 2, 2, False),
    PairConfig(64, 2, 2, False),
    PairConfig(64, 1, 2, True),
    PairConfig(32, 1, 3, True),
)
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class WgmmaPair(BoxedTeams):
    """Two layers on entry `number` of the table. Raises EngineError when they do not fit; the message is the reason."""

    op: PairOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        first, second, config = self.first, self.second, self.config
        if first.taps != 1 or first.stride != 1 or first.output != Output.U4:
            raise EngineError("a pair begins with a 1x1 convolution with stride 1 to u4")
        if first.c not in INPUTS or first.k % BOX_CHANNELS or second.k not in OUTPUTS:
            raise EngineError(
                f"{first.c} to {first.k} to {second.k} channels: pairs take 64 or 128 inputs and outputs, and "
                f"multiples of {BOX_CHANNELS} between them"
            )
        if self.serialises:
            raise EngineError(f"{config}: too few registers for {first.c} to {second.k} channels")
        self.check_slots()
        narrow_constants(self.op.first, config.chunk)
        narrow_constants(self.op.second, second.k)

    @property
    def first(self) -> Convolution:
        return self.op.first.shape

    @property
    def second(self) -> Convolution:
        return self.op.second.shape

    @property
    def config(self) -> PairConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def serialises(self) -> bool:
        """Whether the compiler has products wait for one another, or spills (known from compiling them all)."""
        crowded = self.second.k == 128 and self.config.subtiles == 2
        return crowded and (self.config.ahead or self.config.chunk == 64)

    @property
    def teams(self) -> int:
        return self.config.teams

    @property
    def tiles(self) -> int:
        return math.ceil(self.first.pixels / self.config.tile_m)

    @property
    def columns(self) -> int:
        return 1

    @property
    def weight_bytes(self) -> int:
        return self.first.k * (self.first.c + self.second.k)

    @property
    def slot_bytes(self) -> int:
        """A tile's rows: the wide ones, and the input's, whose place the narrow ones take."""
        return self.config.tile_m * (self.first.k + max(self.first.c, self.second.k)) // 2

    @property
    def static_bytes(self) -> int:
        return (self.first.k + self.second.k) // 2 * CHANNEL_PAIR.itemsize

    @property
    def source(self) -> KernelSource:
        config = self.config
        constants = {
            "C_IN": self.first.c, "K_MID": self.first.k, "K_OUT": self.second.k, "SUBTILES": config.subtiles,
            "TEAMS": config.teams, "SLOTS": self.slots, "CHUNK": config.chunk, "AHEAD": int(config.ahead),
        }  # fmt: skip
        return KernelSource.of("pair_wgmma.cu", "pair_wgmma", constants, elements=ELEMENTS)

    @property
    def layout(self) -> str:
        return f"pair_wgmma {self.config.chunk}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        first, second, chunk = self.op.first, self.op.second, self.config.chunk
        return (
            arrange_wgmma(first.weight, chunk, self.first.c // 2),
            arrange_wgmma(second.weight, self.second.k, chunk // 2),
            narrow_constants(first, chunk).channels,
            narrow_constants(second, self.second.k).channels,
        )

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        first, second, rows, tile = self.op.first, self.op.second, self.first.pixels, self.config.tile_m
        wide = (rows, self.first.k // 2), (tile, BOX_ROW)
        maps = (
            rows_map(tensors[first.source], (rows, self.first.c // 2), (tile, self.first.c // 2)),
            rows_map(tensors[first.residual_source], *wide, swizzled=True),
            rows_map(tensors[first.target], *wide, swizzled=True),
            rows_map(tensors[second.target], (rows, self.second.k // 2), (tile, self.second.k // 2)),
        )
        return (*maps, *map(address, constants), np.int32(self.tiles))

    def __str__(self) -> str:
        return f"wgmma pair, {self.config}"


def default(op: PairOp, chip: Chip) -> WgmmaPair:
    """The first entry that takes both layers. Raises EngineError when none does."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no pair on wgmma", numbers, lambda number: WgmmaPair(op, number, chip), lambda _: 0)

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
from int4core.backends.cuda.families.epilogue import (
    CHANNEL_PAIR,
    ELEMENTS,
    S8_RESIDUAL_PAIR,
    narrow_constants,
    s8_constants,
    s8_options,
)
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
    PairConfig(32, 2, 3, False),
    PairConfig(64, 1, 3, False),
    PairConfig(32, 3, 2, False),
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
        source = first.source
        if source and (source.c not in INPUTS or source.stride != 1):
            raise EngineError("pairs take a residual convolution of 64 or 128 channels with stride 1")
        if source and config.ahead:
            raise EngineError(f"{config}: not with a residual convolution")
        if self.serialises:
            raise EngineError(f"{config}: too few registers for {first.c} to {second.k} channels")
        self.check_slots()
        s8_constants(self.op.first, config.chunk)
        narrow_constants(self.op.second, second.k)

    @property
    def first(self) -> Convolution:
        return self.op.first.shape

    @property
    def second(self) -> Convolution:
        return self.op.second.shape

    @property
    def source_channels(self) -> int:
        """Of the residual convolution; 0 where the residual is a tensor."""
        return self.first.source_channels

    @property
    def config(self) -> PairConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def serialises(self) -> bool:
        """Whether the compiler has products wait for one another, or spills (known from compiling them all)."""
        config = self.config
        three = config.teams == 3 and config.subtiles == 2
        crowded = self.second.k == 128 and config.subtiles > 1
        return (crowded and (config.ahead or config.chunk == 64 or config.subtiles == 3 or three)) or (
            three and self.source_channels > 0
        )

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
        return self.first.k * (self.first.c + self.second.k + self.source_channels)

    @property
    def slot_bytes(self) -> int:
        """A tile's rows: the wide ones, and the inputs', whose place the narrow ones take."""
        return self.config.tile_m * (self.first.k + max(self.first.c + self.source_channels, self.second.k)) // 2

    @property
    def static_bytes(self) -> int:
        pairs = (self.first.k + self.second.k) // 2 * CHANNEL_PAIR.itemsize
        return pairs + (self.first.k // 2 if self.source_channels else 1) * S8_RESIDUAL_PAIR.itemsize

    @property
    def source(self) -> KernelSource:
        config = self.config
        constants = {
            "C_IN": self.first.c, "K_MID": self.first.k, "K_OUT": self.second.k, "SUBTILES": config.subtiles,
            "TEAMS": config.teams, "SLOTS": self.slots, "CHUNK": config.chunk, "AHEAD": int(config.ahead),
            "C_SOURCE": self.source_channels, **s8_options(self.op.first),
        }  # fmt: skip
        return KernelSource.of("pair_wgmma.cu", "pair_wgmma", constants, elements=ELEMENTS)

    @property
    def layout(self) -> str:
        return f"pair_wgmma {self.config.chunk}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        first, second, chunk = self.op.first, self.op.second, self.config.chunk
        wide, branch = s8_constants(first, chunk), first.branch
        return (
            arrange_wgmma(first.weight, chunk, self.first.c // 2),
            arrange_wgmma(second.weight, self.second.k, chunk // 2),
            wide.channels,
            narrow_constants(second, self.second.k).channels,
            arrange_wgmma(branch.weight, chunk, self.source_channels // 2) if branch else np.empty(0, np.int8),
            wide.residual,
        )

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        first, second, rows, tile = self.op.first, self.op.second, self.first.pixels, self.config.tile_m
        wide = (rows, self.first.k // 2), (tile, BOX_ROW)
        residual = tensors[first.residual_source]
        source = (rows, self.source_channels // 2), (tile, self.source_channels // 2)
        maps = (
            rows_map(tensors[first.source], (rows, self.first.c // 2), (tile, self.first.c // 2)),
            rows_map(residual, *source) if self.source_channels else rows_map(residual, *wide, swizzled=True),
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

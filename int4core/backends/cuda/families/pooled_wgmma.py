"""Host side of `pooled_wgmma.cu`: a network's last convolution and the average pool after it, at once, on Hopper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.boxed_teams import ALIGNMENT, BOX_CHANNELS, BOX_ROW, BoxedTeams
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_wgmma import check_chip
from int4core.backends.cuda.families.epilogue import CHANNEL_PAIR, ELEMENTS, narrow_constants
from int4core.backends.cuda.families.kernel import Arguments, address
from int4core.backends.cuda.families.layouts import arrange_wgmma
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.jit.tensor_map import rows_map
from int4core.backends.cuda.plan.convolution import Convolution, Output
from int4core.backends.cuda.plan.ops import PooledOp
from int4core.errors import EngineError

FIRST_NUMBER = 250
"""The number of CONFIGS' first entry in a tuning file."""

INPUTS = (256, 512)
"""Input channels that a team's registers hold, in whole boxes."""

CHUNK = 64
"""Output channels at a time."""

MOST_PIXELS = 64
"""Of an image: rows of a product."""


@dataclass(frozen=True)
class PooledConfig:
    """Warpgroups of a block, each on its own image; the next chunk's product runs under this one's requantisation."""

    teams: int
    ahead: bool

    def __str__(self) -> str:
        return f"{self.teams} images, {CHUNK} of {BOX_CHANNELS} channels at a time{', ahead' if self.ahead else ''}"


CONFIGS: tuple[PooledConfig, ...] = (
    PooledConfig(2, True),
    PooledConfig(2, False),
)
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class WgmmaPooled(BoxedTeams):
    """Two layers on entry `number` of the table. Raises EngineError when they do not fit; the message is the reason."""

    op: PooledOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        conv, pool = self.conv, self.op.pool
        if (conv.taps, conv.stride, conv.pad) != (1, 1, 0) or conv.output != Output.U7:
            raise EngineError("a pool is joined to a 1x1 convolution with stride 1 to u7")
        if not pool.size == pool.h == pool.w or self.pixels > MOST_PIXELS:
            raise EngineError(
                f"{pool.size}x{pool.size} of {pool.h}x{pool.w}: the mean is of whole images, of at most {MOST_PIXELS} "
                "pixels"
            )
        if conv.c not in INPUTS or conv.k % BOX_CHANNELS:
            raise EngineError(
                f"{conv.c} to {conv.k} channels: it takes 256 or 512 inputs and multiples of {BOX_CHANNELS} outputs"
            )
        self.check_slots()
        narrow_constants(self.op.first, CHUNK)

    @property
    def conv(self) -> Convolution:
        return self.op.first.shape

    @property
    def config(self) -> PooledConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.conv.p * self.conv.q

    @property
    def teams(self) -> int:
        return self.config.teams

    @property
    def tiles(self) -> int:
        """Images."""
        return self.conv.n

    @property
    def columns(self) -> int:
        return self.conv.k // BOX_CHANNELS

    @property
    def weight_bytes(self) -> int:
        return BOX_CHANNELS * self.conv.c

    @property
    def slot_bytes(self) -> int:
        """An image's boxes of the residual and of the input."""
        box = math.ceil(self.pixels * BOX_ROW / ALIGNMENT) * ALIGNMENT
        return (1 + self.conv.c // BOX_CHANNELS) * box

    @property
    def static_bytes(self) -> int:
        """The epilogue's constants, and of each team two times what four warps have of an image."""
        return BOX_CHANNELS // 2 * CHANNEL_PAIR.itemsize + self.teams * 2 * 4 * BOX_CHANNELS // 2 * 4

    @property
    def source(self) -> KernelSource:
        constants = {
            "C_IN": self.conv.c, "TILE_N": BOX_CHANNELS, "PIXELS": self.pixels, "TEAMS": self.config.teams,
            "SLOTS": self.slots, "CHUNK": CHUNK, "AHEAD": int(self.config.ahead),
        }  # fmt: skip
        return KernelSource.of("pooled_wgmma.cu", "pooled_wgmma", constants, elements=ELEMENTS)

    @property
    def layout(self) -> str:
        return "pooled_wgmma"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        weights = arrange_wgmma(self.op.first.weight, CHUNK, BOX_ROW)
        return weights, narrow_constants(self.op.first, CHUNK).channels

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        first, pool = self.op.first, self.op.pool
        maps = (
            rows_map(tensors[name], (self.conv.pixels, channels // 2), (self.pixels, BOX_ROW), swizzled=True)
            for name, channels in ((first.source, self.conv.c), (first.residual_source, self.conv.k))
        )
        target = address(tensors[pool.target])
        return (*maps, *map(address, constants), target, np.int32(self.conv.n), np.int32(pool.features))

    def __str__(self) -> str:
        return f"wgmma and mean, {self.config}"


def default(op: PooledOp, chip: Chip) -> WgmmaPooled:
    """The first entry that takes both layers. Raises EngineError when none does."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no pool on wgmma", numbers, lambda number: WgmmaPooled(op, number, chip), lambda _: 0)

"""Host side of `winograd_deep_wgmma.cu`: 3x3 convolutions of many channels by Winograd's transformation, on wgmma."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_wgmma import check_chip
from int4core.backends.cuda.families.epilogue import ELEMENTS
from int4core.backends.cuda.families.kernel import Arguments, Grid, address, resident_grid
from int4core.backends.cuda.families.layouts import arrange_wgmma, tile_channels
from int4core.backends.cuda.families.winograd_wgmma import (
    WINOGRAD_PAIR,
    check_winograd,
    doubled_constants,
    transform_weights,
)
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.jit.tensor_map import box_map
from int4core.backends.cuda.plan.convolution import Convolution
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

FIRST_NUMBER = 180
"""The number of CONFIGS' first entry in a tuning file."""

TILE_N = 128
"""Output channels of a block."""

PIXEL = 32
"""Bytes of a pixel that a block of input channels takes."""

STAGE_BYTES = 2 * 2 * PIXEL * TILE_N
"""Of transformed weights: two positions of a row of taps, and of a block of channels."""

STAGES = range(4, 9)
"""Of streamed weights."""

BANKS = 4
"""Pairs of a plane that a warp reads at a time: they lie in different banks where they follow one another."""

STATIC_BYTES = 4 * 1024
"""More than the kernel's static shared memory."""

PAIRS_SHAPE = np.dtype([(name, "<i4") for name in ("tiles", "rows", "height", "out_channels", "staggered")])
"""`PairsShape` in winograd_deep_wgmma.cu: tiles of all images; rows of all of them, and of one."""


@dataclass(frozen=True)
class DeepConfig:
    """How a block is cut: see the head of winograd_deep_wgmma.cu for the words."""

    warpgroups: int
    teams: int
    resident: bool
    staggered: bool
    ahead: bool = False

    def __str__(self) -> str:
        weights = "resident" if self.resident else "streamed"
        how = [name for name in ("staggered", "ahead") if getattr(self, name)]
        return ", ".join((f"{self.teams} x {64 * self.warpgroups} pairs, U {weights}", *how))


CONFIGS: tuple[DeepConfig, ...] = (
    DeepConfig(2, 1, resident=False, staggered=False),
    DeepConfig(2, 1, resident=False, staggered=True),
    DeepConfig(1, 2, resident=True, staggered=False),
    DeepConfig(1, 2, resident=True, staggered=True),
    DeepConfig(2, 1, resident=False, staggered=False, ahead=True),
    DeepConfig(2, 1, resident=False, staggered=True, ahead=True),
    DeepConfig(1, 2, resident=True, staggered=False, ahead=True),
    DeepConfig(1, 2, resident=True, staggered=True, ahead=True),
)
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True)
class Room:
    """Shared memory of a block: stages of weights, slots of a team, and columns of a row of a slot's planes."""

    stages: int
    slots: int
    columns: int


@dataclass(frozen=True, eq=False)
class WgmmaDeepWinograd:
    """A 3x3 convolution, stride 1, on entry `number` of the table. Raises EngineError when they do not fit."""

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        check_winograd(self.conv)
        conv = self.conv
        if conv.c % 128 or conv.k % TILE_N:
            raise EngineError(f"{conv.c} to {conv.k} channels: it takes multiples of 128")
        if 2 * (self.pairs + BANKS) > 256:
            raise EngineError(f"{conv.w} columns: a copy takes at most 256 with the border")
        self.room  # noqa: B018  (raises)
        transform_weights(self.op.weight)
        doubled_constants(self.op)

    @property
    def conv(self) -> Convolution:
        return self.op.shape

    @property
    def config(self) -> DeepConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def tile_m(self) -> int:
        """Pairs of outputs of a tile."""
        return 64 * self.config.warpgroups

    @property
    def pairs(self) -> int:
        """Of an image row."""
        return math.ceil(self.conv.w / 2)

    @property
    def lines(self) -> int:
        """Image rows that a tile reads, wherever it begins."""
        return math.ceil((self.pairs - math.gcd(self.pairs, self.tile_m) + self.tile_m) / self.pairs) + 2

    @property
    def k_blocks(self) -> int:
        """Blocks of input channels."""
        return self.conv.c // (2 * PIXEL)

    @property
    def steps(self) -> int:
        """Stages of weights that a tile takes."""
        return 2 * 3 * self.k_blocks

    def slot_bytes(self, columns: int) -> int:
        """Of two planes with rows of `columns`, and the zeros behind them."""
        return 2 * math.ceil((self.lines * columns + 2) * PIXEL / 128) * 128

    @property
    def room(self) -> Room:
        """Rows without conflicts where they fit; then slots for the next tile too.

        Raises:
            EngineError: a tile and its weights do not fit.
        """
        config = self.config
        # Where a row ends within a warp's pairs, the next one goes on in the banks that follow.
        unconflicted = self.pairs + (1 if self.pairs % BANKS == 0 else BANKS)
        for columns in (unconflicted, self.pairs + 1):
            slot = config.teams * self.slot_bytes(columns)
            left = self.chip.shared_bytes - STATIC_BYTES - self.k_blocks * slot
            stages = self.steps if config.resident else min(STAGES[-1], left // STAGE_BYTES)
            left -= stages * STAGE_BYTES
            if stages >= STAGES[0] and left >= 0:
                return Room(stages, self.k_blocks + min(self.k_blocks, left // slot), columns)
        raise EngineError(f"{config}: {self.conv.c} channels of {self.lines} rows do not fit shared memory")

    @property
    def shared_bytes(self) -> int:
        room = self.room
        return room.stages * STAGE_BYTES + self.config.teams * room.slots * self.slot_bytes(room.columns)

    @property
    def threads(self) -> int:
        return 128 * (self.config.warpgroups * self.config.teams + 1)

    @property
    def tiles(self) -> int:
        return math.ceil(self.conv.n * self.conv.h * self.pairs / self.tile_m)

    @property
    def grid(self) -> Grid:
        return resident_grid(self.chip, math.ceil(self.tiles / self.config.teams), self.conv.k // TILE_N)

    @property
    def source(self) -> KernelSource:
        config, room = self.config, self.room
        constants = {
            "WIDTH": self.conv.w, "CHANNELS": self.conv.c, "COLUMNS": room.columns, "WARPGROUPS": config.warpgroups,
            "TEAMS": config.teams, "RESIDENT": int(config.resident), "STAGES": room.stages, "SLOTS": room.slots,
            "AHEAD": int(config.ahead),
        }  # fmt: skip
        structs, elements = {"PairsShape": PAIRS_SHAPE}, ELEMENTS | {"WinogradPair": WINOGRAD_PAIR}
        return KernelSource.of("winograd_deep_wgmma.cu", "winograd_deep_wgmma", constants, structs, elements)

    @property
    def layout(self) -> str:
        return "winograd_deep_wgmma"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        pairs = doubled_constants(self.op).reshape(-1, TILE_N // 2)
        return arrange_steps(transform_weights(self.op.weight)), pairs[:, tile_channels(TILE_N)[::2] // 2]

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        conv = self.conv
        # Images one below the other; every other column.
        image, box = (1, conv.n * conv.h, conv.w, conv.c // 2), (self.lines, self.room.columns, PIXEL)
        tensor_map = box_map(tensors[self.op.source], image, box, step=2)
        shape = np.array((self.tiles, conv.n * conv.h, conv.h, conv.k, self.config.staggered), PAIRS_SHAPE)
        return (tensor_map, *map(address, (*constants, tensors[self.op.target])), shape)

    def __str__(self) -> str:
        return f"wgmma Winograd, {self.config}"


def arrange_steps(transformed: Int8Array) -> Int8Array:
    """int8 (K, C, 3, 4) -> (K / TILE_N, steps, STAGE_BYTES): core matrices of wgmma, as `arrange_wgmma` has them.

    Steps run over phases, blocks of channels, rows of taps; a step is positions 1 and 2, then 0 and 3.
    """
    k, c = transformed.shape[:2]
    blocks = arrange_wgmma(transformed, TILE_N, PIXEL).reshape(k // TILE_N, 3, 4, c // (2 * PIXEL), -1)
    # part, row of taps, phase, position of the two, block, bytes
    phases = blocks[:, :, [1, 2, 0, 3]].reshape(k // TILE_N, 3, 2, 2, c // (2 * PIXEL), -1)
    return np.ascontiguousarray(phases.transpose(0, 2, 4, 1, 3, 5)).reshape(k // TILE_N, -1, STAGE_BYTES)


def default(op: ConvOp, chip: Chip) -> WgmmaDeepWinograd:
    """The first entry that takes it. Raises EngineError when none does."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    what = f"{op.name}: no Winograd transformation"
    return choose(what, numbers, lambda number: WgmmaDeepWinograd(op, number, chip), lambda _: 0)

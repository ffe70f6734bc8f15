"""Host side of `stem_teams_wgmma.cu`: as `stem_lines_wgmma.py`, with warps of their own that read the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.epilogue import ELEMENTS
from int4core.backends.cuda.families.kernel import Arguments, Grid, address, resident_grid
from int4core.backends.cuda.families.stem_lines_wgmma import LinesConfig, LinesStem
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import StemOp
from int4core.errors import EngineError

FIRST_NUMBER = 245
"""The number of CONFIGS' first entry in a tuning file."""

TEAMS = 2
"""Warpgroups of a block that multiply, each with a ring of lines."""

TEAMS_SHAPE = np.dtype([(name, "<i4") for name in ("bands", "bands_of_image", "height", "pooled_h", "pad_h")])
"""`TeamsShape` in stem_teams_wgmma.cu: bands of all images, and of one; as LINES_SHAPE."""


@dataclass(frozen=True)
class TeamsConfig(LinesConfig):
    """Rows of maxima of a band; a multiprocessor has one block."""

    blocks: int = 1

    def __str__(self) -> str:
        return f"{TEAMS} teams, bands of {self.band} rows"


CONFIGS: tuple[TeamsConfig, ...] = tuple(TeamsConfig(band) for band in (56, 14))
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class TeamsStem(LinesStem):
    """The stem on entry `number` of the table. Raises EngineError when they do not fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        stride, taps = self.op.stride[0], int(self.op.weight.shape[2])
        group = 2 * stride
        if self.ring % group or self.ring // group < math.ceil(taps / group) + 2:
            raise EngineError(
                f"windows of {taps} lines, stride {stride}: a ring of {self.ring} lines has no such groups"
            )

    @property
    def config(self) -> TeamsConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def shared_bytes(self) -> int:
        return TEAMS * super().shared_bytes

    @property
    def threads(self) -> int:
        return 128 * (TEAMS + 1)

    @property
    def bands_of_image(self) -> int:
        return math.ceil(self.op.pooled[0] / self.config.band)

    @property
    def grid(self) -> Grid:
        return resident_grid(self.chip, self.op.n * self.bands_of_image)

    @property
    def source(self) -> KernelSource:
        return KernelSource.of(
            "stem_teams_wgmma.cu", "stem_teams_wgmma", self.dimensions | {"BAND": self.config.band},
            {"TeamsShape": TEAMS_SHAPE}, ELEMENTS,
        )  # fmt: skip

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        addresses = (tensors[op.source], *constants, tensors[op.target])
        shape = (op.n * self.bands_of_image, self.bands_of_image, op.h, op.pooled[0], op.padding[0])
        return (*map(address, addresses), np.array(shape, TEAMS_SHAPE))

    def __str__(self) -> str:
        return f"wgmma, weights as A, {self.config}"


def band_cost(kernel: TeamsStem) -> tuple[int, int]:
    """What is to be small: bands that leave no team without one, and of those the largest."""
    filled = kernel.op.n * kernel.bands_of_image >= TEAMS * kernel.chip.multiprocessors
    return (0, -kernel.config.band) if filled else (1, kernel.config.band)


def default(op: StemOp, chip: Chip) -> TeamsStem:
    """The most rows a band that still give every team one. Raises EngineError when none fits."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no bands of lines", numbers, lambda number: TeamsStem(op, number, chip), band_cost)

"""Host side of `stem_dense_wgmma.cu`: as `stem_teams_wgmma.py`, a window in five k-steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.epilogue import ELEMENTS, narrow_constants
from int4core.backends.cuda.families.stem_lines_wgmma import PAIR, arrange_rows
from int4core.backends.cuda.families.stem_teams_wgmma import TEAMS_SHAPE, TeamsConfig, TeamsStem, band_cost
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import StemOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

FIRST_NUMBER = 247
"""The number of CONFIGS' first entry in a tuning file."""

CONFIGS: tuple[TeamsConfig, ...] = tuple(TeamsConfig(band) for band in (56, 28, 7))
"""Numbered from FIRST_NUMBER."""

TAPS = 7
"""Lines of a window, and pixels of one, for which there is room."""

HEAD = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3),
        (0, 4), (0, 5), (0, 6), (1, 4))  # fmt: skip
"""(input channel, column) of the places of K that are a line's head."""

TAIL = ((1, 5), (1, 6), (2, 4), (2, 5), (2, 6))
"""Likewise of what is left of it."""


@dataclass(frozen=True, eq=False)
class DenseStem(TeamsStem):
    """The stem on entry `number` of the table. Raises EngineError when they do not fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.op.weight.shape[2:]
        if self.op.stride != (2, 2) or max(window) > TAPS or not 1 <= self.op.padding[1] <= 4:
            raise EngineError(
                f"windows of {window}, stride {self.op.stride}, padding {self.op.padding}: five k-steps are for up to "
                f"{TAPS}x{TAPS} with stride 2 and 1 to 4 columns of padding"
            )

    @property
    def config(self) -> TeamsConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def ring(self) -> int:
        """Lines of the image that a team keeps."""
        return 16

    @property
    def source(self) -> KernelSource:
        op = self.op
        constants = {
            "WIDTH": op.w, "PAD_W": op.padding[1], "ROWS": op.p, "COLUMNS": op.q, "POOLED": op.pooled[1],
            "TILE_N": self.tile_n, "BAND": self.config.band,
        }  # fmt: skip
        structs = {"TeamsShape": TEAMS_SHAPE}
        return KernelSource.of("stem_dense_wgmma.cu", "stem_dense_wgmma", constants, structs, ELEMENTS)

    @property
    def layout(self) -> str:
        return "stem dense"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return arrange_rows(dense_places(self.op.weight)), narrow_constants(self.op, PAIR).channels

    def __str__(self) -> str:
        return f"wgmma, weights as A, five k-steps, {self.config}"


def dense_places(weight: Int8Array) -> Int8Array:
    """int8 (64, 3, R, S) -> (64, 5, 32): the weights at the places of K of each step."""
    k, _, r, s = weight.shape
    window = np.zeros((k, 3, TAPS, TAPS), np.int8)
    window[:, :, :r, :s] = weight

    def place(step: int, half: int, line: int, at: Sequence[int], places: Sequence[tuple[int, int]]) -> None:
        steps[:, step, half, list(at)] = np.stack([window[:, c, line, x] for c, x in places], -1)

    steps = np.zeros((k, 5, 2, 16), np.int8)
    for line in range(TAPS):
        place(line // 2, line % 2, line, range(16), HEAD)
    for half, first in ((1, 4), (0, 0)):  # of step 3, and of step 4: the tails of three lines
        for i in range(3):
            place(3 if half else 4, half, first + i, (*range(4 * i, 4 * i + 4), 12 + i), TAIL)
    place(4, 1, 3, (0, 1, 2, 3, 6), TAIL)
    return steps.reshape(k, 5, 32)


def default(op: StemOp, chip: Chip) -> DenseStem:
    """The most rows a band that still give every team one. Raises EngineError when none fits."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no bands of lines", numbers, lambda number: DenseStem(op, number, chip), band_cost)

"""Host side of `stem_wgmma.cu`: the first convolution with a 3x3 maximum of stride 2, on wgmma."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_wgmma import check_chip
from int4core.backends.cuda.families.epilogue import ELEMENTS, narrow_constants
from int4core.backends.cuda.families.kernel import Grid
from int4core.backends.cuda.families.layouts import K_STEP, tile_channels
from int4core.backends.cuda.families.stem_strips import (
    STEP_PIXELS,
    STRIP,
    STRIP_SHAPE,
    StripConfig,
    StripStem,
    strip_pixels,
)
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import StemOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

FIRST_NUMBER = 230
"""The number of CONFIGS' first entry in a tuning file."""

STRIPS = 4
"""Strips of a block: one per warp."""

TILE_N = 64

CONFIGS: tuple[StripConfig, ...] = tuple(StripConfig(rows, TILE_N, STRIPS) for rows in (8, 14, 28, 4, 2))


@dataclass(frozen=True, eq=False)
class WgmmaStem(StripStem):
    """The stem on entry `number` of the table. Raises EngineError when they do not fit."""

    def __post_init__(self) -> None:
        check_chip(self.chip)
        super().__post_init__()
        narrow_constants(self.op, TILE_N)

    @property
    def config(self) -> StripConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def pitch(self) -> int:
        """Words of a line: all that the windows of a block's columns read, from a multiple of four on."""
        columns = 2 * STRIPS * STRIP + 1
        return math.ceil((columns * self.op.stride[1] + STEP_PIXELS * self.steps_w + 3) / 4) * 4

    @property
    def shared_bytes(self) -> int:
        op = self.op
        taps = int(op.weight.shape[2])
        lines = 2 * self.config.pool_rows * op.stride[0] + taps
        return taps * self.steps_w * K_STEP * TILE_N + lines * self.pitch * 4

    @property
    def grid(self) -> Grid:
        op = self.op
        rows = math.ceil(op.pooled[0] / self.config.pool_rows)
        return rows, op.n, math.ceil(self.strips / STRIPS) * (op.k // TILE_N)

    @property
    def source(self) -> KernelSource:
        op = self.op
        constants = {
            "TAPS_H": op.weight.shape[2], "TAPS_W": op.weight.shape[3], "STRIDE_H": op.stride[0],
            "STRIDE_W": op.stride[1], "WIDTH": op.w, "LEFT": self.left, "LEAD": self.lead, "PITCH": self.pitch,
            "POOL_ROWS": self.config.pool_rows,
        }  # fmt: skip
        return KernelSource.of("stem_wgmma.cu", "stem_wgmma", constants, {"StripShape": STRIP_SHAPE}, ELEMENTS)

    @property
    def layout(self) -> str:
        return "wgmma stem"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return arrange_strips_wgmma(self.op.weight, self.lead), narrow_constants(self.op, TILE_N).channels

    def __str__(self) -> str:
        return f"wgmma strips of {self.config.pool_rows} rows"


def arrange_strips_wgmma(weight: Int8Array, lead: int) -> Int8Array:
    """int8 (K, 3, R, S) -> (K / TILE_N, k-steps, 2, TILE_N, 16): the B operand of each k-step, as wgmma reads it."""
    k = len(weight)
    places = strip_pixels(weight, lead).reshape(k // TILE_N, TILE_N, -1, 2, 16)[:, tile_channels(TILE_N)]
    return np.ascontiguousarray(places.transpose(0, 2, 3, 1, 4))


def default(op: StemOp, chip: Chip) -> WgmmaStem:
    """Few rows per block where there are few images. Raises EngineError when none fits, or there are too few."""

    def make(number: int) -> WgmmaStem:
        kernel = WgmmaStem(op, number, chip)
        if math.prod(kernel.grid) < 3 * chip.multiprocessors:
            raise EngineError("too few images for strips on wgmma")
        return kernel

    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no wgmma strip", numbers, make, lambda _: 0)

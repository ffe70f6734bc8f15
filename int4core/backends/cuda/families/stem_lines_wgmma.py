"""Host side of `stem_lines_wgmma.cu`: the first convolution with a 3x3 maximum of stride 2, weights as A of wgmma."""

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
from int4core.backends.cuda.families.epilogue import ELEMENTS, narrow_constants
from int4core.backends.cuda.families.kernel import Arguments, Grid, address
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import StemOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

FIRST_NUMBER = 240
"""The number of CONFIGS' first entry in a tuning file."""

CHANNELS = 64
"""Output channels: the rows of A."""

STEP_PIXELS = 8
"""Pixels of a window's line: one k-step."""

TILES = (64, 96, 112, 128)
"""Columns that the kernel's wgmma takes: WgmmaS8 in ptx/wgmma_s8.cuh."""

RESERVED = 1024
"""Bytes of shared memory that the system takes of each block."""

PAIR = 8
"""A tile of so many channels has its pairs in the order of channels: `layouts.tile_channels`."""

LINES_SHAPE = np.dtype([(name, "<i4") for name in ("height", "pooled_h", "pad_h")])
"""`LinesShape` in stem_lines_wgmma.cu: lines of the image, rows of maxima, lines of padding."""


@dataclass(frozen=True)
class LinesConfig:
    """Rows of maxima a block makes, and blocks of a multiprocessor."""

    band: int
    blocks: int

    def __str__(self) -> str:
        return f"bands of {self.band} rows, {self.blocks} blocks"


CONFIGS: tuple[LinesConfig, ...] = tuple(LinesConfig(*values) for values in ((14, 3), (28, 3), (8, 3), (4, 3), (2, 3)))
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class LinesStem:
    """The stem on entry `number` of the table. Raises EngineError when they do not fit."""

    op: StemOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        op = self.op
        if (op.pool_size, op.pool_stride, op.pool_padding) != (3, 2, 1):
            raise EngineError("image lines as B are for a maximum over 3x3 windows with stride 2 and padding 1")
        if op.k != CHANNELS:
            raise EngineError(f"{op.k} output channels: weights as A take {CHANNELS}")
        if op.stride[1] != 2 or self.lead + op.weight.shape[3] > STEP_PIXELS or self.lead_quads > 1:
            raise EngineError(
                f"a window of {op.weight.shape[3]} columns, stride {op.stride[1]}, padding {op.padding[1]}: one k-step "
                f"takes {STEP_PIXELS} pixels from a multiple of four on, and a stride of 2"
            )
        if not TILES[0] // 2 < op.q <= TILES[-1]:
            raise EngineError(f"rows of {op.q} outputs: {TILES[0] // 2 + 1} to {TILES[-1]} are one wgmma")
        if self.config.blocks * (self.shared_bytes + RESERVED) > self.chip.shared_bytes + RESERVED:
            raise EngineError(f"{self.config}: {self.shared_bytes} bytes of shared memory each")
        narrow_constants(op, PAIR)

    @property
    def config(self) -> LinesConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def lead_quads(self) -> int:
        """Groups of four pixels before the image that the first window reads."""
        return math.ceil(self.op.padding[1] / 4)

    @property
    def lead(self) -> int:
        """Pixels without weight before a window."""
        return 4 * self.lead_quads - self.op.padding[1]

    @property
    def tile_n(self) -> int:
        return next(tile for tile in TILES if tile >= self.op.q)

    @property
    def ring(self) -> int:
        """Lines of the image in shared memory: three rows of windows and two more, up to a power of two."""
        lines = 3 * self.op.stride[0] + int(self.op.weight.shape[2])
        return 1 << (lines - 1).bit_length()

    @property
    def shared_bytes(self) -> int:
        line = 4 * self.tile_n // 2 * 16
        return self.ring * line + 2 * self.op.pooled[1] * CHANNELS // 2

    @property
    def threads(self) -> int:
        return 128

    @property
    def grid(self) -> Grid:
        return math.ceil(self.op.pooled[0] / self.config.band), self.op.n, 1

    @property
    def dimensions(self) -> dict[str, int]:
        """Compile-time constants of the shape."""
        op = self.op
        return {
            "TAPS_H": op.weight.shape[2], "STRIDE_H": op.stride[0], "WIDTH": op.w, "LEAD_QUADS": self.lead_quads,
            "ROWS": op.p, "COLUMNS": op.q, "POOLED": op.pooled[1], "TILE_N": self.tile_n, "RING": self.ring,
        }  # fmt: skip

    @property
    def source(self) -> KernelSource:
        constants = self.dimensions | {"BAND": self.config.band, "BLOCKS_AT_ONCE": self.config.blocks}
        return KernelSource.of(
            "stem_lines_wgmma.cu", "stem_lines_wgmma", constants, {"LinesShape": LINES_SHAPE}, ELEMENTS
        )

    @property
    def layout(self) -> str:
        return "stem lines"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return arrange_lines(self.op.weight, self.lead), narrow_constants(self.op, PAIR).channels

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        addresses = (tensors[op.source], *constants, tensors[op.target])
        return (*map(address, addresses), np.array((op.h, op.pooled[0], op.padding[0]), LINES_SHAPE))

    def __str__(self) -> str:
        return f"wgmma, weights as A, {self.config}"


def arrange_lines(weight: Int8Array, lead: int) -> Int8Array:
    """int8 (64, 3, R, S) -> (R, 4 warps, 32 lanes, 4 words, 4): the A operand of each line of the window.

    A pixel is four places of K, the last of them zero; `lead` pixels without weight come before the window.
    """
    k, c, r, s = weight.shape
    places = np.zeros((k, r, STEP_PIXELS, 4), np.int8)
    places[:, :, lead : lead + s, :c] = weight.transpose(0, 2, 3, 1)
    return arrange_rows(places.reshape(k, r, 32))


def arrange_rows(places: Int8Array) -> Int8Array:
    """int8 (64, k-steps, 32) -> (k-steps, 4 warps, 32 lanes, 4 words, 4): the A operands.

    Rows `i` and `i` + 8 of a warp's sixteen are channels 2 * i and 2 * i + 1 of its own.
    """
    steps = places.shape[1]
    # warp, group, row of the two, step, half of K, quad, place
    split = places.reshape(4, 8, 2, steps, 2, 4, 4)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 5, 4, 2, 6)).reshape(steps, 4, 32, 4, 4)


def default(op: StemOp, chip: Chip) -> LinesStem:
    """The most rows per block that still give every multiprocessor three. Raises EngineError when none fits."""

    def cost(kernel: LinesStem) -> tuple[int, int]:
        filled = math.prod(kernel.grid) >= kernel.config.blocks * chip.multiprocessors
        return (0, -kernel.config.band) if filled else (1, kernel.config.band)

    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no bands of lines", numbers, lambda number: LinesStem(op, number, chip), cost)

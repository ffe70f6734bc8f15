"""Host side of `rows_wgmma.cu`: 3x3 convolutions of few channels on wide images, on tiles of whole rows."""

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
from int4core.backends.cuda.families.epilogue import ELEMENTS, StructArray, narrow_constants
from int4core.backends.cuda.families.kernel import Arguments, Grid, address, resident_grid
from int4core.backends.cuda.families.layouts import arrange_wgmma
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.jit.tensor_map import box_map
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError

FIRST_NUMBER = 150
"""The number of CONFIGS' first entry in a tuning file."""

CONFIGS: tuple[tuple[int, int], ...] = ((8, 3), (8, 4), (4, 2), (4, 3), (2, 4))
"""Image rows of a tile, and teams of a block."""

STATIC_BYTES = 4 * 1024
"""More than the kernel's static shared memory."""

ROWS_SHAPE = np.dtype([(name, "<i4") for name in ("tiles", "blocks", "height", "out_channels")])
"""`RowsShape` in rows_wgmma.cu: tiles of all images, and of one; its height."""


@dataclass(frozen=True, eq=False)
class WgmmaRows:
    """A 3x3 convolution, stride 1, on tiles of whole image rows: entry `number` of the table.

    All its input channels are one block of K. Raises EngineError when they do not fit; the message is the reason.
    """

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        conv = self.conv
        if (conv.taps, conv.stride, conv.pad) != (3, 1, 1):
            raise EngineError("tiles of rows are for 3x3 windows with stride 1 and padding 1")
        if conv.c not in (32, 64, 128) or conv.k % self.tile_n:
            raise EngineError(f"{conv.c} to {conv.k} channels: tiles of rows take 32, 64 or 128 inputs")
        if conv.residual != Residual.NONE or conv.output != Output.U4:
            raise EngineError("tiles of rows have no residual, and u4 outputs")
        if conv.w + 2 > 256 or self.rows + 2 > 256:
            raise EngineError(f"{conv.w} columns, {self.rows} rows: a copy takes at most 256 with the border")
        if self.shared_bytes > self.chip.shared_bytes - STATIC_BYTES:
            raise EngineError(f"{self.teams} x {self.rows} rows: {self.shared_bytes} bytes of shared memory")
        narrow_constants(self.op, self.tile_n)

    @property
    def conv(self) -> Convolution:
        return self.op.shape

    @property
    def rows(self) -> int:
        """Image rows of a tile."""
        return CONFIGS[self.number - FIRST_NUMBER][0]

    @property
    def teams(self) -> int:
        """Warpgroups of a block, each on its own tile: 2 to 4."""
        return CONFIGS[self.number - FIRST_NUMBER][1]

    @property
    def tile_n(self) -> int:
        return 128 if self.conv.k % 128 == 0 else 64

    @property
    def k_bytes(self) -> int:
        return self.conv.c // 2

    @property
    def shared_bytes(self) -> int:
        tile = (self.rows + 2) * (self.conv.w + 2) * self.k_bytes
        return self.teams * 2 * math.ceil(tile / 128) * 128 + 9 * 2 * self.k_bytes * self.tile_n

    @property
    def threads(self) -> int:
        return 128 * (self.teams + 1)

    @property
    def blocks(self) -> int:
        """Tiles of an image."""
        return math.ceil(self.conv.h / self.rows)

    @property
    def grid(self) -> Grid:
        tiles = math.ceil(self.conv.n * self.blocks / self.teams)
        return resident_grid(self.chip, tiles, self.conv.k // self.tile_n)

    @property
    def source(self) -> KernelSource:
        constants = {
            "WIDTH": self.conv.w, "ROWS": self.rows, "K_BYTES": self.k_bytes, "TILE_N": self.tile_n,
            "TEAMS": self.teams,
        }  # fmt: skip
        return KernelSource.of("rows_wgmma.cu", "rows_wgmma", constants, {"RowsShape": ROWS_SHAPE}, ELEMENTS)

    @property
    def layout(self) -> str:
        return f"rows_wgmma {self.tile_n} {self.k_bytes}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        weights = arrange_wgmma(self.op.weight, self.tile_n, self.k_bytes)
        return weights, narrow_constants(self.op, self.tile_n).channels

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        outputs = map(address, (*constants, tensors[self.op.target]))
        return (self.tensor_map(tensors[self.op.source]), *outputs, self.shape_argument())

    def shape_argument(self) -> StructArray:
        """The kernel's `shape`: a ROWS_SHAPE scalar."""
        return np.array((self.conv.n * self.blocks, self.blocks, self.conv.h, self.conv.k), ROWS_SHAPE)

    def tensor_map(self, source: int) -> StructArray:
        """The kernel's `input` for a device address."""
        conv = self.conv
        box = (self.rows + 2, conv.w + 2, self.k_bytes)
        return box_map(source, (conv.n, conv.h, conv.w, conv.c // 2), box)

    def __str__(self) -> str:
        return f"wgmma tiles of {self.rows} rows, {self.teams} teams"


def default(op: ConvOp, chip: Chip) -> WgmmaRows:
    """The entry that is near the best measured ones, where this family is.

    Raises:
        EngineError: none takes the operation, or other kernels should do better.
    """
    check_chip(chip)
    conv = op.shape
    # Few channels on wide images: nine fetches of every pixel would be limited by L2.
    if conv.taps != 3 or conv.c != 64 or conv.w < 28:
        raise EngineError("tiles of rows are for 64 channels on images of 28 columns or more")
    numbers = (FIRST_NUMBER + 1, FIRST_NUMBER)
    return choose(f"{op.name}: no tile of rows", numbers, lambda n: WgmmaRows(op, n, chip), lambda _: 0)

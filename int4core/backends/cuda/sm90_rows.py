"""Host side of `sm90_conv3x3_rows_u4s8.cu`: 3x3 convolutions of few channels on wide images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from int4core.backends.cuda.sm90 import SHARED_BYTES, Convolution, Output, Residual
from int4core.backends.cuda.sm90_layout import StructArray
from int4core.backends.cuda.tensor_map import box_map
from int4core.errors import EngineError

STATIC_BYTES = 4 * 1024
"""More than the kernel's static shared memory."""

ROWS_SHAPE = np.dtype([(name, "<i4") for name in ("tiles", "blocks", "height", "out_channels")])
"""`RowsShape` in sm90_conv3x3_rows_u4s8.cu."""


@dataclass(frozen=True)
class RowsPlan:
    """A 3x3 convolution, stride 1, on tiles of whole image rows.

    Attributes:
        conv: the convolution; all its input channels are one block of K.
        rows: image rows of a tile.
        teams: warpgroups of a block, each on its own tile: 2 to 4.

    Raises EngineError when they do not fit; the message is the reason.
    """

    conv: Convolution
    rows: int
    teams: int
    multiprocessors: int = 132

    def __post_init__(self) -> None:
        conv = self.conv
        if (conv.taps, conv.stride, conv.pad) != (3, 1, 1):
            raise EngineError("tiles of rows are for 3x3 windows with stride 1 and padding 1")
        if conv.c not in (32, 64, 128) or conv.k % self.tile_n:
            raise EngineError(f"{conv.c} to {conv.k} channels: tiles of rows take 32, 64 or 128 inputs")
        if conv.residual != Residual.NONE or conv.output != Output.U4:
            raise EngineError("tiles of rows have no residual, and u4 outputs")
        if conv.w + 2 > 256 or self.rows + 2 > 256:
            raise EngineError(f"{conv.w} columns, {self.rows} rows: a copy takes at most 256 with the border")
        if self.shared_bytes > SHARED_BYTES - STATIC_BYTES:
            raise EngineError(f"{self.teams} x {self.rows} rows: {self.shared_bytes} bytes of shared memory")

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
    def grid(self) -> tuple[int, int]:
        columns = self.conv.k // self.tile_n
        tiles = math.ceil(self.conv.n * self.blocks / self.teams)
        return min(tiles, max(1, self.multiprocessors // columns)), columns

    @property
    def defines(self) -> dict[str, int]:
        """The constants a binary is compiled with."""
        return {
            "WIDTH": self.conv.w,
            "ROWS": self.rows,
            "K_BYTES": self.k_bytes,
            "TILE_N": self.tile_n,
            "TEAMS": self.teams,
        }

    def shape_argument(self) -> StructArray:
        """The kernel's `shape`: a ROWS_SHAPE scalar."""
        return np.array((self.conv.n * self.blocks, self.blocks, self.conv.h, self.conv.k), ROWS_SHAPE)

    def tensor_map(self, source: int) -> StructArray:
        """The kernel's `input` for a device address."""
        conv = self.conv
        box = (self.rows + 2, conv.w + 2, self.k_bytes)
        return box_map(source, (conv.n, conv.h, conv.w, conv.c // 2), box)

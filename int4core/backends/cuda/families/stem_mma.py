"""Host side of `stem_mma.cu`: the first convolution with its maximum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_tile import PAIR_BYTES
from int4core.backends.cuda.families.epilogue import ELEMENTS, narrow_constants, needs_wide, wide_constants
from int4core.backends.cuda.families.kernel import Arguments, Grid, address
from int4core.backends.cuda.families.layouts import K_STEP, arrange_stem
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import StemOp
from int4core.errors import EngineError

_FIELDS = "h w p q pad_h pad_w pooled_h pooled_w pool_pad pitch out_channels"
STEM_SHAPE = np.dtype([(name, "<i4") for name in _FIELDS.split()])
"""`StemShape` in stem_mma.cu: image, output of the convolution, maxima, and words of an input row in shared memory."""

CAPABILITY = (7, 5)
"""The first chips with 8-bit tensor cores."""

FIRST_NUMBER = 200
"""The number of CONFIGS' first entry in a tuning file."""


@dataclass(frozen=True)
class StemConfig:
    """Rows of maxima a block makes, and its warps."""

    pool_rows: int
    warps: int

    def __str__(self) -> str:
        return f"stem of {self.pool_rows} rows, {self.warps} warps"


CONFIGS: tuple[StemConfig, ...] = (
    StemConfig(4, 8),
    StemConfig(2, 8),
    StemConfig(1, 8),
    StemConfig(8, 8),
    StemConfig(2, 4),
    StemConfig(1, 4),
)


@dataclass(frozen=True, eq=False)
class StemConv:
    """The stem on entry `number` of the table. Raises EngineError when they do not fit."""

    op: StemOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        if self.chip.capability < CAPABILITY:
            major, minor = self.chip.capability
            raise EngineError(f"compute capability {major}.{minor}: the first convolution needs 7.5")
        if self.shared_bytes > self.chip.shared_bytes:
            raise EngineError(f"{self.shared_bytes} bytes of shared memory, the chip has {self.chip.shared_bytes}")

    @property
    def config(self) -> StemConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def wide(self) -> bool:
        return needs_wide(self.op)

    @property
    def tile_n(self) -> int:
        return 64 if len(self.op.weight) % 64 == 0 else 32

    @property
    def steps_w(self) -> int:
        """k-steps of a row of the window."""
        return int(-(-self.op.weight.shape[3] // 8))

    @property
    def pitch(self) -> int:
        """Words of an input row: to the last place that the last window reads."""
        return int((self.op.q - 1) * self.op.stride[1] + 8 * self.steps_w)

    @property
    def shared_bytes(self) -> int:
        op = self.op
        conv_rows = (self.config.pool_rows - 1) * op.pool_stride + op.pool_size
        input_rows = (conv_rows - 1) * op.stride[0] + op.weight.shape[2]
        weights = op.weight.shape[2] * self.steps_w * K_STEP * self.tile_n
        pixels = math.ceil(input_rows * self.pitch / 4) * 16
        return int(weights + self.tile_n // 2 * PAIR_BYTES + pixels + conv_rows * op.q * self.tile_n // 2)

    @property
    def threads(self) -> int:
        return 32 * self.config.warps

    @property
    def grid(self) -> Grid:
        op = self.op
        return math.ceil(op.pooled[0] / self.config.pool_rows), op.n, op.k // self.tile_n

    @property
    def source(self) -> KernelSource:
        op = self.op
        constants = {
            "TAPS_H": op.weight.shape[2], "TAPS_W": op.weight.shape[3], "STRIDE_H": op.stride[0],
            "STRIDE_W": op.stride[1], "POOL": op.pool_size, "POOL_STRIDE": op.pool_stride,
            "POOL_ROWS": self.config.pool_rows, "TILE_N": self.tile_n, "WARPS": self.config.warps,
            "WIDE": int(self.wide),
        }  # fmt: skip
        return KernelSource.of("stem_mma.cu", "stem_mma", constants, {"StemShape": STEM_SHAPE}, ELEMENTS)

    @property
    def layout(self) -> str:
        return f"stem {self.tile_n}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        epilogue = (wide_constants if self.wide else narrow_constants)(self.op, self.tile_n)
        return arrange_stem(self.op.weight, self.tile_n), epilogue.channels

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        values = (op.h, op.w, op.p, op.q, *op.padding, *op.pooled, op.pool_padding, self.pitch, op.k)
        addresses = (tensors[op.source], *constants, tensors[op.target])
        return (*map(address, addresses), np.array(values, STEM_SHAPE))

    def __str__(self) -> str:
        return f"{self.config}{', 64-bit requantisation' if self.wide else ''}"


def default(op: StemOp, chip: Chip) -> StemConv:
    """The most rows per block that still leave every multiprocessor two. Raises EngineError when none fits."""

    def cost(kernel: StemConv) -> int:
        return 0 if math.prod(kernel.grid) >= 2 * chip.multiprocessors else kernel.config.pool_rows

    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no stem configuration", numbers, lambda number: StemConv(op, number, chip), cost)

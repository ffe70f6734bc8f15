"""Host side of `stem_strips.cu`: the first convolution with a 3x3 maximum of stride 2, in strips of columns."""

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
from int4core.backends.cuda.families.layouts import arrange_operands, tile_channels
from int4core.backends.cuda.families.stem_mma import CAPABILITY
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import StemOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

_FIELDS = "height p q pad_h pooled_h pooled_w pool_pad strips out_channels"
STRIP_SHAPE = np.dtype([(name, "<i4") for name in _FIELDS.split()])
"""`StripShape` in stem_strips.cu and stem_wgmma.cu: image, output of the convolution, maxima and their strips."""

STRIP = 7
"""Maxima a row of a strip."""

STEP_PIXELS = 8
"""Pixels of a window's line that one k-step takes."""

FIRST_NUMBER = 210
"""The number of CONFIGS' first entry in a tuning file."""


@dataclass(frozen=True)
class StripConfig:
    """Rows of maxima a block makes, the channels of a warp, and warps."""

    pool_rows: int
    warp_n: int
    warps: int

    def __str__(self) -> str:
        return f"strips of {self.pool_rows} rows, {self.warps} warps of n{self.warp_n}"


CONFIGS: tuple[StripConfig, ...] = (
    StripConfig(14, 32, 4),
    StripConfig(8, 32, 4),
    StripConfig(28, 32, 4),
    StripConfig(14, 64, 4),
    StripConfig(8, 64, 4),
    StripConfig(4, 32, 4),
    StripConfig(2, 32, 4),
    StripConfig(2, 32, 8),
    StripConfig(4, 64, 8),
)
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class StripStem:
    """The stem on entry `number` of the table. Raises EngineError when they do not fit."""

    op: StemOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        op = self.op
        if self.chip.capability < CAPABILITY:
            major, minor = self.chip.capability
            raise EngineError(f"compute capability {major}.{minor}: the first convolution needs 7.5")
        if (op.pool_size, op.pool_stride) != (3, 2) or op.pool_padding not in (0, 1):
            raise EngineError("strips are for a maximum over 3x3 windows with stride 2 and padding 0 or 1")
        if op.k % self.config.warp_n:
            raise EngineError(f"{op.k} output channels are no multiple of {self.config.warp_n}")
        if self.shared_bytes > self.chip.shared_bytes:
            raise EngineError(f"{self.shared_bytes} bytes of shared memory, the chip has {self.chip.shared_bytes}")

    @property
    def config(self) -> StripConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def wide(self) -> bool:
        return needs_wide(self.op)

    @property
    def left(self) -> int:
        """Columns of zeros before the image: the padding, and as many as let it begin at a multiple of four."""
        return math.ceil(self.op.padding[1] / 4) * 4

    @property
    def lead(self) -> int:
        return self.left - self.op.padding[1]

    @property
    def steps_w(self) -> int:
        """k-steps of a line of the window."""
        return math.ceil((self.lead + int(self.op.weight.shape[3])) / STEP_PIXELS)

    @property
    def strips(self) -> int:
        return math.ceil(self.op.pooled[1] / STRIP)

    @property
    def pitch(self) -> int:
        """Words of a line: to the last one that the last strip reads."""
        last = 2 * (self.strips * STRIP - 1) + 2 - self.op.pool_padding
        return math.ceil((last * self.op.stride[1] + STEP_PIXELS * self.steps_w) / 4) * 4

    @property
    def shared_bytes(self) -> int:
        op = self.op
        lines = 2 * self.config.pool_rows * op.stride[0] + op.weight.shape[2]
        return op.k // 2 * PAIR_BYTES + int(lines) * self.pitch * 4

    @property
    def threads(self) -> int:
        return 32 * self.config.warps

    @property
    def grid(self) -> Grid:
        return math.ceil(self.op.pooled[0] / self.config.pool_rows), self.op.n, 1

    @property
    def source(self) -> KernelSource:
        op, config = self.op, self.config
        constants = {
            "TAPS_H": op.weight.shape[2], "TAPS_W": op.weight.shape[3], "STRIDE_H": op.stride[0],
            "STRIDE_W": op.stride[1], "WIDTH": op.w, "LEFT": self.left, "LEAD": self.lead, "PITCH": self.pitch,
            "POOL_ROWS": config.pool_rows, "WARP_N": config.warp_n, "WARPS": config.warps, "WIDE": int(self.wide),
        }  # fmt: skip
        return KernelSource.of("stem_strips.cu", "stem_strips", constants, {"StripShape": STRIP_SHAPE}, ELEMENTS)

    @property
    def layout(self) -> str:
        return f"strips {self.config.warp_n}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        warp_n = self.config.warp_n
        epilogue = (wide_constants if self.wide else narrow_constants)(self.op, warp_n)
        return arrange_strips(self.op.weight, warp_n, self.lead), epilogue.channels

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        values = (op.h, op.p, op.q, op.padding[0], *op.pooled, op.pool_padding, self.strips, op.k)
        addresses = (tensors[op.source], *constants, tensors[op.target])
        return (*map(address, addresses), np.array(values, STRIP_SHAPE))

    def __str__(self) -> str:
        return f"{self.config}{', 64-bit requantisation' if self.wide else ''}"


def strip_pixels(weight: Int8Array, lead: int) -> Int8Array:
    """int8 (K, 3, R, S) -> (K, R, k-steps of a line, 8 pixels, 4): places of K in the order the tensor cores see them.

    A pixel is four places, the last of them zero; `lead` pixels without weight come before the window, and it is
    filled up to whole k-steps. Thread `quad` of a group holds pixels 2 * quad and 2 * quad + 1 of a step: places
    4 * quad ... + 3 and the same 16 further.
    """
    k, c, r, s = weight.shape
    steps = math.ceil((lead + s) / STEP_PIXELS)
    padded = np.zeros((k, r, steps * STEP_PIXELS, 4), np.int8)
    padded[:, :, lead : lead + s, :c] = weight.transpose(0, 2, 3, 1)
    half, quad = np.meshgrid(np.arange(2), np.arange(4), indexing="ij")
    return padded.reshape(k, r, steps, STEP_PIXELS, 4)[:, :, :, (2 * quad + half).ravel()]


def arrange_strips(weight: Int8Array, warp_n: int, lead: int) -> Int8Array:
    """int8 (K, 3, R, S) -> (K / warp_n, R, bytes of a window's line): a warp's operands, as mma.sync takes them."""
    k, _, r, _ = weight.shape
    pixels = strip_pixels(weight, lead).reshape(k // warp_n, warp_n, r, -1)
    return arrange_operands(pixels[:, tile_channels(warp_n)], 1)


def default(op: StemOp, chip: Chip) -> StripStem:
    """The most rows per block that still leave every multiprocessor two blocks. Raises EngineError when none fits."""

    def cost(kernel: StripStem) -> int:
        return 0 if math.prod(kernel.grid) >= 2 * chip.multiprocessors else kernel.config.pool_rows

    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no strip configuration", numbers, lambda number: StripStem(op, number, chip), cost)

"""Host side of `winograd_wgmma.cu`: 3x3 convolutions of 64 channels by an exact Winograd transformation, on wgmma."""

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
from int4core.backends.cuda.families.epilogue import (
    ELEMENTS,
    LINEAR,
    accumulator_offset,
    narrow_constants,
)
from int4core.backends.cuda.families.kernel import Arguments, Grid, address, resident_grid
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.jit.tensor_map import box_map
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

FIRST_NUMBER = 170
"""The number of CONFIGS' first entry in a tuning file."""

CHANNELS = 64
"""Input channels, and output channels of a block."""

UNIT = 32
"""Pairs of outputs that a team multiplies at a time."""

BUFFERS = (3, 2)
"""Of image rows: as many as fit."""

SHIFTED = 16
"""What keeps the differences of u4 in V from being negative."""

STATIC_BYTES = 10 * 1024
"""More than the kernel's static shared memory."""

WINOGRAD_PAIR = np.dtype([("offset", "<i4", (2, 2)), ("factor", "<f4", 2), ("correction", "<f4", 2)])
"""What the requantisation of doubled sums needs of two neighbouring channels.

offset: of the even output's channels, and of the odd one's: twice bias + offset of CHANNEL_PAIR, less what the 16s of
V add; factor: half of CHANNEL_PAIR's; correction: as there.
"""

BAND_SHAPE = np.dtype([(name, "<i4") for name in ("bands", "bands_of_image", "height", "out_channels")])
"""`BandShape` in winograd_wgmma.cu: bands of all images, and of one; its rows."""


TEAMS = 2
"""Warpgroups that multiply."""


@dataclass(frozen=True)
class BandConfig:
    """Image rows of a band; `ahead`: a team's next products run under its requantisation."""

    band: int
    ahead: bool

    def __str__(self) -> str:
        return f"bands of {self.band} rows{', ahead' if self.ahead else ''}"


CONFIGS: tuple[BandConfig, ...] = (
    BandConfig(8, False),
    BandConfig(4, False),
    BandConfig(8, True),
    BandConfig(4, True),
)
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class WgmmaWinograd:
    """A 3x3 convolution, stride 1, on entry `number` of the table. Raises EngineError when they do not fit."""

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        check_chip(self.chip)
        check_winograd(self.conv)
        conv = self.conv
        if conv.c != CHANNELS or conv.k % CHANNELS:
            raise EngineError(f"{conv.c} to {conv.k} channels: it takes 64 to multiples of 64")
        if self.columns > 256:
            raise EngineError(f"{conv.w} columns: a copy takes at most 256 with the border")
        if self.units < TEAMS:
            raise EngineError(f"{self.config}: {self.units} units of {UNIT} pairs in a band of {conv.w} columns")
        if not self.buffers:
            raise EngineError(f"{self.config}: bands of {conv.w} columns do not fit shared memory")
        transform_weights(self.op.weight)
        doubled_constants(self.op)

    @property
    def conv(self) -> Convolution:
        return self.op.shape

    @property
    def config(self) -> BandConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def pairs(self) -> int:
        """Pairs of outputs of an image row."""
        return math.ceil(self.conv.w / 2)

    @property
    def columns(self) -> int:
        """Of a copy: an odd number."""
        return (2 * self.pairs + 2) | 1

    @property
    def units(self) -> int:
        """Of a band."""
        return math.ceil(self.config.band * self.pairs / UNIT)

    @property
    def buffers(self) -> int:
        """Of image rows; 0 where two do not fit."""
        room: int = self.chip.shared_bytes - STATIC_BYTES - self.fixed_bytes
        return next((count for count in BUFFERS if count * self.buffer_bytes <= room), 0)

    @property
    def buffer_bytes(self) -> int:
        return math.ceil((self.config.band + 2) * self.columns * CHANNELS // 2 / 128) * 128

    @property
    def fixed_bytes(self) -> int:
        """Two buffers of V, and two units of every team."""
        places = max((self.config.band + 2) * self.pairs, self.units * UNIT + 2 * self.pairs) | 1
        return 2 * 16 * places * 16 + TEAMS * 2 * UNIT * CHANNELS

    @property
    def shared_bytes(self) -> int:
        return self.fixed_bytes + self.buffers * self.buffer_bytes

    @property
    def threads(self) -> int:
        return 128 * (TEAMS + 1)

    @property
    def bands(self) -> int:
        """Of an image."""
        return math.ceil(self.conv.h / self.config.band)

    @property
    def grid(self) -> Grid:
        return resident_grid(self.chip, self.conv.n * self.bands, self.conv.k // CHANNELS)

    @property
    def source(self) -> KernelSource:
        constants = {
            "WIDTH": self.conv.w, "BAND": self.config.band, "BUFFERS": self.buffers, "AHEAD": int(self.config.ahead)
        }  # fmt: skip
        structs, elements = {"BandShape": BAND_SHAPE}, ELEMENTS | {"WinogradPair": WINOGRAD_PAIR}
        return KernelSource.of("winograd_wgmma.cu", "winograd_wgmma", constants, structs, elements)

    @property
    def layout(self) -> str:
        return "winograd_wgmma"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return arrange_winograd(transform_weights(self.op.weight)), doubled_constants(self.op)

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        conv = self.conv
        box = (self.config.band + 2, self.columns, CHANNELS // 2)
        tensor_map = box_map(tensors[self.op.source], (conv.n, conv.h, conv.w, conv.c // 2), box)
        shape = np.array((conv.n * self.bands, self.bands, conv.h, conv.k), BAND_SHAPE)
        return (tensor_map, *map(address, (*constants, tensors[self.op.target])), shape)

    def __str__(self) -> str:
        return f"wgmma Winograd, {self.config}"


def check_winograd(conv: Convolution) -> None:
    """Whether it is one that can be transformed along the width. Raises EngineError."""
    if (conv.taps, conv.stride, conv.pad) != (3, 1, 1):
        raise EngineError("Winograd's transformation is for 3x3 windows with stride 1 and padding 1")
    if conv.residual != Residual.NONE or conv.output != Output.U4:
        raise EngineError("Winograd's transformation has no residual, and u4 outputs")


def transform_weights(weight: Int8Array) -> Int8Array:
    """int8 (K, C, 3, 3) -> U, int8 (K, C, 3, 4): each row of taps at the four positions, the last one negated.

    Raises:
        EngineError: one of them is none of 8 bits.
    """
    g0, g1, g2 = np.moveaxis(weight.astype(np.int16), 3, 0)
    wide = np.stack((2 * g0, g0 + g1 + g2, g0 - g1 + g2, -2 * g2), -1)
    if wide.size and (wide.min() < -128 or wide.max() > 127):
        raise EngineError(
            f"transformed weights of {wide.min()} to {wide.max()}: Winograd's transformation takes 8 bits"
        )
    return wide.astype(np.int8)


def arrange_winograd(transformed: Int8Array) -> Int8Array:
    """int8 (K, 64, 3, 4) -> (K / 64, k-steps, 128 threads, 4 words, 4): A of wgmma, a warpgroup's registers.

    k-steps run over rows of taps, positions, halves of the channels. Places of K are the low nibbles of sixteen packed
    bytes, then the high ones. Rows `i` and `i` + 8 of a warp's sixteen are channels 2 * i and 2 * i + 1 of its own.
    """
    k = len(transformed)
    # part, warp, group, row of the two, half, quad, place, nibble, tap row, position
    split = transformed.reshape(k // CHANNELS, 4, 8, 2, 2, 4, 4, 2, 3, 4)
    # part, tap row, position, half, warp, group, quad, nibble, row of the two, place
    ordered = split.transpose(0, 8, 9, 4, 1, 2, 5, 7, 3, 6)
    return np.ascontiguousarray(ordered).reshape(k // CHANNELS, 24, 128, 4, 4)


def doubled_constants(op: ConvOp) -> npt.NDArray[Any]:
    """WINOGRAD_PAIR (K / 2,), in the order of channels.

    Raises:
        EngineError: the requantisation is none that one multiply-add does exactly, on doubled sums.
    """
    plain = narrow_constants(op, 8).channels.reshape(-1)
    offset = accumulator_offset(op.rescale.wide, op.rescale.shift)
    if 2 * (op.limits.high + int(offset.max())) >= LINEAR:
        raise EngineError(f"sums of {op.limits.low} to {op.limits.high}, doubled, leave the range of one multiply-add")
    sums = transform_weights(op.weight).astype(np.int64).sum((1, 2))
    start = 2 * (op.bias.astype(np.int64) + offset)
    even = start - SHIFTED * (sums[:, 0] + sums[:, 2])
    odd = start + SHIFTED * (sums[:, 2] - sums[:, 3])
    pairs = np.zeros(len(plain), WINOGRAD_PAIR)
    pairs["offset"][:, 0], pairs["offset"][:, 1] = even.reshape(-1, 2), odd.reshape(-1, 2)
    pairs["factor"] = plain["factor"] / 2
    pairs["correction"] = plain["correction"]
    return pairs


def default(op: ConvOp, chip: Chip) -> WgmmaWinograd:
    """The first entry that takes it. Raises EngineError when none does."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    what = f"{op.name}: no Winograd transformation"
    return choose(what, numbers, lambda number: WgmmaWinograd(op, number, chip), lambda _: 0)

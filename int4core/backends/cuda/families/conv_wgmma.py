"""Host side of `conv_wgmma.cu`: convolutions of Hopper, on wgmma, with the copy engine."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.epilogue import ELEMENTS, StructArray, s8_constants, s8_options
from int4core.backends.cuda.families.kernel import Arguments, Grid, address, resident_grid
from int4core.backends.cuda.families.layouts import arrange_wgmma, join_weights
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.jit.tensor_map import im2col_map
from int4core.backends.cuda.plan.convolution import Convolution, Output, Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError

CAPABILITY = (9, 0)

FIRST_NUMBER = 100
"""The number of CONFIGS' first entry in a tuning file."""

STATIC_BYTES = 8 * 1024
"""More than any configuration's static part: barriers and channel constants."""

MAX_STAGES = 16
"""Buffers of a ring: MAX_STAGES in the kernel."""

_SHAPE_FIELDS = (
    "pixels tiles p q taps_w stride pad channel_blocks residual_blocks residual_stride blocks out_channels stages"
)
CONV_SHAPE = np.dtype([(name, "<i4") for name in _SHAPE_FIELDS.split()])
"""`ConvShape` in conv_wgmma.cu.

Pixels of all outputs, their tiles, p x q of an image; the window; blocks of K of a tap, of the residual convolution,
which come before all others, and of both; buffers of a team's ring, at most MAX_STAGES."""


@dataclass(frozen=True)
class TileConfig:
    """How a block is cut: see the head of conv_wgmma.cu for the words.

    Attributes:
        tile_n: output channels of a tile: 64, 128 or 256.
        subtiles: 64-pixel wgmma tiles a warpgroup.
        warpgroups: warpgroups that share a team's stages.
        teams: teams of a block, each on its own tile.
        resident: the weights of the tile's channels stay in shared memory for the whole kernel.
        ordered: teams take turns at the tensor cores.
    """

    tile_n: int
    subtiles: int
    warpgroups: int
    teams: int
    resident: bool
    ordered: bool = False

    @property
    def tile_m(self) -> int:
        """Pixels of a team's tile."""
        return 64 * self.subtiles * self.warpgroups

    @property
    def threads(self) -> int:
        return 128 * (self.warpgroups * self.teams + 1)

    def __str__(self) -> str:
        weights = "resident" if self.resident else "streamed"
        turns = ", in turns" if self.ordered else ""
        return f"{self.teams} x m{self.tile_m} n{self.tile_n}, weights {weights}{turns}"


CONFIGS: tuple[TileConfig, ...] = (
    TileConfig(64, 4, 1, 2, True),
    TileConfig(64, 2, 1, 3, True),
    TileConfig(128, 2, 1, 2, True),
    TileConfig(256, 1, 1, 2, True),
    TileConfig(128, 1, 1, 3, True),
    TileConfig(128, 2, 2, 1, False),
    TileConfig(256, 1, 2, 1, False),
    TileConfig(64, 4, 2, 1, False),
    TileConfig(64, 1, 2, 1, False),
    TileConfig(64, 4, 1, 2, True, ordered=True),
    TileConfig(64, 2, 1, 3, True, ordered=True),
    TileConfig(128, 2, 1, 2, True, ordered=True),
    TileConfig(256, 1, 1, 2, True, ordered=True),
    TileConfig(128, 1, 1, 3, True, ordered=True),
)
"""Numbered: a tuning file names a configuration by its index."""


def check_chip(chip: Chip) -> None:
    if chip.capability != CAPABILITY:
        raise EngineError(f"wgmma runs on compute capability 9.0, not {'.'.join(map(str, chip.capability))}")


class TiledConv(ABC):
    """What conv_wgmma.cu computes of a convolution: buffers, grid and the compiler's constants."""

    number: int
    chip: Chip

    @property
    @abstractmethod
    def first(self) -> ConvOp:
        """The convolution."""

    @property
    @abstractmethod
    def config(self) -> TileConfig: ...

    @property
    def image(self) -> int:
        """Pixels of an image whose mean is the output; 0 where its pixels are."""
        return 0

    def check(self) -> None:
        """Raises EngineError when they do not fit; the message is the reason."""
        check_chip(self.chip)
        config = self.config
        if self.conv.k % config.tile_n:
            raise EngineError(f"{self.conv.k} output channels are no multiple of tile_n={config.tile_n}")
        if self.spills:
            raise EngineError(f"{config}: too few registers for this epilogue")
        if self.stages < 2:
            raise EngineError(f"{config}: two stages do not fit shared memory")
        s8_constants(self.first, config.tile_n)

    @property
    def conv(self) -> Convolution:
        return self.first.shape

    @property
    def threads(self) -> int:
        return self.config.threads

    @property
    def spills(self) -> bool:
        """Whether the compiler would run out of registers (known from compiling every combination)."""
        config, conv = self.config, self.conv
        wide = config.tile_n == 256 and conv.residual == Residual.CONVOLUTION
        return wide or (conv.output == Output.U7 and (config.threads == 512 or config.subtiles == 4))

    @property
    def channel_blocks(self) -> int:
        return self.conv.c // (2 * self.conv.k_bytes)

    @property
    def residual_blocks(self) -> int:
        return self.conv.source_channels // (2 * self.conv.k_bytes)

    @property
    def blocks(self) -> int:
        return self.residual_blocks + self.channel_blocks * self.conv.taps**2

    @property
    def block_weight_bytes(self) -> int:
        return 2 * self.conv.k_bytes * self.config.tile_n

    @property
    def stage_bytes(self) -> int:
        streamed = 0 if self.config.resident else self.block_weight_bytes
        return self.config.tile_m * self.conv.k_bytes + streamed

    @property
    def fixed_bytes(self) -> int:
        """Shared memory that does not depend on the number of stages."""
        row = self.config.tile_n // 2 if self.conv.residual == Residual.U4 else 0
        weights = self.blocks * self.block_weight_bytes if self.config.resident else 0
        outputs = self.config.tile_n if self.image else 0
        return weights + self.config.teams * (2 * row + outputs) * self.config.tile_m

    @property
    def stages(self) -> int:
        room: int = self.chip.shared_bytes - STATIC_BYTES - self.fixed_bytes
        return min(MAX_STAGES, room // (self.config.teams * self.stage_bytes))

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self.fixed_bytes + self.config.teams * self.stages * self.stage_bytes

    @property
    def tiles(self) -> int:
        return math.ceil(self.conv.pixels / self.config.tile_m)

    @property
    def grid(self) -> Grid:
        tiles = math.ceil(self.tiles / self.config.teams)
        return resident_grid(self.chip, tiles, self.conv.k // self.config.tile_n)

    @property
    def source(self) -> KernelSource:
        config = self.config
        constants = {
            "TILE_N": config.tile_n, "SUBTILES": config.subtiles, "WARPGROUPS": config.warpgroups,
            "TEAMS": config.teams, "WEIGHTS_RESIDENT": int(config.resident), "ORDERED": int(config.ordered),
            "K_BYTES": self.conv.k_bytes, "OUTPUT": int(self.conv.output), "RESIDUAL": int(self.conv.residual),
            **s8_options(self.first), "IMAGE": self.image,
        }  # fmt: skip
        return KernelSource.of("conv_wgmma.cu", "conv_wgmma", constants, {"ConvShape": CONV_SHAPE}, ELEMENTS)

    @property
    def layout(self) -> str:
        return f"conv_wgmma {self.config.tile_n} {self.conv.k_bytes}"

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        tile_n, k_bytes = self.config.tile_n, self.conv.k_bytes
        weights = arrange_wgmma(self.first.weight, tile_n, k_bytes)
        if self.first.branch:
            weights = join_weights(weights, arrange_wgmma(self.first.branch.weight, tile_n, k_bytes))
        epilogue = s8_constants(self.first, tile_n)
        return weights, epilogue.channels, epilogue.residual

    def arguments_to(
        self, target: str, tensors: Mapping[str, int], constants: Sequence[int], partial: int
    ) -> Arguments:
        """The kernel's arguments; `partial` is the address of sums that are not complete."""
        op = self.first
        residual = tensors[op.residual_source] if op.residual_source else 0
        maps = self.tensor_maps(tensors[op.source], residual)
        addresses = map(address, (*constants, tensors[target]))
        return (*maps, *addresses, self.shape_argument(), address(partial))

    def shape_argument(self) -> StructArray:
        """The kernel's `shape`: a CONV_SHAPE scalar."""
        conv = self.conv
        residual_stride = conv.source.stride if conv.source else 1
        values = (
            conv.pixels, self.tiles, conv.p, conv.q, conv.taps, conv.stride, conv.pad, self.channel_blocks,
            self.residual_blocks, residual_stride, self.blocks, conv.k, self.stages,
        )  # fmt: skip
        return np.array(values, CONV_SHAPE)

    def tensor_maps(self, source: int, residual: int) -> tuple[StructArray, StructArray]:
        """The kernel's `input` and `residual` for device addresses; `residual` is 0 where there is none."""
        conv, config = self.conv, self.config
        main = im2col_map(
            source, (conv.n, conv.h, conv.w, conv.c // 2), conv.taps, conv.stride, conv.pad,
            conv.k_bytes, config.tile_m,
        )  # fmt: skip
        if conv.source:
            shape = (conv.n, conv.source.h, conv.source.w, conv.source.c // 2)
            return main, im2col_map(residual, shape, 1, conv.source.stride, 0, conv.k_bytes, config.tile_m)
        if conv.residual == Residual.U4:
            shape = (conv.n, conv.p, conv.q, conv.k // 2)
            return main, im2col_map(residual, shape, 1, 1, 0, config.tile_n // 2, config.tile_m)
        return main, main


@dataclass(frozen=True, eq=False)
class WgmmaConv(TiledConv):
    """A convolution on entry `number` of the table.

    Raises EngineError when it does not fit; the message is the reason.
    """

    op: ConvOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        self.check()

    @property
    def first(self) -> ConvOp:
        return self.op

    @property
    def config(self) -> TileConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        return self.arguments_to(self.op.target, tensors, constants, 0)

    def __str__(self) -> str:
        return f"wgmma {self.config}"


def default(op: ConvOp, chip: Chip) -> WgmmaConv:
    """A configuration that is near the best measured ones for any shape, untuned.

    Tiles of 128 channels where there are that many; weights in shared memory when they leave room for
    several stages. Small problems take smaller tiles, so that more multiprocessors have one.

    Raises:
        EngineError: no configuration takes the convolution.
    """
    conv = op.shape
    small = conv.pixels * conv.k < chip.multiprocessors * 256 * 128
    preferred = (8, 1, 2, 5) if small else (2, 5, 1, 0) if conv.depth < 1536 else (5, 2, 1, 0)
    order = list(dict.fromkeys((*preferred, *range(len(CONFIGS)))))

    def cost(kernel: WgmmaConv) -> tuple[bool, int]:
        return kernel.stages < 3, order.index(kernel.number - FIRST_NUMBER)

    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no wgmma configuration", numbers, lambda number: WgmmaConv(op, number, chip), cost)

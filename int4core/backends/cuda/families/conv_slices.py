"""Host side of `conv_slices.cu`: convolutions of few pixels, with K cut among a block's warps, from sm_80 on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_mma import MmaConv
from int4core.backends.cuda.families.conv_tile import CONV_SHAPE, ENDS_COST, PAIR_BYTES, WINDOW, TileConfig
from int4core.backends.cuda.families.epilogue import ELEMENTS
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.convolution import Residual
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError

FIRST_NUMBER = 280
"""The number of CONFIGS' first entry in a tuning file."""

MOST_K_BYTES = 32
"""Packed bytes of a pixel in a block of K: with larger blocks the slices would differ more."""


@dataclass(frozen=True)
class SliceConfig(TileConfig):
    """One warp a slice of K; all of them compute the same warp_m pixels x warp_n channels."""

    slices: int = 1

    @classmethod
    def of(cls, slices: int, pixels: int, channels: int) -> SliceConfig:
        return cls(1, 1, pixels, channels, 1, slices)

    @property
    def threads(self) -> int:
        return 32 * self.slices

    @property
    def ahead(self) -> int:
        """Blocks of K that a warp reads at once: as many as its registers hold."""
        return 128 // self.warp_m

    def __str__(self) -> str:
        return f"{self.slices} slices of K, m{self.warp_m} n{self.warp_n}"


CONFIGS: tuple[SliceConfig, ...] = (
    SliceConfig.of(8, 16, 32),
    SliceConfig.of(4, 16, 32),
    SliceConfig.of(2, 16, 32),
    SliceConfig.of(1, 16, 32),
    SliceConfig.of(16, 16, 32),
    SliceConfig.of(8, 16, 64),
    SliceConfig.of(4, 16, 64),
    SliceConfig.of(4, 32, 64),
    SliceConfig.of(2, 32, 64),
)
"""Numbered from FIRST_NUMBER."""


class SlicedConv(MmaConv):
    """A convolution on entry `number` of the table. Raises EngineError when they do not fit; the message says why."""

    name: ClassVar[str] = "conv_slices"

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks = self.conv.depth // (2 * self.k_bytes)
        if blocks < self.config.slices:
            raise EngineError(f"{self.config}: {self.conv.depth} places of K are {blocks} blocks")

    @property
    def config(self) -> SliceConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def k_bytes(self) -> int:
        return min(self.conv.k_bytes, MOST_K_BYTES)

    @property
    def shared_bytes(self) -> int:
        """All weights of the tile, every slice's sums, and the epilogue's constants."""
        config = self.config
        kinds = 2 if self.conv.residual == Residual.CONVOLUTION else 1
        sums = config.slices * config.tile_m * config.tile_n * 4
        return self.conv.depth * config.tile_n + kinds * (sums + config.tile_n // 2 * PAIR_BYTES)

    @property
    def source(self) -> KernelSource:
        config = self.config
        constants = {
            "SLICES": config.slices, "WARP_M": config.warp_m, "WARP_N": config.warp_n, "K_BYTES": self.k_bytes,
            "AHEAD": config.ahead, "OUTPUT": int(self.conv.output), "RESIDUAL": int(self.conv.residual),
            "WIDE": int(self.wide),
        }  # fmt: skip
        structs = {"Window": WINDOW, "ConvShape": CONV_SHAPE}
        return KernelSource.of(f"{self.name}.cu", self.name, constants, structs, ELEMENTS)

    @property
    def cost(self) -> float:
        """As of any tile, but a block's time is that of a slice."""
        block = self.config.tile_m * self.config.tile_n * (self.conv.depth / self.config.slices + ENDS_COST)
        return -(-self.grid[0] // self.chip.multiprocessors) * block


def default(op: ConvOp, chip: Chip) -> SlicedConv:
    """A configuration that should do well. Raises EngineError when none takes the convolution."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: none in slices", numbers, lambda n: SlicedConv(op, n, chip), lambda kernel: kernel.cost)

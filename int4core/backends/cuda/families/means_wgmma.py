"""Host side of `image_means.cuh`: a network's last convolution and the average pool after it, at once, on Hopper.

The tiles are those of `conv_wgmma.cu`, of pixels one after the other: no row of a product is wasted where an image
ends, as it is in `pooled_wgmma.cu`, which needs nothing but the images' own multiprocessor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_wgmma import TileConfig, TiledConv
from int4core.backends.cuda.families.kernel import WORKSPACE, Arguments
from int4core.backends.cuda.plan.convolution import Output
from int4core.backends.cuda.plan.ops import ConvOp, PooledOp
from int4core.errors import EngineError

FIRST_NUMBER = 252
"""The number of CONFIGS' first entry in a tuning file."""

ROUNDS = 2
"""Of a tile's images, as many as a product has columns for (IMAGES in the kernel), at the most."""

SUM_BITS = 14
"""Of a channel's sum in a word of four, SUM_BITS in the kernel; the 8 bits that are left count an image's rows."""

U7_MAX = 127

CONFIGS: tuple[TileConfig, ...] = (
    TileConfig(128, 2, 1, 2, True, ordered=True),
    TileConfig(128, 2, 1, 2, True),
    TileConfig(256, 1, 1, 2, True, ordered=True),
    TileConfig(256, 1, 1, 2, True),
)
"""Numbered from FIRST_NUMBER."""


@dataclass(frozen=True, eq=False)
class WgmmaMeans(TiledConv):
    """Two layers on entry `number` of the table. Raises EngineError when they do not fit; the message is the reason."""

    op: PooledOp
    number: int
    chip: Chip

    def __post_init__(self) -> None:
        pool, config = self.op.pool, self.config
        if self.conv.output != Output.U7:
            raise EngineError("a pool is joined to a convolution to u7")
        fewest, most = -(-(config.tile_m - 1) // (ROUNDS * 2 * config.subtiles - 1)), ((1 << SUM_BITS) - 1) // U7_MAX
        if not pool.size == pool.h == pool.w or not fewest <= self.image <= most:
            raise EngineError(
                f"{pool.size}x{pool.size} of {pool.h}x{pool.w}: the mean is of whole images, of {fewest} to {most} "
                "pixels"
            )
        self.check()

    @property
    def first(self) -> ConvOp:
        return self.op.first

    @property
    def config(self) -> TileConfig:
        return CONFIGS[self.number - FIRST_NUMBER]

    @property
    def image(self) -> int:
        return self.conv.p * self.conv.q

    @property
    def workspace_bytes(self) -> int:
        """uint64 (images, channels / 4)."""
        return 8 * self.conv.n * self.conv.k // 4

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        return self.arguments_to(self.op.pool.target, tensors, constants, tensors[WORKSPACE])

    def __str__(self) -> str:
        return f"wgmma and mean, {self.config}"


def default(op: PooledOp, chip: Chip) -> WgmmaMeans:
    """The first entry that takes both layers. Raises EngineError when none does."""
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + len(CONFIGS))
    return choose(f"{op.name}: no pool on wgmma", numbers, lambda number: WgmmaMeans(op, number, chip), lambda _: 0)

"""Host side of `conv_mma.cu`: the convolutions of every chip from sm_80 on that has no better route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy.typing as npt

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.choose import choose
from int4core.backends.cuda.families.conv_tile import TileConfig, TileConv
from int4core.backends.cuda.families.layouts import arrange_mma
from int4core.backends.cuda.plan.ops import ConvOp
from int4core.errors import EngineError
from int4core.layers import Int8Array

CAPABILITY = (8, 0)
"""The first chips with cp.async and mma.m16n8k32."""


class MmaConfig(TileConfig):
    """Of 8-bit operands."""

    def __str__(self) -> str:
        return f"mma {self.cut}"


CONFIGS: tuple[MmaConfig, ...] = (
    MmaConfig(2, 2, 64, 64, 3),
    MmaConfig(2, 2, 64, 64, 4),
    MmaConfig(4, 2, 32, 64, 3),
    MmaConfig(4, 2, 64, 64, 3),
    MmaConfig(2, 4, 64, 64, 3),
    MmaConfig(4, 1, 64, 64, 3),
    MmaConfig(4, 1, 32, 64, 3),
    MmaConfig(4, 1, 32, 64, 4),
    MmaConfig(2, 2, 32, 64, 3),
    MmaConfig(2, 1, 32, 64, 3),
    MmaConfig(2, 2, 32, 32, 3),
    MmaConfig(2, 2, 32, 32, 5),
    MmaConfig(4, 1, 64, 32, 3),
    MmaConfig(4, 1, 32, 32, 3),
    MmaConfig(2, 1, 16, 64, 5),
    MmaConfig(2, 1, 16, 32, 5),
)
"""Numbered from 0: a tuning file names a configuration by its index."""


class MmaConv(TileConv):
    """On the 8-bit tensor cores; activations are unpacked in registers."""

    name: ClassVar[str] = "conv_mma"

    def check_operands(self) -> None:
        if self.chip.capability < CAPABILITY:
            raise EngineError("compute capability {}.{}: mma.m16n8k32 needs 8.0".format(*self.chip.capability))

    @property
    def config(self) -> TileConfig:
        return CONFIGS[self.number]

    @property
    def k_bytes(self) -> int:
        return self.conv.k_bytes

    @property
    def weight_bits(self) -> int:
        return 8

    @property
    def constants_of_operands(self) -> dict[str, int]:
        return {}

    @property
    def arrange(self) -> Callable[[Int8Array, int, int, int], npt.NDArray[Any]]:
        return arrange_mma

    @property
    def product_cost(self) -> float:
        operands = 1 / self.config.warp_m + 1 / (2 * self.config.warp_n)  # bytes from shared memory a product
        return (0.6 + 20 * operands) / min(1.0, self.config.threads / 128)


def default(op: ConvOp, chip: Chip) -> MmaConv:
    """A configuration that should do well. Raises EngineError when none takes the convolution."""
    what = f"{op.name}: no mma configuration"
    return choose(what, range(len(CONFIGS)), lambda n: MmaConv(op, n, chip), lambda kernel: kernel.cost)

"""Host side of the network's end: `mean.cu`, `linear.cu`, `top1.cu`, `top_k.cu`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from int4core.backends.cuda.families.kernel import Arguments, Grid, address
from int4core.backends.cuda.families.layouts import arrange_linear
from int4core.backends.cuda.jit.source import KernelSource
from int4core.backends.cuda.plan.ops import LinearOp, PoolOp, TopOp
from int4core.scores import LANES

MEAN_SHAPE = np.dtype([(name, "<i4") for name in ("n", "h", "w", "channels", "features")])
"""`MeanShape` in mean.cu; channels and features are multiples of 4."""

LINEAR_SHAPE = np.dtype([(name, "<i4") for name in ("rows", "features", "classes")])
"""`LinearShape` in linear.cu; features are a multiple of 64."""

_MEAN_WARPS = 8
_LINEAR_N, _LINEAR_TILES = 64, 4
_LINEAR_SLICES = 8
_TOP_WARPS = 8

FEW = 16
"""Images up to which the reads of L2 that wait for one another take the time: more of them are under way at once."""


@dataclass(frozen=True, eq=False)
class Mean:
    """The average pool; a thread makes four channels, of few images with all rows at once."""

    op: PoolOp
    number: None = None
    shared_bytes: int = 0
    layout: str = "mean"

    @property
    def threads(self) -> int:
        return 32 * (1 if self.op.n <= FEW else _MEAN_WARPS)

    @property
    def grid(self) -> Grid:
        return math.ceil(self.op.n * self.op.features / 4 / self.threads), 1, 1

    @property
    def source(self) -> KernelSource:
        rows = self.op.size if self.op.n <= FEW else 1
        constants = {"SIZE": self.op.size, "WARPS": self.threads // 32, "ROWS_AT_ONCE": rows}
        return KernelSource.of("mean.cu", "mean", constants, {"MeanShape": MEAN_SHAPE})

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return ()

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        shape = np.array((op.n, op.h, op.w, op.c, op.features), MEAN_SHAPE)
        return address(tensors[op.source]), address(tensors[op.target]), shape

    def __str__(self) -> str:
        return "mean"


@dataclass(frozen=True, eq=False)
class Linear:
    """The fully connected layer: a warp makes 32 images x 64 classes; of few images a block 16 x 64, K in slices."""

    op: LinearOp
    number: None = None
    layout: str = "linear"

    @property
    def few(self) -> bool:
        return self.op.n <= FEW

    @property
    def threads(self) -> int:
        return 32 * (_LINEAR_SLICES if self.few else _LINEAR_TILES)

    @property
    def shared_bytes(self) -> int:
        return 4 * FEW * _LINEAR_N * _LINEAR_SLICES if self.few else 0

    @property
    def grid(self) -> Grid:
        tiles = math.ceil(self.op.classes / _LINEAR_N)
        return (tiles, 1, 1) if self.few else (math.ceil(tiles / _LINEAR_TILES), math.ceil(self.op.n / 32), 1)

    @property
    def source(self) -> KernelSource:
        few = {"SUBS": 1, "TILES": 1, "SLICES": _LINEAR_SLICES}
        many = {"SUBS": 2, "TILES": _LINEAR_TILES, "SLICES": 1}
        constants = few if self.few else many
        return KernelSource.of("linear.cu", "linear", constants, {"LinearShape": LINEAR_SHAPE})

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return arrange_linear(self.op.weight, _LINEAR_N), self.op.bias

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        addresses = (tensors[op.source], *constants, tensors[op.target])
        return (*map(address, addresses), np.array((op.n, op.features, op.classes), LINEAR_SHAPE))

    def __str__(self) -> str:
        return "linear"


@dataclass(frozen=True, eq=False)
class Top1:
    """Scale and top-1; a block per image."""

    op: TopOp
    number: None = None
    threads: int = 32 * _TOP_WARPS
    shared_bytes: int = 8 * _TOP_WARPS
    layout: str = "top1"

    @property
    def grid(self) -> Grid:
        return self.op.n, 1, 1

    @property
    def source(self) -> KernelSource:
        return KernelSource.of("top1.cu", "top1", {"WARPS": _TOP_WARPS})

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.op.out_scale,)

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        addresses = (tensors[op.source], *constants, tensors[op.target])
        return (*map(address, addresses), np.int32(len(op.out_scale)))

    def __str__(self) -> str:
        return "top-1"


@dataclass(frozen=True, eq=False)
class TopK:
    """Scale, the best classes and their scores; a block per image."""

    op: TopOp
    number: None = None
    threads: int = LANES
    shared_bytes: int = 8 * LANES + 2 * 8 * (LANES // 32)
    layout: str = "top1"

    @property
    def grid(self) -> Grid:
        return self.op.n, 1, 1

    @property
    def source(self) -> KernelSource:
        return KernelSource.of("top_k.cu", "top_k", {"WARPS": LANES // 32})

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.op.out_scale,)

    def arguments(self, tensors: Mapping[str, int], constants: Sequence[int]) -> Arguments:
        op = self.op
        addresses = (tensors[op.source], *constants, tensors[op.target])
        return (*map(address, addresses), np.int32(len(op.out_scale)), np.int32(op.k))

    def __str__(self) -> str:
        return f"top-{self.op.k}"

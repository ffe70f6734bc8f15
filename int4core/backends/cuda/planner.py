"""The plan of a network on a chip: fused operations, a kernel for each, and one arena for all tensors.

No GPU is needed to make one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from int4core.backends.cuda.arena import Arena, lifetimes, plan_arena
from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.fuse import fuse
from int4core.backends.cuda.kernel import Kernel
from int4core.backends.cuda.ops import CLASSES, INPUT, TOP1, Op, StemOp
from int4core.backends.cuda.table import default_kernel, make_kernel
from int4core.errors import EngineError, shown
from int4core.layers import Pair, ResNet

MAX_BATCH = 1 << 24
"""Most images of a batch: far above what memory holds, far below what arithmetic on shapes does."""

KEPT = (INPUT, CLASSES, TOP1)
"""Tensors the host reads or writes: nothing else may use their place."""


@dataclass(frozen=True)
class Step:
    """A kernel in running order; `note` says why it is not the one that was asked for, or ``."""

    kernel: Kernel
    note: str = ""

    @property
    def op(self) -> Op:
        return self.kernel.op


@dataclass(frozen=True)
class NetworkPlan:
    """What runs, with what, and where its tensors lie, for batches of `n` images."""

    chip: Chip
    n: int
    steps: tuple[Step, ...]
    arena: Arena

    @property
    def input_bytes(self) -> int:
        stem = self.steps[0].op
        assert isinstance(stem, StemOp)
        return stem.n * 3 * stem.h * stem.w

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(step.note for step in self.steps if step.note)


def check_batch(n: int) -> None:
    """Raises EngineError when `n` is no number of images of a batch."""
    if not 1 <= n <= MAX_BATCH:
        raise EngineError(f"--batch {shown(str(n))[1:-1]}: at least 1 and at most {MAX_BATCH} images can be a batch")


def make_plan(
    net: ResNet,
    chip: Chip,
    n: int,
    *,
    size: Pair | None = None,
    numbers: Mapping[str, int] | None = None,
    keep_all: bool = False,
    top: int = 0,
) -> NetworkPlan:
    """Plan batches of `n` images of `size` = (H, W).

    Args:
        numbers: layer name -> entry of the kernel table; layers that are not in it take a default. An entry that
            does not fit this batch or size is left for the default, with a note.
        keep_all: no tensor shares its place with another, so that all can be read after a run.
        top: how many of the best classes come with their scores, 0 for the class alone.

    Raises:
        EngineError: the chip has no kernel for an operation, or the size or `top` does not fit.
    """
    ops = fuse(net, n, size, top)
    steps = tuple(_step(op, chip, (numbers or {}).get(op.name)) for op in ops)
    stem = ops[0]
    assert isinstance(stem, StemOp)
    kept = {op.output.name for op in ops} | set(KEPT) if keep_all else KEPT
    lives = lifetimes(ops, n * 3 * stem.h * stem.w, kept)
    return NetworkPlan(chip, n, steps, plan_arena(lives))


def _step(op: Op, chip: Chip, number: int | None) -> Step:
    if number is None:
        return Step(default_kernel(op, chip))
    try:
        return Step(make_kernel(op, chip, number))
    except EngineError as error:
        return Step(default_kernel(op, chip), f"{op.name}: kernel {number} does not fit here ({error})")

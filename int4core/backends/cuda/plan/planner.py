"""The plan of a network on a chip: fused operations, a kernel for each, and one arena for all tensors.

No GPU is needed to make one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from int4core.backends.cuda.chips import Chip
from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.families.table import PAIR_NUMBERS, POOLED_NUMBERS, default_kernel, make_kernel
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.memory import Placement, lifetimes, plan_arena
from int4core.backends.cuda.plan.ops import CLASSES, INPUT, TOP1, ConvOp, Op, SingleOp, StemOp, join, named
from int4core.errors import EngineError, shown
from int4core.layers import Pair, ResNet

MAX_BATCH = 1 << 24
"""Most images of a batch: far above what memory holds, far below what arithmetic on shapes does."""

KEPT = (INPUT, CLASSES, TOP1)
"""Tensors the host reads or writes: nothing else may use their place."""


@dataclass(frozen=True)
class Misfit:
    """A number that was asked for and is not used: `used` is, or the one without a number where that is None."""

    layer: str
    number: int
    why: str
    used: int | None

    def __str__(self) -> str:
        instead = "the one without a number" if self.used is None else f"kernel {self.used}"
        return f"{self.layer}: kernel {self.number} does not fit here ({self.why}); {instead} computes it"


@dataclass(frozen=True)
class Step:
    """A kernel in running order; `misfits` are numbers that were asked for in its place."""

    kernel: Kernel
    misfits: tuple[Misfit, ...] = ()

    @property
    def op(self) -> Op:
        return self.kernel.op


@dataclass(frozen=True)
class NetworkPlan:
    """What runs, with what, and where its tensors lie, for batches of `n` images."""

    chip: Chip
    n: int
    steps: tuple[Step, ...]
    arena: Placement

    @property
    def input_bytes(self) -> int:
        stem = self.steps[0].op
        assert isinstance(stem, StemOp)
        return stem.n * 3 * stem.h * stem.w

    @property
    def misfits(self) -> tuple[Misfit, ...]:
        return tuple(misfit for step in self.steps for misfit in step.misfits)


def check_batch(n: int) -> None:
    """Raises EngineError when `n` is no number of images of a batch."""
    if not 1 <= n <= MAX_BATCH:
        raise EngineError(f"batch {shown(str(n))[1:-1]}: at least 1 and at most {MAX_BATCH} images can be a batch")


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
            does not fit this batch or size is left for the default, and is among the plan's misfits.
        keep_all: no tensor shares its place with another, so that all can be read after a run, nor is one left out.
        top: how many of the best classes come with their scores, 0 for the class alone.

    Raises:
        EngineError: the chip has no kernel for an operation, or the size or `top` does not fit.
    """
    ops = fuse(net, n, size, top)
    chosen = {
        layer: number for layer, number in (numbers or {}).items() if not keep_all or number not in POOLED_NUMBERS
    }
    steps = tuple(_steps(ops, chip, chosen))
    stem = ops[0]
    assert isinstance(stem, StemOp)
    kept = {op.output.name for op in ops} | set(KEPT) if keep_all else KEPT
    lives = lifetimes([step.op for step in steps], n * 3 * stem.h * stem.w, kept)
    return NetworkPlan(chip, n, steps, plan_arena(lives))


def _steps(ops: Sequence[SingleOp], chip: Chip, numbers: Mapping[str, int]) -> Iterator[Step]:
    """A step an operation, or one for two that name the same kernel for both, where it fits."""
    refused: dict[str, str] = {}
    i = 0
    while i < len(ops):
        both = join(*ops[i : i + 2]) if i + 1 < len(ops) else None
        number = numbers.get(ops[i].name)
        joint = number in PAIR_NUMBERS or number in POOLED_NUMBERS
        if both and joint and number is not None and all(numbers.get(name) == number for name in named(both)):
            try:
                yield Step(make_kernel(both, chip, number))
                i += 2
                continue
            except EngineError as error:
                refused |= dict.fromkeys(named(both), str(error))
        yield _step(ops[i], chip, numbers, refused.get(ops[i].name))
        i += 1


def _step(op: SingleOp, chip: Chip, numbers: Mapping[str, int], why: str | None = None) -> Step:
    """`why`: a reason for which the number does not fit, if there is one beside its own."""
    misfits = []
    number = numbers.get(op.name)
    if number is None:
        kernel = default_kernel(op, chip)
    else:
        try:
            kernel = make_kernel(op, chip, number)
        except EngineError as error:
            kernel = default_kernel(op, chip)
            misfits.append(Misfit(op.name, number, why or str(error), kernel.number))
    if isinstance(op, ConvOp) and op.branch is not None:
        number = numbers.get(op.branch.name, kernel.number)
        if number is not None and number != kernel.number:
            misfits.append(Misfit(op.branch.name, number, f"it is a part of {op.name}", kernel.number))
    return Step(kernel, tuple(misfits))

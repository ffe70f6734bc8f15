"""The kernels that compute operations of one shape, and what each takes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.plan.ops import ConvOp, JointOp, LinearOp, Op, PairOp, PooledOp, PoolOp, StemOp, parts


@dataclass(frozen=True)
class Timed:
    """A kernel's median microseconds; `equal` says whether it writes what the first candidate wrote."""

    kernel: Kernel
    us: float
    equal: bool


@dataclass(frozen=True)
class Choice:
    """Layers of one shape, and their candidates, fastest first."""

    ops: tuple[Op, ...]
    timed: tuple[Timed, ...]

    @property
    def best(self) -> Timed:
        return self.timed[0]


def groups(ops: Sequence[Op]) -> list[list[Op]]:
    """The operations that have a choice of kernels, those of the same shape together, and what may be joined to one."""
    found: dict[Hashable, list[Op]] = {}
    for op in ops:
        if isinstance(op, PairOp):
            found.setdefault((op.first.shape, op.second.shape), []).append(op)
        elif isinstance(op, PooledOp):
            found.setdefault((op.first.shape, op.pool), []).append(op)
        elif isinstance(op, (PoolOp, LinearOp)):
            found.setdefault(op.name, []).append(op)
        elif isinstance(op, (ConvOp, StemOp)):
            found.setdefault(op.shape if isinstance(op, ConvOp) else op.name, []).append(op)
    return list(found.values())


def fastest(choices: Sequence[Choice]) -> dict[str, Timed]:
    """Operation name -> the kernel for it: one for two, under both names, where it takes less than theirs."""
    best = {op.name: choice.best for choice in choices for op in choice.ops if not isinstance(op, JointOp)}
    for choice in choices:
        for op in choice.ops:
            if isinstance(op, JointOp) and choice.best.us < sum(best[part.name].us for part in parts(op)):
                best |= {part.name: choice.best for part in parts(op)}
    return best

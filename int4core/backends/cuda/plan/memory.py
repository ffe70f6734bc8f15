"""One block of device memory for all activations: tensors that never live at once share their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from int4core.backends.cuda.plan.ops import INPUT, Op, Tensor, outputs

ALIGNMENT = 256


@dataclass(frozen=True)
class Lifetime:
    """A tensor, and the first and last operation (index) that touch it."""

    tensor: Tensor
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Placement:
    """Offsets of tensors in one allocation of `bytes`."""

    bytes: int
    offsets: Mapping[str, int]


def lifetimes(ops: Sequence[Op], input_bytes: int, kept: Collection[str] = ()) -> tuple[Lifetime, ...]:
    """When each tensor is written and last read; those in `kept` live to the end."""
    written = {INPUT: (Tensor(INPUT, input_bytes), 0)}
    last = {INPUT: 0}
    for i, op in enumerate(ops):
        for name in op.reads:
            last[name] = i
        for tensor in outputs(op):
            written[tensor.name] = (tensor, i)
            last[tensor.name] = i
    end = len(ops) - 1
    return tuple(
        Lifetime(tensor, first, end if name in kept else last[name]) for name, (tensor, first) in written.items()
    )


def plan_arena(lives: Sequence[Lifetime]) -> Placement:
    """The largest tensors first, each at the lowest offset where it meets no other in time and place."""
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[str, int] = {}
    total = 0
    for life in sorted(lives, key=lambda life: (-life.tensor.bytes, life.first)):
        size = -(-life.tensor.bytes // ALIGNMENT) * ALIGNMENT
        offset = 0
        for start, end, other in sorted(placed, key=lambda entry: entry[:2]):
            if other.meets(life) and start < offset + size and offset < end:
                offset = end
        placed.append((offset, offset + size, life))
        offsets[life.tensor.name] = offset
        total = max(total, offset + size)
    return Placement(total, offsets)

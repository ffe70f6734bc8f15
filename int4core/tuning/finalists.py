"""Which of the kernels that are fastest alone make the whole network fastest.

Alone, a kernel finds nothing of its tensors in the L2, has the multiprocessors to itself from its first block on, and
its launch is part of its time: in the network it may take more than another one that takes as long alone. So, shape
by shape, those that nearly win are tried in the network, in turns with what is best so far.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from int4core.backends.cuda.families.table import PAIR_NUMBERS, POOLED_NUMBERS
from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork
from int4core.backends.cuda.plan.ops import parts
from int4core.backends.cuda.plan.planner import make_plan
from int4core.tuning.choices import Choice

NEAR = 1.35
"""A finalist takes at most so many times what the fastest one takes alone."""

GAIN = 0.0005
"""What a network has to save for a change: less is noise."""

TURNS = 21
TURN_US = 2_000.0
"""Replays of one network, before it is the other one's turn, take about this long, or are one."""

Numbers = Mapping[str, int | None]
"""Operation name -> the kernel's number; None: the one without a number."""


@dataclass(frozen=True)
class Tried:
    """A change of some operations' kernels: microseconds of the network before and with it."""

    layers: tuple[str, ...]
    number: int | None
    before_us: float
    us: float

    @property
    def kept(self) -> bool:
        return self.us < self.before_us * (1 - GAIN)

    def __str__(self) -> str:
        number = "-" if self.number is None else self.number
        more = f" and {len(self.layers) - 1} like it" if len(self.layers) > 1 else ""
        kept = "kept" if self.kept else "not kept"
        return f"{number:>4}  {self.before_us:9.1f} to {self.us:9.1f} us | {kept} | {self.layers[0]}{more}"


def finalists(choice: Choice, count: int) -> list[int | None]:
    """The numbers of the `count` fastest, as far as they are near the fastest one."""
    return [timed.kernel.number for timed in choice.timed[:count] if timed.us <= NEAR * choice.best.us]


def changed(numbers: Numbers, choice: Choice, number: int | None, alone: Numbers) -> dict[str, int | None]:
    """`numbers` with `number` for the choice's operations.

    A kernel for two of which one gets another is no longer there for the other one either: that has its own of `alone`.
    """
    names = [part.name for op in choice.ops for part in parts(op)]
    found = {**numbers, **dict.fromkeys(names, number)}
    joint = PAIR_NUMBERS | POOLED_NUMBERS
    order = list(alone)
    for name in names:
        at = order.index(name)
        for beside in (order[at - 1 : at] or []) + order[at + 1 : at + 2]:
            if beside not in names and numbers[name] in joint and numbers[beside] == numbers[name]:
                found[beside] = alone[beside]
    return found


def best_together(
    choices: Sequence[Choice],
    numbers: Numbers,
    alone: Numbers,
    count: int,
    compare: Callable[[Numbers, Numbers], tuple[float, float] | None],
) -> Iterator[tuple[Tried, Numbers]]:
    """Each change that is tried, and the best numbers so far; what may save most comes first.

    Args:
        numbers: to begin with, for every operation of the choices that is one of the network's.
        alone: the fastest kernel that computes just this operation, in the network's order.
        count: finalists of a choice.
        compare: (numbers, other numbers) -> microseconds of the network with each; None where they do not fit.
    """
    best = dict(numbers)
    for choice in sorted(choices, key=lambda choice: -choice.best.us * len(choice.ops)):
        for number in finalists(choice, count):
            other = changed(best, choice, number, alone)
            if other == best:
                continue
            found = compare(best, other)
            if found is None:
                continue
            tried = Tried(tuple(op.name for op in choice.ops), number, *found)
            if tried.kept:
                best = other
            yield tried, best


class InNetwork:
    """Compares two sets of numbers in the whole network, replayed in turns on random images."""

    def __init__(self, network: DeviceNetwork, n: int) -> None:
        self._network, self._n = network, n
        self._stream = network.cupy.cuda.Stream(non_blocking=True)
        self._batches: dict[tuple[tuple[str, int | None], ...], DeviceBatch] = {}

    def compare(self, numbers: Numbers, other: Numbers) -> tuple[float, float] | None:
        """Microseconds of a replay with each; None where the other numbers do not fit.

        What decides is the median of a turn's quotients: a GPU that gets warmer slows both down.
        """
        wanted = {self._key(numbers), self._key(other)}
        self._batches = {key: batch for key, batch in self._batches.items() if key in wanted}
        first, second = self._batch(numbers), self._batch(other)
        if first is None or second is None:
            return None
        count = max(1, math.ceil(TURN_US / self._replays(first, 1)))
        turns = [(self._replays(first, count), self._replays(second, count)) for _ in range(TURNS)]
        before = statistics.median(one for one, _ in turns)
        return before, before * statistics.median(other / one for one, other in turns)

    @staticmethod
    def _key(numbers: Numbers) -> tuple[tuple[str, int | None], ...]:
        return tuple(sorted(numbers.items()))

    def _batch(self, numbers: Numbers) -> DeviceBatch | None:
        key = self._key(numbers)
        if key not in self._batches:
            network = self._network
            given = {name: number for name, number in numbers.items() if number is not None}
            plan = make_plan(network.model.network, network.chip, self._n, size=network.size, numbers=given)
            if plan.misfits:
                return None
            batch = self._batches[key] = DeviceBatch(network, plan)
            batch.input[...] = network.cupy.random.randint(-128, 128, batch.input.shape, network.cupy.int8)
            network.device.synchronize()
            self._replays(batch, 3)
        return self._batches[key]

    def _replays(self, batch: DeviceBatch, count: int) -> float:
        """Microseconds of a replay, of `count` of them behind another one."""
        cuda: Any = self._network.cupy.cuda
        start, end = cuda.Event(), cuda.Event()
        batch.run(self._stream)
        start.record(self._stream)
        for _ in range(count):
            batch.run(self._stream)
        end.record(self._stream)
        end.synchronize()
        return float(cuda.get_elapsed_time(start, end)) * 1e3 / count

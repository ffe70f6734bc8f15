"""The streaming core without threads or clocks: who owns a slot, which loader has a source, whose answer is out.

A source goes through it like this:

    offer     it is leased a slot and waits for a loader
    take_job  it goes to a loader, with others
    prepared  its sample lies in its slot, and goes to the engines; or it is bad, and that is its answer
    again     an engine could not decode it: a loader is to make its sample, by itself
    lost      its loader is gone: it is given out again, alone if the loader was at it; the second time it is bad
    answered  its classes are known, and its slot is free
    answers   its answer is out, in the order of the sources

Sources belong to streams, one for each caller. A stream's window, the sources that have been offered and whose answers
are not out, is bounded: a caller that does not take its answers holds back its own sources and nobody else's.

A stream of pins keeps its slots: the answer to a pin is the slot itself, which is leased until `unpin`.

Nothing here costs an object a source. Sources that are offered together are a lot, which has arrays for what becomes of
them; what goes to loaders and comes out are runs of lots, and what goes to engines are numbers: of the lot, and of the
place in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.arrays import Slots

S = TypeVar("S")

Numbers: TypeAlias = npt.NDArray[np.int64]
Places: TypeAlias = npt.NDArray[np.int64]
Column: TypeAlias = npt.NDArray[Any]

# Of a number, the bits of the place in the lot; the lot's own has the others.
_PLACE_BITS = 20
MOST_IN_A_LOT = 1 << _PLACE_BITS


@dataclass(frozen=True, eq=False)
class Job(Generic[S]):
    """Sources for one loader, and the slots that their samples go to.

    Attributes:
        parts: the sources, in order, as parts of what was offered.
        slots: int32 (n,).
        whole: places in the job of which the loader has to make a sample, whatever an engine could do.
    """

    ticket: int
    parts: tuple[Sequence[S], ...]
    slots: Slots
    whole: frozenset[int] = frozenset()

    @property
    def sources(self) -> list[S]:
        return list(chain.from_iterable(self.parts))

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Samples that are ready for an engine: numbers that `answered` takes back (n,), and their slots (n,)."""

    numbers: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    slots: Slots = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass(frozen=True, eq=False)
class Outcomes(Generic[S]):
    """What became of sources.

    Attributes:
        sources: n of them.
        columns: as engines answered, arrays (n, ...); of pins one, their slots. None where all are errors.
        errors: why there is no answer, by place; what the columns hold there is of no account.
    """

    sources: Sequence[S]
    columns: tuple[Column, ...] | None
    errors: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[tuple[S, tuple[Any, ...] | None, str | None]]:
        """Each source with a row of the columns, or None and its error."""
        for place, source in enumerate(self.sources):
            error = self.errors.get(place)
            row = None if error is not None or self.columns is None else tuple(c[place] for c in self.columns)
            yield source, row, error


@dataclass(eq=False)
class _Lot(Generic[S]):
    """Sources that were offered together; arrays are by place.

    Attributes:
        number: its own.
        done: whose answers are known, bool (n,).
        at_engines: who has been prepared and not answered, bool (n,).
        left: how many are not done.
        out: in an ordered stream, how many answers are out.
        columns: the answers so far.
    """

    number: int
    sources: Sequence[S]
    stream: Stream[S]
    slots: Slots
    done: npt.NDArray[np.bool_]
    at_engines: npt.NDArray[np.bool_]
    left: int
    out: int = 0
    columns: tuple[Column, ...] | None = None
    errors: dict[int, str] = field(default_factory=dict)
    suspects: set[int] = field(default_factory=set)
    whole: set[int] = field(default_factory=set)

    def put(self, places: Any, columns: Sequence[Column]) -> None:
        """Keep answers (m, ...) of the sources at `places` (m,)."""
        if self.columns is None:
            self.columns = tuple(np.zeros((len(self.done), *c.shape[1:]), c.dtype) for c in columns)
        for kept, column in zip(self.columns, columns, strict=True):
            kept[places] = column

    def part(self, begin: int, end: int) -> Outcomes[S]:
        columns = None if self.columns is None else tuple(column[begin:end] for column in self.columns)
        errors = {place - begin: why for place, why in self.errors.items() if begin <= place < end}
        return Outcomes(self.sources[begin:end], columns, errors)

    def some(self, places: Places) -> Outcomes[S]:
        begin, end = int(places[0]), int(places[-1]) + 1
        if end - begin == len(places) and (np.diff(places) == 1).all():
            return self.part(begin, end)
        columns = None if self.columns is None else tuple(column[places] for column in self.columns)
        wanted = places.tolist()
        errors = {at: self.errors[place] for at, place in enumerate(wanted) if place in self.errors}
        return Outcomes([self.sources[place] for place in wanted], columns, errors)


class _Run(NamedTuple):
    """Places of a lot."""

    lot: _Lot[Any]
    begin: int
    end: int


@dataclass(eq=False)
class Stream(Generic[S]):
    """A caller's sources, in its order. Only the scheduler looks inside.

    Attributes:
        window: sources that may be offered and not out.
        ordered: whether answers come in the order of the sources.
        pins: whether the sources' slots stay theirs.
        held: sources that are offered and not out.
    """

    window: int
    ordered: bool
    pins: bool
    held: int = 0
    lots: deque[_Lot[S]] = field(default_factory=deque)
    ready: deque[tuple[_Lot[S], Places]] = field(default_factory=deque)
    dropped: bool = False

    @property
    def idle(self) -> bool:
        """Whether every answer to what was offered is out."""
        return not self.held


class Scheduler(Generic[S]):
    """The state machine. One caller at a time.

    Args:
        slots: of the arena.
        loaders: how many share what waits.
        most: sources of a job.
        least: sources of a job, as long as so many wait: fewer are not worth a message.

    Attributes:
        failed: sources that have ended with an error.
    """

    def __init__(self, slots: int, *, loaders: int, most: int, least: int = 1) -> None:
        if min(slots, loaders, most, least) < 1:
            raise ValueError(f"{slots} slots, {loaders} loaders, jobs of {least} to {most}: one at least of each")
        self.slots = slots
        self._loaders = loaders
        self._most = most
        self._least = min(least, most)
        self._free_slots = np.arange(slots - 1, -1, -1, dtype=np.int32)
        self._free = slots
        self._pinned: set[int] = set()
        self._lots: dict[int, _Lot[S]] = {}
        self._waiting: deque[_Run] = deque()
        self._in_waiting = 0
        self._alone: deque[_Run] = deque()
        self._jobs: dict[int, tuple[_Run, ...]] = {}
        self._in_jobs = 0
        self._tickets = 0
        self._numbers = 0
        self.failed = 0

    @property
    def free(self) -> int:
        """Slots that are nobody's."""
        return self._free

    @property
    def leases(self) -> int:
        """Slots that are somebody's, pinned ones included."""
        return self.slots - self._free

    @property
    def jobs(self) -> int:
        """Jobs that loaders have."""
        return len(self._jobs)

    @property
    def preparing(self) -> int:
        """Sources that wait for a loader or are at one: samples that are still to come."""
        return self._in_waiting + len(self._alone) + self._in_jobs

    def open(self, *, ordered: bool = True, pins: bool = False, window: int | None = None) -> Stream[S]:
        """A stream of sources; its window is as wide as there are slots unless it is given."""
        return Stream(self.slots if window is None else window, ordered, pins)

    def drop(self, stream: Stream[S]) -> None:
        """Nobody takes this stream's answers any more: what is under way of it ends unseen."""
        if stream.pins:
            self.unpin([*_pins_not_out(stream)])
        stream.dropped = True
        stream.held = 0
        stream.ready.clear()
        stream.lots.clear()
        for queue in (self._waiting, self._alone):
            kept = [run for run in queue if run.lot.stream is not stream]
            dropped = [run for run in queue if run.lot.stream is stream]
            queue.clear()
            queue.extend(kept)
            for lot, begin, end in dropped:
                self._forget(lot, np.arange(begin, end))
        self._in_waiting = sum(end - begin for _, begin, end in self._waiting)

    def room(self, stream: Stream[S]) -> int:
        """How many sources may be offered now; none of a stream that was dropped."""
        return 0 if stream.dropped else min(self._free, stream.window - stream.held, MOST_IN_A_LOT)

    def offer(self, stream: Stream[S], sources: Sequence[S]) -> None:
        """Take in sources. Raises ValueError when there is no room for as many."""
        n = len(sources)
        if n > self.room(stream):
            raise ValueError(f"{n} sources, and room for {self.room(stream)}")
        if not n:
            return
        self._free -= n
        slots = self._free_slots[self._free : self._free + n].copy()
        self._numbers += 1
        lot = _Lot(self._numbers, sources, stream, slots, np.zeros(n, np.bool_), np.zeros(n, np.bool_), n)
        self._lots[lot.number] = lot
        stream.held += n
        if stream.ordered:
            stream.lots.append(lot)
        self._waiting.append(_Run(lot, 0, n))
        self._in_waiting += n

    def take_job(self) -> Job[S] | None:
        """Sources for a loader that has room; None when none wait.

        Few sources are shared out: a loader gets no more than its part of what waits.
        """
        if self._alone:
            runs = [self._alone.popleft()]
        else:
            part = max(self._least, -(-self._in_waiting // self._loaders))
            runs = self._take_waiting(min(self._most, part))
        if not runs:
            return None
        self._tickets += 1
        self._jobs[self._tickets] = tuple(runs)
        slots = np.concatenate([lot.slots[begin:end] for lot, begin, end in runs])
        self._in_jobs += len(slots)
        return Job(
            self._tickets, tuple(lot.sources[begin:end] for lot, begin, end in runs), slots, frozenset(_whole(runs))
        )

    def prepared(self, ticket: int, bad: Mapping[int, str]) -> Prepared:
        """A loader is done with a job: `bad` has the places in it that became no sample, and why."""
        numbers, slots = [], []
        for (lot, begin, end), wrong in self._end_job(ticket, bad):
            places = np.arange(begin, end)
            if lot.stream.dropped:
                self._forget(lot, places)
                continue
            if wrong:
                places = np.setdiff1d(places, list(wrong))
                self._fail(lot, wrong)
            if lot.stream.pins:
                self._pinned.update(lot.slots[places].tolist())
                lot.put(places, [lot.slots[places]])
                self._done(lot, places)
            else:
                lot.at_engines[places] = True
                numbers.append(lot.number << _PLACE_BITS | places)
                slots.append(lot.slots[places])
        return Prepared(np.concatenate(numbers), np.concatenate(slots)) if numbers else Prepared()

    def lost(self, ticket: int, place: int | None, why: str, *, to_blame: bool) -> None:
        """A loader is gone, and writes into no slot any more.

        Args:
            ticket: the job that it had.
            place: where in the job it was, None when it had not begun it.
            why: what became of it.
            to_blame: whether the source at `place` certainly is the reason (it took too long). Else it is tried again,
                alone, and is the reason if a second loader is lost at it.
        """
        again = []
        for (lot, begin, end), here in self._end_job(ticket, {} if place is None else {place: why}):
            if lot.stream.dropped:
                self._forget(lot, np.arange(begin, end))
                continue
            for at in here:
                if to_blame or at in lot.suspects:
                    self._fail(lot, here)
                else:
                    lot.suspects.add(at)
                    self._alone.append(_Run(lot, at, at + 1))
                again.append(_Run(lot, begin, at))
                begin = at + 1
            again.append(_Run(lot, begin, end))
        self._put_back([run for run in again if run.begin < run.end])

    def again(self, numbers: Numbers) -> None:
        """Engines could not decode what `prepared` gave out (n,): loaders are to."""
        for lot, places, _ in self._leave_engines(numbers):
            if lot.stream.dropped:
                self._forget(lot, places)
            else:
                lot.whole.update(places.tolist())
                self._put_back([_Run(lot, place, place + 1) for place in places.tolist()])

    def answered(self, numbers: Numbers, columns: Sequence[Column]) -> None:
        """Engines have answered samples (n,) that `prepared` gave out: each has a row of the columns (n, ...)."""
        for lot, places, rows in self._leave_engines(numbers):
            if lot.stream.dropped:
                self._forget(lot, places)
            else:
                self._give(lot.slots[places])
                lot.put(places, [column[rows] for column in columns])
                self._done(lot, places)

    def answers(self, stream: Stream[S]) -> list[Outcomes[S]]:
        """The answers that may go out now, each of them once; none of it is empty."""
        out = [lot.some(places) for lot, places in stream.ready]
        stream.ready.clear()
        while stream.lots:
            lot = stream.lots[0]
            end = len(lot.done) if not lot.left else lot.out + int(np.argmin(lot.done[lot.out :]))
            if end > lot.out:
                out.append(lot.part(lot.out, end))
            lot.out = end
            if lot.left:
                break
            stream.lots.popleft()
        stream.held -= sum(map(len, out))
        return out

    def has_answers(self, stream: Stream[S]) -> bool:
        """Whether `answers` would give any."""
        return bool(stream.ready) or bool(stream.lots and stream.lots[0].done[stream.lots[0].out])

    def unanswered(self, stream: Stream[S]) -> list[S]:
        """The sources of a stream that have no answer yet, in no order."""
        lots = (lot for lot in self._lots.values() if lot.stream is stream)
        return [lot.sources[place] for lot in lots for place in np.flatnonzero(~lot.done).tolist()]

    def unpin(self, slots: Iterable[int]) -> None:
        """Give pinned slots back. Raises ValueError for one that is not pinned."""
        given: list[int] = []
        try:
            for slot in slots:
                if slot not in self._pinned:
                    raise ValueError(f"slot {slot} is not pinned")
                self._pinned.remove(slot)
                given.append(slot)
        finally:
            self._give(np.array(given, np.int32))

    def _take_waiting(self, count: int) -> list[_Run]:
        """The first `count` of what waits, or all there are."""
        runs: list[_Run] = []
        count = min(count, self._in_waiting)
        self._in_waiting -= count
        while count:
            lot, begin, end = self._waiting.popleft()
            if end - begin > count:
                self._waiting.appendleft(_Run(lot, begin + count, end))
                end = begin + count
            runs.append(_Run(lot, begin, end))
            count -= end - begin
        return runs

    def _put_back(self, runs: Sequence[_Run]) -> None:
        """Have runs wait before all others."""
        self._waiting.extendleft(reversed(runs))
        self._in_waiting += sum(end - begin for _, begin, end in runs)

    def _end_job(self, ticket: int, said: Mapping[int, str]) -> list[tuple[_Run, dict[int, str]]]:
        """The runs of a job, which is over, each with what is `said` of places in the job, by places in its lot."""
        runs = self._jobs.pop(ticket)
        found, at = [], 0
        for run in runs:
            size = run.end - run.begin
            here = {place - at + run.begin: why for place, why in said.items() if at <= place < at + size}
            found.append((run, here))
            at += size
        self._in_jobs -= at
        return found

    def _leave_engines(self, numbers: Numbers) -> Iterator[tuple[_Lot[S], Places, Any]]:
        """By lot, places whose samples engines have done with, and where they are in `numbers` (n,).

        Raises KeyError for one that is not at an engine.
        """
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        lots = numbers >> _PLACE_BITS
        bounds = [0, *(np.flatnonzero(np.diff(lots)) + 1).tolist(), len(lots)]
        for begin, end in pairwise(bounds):
            if begin == end:
                return
            lot = self._lots[int(lots[begin])]
            places = numbers[begin:end] & MOST_IN_A_LOT - 1
            if not lot.at_engines[places].all() or (np.diff(places) == 0).any():
                raise KeyError("answers to samples that are at no engine")
            lot.at_engines[places] = False
            yield lot, places, order[begin:end]

    def _done(self, lot: _Lot[S], places: Places) -> None:
        """The answers to the sources at `places` are known."""
        if not len(places):
            return
        lot.done[places] = True
        if not lot.stream.ordered:
            lot.stream.ready.append((lot, places))
        self._leave(lot, len(places))

    def _fail(self, lot: _Lot[S], errors: Mapping[int, str]) -> None:
        """Sources have ended with errors."""
        places = np.fromiter(errors, np.int64, len(errors))
        self.failed += len(errors)
        lot.errors.update(errors)
        self._give(lot.slots[places])
        self._done(lot, places)

    def _forget(self, lot: _Lot[S], places: Places) -> None:
        """Sources of a stream that was dropped have ended unseen."""
        lot.done[places] = True
        self._give(lot.slots[places])
        self._leave(lot, len(places))

    def _leave(self, lot: _Lot[S], count: int) -> None:
        lot.left -= count
        if not lot.left:
            del self._lots[lot.number]

    def _give(self, slots: Slots) -> None:
        self._free_slots[self._free : self._free + len(slots)] = slots
        self._free += len(slots)


def _pins_not_out(stream: Stream[Any]) -> Iterator[int]:
    """Slots that nobody has heard of yet, so that nobody will give them back."""
    in_order = ((lot, lot.out + np.flatnonzero(lot.done[lot.out :])) for lot in stream.lots)
    for lot, places in chain(stream.ready, in_order):
        yield from (int(lot.slots[place]) for place in places.tolist() if place not in lot.errors)


def _whole(runs: Sequence[_Run]) -> Iterator[int]:
    """Places in a job of what a loader has to make a sample of."""
    at = 0
    for lot, begin, end in runs:
        if lot.whole:
            yield from (at + place - begin for place in lot.whole if begin <= place < end)
        at += end - begin

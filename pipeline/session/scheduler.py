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
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class Job(Generic[S]):
    """Sources for one loader, and the slots that their samples go to."""

    ticket: int
    sources: tuple[S, ...]
    slots: tuple[int, ...]
    whole: tuple[bool, ...]
    """Which of them the loader has to make a sample of, whatever an engine could do."""


@dataclass(frozen=True)
class Prepared:
    """Samples that are ready for an engine: numbers that `answered` takes back, and their slots."""

    numbers: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outcome(Generic[S]):
    """What became of a source: `value` is the engine's answer, or a pin's slot; `error` says why there is none."""

    source: S
    value: Any = None
    error: str | None = None


@dataclass(eq=False)
class _Held(Generic[S]):
    """A source whose answer is not out."""

    source: S
    stream: Stream[S]
    slot: int
    suspect: bool = False
    whole: bool = False
    outcome: Outcome[S] | None = None


@dataclass(eq=False)
class Stream(Generic[S]):
    """A caller's sources, in its order. Only the scheduler looks inside.

    Attributes:
        window: sources that may be offered and not out.
        ordered: whether answers come in the order of the sources.
        pins: whether the sources' slots stay theirs.
    """

    window: int
    ordered: bool
    pins: bool
    held: deque[_Held[S]] = field(default_factory=deque)
    ready: deque[Outcome[S]] = field(default_factory=deque)
    under_way: int = 0
    dropped: bool = False

    @property
    def idle(self) -> bool:
        """Whether every answer to what was offered is out."""
        return not (self.under_way or self.held or self.ready)


class Scheduler(Generic[S]):
    """The state machine. One caller at a time.

    Args:
        slots: of the arena.
        loaders: how many share what waits.
        most: sources of a job.

    Attributes:
        failed: sources that have ended with an error.
    """

    def __init__(self, slots: int, *, loaders: int, most: int) -> None:
        if min(slots, loaders, most) < 1:
            raise ValueError(f"{slots} slots, {loaders} loaders, jobs of {most}: one at least of each")
        self.slots = slots
        self._loaders = loaders
        self._most = most
        self._free = list(range(slots - 1, -1, -1))
        self._pinned: set[int] = set()
        self._waiting: deque[_Held[S]] = deque()
        self._alone: deque[_Held[S]] = deque()
        self._jobs: dict[int, tuple[_Held[S], ...]] = {}
        self._in_jobs = 0
        self._at_engines: dict[int, _Held[S]] = {}
        self._tickets = 0
        self._numbers = 0
        self.failed = 0

    @property
    def free(self) -> int:
        """Slots that are nobody's."""
        return len(self._free)

    @property
    def leases(self) -> int:
        """Slots that are somebody's, pinned ones included."""
        return self.slots - len(self._free)

    @property
    def jobs(self) -> int:
        """Jobs that loaders have."""
        return len(self._jobs)

    @property
    def preparing(self) -> int:
        """Sources that wait for a loader or are at one: samples that are still to come."""
        return len(self._waiting) + len(self._alone) + self._in_jobs

    def open(self, *, ordered: bool = True, pins: bool = False, window: int | None = None) -> Stream[S]:
        """A stream of sources; its window is as wide as there are slots unless it is given."""
        return Stream(self.slots if window is None else window, ordered, pins)

    def drop(self, stream: Stream[S]) -> None:
        """Nobody takes this stream's answers any more: what is under way of it ends unseen."""
        stream.dropped = True
        stream.ready.clear()
        stream.held.clear()
        for queue in (self._waiting, self._alone):
            kept = [held for held in queue if held.stream is not stream]
            for held in queue:
                if held.stream is stream:
                    self._release(held)
            queue.clear()
            queue.extend(kept)

    def room(self, stream: Stream[S]) -> int:
        """How many sources may be offered now; none of a stream that was dropped."""
        if stream.dropped:
            return 0
        return min(len(self._free), stream.window - self._in_window(stream))

    def offer(self, stream: Stream[S], sources: Sequence[S]) -> None:
        """Take in sources. Raises ValueError when there is no room for as many."""
        if len(sources) > self.room(stream):
            raise ValueError(f"{len(sources)} sources, and room for {self.room(stream)}")
        for source in sources:
            held = _Held(source, stream, self._free.pop())
            stream.under_way += 1
            if stream.ordered:
                stream.held.append(held)
            self._waiting.append(held)

    def take_job(self) -> Job[S] | None:
        """Sources for a loader that has room; None when none wait.

        Few sources are shared out: a loader gets no more than its part of what waits.
        """
        if self._alone:
            taken = [self._alone.popleft()]
        else:
            part = -(-len(self._waiting) // self._loaders)
            taken = [self._waiting.popleft() for _ in range(min(self._most, part))]
        if not taken:
            return None
        self._tickets += 1
        self._jobs[self._tickets] = tuple(taken)
        self._in_jobs += len(taken)
        sources, slots, whole = zip(*((h.source, h.slot, h.whole) for h in taken), strict=True)
        return Job(self._tickets, sources, slots, whole)

    def prepared(self, ticket: int, bad: Mapping[int, str]) -> Prepared:
        """A loader is done with a job: `bad` has the places in it that became no sample, and why."""
        job = self._jobs.pop(ticket)
        self._in_jobs -= len(job)
        numbers, slots = [], []
        for place, held in enumerate(job):
            if held.stream.dropped or place in bad:
                self._end(held, None, bad.get(place, ""))
            elif held.stream.pins:
                self._pinned.add(held.slot)
                self._end(held, held.slot, None)
            else:
                self._numbers += 1
                self._at_engines[self._numbers] = held
                numbers.append(self._numbers)
                slots.append(held.slot)
        return Prepared(tuple(numbers), tuple(slots))

    def lost(self, ticket: int, place: int | None, why: str, *, to_blame: bool) -> None:
        """A loader is gone, and writes into no slot any more.

        Args:
            ticket: the job that it had.
            place: where in the job it was, None when it had not begun it.
            why: what became of it.
            to_blame: whether the source at `place` certainly is the reason (it took too long). Else it is tried again,
                alone, and is the reason if a second loader is lost at it.
        """
        job = self._jobs.pop(ticket)
        self._in_jobs -= len(job)
        again = []
        for at, held in enumerate(job):
            if held.stream.dropped or (at == place and (to_blame or held.suspect)):
                self._end(held, None, why)
            elif at == place:
                held.suspect = True
                self._alone.append(held)
            else:
                again.append(held)
        self._waiting.extendleft(reversed(again))

    def again(self, numbers: Iterable[int]) -> None:
        """Engines could not decode what `prepared` gave out: loaders are to."""
        for number in numbers:
            held = self._at_engines.pop(number)
            held.whole = True
            self._waiting.appendleft(held)

    def answered(self, numbers: Iterable[int], values: Iterable[Any]) -> None:
        """Engines have answered samples that `prepared` gave out, each with a value."""
        for number, value in zip(numbers, values, strict=True):
            self._end(self._at_engines.pop(number), value, None)

    def answers(self, stream: Stream[S]) -> list[Outcome[S]]:
        """The answers that may go out now, each of them once."""
        out = list(stream.ready)
        stream.ready.clear()
        held = stream.held
        while held and (outcome := held[0].outcome) is not None:
            out.append(outcome)
            held.popleft()
        return out

    def has_answers(self, stream: Stream[S]) -> bool:
        """Whether `answers` would give any."""
        return bool(stream.ready) or bool(stream.held and stream.held[0].outcome is not None)

    def unanswered(self, stream: Stream[S]) -> list[S]:
        """The sources of a stream that have no answer yet, in no order."""
        jobs = (held for job in self._jobs.values() for held in job)
        everywhere = chain(self._waiting, self._alone, jobs, self._at_engines.values())
        return [held.source for held in everywhere if held.stream is stream]

    def unpin(self, slots: Iterable[int]) -> None:
        """Give pinned slots back. Raises ValueError for one that is not pinned."""
        for slot in slots:
            if slot not in self._pinned:
                raise ValueError(f"slot {slot} is not pinned")
            self._pinned.remove(slot)
            self._free.append(slot)

    def _in_window(self, stream: Stream[S]) -> int:
        return len(stream.held) if stream.ordered else stream.under_way + len(stream.ready)

    def _end(self, held: _Held[S], value: Any, error: str | None) -> None:
        """The source's answer is known. A pin that succeeded keeps its slot."""
        stream = held.stream
        self.failed += error is not None and not stream.dropped
        if stream.pins and error is None and not stream.dropped:
            stream.under_way -= 1
        else:
            self._release(held)
        if stream.dropped:
            return
        outcome = Outcome(held.source, value, error)
        if stream.ordered:
            held.outcome = outcome
        else:
            stream.ready.append(outcome)

    def _release(self, held: _Held[S]) -> None:
        held.stream.under_way -= 1
        self._free.append(held.slot)

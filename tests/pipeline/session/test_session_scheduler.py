"""The streaming core's state machine, alone: its promises over random schedules, and each rule by itself."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.session.scheduler import Job, Scheduler, Stream

# What a source does to those who touch it.
GOOD, BAD, KILLS, KILLS_ONCE, HANGS = "good", "bad", "kills", "kills once", "hangs"
UNDECODED = "an engine cannot decode it"
FATES = (GOOD,) * 12 + (BAD, BAD, KILLS, KILLS_ONCE, HANGS, UNDECODED)
DEPTH = 2


@dataclass(eq=False)
class Source:
    key: int
    fate: str
    touched: int = 0
    whole: bool = False


@dataclass(eq=False)
class Caller:
    stream: Stream[Source]
    left: deque[Source]
    sources: list[Source]
    out: list[tuple[Source, int | None, str | None]] = field(default_factory=list)
    dropped: bool = False


class World:
    """Loaders, engines and callers that act in a random order; it checks what must hold after every step."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.slots, loaders = rng.randint(1, 12), rng.randint(1, 4)
        self.core: Scheduler[Source] = Scheduler(
            self.slots, loaders=loaders, most=rng.randint(1, 5), least=rng.randint(1, 3)
        )
        self.loaders: list[deque[Job[Source]]] = [deque() for _ in range(loaders)]
        self.engines: list[tuple[int, int]] = []
        self.owner: dict[int, Source] = {}
        self.pinned: set[int] = set()
        self.number_of: dict[int, Source] = {}
        self.to_pin = 0
        self.callers = [self.caller() for _ in range(rng.randint(1, 3))]

    def caller(self) -> Caller:
        rng = self.rng
        # Pins never fill the arena: nothing else could go on, which is for their caller to see to.
        pins, most = rng.random() < 0.2, 30
        if pins:
            most = rng.randint(0, self.slots - 1 - self.to_pin)
            self.to_pin += most
        sources = [Source(i, rng.choice(FATES)) for i in range(rng.randint(0, most))]
        window = rng.choice([None, rng.randint(1, 2 * self.slots)])
        ordered = rng.random() < 0.7
        return Caller(self.core.open(ordered=ordered, pins=pins, window=window), deque(sources), sources)

    def offer(self) -> bool:
        caller = self.rng.choice(self.callers)
        if caller.dropped or not caller.left:
            return False
        room = self.core.room(caller.stream)
        some = []
        while caller.left and len(some) < min(room, self.rng.randint(1, 6)):
            some.append(caller.left.popleft())
        self.core.offer(caller.stream, some)
        return bool(some)

    def load(self) -> bool:
        free = [loader for loader in self.loaders if len(loader) < DEPTH]
        job = self.core.take_job() if free else None
        if job is None:
            return False
        for place, (source, slot) in enumerate(zip(job.sources, job.slots.tolist(), strict=True)):
            assert (place in job.whole) == source.whole
            assert self.owner.get(slot, source) is source, "a slot with two owners"
            assert slot not in self.pinned
            self.owner[slot] = source
        self.rng.choice(free).append(job)
        return True

    def decode(self) -> bool:
        busy = [loader for loader in self.loaders if loader]
        if not busy:
            return False
        loader = self.rng.choice(busy)
        job, bad = loader[0], {}
        for place, source in enumerate(job.sources):
            source.touched += 1
            if source.fate == HANGS or source.fate == KILLS or (source.fate == KILLS_ONCE and source.touched == 1):
                self.lose(loader, place, source.fate)
                return True
            if source.fate == BAD:
                bad[place] = "bad"
        loader.popleft()
        for place in bad:
            self.owner.pop(int(job.slots[place]))
        ready = self.core.prepared(job.ticket, bad)
        for number, slot in zip(ready.numbers.tolist(), ready.slots.tolist(), strict=True):
            assert all(number != other for other, _ in self.engines)
            assert self.number_of.setdefault(number, self.owner[slot]) is self.owner[slot]
            self.engines.append((number, slot))
        at_engines = {slot for _, slot in self.engines}
        for slot in set(job.slots.tolist()) - at_engines:
            self.owner.pop(slot, None)  # bad, dropped, or a pin: that one is checked by its answer
        return True

    def lose(self, loader: deque[Job[Source]], place: int, fate: str) -> None:
        for i, job in enumerate(loader):
            for slot in job.slots.tolist():
                self.owner.pop(slot)
            self.core.lost(job.ticket, None if i else place, fate, to_blame=fate == HANGS and not i)
        loader.clear()

    def compute(self) -> bool:
        self.rng.shuffle(self.engines)
        batch, self.engines = self.engines[:3], self.engines[3:]
        for _, slot in batch:
            self.owner.pop(slot)
        undecoded = [n for n, _ in batch if self.number_of[n].fate == UNDECODED and not self.number_of[n].whole]
        for number in undecoded:
            self.number_of[number].whole = True
        self.core.again(np.array(undecoded, np.int64))
        numbers = [n for n, _ in batch if n not in undecoded]
        self.core.answered(np.array(numbers, np.int64), answers_to(self.number_of[n].key for n in numbers))
        if numbers and self.rng.random() < 0.1:
            with pytest.raises(KeyError):  # once is enough
                self.core.answered(np.array(numbers[:1], np.int64), answers_to([0]))
        return bool(batch)

    def take(self) -> bool:
        caller = self.rng.choice(self.callers)
        there = self.core.has_answers(caller.stream)
        out = taken(self.core, caller.stream)
        assert bool(out) == there
        caller.out += out
        assert not (caller.dropped and out)
        if caller.stream.pins:
            self.pinned |= {value for _, value, error in out if error is None}
        return bool(out)

    def drop(self) -> bool:
        caller = self.rng.choice(self.callers)
        if caller.dropped or self.rng.random() > 0.02:
            return False
        queued = {id(s) for s in caller.sources}
        self.core.drop(caller.stream)
        caller.dropped = True
        in_work = {slot for loader in self.loaders for job in loader for slot in job.slots.tolist()}
        in_work |= {slot for _, slot in self.engines}
        for slot in [s for s, source in self.owner.items() if id(source) in queued and s not in in_work]:
            self.owner.pop(slot)
        return True

    def check(self) -> None:
        core = self.core
        assert core.free + core.leases == core.slots
        assert core.leases >= len(self.owner)
        for caller in self.callers:
            in_window = len(caller.sources) - len(caller.left) - len(caller.out)
            assert caller.dropped or in_window <= caller.stream.window

    def is_over(self) -> bool:
        """Whether there is nothing left to do; takes a job where nobody else has anything to do."""
        if self.engines or any(self.loaders):
            return False
        for caller in self.callers:
            can_offer = caller.left and not caller.dropped and self.core.room(caller.stream)
            if can_offer or self.core.has_answers(caller.stream):
                return False
        return not self.load()

    def run(self) -> None:
        steps: list[Callable[[], bool]] = [self.offer, self.load, self.decode, self.compute, self.take, self.drop]
        while not self.is_over():
            if self.rng.choice(steps)():
                self.check()
        for _ in range(30):  # callers may go when all is done, too
            self.drop()
        self.check()


def answers_to(keys: Iterable[int]) -> list[np.ndarray]:
    """What engines say to sources of these keys: two columns, one of them a matrix."""
    classes = 10 * np.fromiter(keys, np.int64)
    return [classes, classes[:, None] + np.arange(2)]


def taken(core: Scheduler, stream: Stream) -> list[tuple]:
    """(source, value, error) of what is out now."""
    out = []
    for outcomes in core.answers(stream):
        assert len(outcomes) > 0
        for source, row, error in outcomes:
            assert (row is None) == (error is not None)
            if row is not None and len(row) > 1:
                assert row[1].tolist() == [row[0], row[0] + 1]
            out.append((source, None if row is None else int(row[0]), error))
    return out


def expected(source: Source) -> str | None:
    return {GOOD: None, KILLS_ONCE: None, UNDECODED: None, BAD: "bad"}.get(source.fate, source.fate)


@settings(max_examples=2000, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_promises_hold_over_any_schedule(seed: int) -> None:
    world = World(seed)
    world.run()
    for caller in world.callers:
        if caller.dropped:
            continue
        # Every source comes out once, and in the callers' order where that was asked for.
        keys = [source.key for source, _, _ in caller.out]
        assert (keys if caller.stream.ordered else sorted(keys)) == [s.key for s in caller.sources]
        assert caller.stream.idle
        for source, value, error in caller.out:
            assert error == expected(source)
            if error is None and not caller.stream.pins:
                assert value == 10 * source.key
        assert not world.core.unanswered(caller.stream)
    # No lease is left but the pins, and these can be given back.
    assert world.core.leases == len(world.pinned)
    assert world.core.preparing == 0
    world.core.unpin(world.pinned)
    assert world.core.free == world.slots


def make(slots: int = 8, loaders: int = 1, most: int = 4, least: int = 1) -> Scheduler[str]:
    return Scheduler(slots, loaders=loaders, most=most, least=least)


def job_of(core: Scheduler[str]) -> Job[str]:
    job = core.take_job()
    assert job is not None
    return job


def test_what_waits_is_shared_out_among_the_loaders() -> None:
    core = make(slots=12, loaders=4, most=8)
    core.offer(core.open(), list("abcdef"))
    assert [len(job_of(core).sources) for _ in range(4)] == [2, 1, 1, 1]
    assert core.preparing == 6


def test_fewer_than_are_worth_a_message_are_not_shared_out() -> None:
    core = make(slots=12, loaders=4, most=8, least=3)
    core.offer(core.open(), list("abcdefg"))
    assert [len(job_of(core).sources) for _ in range(3)] == [3, 3, 1]


def test_a_job_takes_what_was_offered_at_different_times() -> None:
    core = make(slots=12, most=5)
    stream = core.open()
    for some in ("ab", "c", "def"):
        core.offer(stream, list(some))
    job = job_of(core)
    assert [list(part) for part in job.parts] == [["a", "b"], ["c"], ["d", "e"]]
    ready = core.prepared(job.ticket, {2: "bad"})
    core.answered(ready.numbers[::-1], [np.array([5, 4, 2, 1])])
    assert taken(core, stream) == [("a", 1, None), ("b", 2, None), ("c", None, "bad"), ("d", 4, None), ("e", 5, None)]
    assert (core.leases, stream.idle) == (1, False)


def test_a_slow_source_holds_back_the_answers_behind_it_and_the_window_ends() -> None:
    core = make(slots=4, most=1)
    stream = core.open()
    core.offer(stream, list("abcd"))
    jobs = [job_of(core) for _ in range(4)]
    for job in jobs[1:]:
        ready = core.prepared(job.ticket, {})
        core.answered(ready.numbers, [np.array([1])])
    assert core.answers(stream) == []
    assert core.room(stream) == 0  # three slots are free, and the window is full
    assert core.free == 3
    core.prepared(jobs[0].ticket, {0: "cut short"})
    assert taken(core, stream) == [("a", None, "cut short"), ("b", 1, None), ("c", 1, None), ("d", 1, None)]
    assert core.room(stream) == 4


def test_answers_come_as_they_are_ready_where_order_does_not_matter() -> None:
    core = make(slots=2, most=1)
    stream = core.open(ordered=False)
    core.offer(stream, ["slow", "fast"])
    job_of(core)
    ready = core.prepared(job_of(core).ticket, {})
    core.answered(ready.numbers, [np.array([7])])
    assert taken(core, stream) == [("fast", 7, None)]
    assert core.room(stream) == 1


def test_a_caller_that_takes_no_answers_holds_back_nobody_else() -> None:
    core = make(slots=2)
    lazy, keen = core.open(), core.open()
    core.offer(lazy, ["a", "b"])
    ready = core.prepared(job_of(core).ticket, {})
    core.answered(ready.numbers, [np.array([1, 2])])
    assert (core.room(lazy), core.room(keen)) == (0, 2)


def test_the_source_at_which_a_loader_died_is_tried_alone_and_then_blamed() -> None:
    core = make()
    stream = core.open()
    core.offer(stream, list("abc"))
    core.lost(job_of(core).ticket, 1, "was killed by SIGSEGV", to_blame=False)
    alone = job_of(core)
    assert alone.sources == ["b"]
    core.lost(alone.ticket, 0, "was killed by SIGSEGV", to_blame=False)
    rest = job_of(core)
    assert rest.sources == ["a", "c"]
    ready = core.prepared(rest.ticket, {})
    core.answered(ready.numbers, [np.array([1, 3])])
    assert taken(core, stream) == [("a", 1, None), ("b", None, "was killed by SIGSEGV"), ("c", 3, None)]


def test_a_source_that_takes_too_long_is_blamed_at_once() -> None:
    core = make()
    stream = core.open()
    core.offer(stream, list("abc"))
    core.lost(job_of(core).ticket, 0, "took longer than 10 s", to_blame=True)
    assert taken(core, stream) == [("a", None, "took longer than 10 s")]
    assert job_of(core).sources == ["b", "c"]


def test_a_source_alone_in_its_job_is_tried_twice() -> None:
    core = make()
    stream = core.open()
    core.offer(stream, ["a"])
    core.lost(job_of(core).ticket, None, "was killed by SIGKILL", to_blame=False)
    for _ in range(2):
        assert core.answers(stream) == []
        core.lost(job_of(core).ticket, 0, "was killed by SIGKILL", to_blame=False)
    assert taken(core, stream) == [("a", None, "was killed by SIGKILL")]
    assert core.leases == 0


def test_pins_keep_their_slots_until_they_are_given_back() -> None:
    core = make(slots=3)
    stream = core.open(pins=True)
    core.offer(stream, ["a", "b"])
    job = job_of(core)
    assert core.prepared(job.ticket, {1: "empty"}).numbers.tolist() == []
    slot = int(job.slots[0])
    assert taken(core, stream) == [("a", slot, None), ("b", None, "empty")]
    assert core.leases == 1
    core.unpin([slot])
    assert core.leases == 0
    with pytest.raises(ValueError, match="not pinned"):
        core.unpin([slot])


@pytest.mark.parametrize("ordered", [True, False])
def test_pins_that_nobody_has_heard_of_end_with_their_stream(ordered: bool) -> None:
    core = make(most=1)
    stream = core.open(ordered=ordered, pins=True)
    core.offer(stream, ["a", "b", "c", "d"])
    jobs = [job_of(core) for _ in range(4)]
    core.prepared(jobs[0].ticket, {})
    ((_, slot, _),) = taken(core, stream)
    core.prepared(jobs[2].ticket, {})
    core.prepared(jobs[3].ticket, {0: "empty"})
    core.drop(stream)
    core.prepared(jobs[1].ticket, {})
    assert core.leases == 1
    core.unpin([slot])
    assert core.leases == 0


def test_more_than_there_is_room_for_is_refused() -> None:
    core = make(slots=2)
    stream = core.open(window=1)
    with pytest.raises(ValueError, match="room for 1"):
        core.offer(stream, ["a", "b"])
    core.offer(stream, ["a"])
    core.drop(stream)
    with pytest.raises(ValueError, match="room for 0"):
        core.offer(stream, ["c"])
    assert core.leases == 0


def test_what_an_engine_cannot_decode_is_made_a_sample_of_by_a_loader() -> None:
    core = make()
    stream = core.open()
    core.offer(stream, list("abc"))
    job = job_of(core)
    assert not job.whole
    ready = core.prepared(job.ticket, {})
    core.again(ready.numbers[1:2])
    core.answered(ready.numbers[[0, 2]], [np.array([1, 3])])
    again = job_of(core)
    assert (again.sources, again.slots.tolist(), again.whole) == (["b"], [job.slots[1]], {0})
    # It stays so when its loader is lost.
    core.lost(again.ticket, None, "was killed by SIGKILL", to_blame=False)
    again = job_of(core)
    assert again.whole == {0}
    ready = core.prepared(again.ticket, {})
    core.answered(ready.numbers, [np.array([2])])
    assert [value for _, value, _ in taken(core, stream)] == [1, 2, 3]

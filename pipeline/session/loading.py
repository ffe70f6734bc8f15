"""The side of a session that loads: sources go to loaders, samples come to lie in slots of the arena.

The decisions are `pipeline.session.scheduler`'s; this module wires processes and threads around it. One lock guards it.
Threads that come in: a feeder for each call of `outcomes`, the watcher of the stage, whoever answers samples, and the
callers. The stage is called with the lock held only to hand a job over and to count; whoever is notified of samples is
called without.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from pipeline.errors import PipelineError
from pipeline.memory.arena import Arena
from pipeline.samples.sources import Locator, Locators, Sources, joined_locators
from pipeline.session.courier import Courier
from pipeline.session.feeder import Feeder
from pipeline.session.inbox import Inbox
from pipeline.session.scheduler import Column, Numbers, Outcomes, Prepared, Scheduler, Stream
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Task
from pipeline.stages.load import (
    BY_GPU,
    FEWEST_FILES_PER_JOB,
    FILES_PER_JOB,
    SAMPLES_PER_JOB,
    LoadResult,
    LoadWork,
    Preparation,
    load_stage,
)
from pipeline.stages.lost import Lost
from pipeline.telemetry.metrics import Decoded

# Jobs that a loader may have: one that it does, and one ready to follow.
JOBS_PER_LOADER = 2

# No wait is longer than this without looking whether the session still lives.
POLL_S = 1.0


class Located(Protocol):
    """What is loaded: anything that says where its bytes are."""

    @property
    def locator(self) -> Locator: ...


class Loading:
    """Loaders over an arena, and everyone who waits for them.

    Args:
        on_prepared: called with samples that an engine is to answer (with `answered`); and, with none, whenever there
            may be no more to come.
        on_answers: called, with the lock held, whenever something has been answered.
        on_failure: called once when the loaders cannot go on.

    Attributes:
        stage: the loaders.
        core: the state machine; to be looked at, not to be changed, from outside.
    """

    def __init__(
        self,
        arena: Arena,
        preparation: Preparation,
        *,
        loaders: int,
        timeout_s: float,
        image_timeout_s: float | None,
        on_prepared: Callable[[Prepared], None],
        on_answers: Callable[[], None] = lambda: None,
        on_failure: Callable[[StageFailure], None],
        cores: tuple[frozenset[int], ...] = (),
        traced: bool = False,
    ) -> None:
        # A file that is only read and parsed takes a twentieth of the time of one that is decoded.
        most, least = (FILES_PER_JOB, FEWEST_FILES_PER_JOB) if preparation.decode == "gpu" else (SAMPLES_PER_JOB, 1)
        self.core: Scheduler[Any] = Scheduler(arena.spec.slots, loaders=loaders, most=most, least=least)
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # For those who pour: what concerns the others comes many times as often.
        self._poured = threading.Condition(lock)
        self._over: BaseException | None = None
        self._courier = Courier(arena)
        self._inboxes: list[tuple[Stream[Any], Inbox]] = []
        self._by_gpu = preparation.decode == "gpu"
        self._ways: Counter[str] = Counter()
        self._left_bytes = 0
        self._most_jobs = JOBS_PER_LOADER * loaders
        self._on_prepared = on_prepared
        self._on_answers = on_answers
        self.stage = load_stage(
            arena.spec,
            preparation,
            loaders=loaders,
            # A lost job is the stage's until what it left has been given out again.
            capacity=2 * self._most_jobs * most,
            cores=cores,
            timeout_s=timeout_s,
            image_timeout_s=image_timeout_s,
            traced=traced,
            on_result=self._on_loaded,
            on_lost=self._on_lost,
            on_failure=on_failure,
        )

    def open(self, *, ordered: bool = True, pins: bool = False, window: int | None = None) -> Stream[Any]:
        """A stream of sources (see `Scheduler.open`)."""
        with self._changed:
            return self.core.open(ordered=ordered, pins=pins, window=window)

    def outcomes(
        self,
        sources: Iterable[Sequence[Located]],
        *,
        ordered: bool = True,
        pins: bool = False,
        wait_s: float | None = None,
    ) -> Generator[list[Outcomes[Any]], None, None]:
        """What became of the sources, all that is out at a time: an empty list when nothing was for `wait_s` seconds.

        `sources` come some at a time, as they are there. They are read in a thread of its own, and no further than
        there are slots; what it raises is raised here, after the outcomes of what came before. Raises what ended the
        session.
        """
        stream = self.open(ordered=ordered, pins=pins)
        with Feeder(self, stream, iter(sources)) as feeder:
            while True:
                with self._changed:
                    self._wait_for(lambda: self.core.has_answers(stream) or _all_out(stream, feeder), wait_s)
                    outcomes = self.core.answers(stream)
                    if not outcomes and _all_out(stream, feeder):
                        break
                    self._make_use_of_room()  # the stream's window has moved on
                yield outcomes
        feeder.raise_error()

    def offer(self, stream: Stream[Any], source: Located) -> None:
        """Hand a source in as soon as there is room. Raises what ended the session."""
        with self._changed:
            self._wait_for(lambda: self.core.room(stream) > 0)
            self.core.offer(stream, [source])
        self._dispatch()

    @property
    def hungry(self) -> bool:
        """Whether a loader could have another job now."""
        return self.core.jobs < self._most_jobs

    def connect(self, stream: Stream[Any], inbox: Inbox) -> None:
        """Have what lies in `inbox` handed in whenever a loader comes free. It may be filled by another thread."""
        with self._changed:
            self._inboxes.append((stream, inbox))

    def pour(self, stream: Stream[Any], inbox: Inbox, until: Callable[[], bool], *, leave: int) -> None:
        """Hand in what lies in a connected inbox, as there is room, until no more than `leave` is in it or `until`.

        Raises what ended the session.
        """
        while True:
            self._dispatch()
            with self._changed:
                if len(inbox) <= leave:
                    return
                inbox.leave, inbox.attended = leave, True
                try:
                    # While loaders are busy, the next that comes free has it handed in.
                    self._wait_for(
                        lambda: until() or len(inbox) <= leave or (self.hungry and self.core.room(stream) > 0),
                        on=self._poured,
                    )
                finally:
                    inbox.attended = False
                if until():
                    return

    def drop(self, stream: Stream[Any]) -> None:
        """Nobody takes this stream's outcomes any more."""
        with self._changed:
            self._inboxes = [(other, inbox) for other, inbox in self._inboxes if other is not stream]
            self.core.drop(stream)
            self._wake_all()
            self._make_use_of_room()

    def give_up(self, stream: Stream[Any]) -> list[Any]:
        """Drop a stream; its sources that have no answer, and get none any more."""
        with self._changed:
            left = self.core.unanswered(stream)
            self.drop(stream)
            return left

    def unpin(self, slots: Iterable[int]) -> None:
        """Give pinned slots back. Raises ValueError for one that is not pinned."""
        with self._changed:
            self.core.unpin(slots)
            self._wake_all()
            self._make_use_of_room()

    def answered(self, numbers: Numbers, columns: Sequence[Column]) -> None:
        """Samples (n,) that `on_prepared` was called with have their answers, columns (n, ...)."""
        with self._changed:
            self.core.answered(numbers, columns)
            self._settle()

    def again(self, numbers: Numbers, reasons: Sequence[str]) -> None:
        """Samples that `on_prepared` was called with could not be decoded by an engine: loaders are to do it."""
        with self._changed:
            self.core.again(numbers)
            self._ways.update(reasons)
            self._ways[BY_GPU] -= len(reasons)
        self._dispatch()

    def decoded(self, per_s: float) -> Decoded | None:
        """Who has decoded the files so far; None where loaders decode all.

        `per_s` is the part of what has been done that a second took: bytes are counted, and their rate is asked for.
        """
        if not self._by_gpu:
            return None
        with self._changed:
            ways, left_bytes = self._ways.copy(), self._left_bytes
        by_gpu = ways.pop(BY_GPU, 0)
        return Decoded(by_gpu, left_bytes * per_s, {reason: files for reason, files in ways.items() if files})

    def wake(self) -> None:
        """Have everyone who waits look again."""
        with self._changed:
            self._wake_all()

    def end(self, why: BaseException) -> bool:
        """Whoever waits, and whoever comes, is notified; whether this was the first end."""
        with self._changed:
            first = self._over is None
            if first:
                self._over = why
            self._wake_all()
            return first

    def stop(self) -> None:
        """End the loaders and whoever waits for them. Safe to call twice."""
        self.end(PipelineError("the session is over"))
        self.stage.stop()
        with self._changed:
            self._courier.close()

    def __enter__(self) -> Loading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _drain(self, stream: Stream[Any], inbox: Inbox) -> None:
        """Hand in what there is room for. Called with the lock held."""
        while some := inbox.take(self.core.room(stream)):
            self.core.offer(stream, some)
        if len(inbox) <= inbox.leave:
            self._poured.notify_all()

    def _dispatch(self) -> None:
        """Give loaders what waits for them."""
        try:
            with self._changed:
                if self._over is not None:
                    return  # nobody would give back what bytes on their way lie in
                for stream, inbox in self._inboxes:
                    self._drain(stream, inbox)
                while self.core.jobs < self._most_jobs and (job := self.core.take_job()):
                    locators = joined_locators([_locators(part) for part in job.parts])
                    work = LoadWork(self._courier.send(job.ticket, locators, job.slots), job.slots, job.whole)
                    admitted = self.stage.try_submit(Task(job.ticket, len(job), work))
                    assert admitted, "fewer jobs than loaders may have, and no room in the stage"
        except StageFailure:
            return  # its on_failure has been called

    def _on_loaded(self, task: Task[LoadWork], result: LoadResult) -> None:
        self.stage.count_failed(len(result.bad))
        with self._changed:
            self._courier.done(task.ticket)
            self._ways.update(dict(result.ways))
            self._left_bytes += result.left_bytes
            ready = self.core.prepared(task.ticket, dict(result.bad))
            if len(ready.numbers) < task.samples:
                self._settle()
        self._dispatch()
        self._on_prepared(ready)

    def _on_lost(self, task: Task[LoadWork], lost: Lost) -> None:
        with self._changed:
            self._courier.done(task.ticket)
            before = self.core.failed
            self.core.lost(task.ticket, lost.item, f"its loader {lost.why}", to_blame=lost.overstayed)
            self.stage.count_failed(self.core.failed - before)
            self._settle()
        self._dispatch()
        self._on_prepared(Prepared())

    def _settle(self) -> None:
        """Something has been answered, or may be offered. Called with the lock held."""
        self._on_answers()
        self._changed.notify_all()
        self._make_use_of_room()

    def _make_use_of_room(self) -> None:
        """There may be room for what lies in inboxes. Called with the lock held."""
        if not self.hungry:
            return  # the next loader that comes free has it handed in
        self._poured.notify_all()
        # Whoever fills an inbox may wait for another source, and that for the answers to those that lie in it.
        if any(len(inbox) and not inbox.attended for _, inbox in self._inboxes):
            self._dispatch()

    def _wake_all(self) -> None:
        """Called with the lock held."""
        self._changed.notify_all()
        self._poured.notify_all()

    def _wait_for(
        self, condition: Callable[[], bool], wait_s: float | None = None, on: threading.Condition | None = None
    ) -> None:
        """Wait with the lock held, for `wait_s` seconds at most. Raises what ended the session."""
        changed = self._changed if on is None else on
        until = None if wait_s is None else time.monotonic() + wait_s
        while self._over is None:
            left = POLL_S if until is None else min(POLL_S, until - time.monotonic())
            if changed.wait_for(lambda: self._over is not None or condition(), timeout=left) or (
                until is not None and time.monotonic() >= until
            ):
                break
        if self._over is not None:
            raise self._over


def _locators(sources: Sequence[Located]) -> Locators:
    return sources.locators if isinstance(sources, Sources) else [source.locator for source in sources]


def _all_out(stream: Stream[Any], feeder: Feeder) -> bool:
    return feeder.done and stream.idle

"""A stage whose workers are processes: spawned, fed with a bounded number of tasks each, watched."""

from __future__ import annotations

import contextlib
import multiprocessing
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import resource_tracker
from typing import TypeAlias, TypeVar

from pipeline.stages.base import Stage, StageFailure
from pipeline.stages.channels import ChannelClosed, Crashed, Done, Rates, Ready, ReportTrace, Stop, Task, Traced
from pipeline.stages.child import GRACE_S, Child
from pipeline.stages.clock import AwakeClock
from pipeline.stages.lost import Lost
from pipeline.stages.place import At
from pipeline.stages.worker import Resident, serve
from pipeline.telemetry.trace import Records

T = TypeVar("T")
R = TypeVar("R")

OnLost: TypeAlias = Callable[[Task[T], Lost], None]

POLL_S = 0.25

# So many workers lost one after another, none of them on an item and nothing done in between: the fault is elsewhere.
FRUITLESS_LOSSES = 4


class ProcessStage(Stage[T, R]):
    """`workers` spawned processes, each built by the picklable `make_worker` from its number, 0 on.

    A worker that is lost (it dies, or is silent for too long) ends the stage, unless there is an `on_lost`. With one,
    a worker that had been set up is replaced, and each task it had is given to `on_lost(task, lost)`, which says why
    and on which item of the task the worker was (see `pipeline.stages.lost`). There the owner decides what is given
    out again, with `put_back`, which does not wait, and what becomes of the rest; a task counts as under way until
    `on_lost` returns, so that `drain` waits for what was put back. It is called by the stage's thread: what it raises
    fails the stage. A worker that cannot be set up, and one that raises, end the stage in any case.

    Args:
        serve: the main function of a process, `pipeline.stages.worker.serve` or `serve_overlapped`; with `on_lost`,
            `serve_items`, whose workers say which item of a task they are on.
        depth: tasks that may be under way at one worker; 2 keeps it busy while a result travels.
        timeout_s: a worker that has work, or is setting up, and is silent for longer is taken as hung. A worker that
            goes from item to item is not silent.
        on_lost: see above.
        item_timeout_s: the most that one item may take before its worker is replaced; None sets no limit. Needs
            `on_lost`.
    """

    def __init__(
        self,
        name: str,
        make_worker: Callable[[int], Resident],
        *,
        workers: int,
        capacity: int,
        timeout_s: float,
        on_result: Callable[[Task[T], R], None],
        on_failure: Callable[[StageFailure], None],
        on_room: Callable[[], None] | None = None,
        depth: int = 2,
        serve: Callable[..., None] = serve,
        on_lost: OnLost[T] | None = None,
        item_timeout_s: float | None = None,
    ) -> None:
        super().__init__(name, workers, capacity, on_result, on_failure, on_room)
        if item_timeout_s is not None and on_lost is None:
            raise ValueError("without on_lost no worker is replaced, and an item has no time of its own")
        self._make_worker = make_worker
        self._serve = serve
        self._depth = depth
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._item_timeout_s = item_timeout_s
        self._pending: deque[Task[T]] = deque()
        self._children: list[Child] = []
        self._clock = AwakeClock()
        self._ending = threading.Lock()
        self._replaced = 0
        self._fruitless = 0
        self._thread = threading.Thread(target=self._watch, name=f"stage-{name}", daemon=True)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(c.pid for c in self._children)

    @property
    def ready(self) -> bool:
        """Whether every worker is set up."""
        return all(c.ready for c in self._children)

    @property
    def notes(self) -> tuple[str, ...]:
        """What each worker says it runs on, once the stage is up."""
        return tuple(c.note for c in self._children)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was asked of the workers and is not done, each once, once the stage is up."""
        return tuple(dict.fromkeys(notice for c in self._children for notice in c.notices))

    @property
    def rates(self) -> tuple[Rates, ...]:
        """What each worker has measured of itself, once the stage is up."""
        return tuple(c.rates for c in self._children)

    @property
    def expected_rate(self) -> float:
        """Samples/s that the workers together expect to do, once the stage is up; 0 when they cannot know."""
        return sum(c.rates.expected for c in self._children)

    @property
    def replaced(self) -> int:
        """How many workers have been replaced so far."""
        return self._replaced

    def launch(self) -> None:
        """Spawn the workers without waiting for them, so that several stages set up side by side.

        Raises StageFailure where the system refuses.
        """
        # Starting its tracker, which a first spawn does, would unblock SIGINT again.
        resource_tracker.ensure_running()
        for number in range(self.workers):
            with self._changed:
                # `stop` may be called from another thread while we are still launching.
                if self._stopping.is_set():
                    return
                self._children.append(self._spawn(number))
        with self._changed:
            if not self._stopping.is_set():
                self._thread.start()

    def _spawn(self, number: int) -> Child:
        return Child.spawn(
            multiprocessing.get_context("spawn"),
            self._serve,
            partial(self._make_worker, number),
            name=self.name,
            number=number,
            has_place=self._on_lost is not None,
            now_s=self._clock.now_s,
            timeout_s=self._timeout_s,
        )

    def start(self) -> None:
        if not self._children:
            self.launch()
        with self._changed:
            self._wait_for(lambda: len(self._children) == self.workers and all(c.ready for c in self._children))

    def traces(self) -> tuple[Records, ...]:
        """The spans of every worker so far; to be called once, when all tasks are finished. Raises StageFailure.

        Those of a worker that is lost and replaced are lost with it.
        """
        with self._changed:
            asked = tuple(self._children)
            for child in asked:
                with contextlib.suppress(ChannelClosed):  # the watcher finds out why
                    child.channel.send(ReportTrace())

            def silent() -> list[str]:
                return [c.label for c in asked if c.trace is None and c is self._children[c.number]]

            deadline = time.monotonic() + self._timeout_s
            self._wait_for(lambda: not silent() or time.monotonic() > deadline)
            if late := ", ".join(silent()):
                raise StageFailure(self.name, f"{late} did not report its trace in {self._timeout_s:g} s")
            return tuple(c.trace for c in asked if c.trace is not None)

    def stop(self) -> None:
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        with self._ending:  # by whoever comes first
            self._end_workers()

    def _end_workers(self) -> None:
        for child in self._children:
            with contextlib.suppress(ChannelClosed):
                child.channel.send(Stop())
        deadline = time.monotonic() + GRACE_S
        for child in self._children:
            child.process.join(max(0.0, deadline - time.monotonic()))
        late = [c for c in self._children if c.process.is_alive()]
        for child in late:
            child.send_kill()
        for child in late:
            child.process.join(GRACE_S)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(GRACE_S)
        for child in self._children:
            child.channel.close()

    def put_back(self, task: Task[T]) -> None:
        """Admit a task at once and before all others, however full the stage is: for `on_lost`. Never waits.

        Its ticket is that of no task under way but the one that was lost. Raises StageFailure once the stage has
        failed.
        """
        with self._changed:
            self._raise_failure()
            self._queued += task.samples
            self._pending.appendleft(task)
            self._dispatch()

    def _is_served(self) -> bool:
        return self._thread.ident is None or self._thread.is_alive()

    def _enqueue(self, task: Task[T]) -> None:
        self._pending.append(task)
        self._dispatch()

    def _up(self) -> int:
        return sum(c.ready for c in self._children)

    def _under_way(self) -> Sequence[int]:
        given = [c.given for c in self._children] + [0] * (self.workers - len(self._children))
        return [n - meter.samples for n, meter in zip(given, self._meters, strict=True)]

    def _dispatch(self) -> None:
        """Send pending tasks to the least loaded ready workers. Called with `_changed` held."""
        while self._pending:
            free = [c for c in self._children if c.ready and len(c.tasks) < self._depth]
            if not free:
                return
            child = min(free, key=lambda c: len(c.tasks))
            task = self._pending.popleft()
            if not child.tasks:
                child.heard_s = self._clock.now_s
            child.tasks[task.ticket] = task
            child.given += task.samples
            try:
                child.channel.send(task)
            except ChannelClosed:
                return  # the watcher finds out why

    def _watch(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for child in self._children:
                    _register(selector, child)
                self._listen(selector)
        except StageFailure as failure:
            if not self._stopping.is_set():
                self._fail(failure)
        except BaseException as error:
            self._fail(StageFailure.of(self.name, "its watcher", error))

    def _listen(self, selector: selectors.BaseSelector) -> None:
        checked_s = self._clock.tick()
        while not self._stopping.is_set() and self._failure is None:
            for key, _events in selector.select(POLL_S):
                if self._stopping.is_set():
                    return
                child = key.data
                if child is not self._children[child.number]:
                    continue  # replaced a moment ago
                died = key.fd == child.process.sentinel
                if not self._hear(child) or died:
                    self._bury(selector, child)
            if self._clock.tick() > checked_s + POLL_S:
                checked_s = self._clock.now_s
                self._check_times(selector)

    def _hear(self, child: Child) -> bool:
        """Take every message a worker had sent; whether there can be more. Raises StageFailure when it has crashed."""
        try:
            # Those of its tasks, and one of each other kind. With each it is given another task: one that works faster
            # than its results are taken would keep us from all others for ever.
            for _ in range(self._depth + 3):
                if not child.channel.pending():
                    break
                self._take(child, child.channel.receive())
        except ChannelClosed:
            return False
        return True

    def _take(self, child: Child, message: Ready | Done[R] | Traced | Crashed) -> None:
        if isinstance(message, Crashed):
            raise StageFailure(self.name, f"{child.label} failed: {message.message}", message.traceback)
        child.heard_s = self._clock.now_s
        if isinstance(message, Ready):
            with self._changed:
                child.ready, child.note, child.rates, child.notices = True, message.note, message.rates, message.notices
                self._dispatch()
                self._changed.notify_all()
            return
        if isinstance(message, Traced):
            with self._changed:
                child.trace = message.records
                self._changed.notify_all()
            return
        with self._changed:
            task = child.tasks.pop(message.ticket)
            self._fruitless = 0
            self._dispatch()
        self._finish(task, message.body, message.busy_s, child.number)

    def _check_times(self, selector: selectors.BaseSelector) -> None:
        """Look for workers that have been at it for too long. Raises StageFailure for one that is not replaced."""
        now_s = self._clock.now_s
        for child in tuple(self._children):
            at = child.look(now_s)
            if at is not None and self._item_timeout_s is not None:
                if now_s - child.moved_s > self._item_timeout_s:
                    self._end_overstayer(selector, child, at)
            elif (child.tasks or not child.ready) and now_s - max(child.heard_s, child.moved_s) > self._timeout_s:
                self._end_silent(selector, child)

    def _end_overstayer(self, selector: selectors.BaseSelector, child: Child, at: At) -> None:
        child.kill()
        self._hear(child)  # what it sent before counts
        why = f"took longer than {self._item_timeout_s:g} s (--image-timeout)"
        # It may have gone on in the last moment; then no item is to blame.
        there = child.place is not None and child.place.read() == at
        self._replace(selector, child, why, at if there else None, overstayed=there)

    def _end_silent(self, selector: selectors.BaseSelector, child: Child) -> None:
        silent = f"silent {'on a task' if child.ready else 'setting up'} for {self._timeout_s:g} s"
        if self._on_lost is None or not child.ready:
            raise StageFailure(self.name, f"{child.label} has been {silent}; if it is only slow, raise --stage-timeout")
        child.kill()
        self._hear(child)
        self._replace(selector, child, f"was {silent}", child.look(self._clock.now_s))

    def _bury(self, selector: selectors.BaseSelector, child: Child) -> None:
        """Replace a worker whose channel is closed."""
        child.process.join(GRACE_S)
        why = child.ending()
        if child.process.is_alive():
            child.kill()
        self._replace(selector, child, why, child.look(self._clock.now_s))

    def _replace(
        self, selector: selectors.BaseSelector, child: Child, why: str, at: At | None, *, overstayed: bool = False
    ) -> None:
        """Put a new worker in the place of one that is no more, and give its tasks back to the owner.

        `at` is the item it was lost on.
        """
        if self._on_lost is None or not child.ready:
            raise StageFailure(self.name, f"{child.label} {why}")
        _unregister(selector, child)
        with self._changed:
            if self._stopping.is_set():
                return
            self._fruitless = 0 if at is not None else self._fruitless + 1
            if self._fruitless >= FRUITLESS_LOSSES:
                what = f"{self._fruitless} workers were lost one after another with nothing under way, the last one"
                raise StageFailure(self.name, f"{what}, {child.label}, {why}")
            after = self._spawn(child.number)
            after.note, after.rates, after.notices = child.note, child.rates, child.notices
            after.given = child.given - sum(t.samples for t in child.tasks.values())
            self._children[child.number] = after
            self._replaced += 1
            self._changed.notify_all()
        _register(selector, after)
        child.close()
        for ticket, task in child.tasks.items():
            item = at[1] if at is not None and at[0] == ticket else None
            self._give_back(task, Lost(item, why, overstayed and item is not None))

    def _give_back(self, task: Task[T], lost: Lost) -> None:
        assert self._on_lost is not None, "workers are replaced where there is an owner for their tasks"
        # As with a result, the owner is notified before the task counts as gone.
        self._on_lost(task, lost)
        with self._changed:
            self._queued -= task.samples
            self._changed.notify_all()
        if self._on_room is not None:
            self._on_room()


def _register(selector: selectors.BaseSelector, child: Child) -> None:
    selector.register(child.channel.pipe, selectors.EVENT_READ, child)
    selector.register(child.process.sentinel, selectors.EVENT_READ, child)


def _unregister(selector: selectors.BaseSelector, child: Child) -> None:
    selector.unregister(child.channel.pipe)
    selector.unregister(child.process.sentinel)

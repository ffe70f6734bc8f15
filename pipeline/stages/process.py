"""A stage whose workers are processes: spawned, fed with a bounded number of tasks each, watched."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import selectors
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from pipeline.stages.base import Stage, StageFailure
from pipeline.stages.channels import (
    FROM_WORKER,
    TO_WORKER,
    Channel,
    ChannelClosed,
    Crashed,
    Done,
    Rates,
    Ready,
    Stop,
    Task,
    TellTrace,
    Traced,
)
from pipeline.stages.worker import Resident, serve
from pipeline.telemetry.trace import Records

T = TypeVar("T")
R = TypeVar("R")

POLL_S = 0.25
STOP_GRACE_S = 2.0


@dataclass
class _Handle:
    """A worker as the main process sees it."""

    process: SpawnProcess
    channel: Channel
    number: int
    ready: bool = False
    note: str = ""
    rates: Rates = field(default_factory=Rates)
    last_heard: float = 0.0
    given: int = 0
    tasks: dict[int, Task[Any]] = field(default_factory=dict)
    trace: Records | None = None

    @property
    def label(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"


class ProcessStage(Stage[T, R]):
    """`workers` spawned processes, each built by the picklable `make_worker` from its number, 0 on.

    Args:
        serve: the main function of a process, `pipeline.stages.worker.serve` or `serve_overlapped`.
        depth: tasks that may be under way at one worker; 2 keeps it busy while a result travels.
        timeout_s: a worker that has work, or is setting up, and is silent for longer is taken as hung.
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
        depth: int = 2,
        serve: Callable[[Any, Callable[[], Any]], None] = serve,
    ) -> None:
        super().__init__(name, workers, capacity, on_result, on_failure)
        self._make_worker = make_worker
        self._serve = serve
        self._depth = depth
        self._timeout_s = timeout_s
        self._pending: deque[Task[T]] = deque()
        self._handles: list[_Handle] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"stage-{name}", daemon=True)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(h.process.pid or 0 for h in self._handles)

    @property
    def notes(self) -> tuple[str, ...]:
        """What each worker says it runs on, once the stage is up."""
        return tuple(h.note for h in self._handles)

    @property
    def rates(self) -> tuple[Rates, ...]:
        """What each worker has measured of itself, once the stage is up."""
        return tuple(h.rates for h in self._handles)

    @property
    def expected_rate(self) -> float:
        """Samples/s that the workers together expect to do, once the stage is up; 0 when they cannot know."""
        return sum(h.rates.expected for h in self._handles)

    def launch(self) -> None:
        """Spawn the workers without waiting for them, so that several stages set up side by side."""
        context = multiprocessing.get_context("spawn")
        # Starting its tracker, which a first spawn does, would unblock SIGINT again.
        resource_tracker.ensure_running()
        # Workers are born with SIGINT blocked: a Ctrl-C while one is still importing stays with us.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in range(self.workers):
                with self._changed:
                    # `stop` may be called from another thread while we are still launching.
                    if self._stopping.is_set():
                        return
                    self._handles.append(self._spawn(context, number))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        with self._changed:
            if not self._stopping.is_set():
                self._thread.start()

    def _spawn(self, context: SpawnContext, number: int) -> _Handle:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=self._serve,
            args=(theirs, partial(self._make_worker, number)),
            name=f"{self.name}-{number}",
            daemon=True,
        )
        process.start()
        theirs.close()
        channel = Channel(ours, sends=TO_WORKER, receives=FROM_WORKER)
        return _Handle(process, channel, number, last_heard=time.monotonic())

    def start(self) -> None:
        if not self._handles:
            self.launch()
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or all(h.ready for h in self._handles))
            self._raise_failure()

    def traces(self) -> tuple[Records, ...]:
        """The spans of every worker so far; to be called once, when all tasks are finished. Raises StageFailure."""
        for handle in self._handles:
            with contextlib.suppress(ChannelClosed):  # the watcher finds out why
                handle.channel.send(TellTrace())
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure is not None or all(h.trace for h in self._handles), timeout=self._timeout_s
            )
            self._raise_failure()
            silent = [h.label for h in self._handles if h.trace is None]
            if silent:
                raise StageFailure(self.name, f"{', '.join(silent)} did not tell its trace in {self._timeout_s:g} s")
            return tuple(h.trace for h in self._handles if h.trace is not None)

    def stop(self) -> None:
        with self._changed:
            self._stopping.set()
        for handle in self._handles:
            try:
                handle.channel.send(Stop())
            except (ChannelClosed, OSError):
                continue
        deadline = time.monotonic() + STOP_GRACE_S
        for handle in self._handles:
            handle.process.join(max(0.0, deadline - time.monotonic()))
        for handle in self._handles:
            if handle.process.is_alive():
                handle.process.kill()
            handle.process.join()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(STOP_GRACE_S)
        for handle in self._handles:
            handle.channel.close()

    def _enqueue(self, task: Task[T]) -> None:
        self._pending.append(task)
        self._dispatch()

    def _under_way(self) -> Sequence[int]:
        given = [h.given for h in self._handles] + [0] * (self.workers - len(self._handles))
        return [n - meter.samples for n, meter in zip(given, self._meters, strict=True)]

    def _dispatch(self) -> None:
        """Send pending tasks to the least loaded ready workers. Called with `_changed` held."""
        while self._pending:
            free = [h for h in self._handles if h.ready and len(h.tasks) < self._depth]
            if not free:
                return
            handle = min(free, key=lambda h: len(h.tasks))
            task = self._pending.popleft()
            if not handle.tasks:
                handle.last_heard = time.monotonic()
            handle.tasks[task.ticket] = task
            handle.given += task.samples
            try:
                handle.channel.send(task)
            except ChannelClosed:
                return  # the watcher finds out why

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for handle in self._handles:
                selector.register(handle.channel.pipe, selectors.EVENT_READ, handle)
                selector.register(handle.process.sentinel, selectors.EVENT_READ, handle)
            self._listen(selector)

    def _listen(self, selector: selectors.BaseSelector) -> None:
        silence_checked = time.monotonic()
        try:
            while not self._stopping.is_set() and self._failure is None:
                for key, _events in selector.select(POLL_S):
                    self._hear(key.data)
                    if self._stopping.is_set():
                        return
                if time.monotonic() > silence_checked + POLL_S:
                    self._check_silence()
                    silence_checked = time.monotonic()
        except StageFailure as failure:
            if not self._stopping.is_set():
                self._fail(failure)
        except Exception as error:
            what = f"its watcher failed: {type(error).__name__}: {error}"
            self._fail(StageFailure(self.name, what, traceback.format_exc()))

    def _hear(self, handle: _Handle) -> None:
        """Take every message a worker has sent; raises StageFailure when it has crashed or is gone."""
        try:
            while handle.channel.pending():
                self._take(handle, handle.channel.receive())
        except ChannelClosed:
            handle.process.join(STOP_GRACE_S)
            raise StageFailure(self.name, f"{handle.label} {_ending(handle.process.exitcode)}") from None

    def _take(self, handle: _Handle, message: Ready | Done[R] | Traced | Crashed) -> None:
        if isinstance(message, Crashed):
            raise StageFailure(self.name, f"{handle.label} failed: {message.message}", message.traceback)
        handle.last_heard = time.monotonic()
        if isinstance(message, Ready):
            with self._changed:
                handle.ready, handle.note, handle.rates = True, message.note, message.rates
                self._dispatch()
                self._changed.notify_all()
            return
        if isinstance(message, Traced):
            with self._changed:
                handle.trace = message.records
                self._changed.notify_all()
            return
        with self._changed:
            task = handle.tasks.pop(message.ticket)
            self._dispatch()
        self._finish(task, message.body, message.busy_s, handle.number)

    def _check_silence(self) -> None:
        now = time.monotonic()
        for handle in self._handles:
            waiting = bool(handle.tasks) or not handle.ready
            if waiting and now - handle.last_heard > self._timeout_s:
                doing = "on a task" if handle.ready else "setting up"
                raise StageFailure(
                    self.name,
                    f"{handle.label} has been silent {doing} for {self._timeout_s:g} s; "
                    "if it is only slow, raise --stage-timeout",
                )


def _ending(exitcode: int | None) -> str:
    if exitcode is None:
        return "closed its channel"
    if exitcode < 0:
        name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else str(-exitcode)
        hint = "; the system may have run out of memory" if -exitcode == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"
    return f"ended with exit status {exitcode}"


def default_workers(cap: int = 32) -> int:
    """The cores this process may use, at most `cap`."""
    if hasattr(os, "sched_getaffinity"):
        return min(cap, len(os.sched_getaffinity(0)))
    return min(cap, os.cpu_count() or 1)

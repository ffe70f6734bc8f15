"""What runs inside a worker process: set up, serve tasks until asked to stop, report any crash.

There are four kinds of worker: one that does a task at a time (`serve`), one that also says which item of it it is
on (`serve_items`), one that has several tasks under way, on a device (`serve_overlapped`), and one that has a single
task, known when it is spawned, and sends what comes of it as fast as it is taken (`serve_unasked`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from int4core.errors import Int4CoreError
from pipeline.collector import spare
from pipeline.errors import PipelineError, shortage
from pipeline.stages.channels import (
    FROM_WORKER,
    TO_WORKER,
    Channel,
    ChannelClosed,
    Crashed,
    Done,
    Rates,
    Ready,
    ReportTrace,
    Stop,
    Task,
    Traced,
)
from pipeline.stages.place import Place
from pipeline.telemetry.trace import AnyTracer

W = TypeVar("W", bound="Resident")

# What a terminal, a shell or a system that shuts down sends to the whole process group: the main process decides what
# it means.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# How long a worker without patience looks for the next task before it sleeps.
ALERT_S = 2e-3


class Resident(Protocol):
    """What both kinds have; built inside its process, so that it may hold a GPU context or a mapping."""

    @property
    def tracer(self) -> AnyTracer:
        """Where its spans go."""

    def note(self) -> str:
        """What it runs on, in a few words."""

    def rates(self) -> Rates:
        """What it has measured of itself."""

    def close(self) -> None:
        """Give everything back."""


class Worker(Resident, Protocol):
    """The work of a stage, a task at a time."""

    def work(self, task: Task[Any]) -> Any:
        """Do one task."""


class ItemWorker(Resident, Protocol):
    """The work of a stage whose tasks are lists of items, any of which may be the end of its worker."""

    def work(self, task: Task[Any], begin: Callable[[int], None]) -> Any:
        """Do one task, calling `begin(i)` before its item `i`, 0 on."""


class Giver(Resident, Protocol):
    """A worker whose task it was made with."""

    def give(self) -> Iterator[Any]:
        """What comes of it."""


@runtime_checkable
class Noticing(Protocol):
    """A worker with something to say when it is set up."""

    def notices(self) -> tuple[str, ...]:
        """What was asked of it and is not done, or not as usual, one per line of the console."""


class OverlappedWorker(Resident, Protocol):
    """The work of a stage that has several tasks under way."""

    @property
    def room(self) -> bool:
        """Whether it can begin another task."""

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""

    @property
    def patience_s(self) -> float:
        """Seconds that an answer may lie before it is looked for; 0 keeps a core busy looking."""

    def begin(self, task: Task[Any]) -> None:
        """Start a task; returns at once."""

    def finished(self) -> Sequence[Done[Any]]:
        """What has been finished since the last call; returns at once."""


def serve(pipe: Any, make_worker: Callable[[], Worker]) -> None:
    """The main function of a process with a Worker. Ends when asked to, or when the main process is gone."""
    _serve(pipe, make_worker, _one_at_a_time)


def serve_items(pipe: Any, make_worker: Callable[[], ItemWorker], place: Place) -> None:
    """The same for an ItemWorker, which is always found at its `place`."""
    _serve(pipe, make_worker, partial(_an_item_at_a_time, place=place))


def serve_overlapped(pipe: Any, make_worker: Callable[[], OverlappedWorker]) -> None:
    """The same for an OverlappedWorker."""
    _serve(pipe, make_worker, _several_at_a_time)


def serve_unasked(pipe: Any, make_worker: Callable[[], Giver]) -> None:
    """The same for a Giver. It ends with the main process even while it has nothing to send."""
    _serve(pipe, make_worker, _all_it_gives)


def _one_at_a_time(channel: Channel, worker: Worker) -> None:
    _each_task(channel, worker, worker.work)


def _an_item_at_a_time(channel: Channel, worker: ItemWorker, place: Place) -> None:
    def work(task: Task[Any]) -> Any:
        body = worker.work(task, partial(place.enter, task.ticket))
        place.leave()
        return body

    _each_task(channel, worker, work)


def _each_task(channel: Channel, worker: Resident, work: Callable[[Task[Any]], Any]) -> None:
    while not isinstance(task := channel.receive(), Stop):
        if isinstance(task, ReportTrace):
            channel.send(Traced(worker.tracer.to_records()))
            continue
        began = time.perf_counter()
        body = work(task)
        channel.send(Done(task.ticket, body, time.perf_counter() - began))


def _several_at_a_time(channel: Channel, worker: OverlappedWorker) -> None:
    """One thread does it all: nothing has to be locked, and no answer waits for a thread to wake up."""
    answered_s = 0.0
    while True:
        for done in worker.finished():
            channel.send(done)
            answered_s = time.perf_counter()
        if worker.idle:
            # Who answers short queries looks for the next one: it comes sooner than a process wakes up.
            alert = not worker.patience_s and time.perf_counter() < answered_s + ALERT_S
            if alert and not channel.pending():
                continue
        elif not worker.room:
            time.sleep(worker.patience_s)
            continue
        elif not channel.pending(worker.patience_s):
            continue
        task = channel.receive()
        if isinstance(task, Stop):
            return
        if isinstance(task, ReportTrace):
            channel.send(Traced(worker.tracer.to_records()))
        else:
            worker.begin(task)


def _all_it_gives(channel: Channel, worker: Giver) -> None:
    threading.Thread(target=_end_when_asked, args=(channel,), daemon=True).start()
    for number, some in enumerate(worker.give()):
        channel.send(Done(number, some, 0.0))


def _end_when_asked(channel: Channel) -> None:
    """Whatever the other threads do: they wait for a file system, perhaps, or until somebody takes what they send."""
    with contextlib.suppress(ChannelClosed):
        channel.receive()
    os._exit(0)


def _serve(pipe: Any, make_worker: Callable[[], W], loop: Callable[[Channel, W], None]) -> None:
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(pipe, sends=FROM_WORKER, receives=TO_WORKER)
    worker: W | None = None
    try:
        worker = make_worker()
        notices = worker.notices() if isinstance(worker, Noticing) else ()
        spare()
        channel.send(Ready(worker.note(), worker.rates(), notices))
        loop(channel, worker)
    except ChannelClosed:
        pass
    except (PipelineError, Int4CoreError) as error:
        # Raised on purpose, with the remedy: where it was raised is of no use to anyone.
        with contextlib.suppress(ChannelClosed):
            first, *others = error.lines
            channel.send(Crashed(first, "\n".join(others)))
        sys.exit(1)
    except BaseException as error:
        with contextlib.suppress(ChannelClosed):
            short = shortage(error)
            channel.send(Crashed(short or f"{type(error).__name__}: {error}", "" if short else traceback.format_exc()))
        sys.exit(1)
    finally:
        if worker is not None:
            worker.close()

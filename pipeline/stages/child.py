"""A worker as the main process sees it: its process, its channel, the tasks it has, and how it ended."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import psutil

from pipeline.errors import shortage
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import FROM_WORKER, TO_WORKER, Channel, Rates, Task
from pipeline.stages.place import At, Place
from pipeline.stages.worker import GROUP_SIGNALS
from pipeline.telemetry.trace import Records

# How long an ending process may take before it is killed, and a killed one before it is left to the system.
GRACE_S = 2.0


@dataclass
class Child:
    """One worker. `place` is there when it says which item it is on; `heard_s` and `moved_s` are of its stage's clock.

    Attributes:
        given: samples that it, or a worker in its place before it, has done or has.
        heard_s: when it last sent a message, or was given a task with nothing else to do.
        seen_at, moved_s: where it was found last, and when it was first found there.
    """

    process: SpawnProcess
    pid: int
    channel: Channel
    number: int
    place: Place | None
    heard_s: float
    ready: bool = False
    note: str = ""
    notices: tuple[str, ...] = ()
    rates: Rates = field(default_factory=Rates)
    given: int = 0
    tasks: dict[int, Task[Any]] = field(default_factory=dict)
    trace: Records | None = None
    seen_at: At | None = None
    moved_s: float = 0.0

    @classmethod
    def spawn(
        cls,
        context: SpawnContext,
        serve: Callable[..., None],
        make_worker: Callable[[], Any],
        *,
        name: str,
        number: int,
        has_place: bool = False,
        now_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> Child:
        """Start a process that runs `serve(pipe, make_worker)`. Raises StageFailure where the system refuses.

        `timeout_s` bounds the wait for the rest of a message that has begun, in either direction. It is born with
        signals to the group blocked: one that comes while it is still importing stays with us.
        """
        with ExitStack() as always, ExitStack() as failed:
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
            always.callback(signal.pthread_sigmask, signal.SIG_SETMASK, masked)
            try:
                place = Place(context) if has_place else None
                ours, theirs = context.Pipe()
                always.callback(theirs.close)
                failed.callback(ours.close)
                process = context.Process(
                    target=serve if place is None else partial(serve, place=place),
                    args=(theirs, make_worker),
                    name=f"{name}-{number}",
                    daemon=True,
                )
                process.start()
            except OSError as error:
                why = shortage(error) or error.strerror or error
                raise StageFailure(name, f"worker {number} cannot be started: {why}") from error
            failed.pop_all()
        channel = Channel(ours, sends=TO_WORKER, receives=FROM_WORKER, timeout_s=timeout_s)
        return cls(process, process.pid or 0, channel, number, place, heard_s=now_s)

    @property
    def label(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    def look(self, now_s: float) -> At | None:
        """Where the worker is, taking note of when it came there."""
        at = None if self.place is None else self.place.read()
        if at != self.seen_at:
            self.seen_at, self.moved_s = at, now_s
        return at

    def kill(self) -> None:
        """End the process, whatever it is doing. One that waits in the system is gone as soon as it comes out."""
        self.send_kill()
        self.process.join(GRACE_S)

    def send_kill(self) -> None:
        """Kill the process and what it has started (a library may have had a program run), without waiting for it."""
        started: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def ending(self) -> str:
        """How the process ended, as in `worker 3 <ending>`."""
        exitcode = self.process.exitcode
        if exitcode is None:
            return "closed its channel"
        if exitcode < 0:
            name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else str(-exitcode)
            hint = "; the system may have run out of memory" if -exitcode == signal.SIGKILL else ""
            return f"was killed by {name}{hint}"
        return f"ended with exit status {exitcode}"

    def close(self) -> None:
        """Give back what the main process holds of a worker that is gone."""
        self.channel.close()
        with contextlib.suppress(ValueError):  # it still waits in the system
            self.process.close()

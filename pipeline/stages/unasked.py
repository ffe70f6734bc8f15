"""A process beside the stages, with a single task: what it gives is taken by whoever waits for it."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any

from pipeline.stages.base import StageFailure
from pipeline.stages.channels import ChannelClosed, Crashed, Ready
from pipeline.stages.child import GRACE_S, Child
from pipeline.stages.worker import Giver, serve_unasked


class Unasked:
    """A worker of `serve_unasked`, from its spawn until it is closed. What it gives waits in its pipe, and so does it.

    Args:
        name: of the stage that it is, for its failures.
        make_worker: picklable.
        remedy: what to do when it is lost.
        number: which of several it is.
    """

    def __init__(self, name: str, make_worker: Callable[[], Giver], *, remedy: str, number: int = 0) -> None:
        """Raises StageFailure where the system refuses."""
        # Starting its tracker, which a first spawn does, would unblock SIGINT again.
        resource_tracker.ensure_running()
        self._name = name
        self._remedy = remedy
        context = multiprocessing.get_context("spawn")
        self._child = Child.spawn(context, serve_unasked, make_worker, name=name, number=number)
        self._taking, self._closing = threading.Lock(), threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int:
        return self._child.pid

    def take(self) -> Any:
        """The next that it gives; waits for it. Raises StageFailure when there will be none."""
        with self._taking:
            try:
                if self._closed:
                    raise ChannelClosed
                while isinstance(message := self._child.channel.receive(), Ready):
                    continue
            except ChannelClosed:
                # Still with the lock: what is asked of its process may not be given back meanwhile.
                raise self._lost() from None
        if isinstance(message, Crashed):
            raise StageFailure(self._name, f"{self._child.label} failed: {message.message}", message.traceback)
        return message.body

    def close(self) -> None:
        """End the process, whatever it is doing, and whoever waits for it. Safe to call twice, from any thread."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._child.kill()
            # Whoever has it finds the end of the pipe, but where the process still waits in the system.
            if self._taking.acquire(timeout=GRACE_S):
                self._child.close()
                self._taking.release()

    def _lost(self) -> StageFailure:
        if self._closed:
            return StageFailure(self._name, "stopped")
        self._child.process.join(GRACE_S)
        return StageFailure(self._name, f"{self._child.label} {self._child.ending()}; {self._remedy}")

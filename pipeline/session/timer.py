"""A thread that wakes whoever holds samples back, when it is time to send them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pipeline.stages.base import StageFailure

# How long a wake-up that is under way may take to end.
GRACE_S = 2.0


class Timer:
    """Calls `wake` at the earliest time that was asked for; one thread for the whole run.

    What `wake` raises is given to `on_failure`, and ends the thread.
    """

    def __init__(self, wake: Callable[[], None], on_failure: Callable[[StageFailure], None]) -> None:
        self._wake = wake
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._due: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="batch-timer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Safe to call twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(GRACE_S)

    def wake_in(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        with self._changed:
            if self._due is None or due < self._due:
                self._due = due
                self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait():
                self._wake()
        except BaseException as error:
            self._on_failure(StageFailure.of("batch-timer", "its thread", error))

    def _wait(self) -> bool:
        """Whether the time has come; else it is the end."""
        with self._changed:
            while not self._stopping and (self._due is None or self._due > time.monotonic()):
                self._changed.wait(None if self._due is None else max(0.0, self._due - time.monotonic()))
            self._due = None
            return not self._stopping

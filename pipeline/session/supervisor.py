"""The main thread's part of a run: wait for its end, a failure or a signal, whichever comes first.

All that takes time runs in a job thread. The main thread creates what has to be given back (arena,
stages), waits here, and gives it back: a signal can then arrive at any moment without being able to
interrupt a clean-up or to fall between making a thing and remembering it. A second signal is another matter: it ends
the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from pipeline.errors import PipelineError

T = TypeVar("T")

POLL_S = 0.1
SETTLE_S = 5.0
_SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))


class Interrupted(PipelineError):
    """The run was asked to end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Supervisor:
    """Runs one job and remembers the first thing that went wrong.

    Attributes:
        abandon: what a second signal calls before it ends the process, where there is something to leave behind.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._signal: int | None = None
        self._thread: threading.Thread | None = None
        self._job_is_over = True
        self.abandon: Callable[[], None] | None = None

    def fail(self, error: BaseException) -> None:
        """End the run because of `error`; the first one counts. From any thread."""
        with self._lock:
            if self._error is None:
                self._error = error
        self._ended.set()

    @property
    def job_is_stuck(self) -> bool:
        """Whether the job still runs: inside LoadGen, say, which cannot be made to give up."""
        return not self._job_is_over

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within it, SIGINT, SIGTERM and SIGHUP end the run instead of the process.

        A signal that was ignored before (by nohup, or by a shell that starts a job in the background) stays so.
        """
        # The handler only takes a note: it may run between any two bytecodes of this very thread, where
        # a lock it wanted could already be held.
        heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted when a signal has come: for the main thread, between steps of its own."""
        if self._signal is not None:
            raise Interrupted(self._signal)

    def watch(self, job: Callable[[], T]) -> T:
        """Run `job` in a thread until it ends; returns what it does.

        Raises what `fail` was given, what the job raised, or Interrupted.
        """
        results: list[T] = []

        def body() -> None:
            # The job is over before anyone hears of it, and its thread a moment after: that is no job that is stuck.
            try:
                result = job()
            except BaseException as error:
                self._job_is_over = True
                self.fail(error)
            else:
                self._job_is_over = True
                results.append(result)
            self._ended.set()

        self._ended.clear()
        self._job_is_over = False
        self._thread = threading.Thread(target=body, name="job", daemon=True)
        self._thread.start()
        while not results and self._error is None:
            self._ended.wait(POLL_S)
            self.check()
        if self._error is not None:
            raise self._error
        self._thread.join()
        return results[0]

    def settle(self, seconds: float = SETTLE_S) -> None:
        """Wait for the job's thread, from which something has been taken away, to find out and end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = number
            return
        with suppress(OSError):
            below = b"\x1b[?25h\n" if os.isatty(2) else b""  # the live view hides the cursor, in its last line
            os.write(2, below + b"stopped at once by a second signal\n")
        if self.abandon is not None:
            self.abandon()
        os._exit(128 + number)

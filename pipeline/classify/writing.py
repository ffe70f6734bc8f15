"""The thread that writes answers down, beside the one that takes them: a disk that is slow holds up neither."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from pipeline.session.answers import Answers

# Answers are written so many at a time, or when the oldest has waited so long.
ROWS_AT_A_TIME = 4096
ROWS_WAIT_S = 1.0

# Answers that wait, at most: a second of a fast GPU's, which is what a part of a table takes to be written.
MOST_WAITING = 1 << 17


class Writing:
    """Writes answers in the order they are put, from `with` to its end.

    Args:
        write: takes answers that are together; called by one thread, also without any when ROWS_WAIT_S have passed.
        top: of the session's answers.
    """

    def __init__(self, write: Callable[[Answers], None], top: int) -> None:
        self._write = write
        self._top = top
        self._changed = threading.Condition()
        self._waiting: list[Answers] = []
        self._rows = 0
        self._ending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rows", daemon=True)

    def put(self, answers: Answers) -> None:
        """Have answers written; waits while too many wait already. Raises what the writing has raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows < MOST_WAITING or self._error is not None)
            self._raise_error()
            if len(answers):
                self._waiting.append(answers)
                self._rows += len(answers)
                if self._rows >= ROWS_AT_A_TIME:
                    self._changed.notify_all()

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever has ended the run, what is answered is answered: it is written before this returns."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()
        if error is None:
            self._raise_error()

    def _run(self) -> None:
        try:
            due_s = time.monotonic() + ROWS_WAIT_S
            while not self._ending or self._waiting:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._ending or self._rows >= ROWS_AT_A_TIME, max(0.0, due_s - time.monotonic())
                    )
                    # Taken first: what cannot be written is not to be written again at the end.
                    answers, self._waiting = self._waiting, []
                due_s = time.monotonic() + ROWS_WAIT_S
                self._write(Answers.joined(answers, self._top))
                with self._changed:
                    self._rows -= sum(map(len, answers))
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

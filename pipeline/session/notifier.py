"""Futures are told by a thread of their own: what their callbacks wait for holds up nobody else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from pipeline.session.answers import Answer

# How long callbacks that are under way at the end may take.
GRACE_S = 2.0


class Notifier:
    """Tells futures what came of them, in the order that it is given, by a thread that the first of them starts.

    A callback may ask the session for more, and wait for room or for a lock that somebody has who asks, too.
    """

    def __init__(self) -> None:
        self._due: SimpleQueue[Sequence[tuple[Future[Answer], Answer | BaseException]] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def tell(self, what: Sequence[tuple[Future[Answer], Answer | BaseException]]) -> None:
        """Each future's answer, or what ended the session before there was one. Returns at once."""
        if not what:
            return
        self._due.put(what)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="futures", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """All that was given is told, or is so as soon as the callbacks before are over."""
        self._due.put(None)
        with self._starting:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(GRACE_S)

    def _run(self) -> None:
        while (what := self._due.get()) is not None:
            for future, came in what:
                if isinstance(came, BaseException):
                    future.set_exception(came)
                else:
                    future.set_result(came)

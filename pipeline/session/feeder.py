"""The thread that reads a caller's sources and hands them in as slots come free."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.session.inbox import Inbox
from pipeline.session.scheduler import Stream

# Sources that have been read and wait to be handed in.
INBOX = 512

if TYPE_CHECKING:
    from pipeline.session.loading import Loading, Located


class Feeder:
    """Feeds a stream from `with` to its end. A caller that leaves early ends it; what it had handed in is dropped.

    Attributes:
        done: whether the sources have come to their end, or have raised.
    """

    def __init__(self, loading: Loading, stream: Stream[Any], sources: Iterator[Sequence[Located]]) -> None:
        self._loading = loading
        self._stream = stream
        self._sources = sources
        self._inbox = Inbox()
        self._left = False
        self._error: BaseException | None = None
        self.done = False
        # A daemon: what it waits for inside the caller's iterator may never come.
        self._thread = threading.Thread(target=self._run, name="sources", daemon=True)

    def __enter__(self) -> Feeder:
        self._loading.connect(self._stream, self._inbox)  # here: a caller that leaves at once takes it away again
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self._loading.drop(self._stream)

    def raise_error(self) -> None:
        """Raise what the sources raised, if they did."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            try:
                self._read()
            except Exception as error:
                self._error = error
            # What came before an error is answered all the same.
            self._pour(leave=0)
        except BaseException as error:
            self._error = self._error or error
        finally:
            self.done = True
            self._loading.wake()

    def _read(self) -> None:
        """To the end of the sources, or until the caller has left."""
        most = min(INBOX, self._loading.core.slots)
        for some in self._sources:
            self._inbox.put(some)
            # To hand each in by itself costs more than to read it. Loaders that are busy come for it themselves.
            full = len(self._inbox) >= most
            if full or self._loading.hungry:
                self._pour(leave=most // 2 if full else most)
            if self._left:
                return

    def _pour(self, leave: int) -> None:
        self._loading.pour(self._stream, self._inbox, lambda: self._left, leave=leave)

"""The thread that reads a caller's sources and hands them in as slots come free."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.session.scheduler import Stream

if TYPE_CHECKING:
    from pipeline.session.loading import Loading, Located


class Feeder:
    """Feeds a stream from `with` to its end. A caller that leaves early ends it; what it had handed in is dropped.

    Attributes:
        done: whether the sources have come to their end, or have raised.
    """

    def __init__(self, loading: Loading, stream: Stream[Any], sources: Iterator[Located]) -> None:
        self._loading = loading
        self._stream = stream
        self._sources = sources
        self._left = False
        self._error: BaseException | None = None
        self.done = False
        # A daemon: what it waits for inside the caller's iterator may never come.
        self._thread = threading.Thread(target=self._run, name="sources", daemon=True)

    def __enter__(self) -> Feeder:
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
            for source in self._sources:
                if not self._loading.offer(self._stream, source, until=lambda: self._left):
                    return
        except BaseException as error:
            self._error = error
        finally:
            self.done = True
            self._loading.wake()

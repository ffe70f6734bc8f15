"""A session that lives as long as its actor, for calls from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from pipeline.memory.segment import sweep_stale
from pipeline.ray.actor import forget_main
from pipeline.samples.sources import Source
from pipeline.session.answers import Answers
from pipeline.session.session import Session
from pipeline.session.spec import SessionSpec
from pipeline.sinks.answers import rows_of
from pipeline.sinks.rows import Rows
from pipeline.stages.base import StageFailure

# How often the sources of one call are given to a session before what ends the sessions ends the actor's task.
ATTEMPTS = 3


class Work:
    """Answers calls side by side in one session; a session whose engine died is replaced, and its calls made again."""

    def __init__(self, spec: SessionSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._closed = False
        # What an actor that was killed here has left behind.
        sweep_stale()
        forget_main()
        self._session = self._start()

    def rows(self, sources: Callable[[], Iterable[Sequence[Source]]]) -> Rows:
        """The answers to what `sources` gives, some at a time, in its order.

        It is called again for a session that takes over. Sources are taken no further than the session has slots.
        Raises StageFailure when sessions keep ending.
        """
        for _ in range(ATTEMPTS - 1):
            session = self._session
            try:
                return self._ask(session, sources)
            except StageFailure:
                self._replace(session)
        return self._ask(self._session, sources)

    @property
    def session(self) -> Session:
        """The one there is at present."""
        return self._session

    def close(self) -> None:
        """Safe to call twice."""
        with self._lock:
            self._closed = True
            self._session.close()

    def _ask(self, session: Session, sources: Callable[[], Iterable[Sequence[Source]]]) -> Rows:
        answers = list(session.classify_in_batches(sources()))
        return rows_of(Answers.joined(answers, self._spec.top))

    def _replace(self, dead: Session) -> None:
        with self._lock:
            if self._session is dead and not self._closed:
                dead.close()
                self._session = self._start()

    def _start(self) -> Session:
        session = Session(self._spec)
        try:
            session.start()
        except BaseException:
            session.close()
            raise
        return session

"""The threads of an executor for CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


class Workers:
    """Threads that compute, in this process and in those that it forks: they get threads of their own when they ask.

    A forked process has the executor's books and none of its threads, and would wait for them without end.

    Args:
        count: how many.
        name: of the threads, with a number each.
        begin: what each of them does first.
    """

    def __init__(self, count: int, name: str, begin: Callable[[], None] | None = None) -> None:
        self._count, self._name, self._begin = count, name, begin
        self._pool, self._pid = self._threads(), os.getpid()

    def map(self, function: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
        return self._here().map(function, items)

    def submit(self, function: Callable[..., Made], *values: Any) -> Future[Made]:
        return self._here().submit(function, *values)

    def close(self) -> None:
        """Wait for the threads and let them go. May be called twice."""
        if self._pid == os.getpid():
            self._pool.shutdown()

    def _here(self) -> ThreadPoolExecutor:
        if self._pid != os.getpid():
            self._pool, self._pid = self._threads(), os.getpid()
        return self._pool

    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, thread_name_prefix=self._name, initializer=self._begin)

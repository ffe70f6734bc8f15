"""Sources that are listed by a thread of its own, some way ahead of whoever takes them, and taken many together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from pipeline.samples.sources import SOME_S, Paths, Ranges, Sources

# Sources that wait to be taken, at most; and how many are taken together, if they come soon.
AHEAD = 8192
TOGETHER = 1024


class Ahead:
    """Iterates over `listed`, joined where that keeps them by columns; what it raises is raised at its place."""

    def __init__(self, listed: Iterator[Sources]) -> None:
        self._listed = listed
        self._changed = threading.Condition()
        self._parts: deque[Sources] = deque()
        self._count = 0
        self._over = False
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Sources]:
        # A daemon: what it waits for in a file system may never come.
        threading.Thread(target=self._list, name="list", daemon=True).start()
        while taken := self._take():
            yield from taken
        if self._error is not None:
            raise self._error

    def _list(self) -> None:
        try:
            for some in self._listed:
                with self._changed:
                    self._changed.wait_for(lambda: self._count < AHEAD)
                    self._parts.append(some)
                    self._count += len(some)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _take(self) -> list[Sources]:
        """The next that are there, joined as far as they are alike; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._parts or self._over)
            self._changed.wait_for(lambda: self._count >= TOGETHER or self._over, timeout=SOME_S)
            taken, count = [], 0
            while self._parts and count < TOGETHER:
                taken.append(self._parts.popleft())
                count += len(taken[-1])
            self._count -= count
            self._changed.notify_all()
        joined: list[list[Sources]] = []
        for part in taken:
            if joined and _alike(joined[-1][-1], part):
                joined[-1].append(part)
            else:
                joined.append([part])
        return [Sources.joined(parts) for parts in joined]


def _alike(one: Sources, other: Sources) -> bool:
    """Whether both have their locators by columns, and joined have so too."""
    before, after = one.locators, other.locators
    if isinstance(before, Ranges) and isinstance(after, Ranges):
        return before.path == after.path
    return isinstance(before, Paths) and isinstance(after, Paths)

"""What is listed by a thread of its own, some way ahead of whoever takes it, and taken many together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from pipeline.samples.expand import Part
from pipeline.samples.sources import SOME_S, Paths, Ranges, Sources

# Sources that wait to be taken, at most; and how many are taken together, if they come soon.
AHEAD = 8192
TOGETHER = 1024
# What a shard that is not opened counts for: enough of them wait to keep those busy who list them.
OF_A_SHARD = 128

P = TypeVar("P", bound=Part)


class Ahead(Generic[P]):
    """Iterates over `listed`, joined where that keeps sources by columns; what it raises is raised at its place.

    Args:
        most: sources that wait to be taken.
    """

    def __init__(self, listed: Iterator[P], most: int = AHEAD) -> None:
        self._listed = listed
        self._most = most
        self._changed = threading.Condition()
        self._parts: deque[P] = deque()
        self._count = 0
        self._over = False
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[P]:
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
                    self._changed.wait_for(lambda: self._count < self._most)
                    self._parts.append(some)
                    self._count += _weight(some)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _take(self) -> list[P]:
        """The next that are there, joined as far as they are alike; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._parts or self._over)
            self._changed.wait_for(lambda: self._count >= TOGETHER or self._over, timeout=SOME_S)
            taken: list[P] = []
            count = 0
            while self._parts and count < TOGETHER:
                taken.append(self._parts.popleft())
                count += _weight(taken[-1])
            self._count -= count
            self._changed.notify_all()
        joined: list[list[P]] = []
        for part in taken:
            if joined and _alike(joined[-1][-1], part):
                joined[-1].append(part)
            else:
                joined.append([part])
        return [
            parts[0] if len(parts) == 1 else cast(P, Sources.joined(cast(list[Sources], parts))) for parts in joined
        ]


def _weight(part: Part) -> int:
    return len(part) if isinstance(part, Sources) else OF_A_SHARD


def _alike(one: Part, other: Part) -> bool:
    """Whether both are sources that have their locators by columns, and joined have so too."""
    if not isinstance(one, Sources) or not isinstance(other, Sources):
        return False
    before, after = one.locators, other.locators
    if isinstance(before, Ranges) and isinstance(after, Ranges):
        return before.path == after.path
    return isinstance(before, Paths) and isinstance(after, Paths)

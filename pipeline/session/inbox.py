"""Sources that have been read and wait to be handed in, some at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any

from pipeline.samples.sources import Sources

# Fewer that come together are put together with those behind them, up to so many.
FEW = 64


class Inbox:
    """Filled by one thread, and emptied by others, one at a time.

    Attributes:
        leave: with so many or fewer in it, whoever fills it goes on.
        attended: whether whoever fills it waits until there is room, and hands in what is in it.
    """

    def __init__(self) -> None:
        self.leave = 0
        self.attended = False
        self._parts: deque[Sequence[Any]] = deque()
        # Each is written on one side alone.
        self._put = self._taken = 0

    def __len__(self) -> int:
        return self._put - self._taken

    def put(self, sources: Sequence[Any]) -> None:
        """Some more; nothing of it may be changed afterwards."""
        if len(sources):
            # Counted first: whoever finds them finds them counted.
            self._put += len(sources)
            self._parts.append(sources)

    def take(self, most: int) -> Sequence[Any]:
        """The first of what waits, at most so many; not all there are."""
        taken: list[Sequence[Any]] = []
        count = 0
        while self._parts and count < min(most, FEW):
            part = self._parts.popleft()
            room = most - count
            if len(part) > room:
                self._parts.appendleft(part[room:])
                part = part[:room]
            taken.append(part)
            count += len(part)
        self._taken += count
        return _joined(taken)


def _joined(parts: Sequence[Sequence[Any]]) -> Sequence[Any]:
    if len(parts) == 1:
        return parts[0]
    columns = [part for part in parts if isinstance(part, Sources)]
    return Sources.joined(columns) if columns and len(columns) == len(parts) else list(chain.from_iterable(parts))

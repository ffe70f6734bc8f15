"""Samples that have been asked for and not yet put into a batch, and the rule when a batch is cut from them.

Nothing is kept as Python objects: a long query stays the two arrays it came in, and short ones are packed together
as they come.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import Ids, Indices

# A query shorter than this is copied into a common buffer, where it costs 16 bytes per sample.
SHORT = 256


@dataclass(frozen=True)
class Batching:
    """When a batch is cut.

    Attributes:
        largest: samples of a full batch.
        hold_s: how long a sample may wait for a batch to fill up while the engine is at work; 0 never waits.
        busy_at: with so many batches under way the engine is at work. With 2, one is ready when the one before it ends.
    """

    largest: int
    hold_s: float = 0.0
    busy_at: int = 1

    def due(self, waiting: int, oldest_s: float, busy: bool) -> bool:
        """Whether to cut a batch now: it is full, its first sample has waited long enough, or the engine idles."""
        return waiting > 0 and (waiting >= self.largest or oldest_s >= self.hold_s or not busy)


class _Short:
    """Short queries, one behind another."""

    def __init__(self, since: float) -> None:
        self.ids = array("Q")
        self.indices = array("q")
        self.since = since


@dataclass
class _Long:
    """A query, or what is left of it."""

    ids: Ids
    indices: Indices
    since: float


class Waiting:
    """A queue of samples. Not thread-safe."""

    def __init__(self) -> None:
        self._parts: deque[_Short | _Long] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def since(self) -> float:
        """When the first sample came, as `put` was given it; a little early where several came close together.

        Raises IndexError when nothing waits.
        """
        return self._parts[0].since

    def put(self, ids: Ids, indices: Indices, now: float) -> None:
        """Append samples: LoadGen's ids (n,) and sample indices (n,)."""
        self._count += len(ids)
        if len(ids) >= SHORT:
            self._parts.append(_Long(ids, indices, now))
            return
        last = self._parts[-1] if self._parts else None
        if not isinstance(last, _Short) or len(last.ids) >= SHORT:
            last = _Short(now)
            self._parts.append(last)
        last.ids.frombytes(ids.tobytes())
        last.indices.frombytes(indices.tobytes())

    def take(self, count: int) -> tuple[Ids, Indices]:
        """Remove the first `count` samples, or all there are."""
        ids: list[Ids] = []
        indices: list[Indices] = []
        count = min(count, self._count)
        self._count -= count
        while count:
            part = self._parts.popleft()
            if isinstance(part, _Short):
                part = _Long(np.frombuffer(part.ids, np.uint64), np.frombuffer(part.indices, np.int64), part.since)
            ids.append(part.ids[:count])
            indices.append(part.indices[:count])
            if len(part.ids) > count:
                self._parts.appendleft(_Long(part.ids[count:], part.indices[count:], part.since))
            count -= len(ids[-1])
        if len(ids) == 1:
            return ids[0], indices[0]
        return np.concatenate(ids or [np.empty(0, np.uint64)]), np.concatenate(indices or [np.empty(0, np.int64)])

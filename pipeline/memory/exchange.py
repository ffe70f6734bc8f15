"""The exchange: shared memory where a batch's slots go to an engine and its answers come back.

It is a table of records. The main process takes a free record, writes the slots of a batch into it, and notifies an
engine its number; the engine writes the classes into the same record, and the best `top` classes with their scores
where they are asked for, and says the number back. So no array is ever pickled, and a GPU reads slots and writes
answers where they lie, by its own copies.

A record belongs to the batch it was taken for until `give` returns it; nothing else is written into it before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.arrays import Classes, Slots
from pipeline.memory.segment import Segment

Scores: TypeAlias = npt.NDArray[np.float32]

# Each part of a record begins on a cache line of its own: one side writes slots while the other writes classes.
_ALIGNMENT_WORDS = 16


@dataclass(frozen=True)
class ExchangeSpec:
    """All that another process needs to map the exchange: `records` batches of at most `batch_size` samples.

    A record is four parts, each of whole cache lines: slots, classes, and for `top` > 0 the ids of the best `top`
    classes of every sample and their scores.
    """

    path: str
    records: int
    batch_size: int
    top: int = 0

    @property
    def words(self) -> int:
        """32-bit words of the slots of a record, and of its classes."""
        return _aligned(self.batch_size)

    @property
    def top_words(self) -> int:
        """32-bit words of the ids of a record, and of its scores."""
        return _aligned(self.batch_size * self.top)

    @property
    def record_words(self) -> int:
        return 2 * (self.words + self.top_words)

    @property
    def total_bytes(self) -> int:
        return self.records * self.record_words * 4


def _aligned(words: int) -> int:
    return -(-words // _ALIGNMENT_WORDS) * _ALIGNMENT_WORDS


@dataclass(frozen=True, eq=False)
class _Parts:
    """The parts of all records, as views: slots and classes (records, batch_size), top (records, batch_size, top)."""

    slots: Slots
    classes: Classes
    ids: Classes
    scores: Scores

    @classmethod
    def of(cls, spec: ExchangeSpec, memory: npt.NDArray[np.uint8]) -> _Parts:
        words = memory.view(np.int32).reshape(spec.records, spec.record_words)
        bounds = np.cumsum((spec.words, spec.words, spec.top_words))
        slots, classes, ids, scores = np.split(words, bounds, axis=1)
        size, shape = spec.batch_size, (spec.records, spec.batch_size, spec.top)
        return cls(
            slots[:, :size],
            classes[:, :size],
            ids[:, : size * spec.top].reshape(shape),
            scores[:, : size * spec.top].view(np.float32).reshape(shape),
        )


class Exchange:
    """A mapped exchange. The process that creates it owns its life and hands out its records."""

    def __init__(self, spec: ExchangeSpec, segment: Segment) -> None:
        self.spec = spec
        self._segment = segment
        self._parts = _Parts.of(spec, segment.bytes)
        self._free = list(range(spec.records - 1, -1, -1))

    @classmethod
    def create(cls, records: int, batch_size: int, folder: Path | None = None, *, top: int = 0) -> Exchange:
        """Raises PipelineError when the folder has no room for it."""
        shape = ExchangeSpec("", records, batch_size, top)
        what = f"{records} batches under way"
        segment = Segment.create(shape.total_bytes, what, "choose a smaller --batch_size or --inflight", folder)
        return cls(replace(shape, path=segment.path), segment)

    @classmethod
    def attach(cls, spec: ExchangeSpec) -> Exchange:
        """Map the exchange of another process. Raises PipelineError when it is gone."""
        return cls(spec, Segment.attach(spec.path, spec.total_bytes))

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """All of it, uint8 (total_bytes,): for a device that maps it."""
        return self._segment.bytes

    @property
    def free(self) -> int:
        """Records that can be taken."""
        return len(self._free)

    def take(self, slots: Slots) -> int:
        """A free record, now holding `slots` (n,). Raises IndexError when none is free."""
        record = self._free.pop()
        self._parts.slots[record, : len(slots)] = slots
        return record

    def give(self, record: int) -> None:
        """Return a record. Raises ValueError when it is free already."""
        if record in self._free:
            raise ValueError(f"record {record} is free already")
        self._free.append(record)

    def slots(self, record: int, count: int) -> Slots:
        """The slots of a record, a view, int32 (count,)."""
        return self._parts.slots[record, :count]

    def classes(self, record: int, count: int) -> Classes:
        """The classes of a record, a writable view, int32 (count,)."""
        return self._parts.classes[record, :count]

    def top(self, record: int, count: int) -> tuple[Classes, Scores]:
        """The best classes of a record and their scores, writable views, int32 and float32 (count, top).

        The best comes first: it is what `classes` holds.
        """
        return self._parts.ids[record, :count], self._parts.scores[record, :count]

    def answers(self, record: int, count: int) -> tuple[npt.NDArray[Any], ...]:
        """All that an engine writes: the classes, and for `top` > 0 what `top` gives."""
        return self.classes(record, count), *(self.top(record, count) if self.spec.top else ())

    def close(self) -> None:
        """Unmap; the owner also removes the segment. Safe to call twice."""
        self._parts = _Parts.of(replace(self.spec, records=0), np.empty(0, np.uint8))
        self._segment.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

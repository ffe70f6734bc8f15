"""The exchange: shared memory where a batch's slots go to an engine and its classes come back.

It is a table of records. The main process takes a free record, writes the slots of a batch into it, and tells an
engine its number; the engine writes the classes into the same record and says the number back. So no array is ever
pickled, and a GPU reads slots and writes classes where they lie, by its own copies.

A record belongs to the batch it was taken for until `give` returns it; nothing else is written into it before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.memory.segment import Segment

Slots: TypeAlias = npt.NDArray[np.int32]
Classes: TypeAlias = npt.NDArray[np.int32]

# Each half of a record begins on a cache line of its own: one side writes slots while the other writes classes.
_ALIGNMENT_WORDS = 16


@dataclass(frozen=True)
class ExchangeSpec:
    """All that another process needs to map the exchange: `records` batches of at most `batch_size` samples."""

    path: str
    records: int
    batch_size: int

    @property
    def words(self) -> int:
        """int32 words of half a record."""
        return -(-self.batch_size // _ALIGNMENT_WORDS) * _ALIGNMENT_WORDS

    @property
    def total_bytes(self) -> int:
        return self.records * 2 * self.words * 4


class Exchange:
    """A mapped exchange. The process that creates it owns its life and hands out its records."""

    def __init__(self, spec: ExchangeSpec, segment: Segment) -> None:
        self.spec = spec
        self._segment = segment
        self._words = segment.bytes.view(np.int32).reshape(spec.records, 2, spec.words)
        self._free = list(range(spec.records - 1, -1, -1))

    @classmethod
    def create(cls, records: int, batch_size: int, folder: Path | None = None) -> Exchange:
        """Raises PipelineError when the folder has no room for it."""
        shape = ExchangeSpec("", records, batch_size)
        what = f"{records} batches under way"
        segment = Segment.create(shape.total_bytes, what, "choose a smaller --batch_size or --inflight", folder)
        return cls(ExchangeSpec(segment.path, records, batch_size), segment)

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
        self._words[record, 0, : len(slots)] = slots
        return record

    def give(self, record: int) -> None:
        """Return a record. Raises ValueError when it is free already."""
        if record in self._free:
            raise ValueError(f"record {record} is free already")
        self._free.append(record)

    def slots(self, record: int, count: int) -> Slots:
        """The slots of a record, a view, int32 (count,)."""
        return self._words[record, 0, :count]

    def classes(self, record: int, count: int) -> Classes:
        """The classes of a record, a writable view, int32 (count,)."""
        return self._words[record, 1, :count]

    def close(self) -> None:
        """Unmap; the owner also removes the segment. Safe to call twice."""
        self._words = np.empty((0, 2, 0), dtype=np.int32)
        self._segment.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

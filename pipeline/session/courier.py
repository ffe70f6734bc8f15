"""Bytes at hand on their way to a loader: through shared memory, not through a pipe.

They lie in the slot that their sample will fill, from its beginning on; a loader takes them out before it writes
there. Bytes that are more than a slot holds get a segment of their own for as long as the job lasts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.arrays import Slots
from pipeline.errors import PipelineError
from pipeline.memory.arena import Arena
from pipeline.memory.segment import Segment
from pipeline.samples.sources import BytesLocator, FailedLocator, Locators, Paths, Ranges
from pipeline.stages.load import Placed, SegmentLocator, SlotLocator


class Courier:
    """Places the bytes of jobs. Used with the session's lock held."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._segments: dict[int, list[Segment]] = {}

    def send(self, ticket: int, locators: Locators, slots: Slots) -> Sequence[Placed]:
        """The locators that the loader is given, with all bytes in place."""
        if isinstance(locators, Paths | Ranges):
            return locators
        return tuple(
            self._place(ticket, locator.data, slot) if isinstance(locator, BytesLocator) else locator
            for locator, slot in zip(locators, slots.tolist(), strict=True)
        )

    def done(self, ticket: int) -> None:
        """The job is over, or its loader is: its segments go."""
        for segment in self._segments.pop(ticket, ()):
            segment.close()

    def close(self) -> None:
        for ticket in list(self._segments):
            self.done(ticket)

    def _place(self, ticket: int, data: bytes, slot: int) -> Placed:
        raw, size = np.frombuffer(data, np.uint8), len(data)
        if size <= self._arena.spec.slot_bytes:
            self._arena.raw(slot)[:size] = raw
            return SlotLocator(size)
        try:
            segment = Segment.create(size, "the bytes of an image", "hand in fewer at a time, or paths")
        except PipelineError as error:
            return FailedLocator("bytes", str(error))  # this source's error, and nobody else's
        self._segments.setdefault(ticket, []).append(segment)
        segment.bytes[:size] = raw
        return SegmentLocator(segment.path, size)

"""How many sources there are, before all have been listed: counted, and reckoned where counting would be listing."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.samples.sources import Ranges, Sources


class Total(NamedTuple):
    """How many sources there are; `estimated`: reckoned, not counted."""

    sources: int
    estimated: bool = False


class Counted(NamedTuple):
    """What can be said without a look into shards: sources beside them, and the bytes that the shards have."""

    sources: int
    shard_bytes: int

    def total(self, density: Density) -> Total | None:
        """None as long as there are shards, and nothing is known of any."""
        if not self.shard_bytes:
            return Total(self.sources)
        sources, size = density.found
        if not sources:
            return None
        return Total(self.sources + round(self.shard_bytes * sources / size), estimated=True)


class Density:
    """Sources of shards that have been listed, and the bytes that they were found in.

    Attributes:
        found: both, replaced as one: whoever shows the total reads them while another thread adds.
    """

    def __init__(self) -> None:
        self.found = 0, 0
        self._path, self._end = "", 0

    def add(self, listed: Sources) -> None:
        """The next that have been listed, of a shard or not."""
        ranges = listed.locators
        if not isinstance(ranges, Ranges) or not len(ranges):
            return
        begin = self._end if ranges.path == self._path else 0
        self._path, self._end = ranges.path, int(ranges.places[-1].sum())
        sources, size = self.found
        self.found = sources + len(ranges), size + self._end - begin

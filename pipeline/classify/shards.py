"""Shards listed by processes side by side, and taken in their order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from int4core.cores import usable_cores
from pipeline.classify.ahead import Ahead
from pipeline.classify.listing import Listed, Listing
from pipeline.samples.expand import Shard
from pipeline.samples.left_out import LeftOut
from pipeline.stages.channels import Rates
from pipeline.stages.unasked import Unasked
from pipeline.telemetry.trace import Untraced

# One process beside every so many cores, so that loaders have the others; on fewer than two of these, none.
CORES_OF_A_LISTER = 4
MOST_LISTERS = 8
# Sources of one shard that wait to be taken: some 20 MB. All of most shards, or the next would not be listed beside it.
AHEAD_IN_A_SHARD = 1 << 17


def shard_listers() -> int:
    """Processes that list shards side by side on this machine; 0 where it has no cores for them."""
    listers = min(MOST_LISTERS, usable_cores() // CORES_OF_A_LISTER)
    return listers if listers > 1 else 0


class ShardListers:
    """Up to `most` processes, each started when there is a shard for it. They end with the process that starts them.

    One thread may begin shards while another takes them.

    Attributes:
        left_out: what was passed over in the shards that have been taken.
    """

    def __init__(self, listing: Listing, most: int, *, remedy: str) -> None:
        self.left_out = LeftOut()
        self._listing = listing
        self._most = most
        self._remedy = remedy
        self._listers: list[_ShardLister] = []
        self._begun = self._taken = 0

    def begin(self, shard: Shard) -> None:
        """Have `shard` listed. Raises StageFailure where the system refuses another process."""
        if len(self._listers) < self._most:
            # What is a child itself may have none, unless it says that it does not mind.
            multiprocessing.current_process().daemon = False
            self._listers.append(_ShardLister(self._listing, len(self._listers) + 1, self._remedy))
        self._listers[self._begun % self._most].begin(shard)
        self._begun += 1

    def take(self) -> Iterator[Listed]:
        """The sources of the shard that was begun before all others that are not taken. Raises StageFailure."""
        lister = self._listers[self._taken % self._most]
        self._taken += 1
        while not isinstance(some := lister.take(), LeftOut):
            yield some
        self.left_out.add(some)

    def close(self) -> None:
        for lister in self._listers:
            lister.close()


class _ShardLister:
    """One of the processes."""

    def __init__(self, listing: Listing, number: int, remedy: str) -> None:
        paths, self._paths = multiprocessing.get_context("spawn").Pipe(duplex=False)
        with paths:
            make = partial(ShardWorker, listing, paths)
            self._process = Unasked("list", make, remedy=remedy, number=number)
        self.take = self._process.take

    def begin(self, shard: Shard) -> None:
        with suppress(OSError):  # it is lost, as whoever takes from it is told
            self._paths.send(shard.path)

    def close(self) -> None:
        self._paths.close()
        self._process.close()


class ShardWorker:
    """Of each shard whose path comes, gives `Listed`s, and a `LeftOut` at the end."""

    tracer = Untraced()

    def __init__(self, listing: Listing, paths: Connection[str, str]) -> None:
        self._listing = listing
        self._paths = paths

    def note(self) -> str:
        return "lists shards"

    def rates(self) -> Rates:
        return Rates()

    def give(self) -> Iterator[Any]:
        with suppress(EOFError):
            while True:
                shard, left_out = Shard(self._paths.recv()), LeftOut()
                yield from map(Listed.of, Ahead(self._listing.shard(shard, left_out), AHEAD_IN_A_SHARD))
                yield left_out

    def close(self) -> None: ...

"""Sources as a dataset: listed in tasks, none of them in the driver, and what they have counted."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np

from pipeline.extras import require
from pipeline.ray.classifier import PLACE, SOURCES
from pipeline.samples.expand import expand_some, shard_some
from pipeline.samples.keys import KeySet, SortedKeys, digests, escape_all
from pipeline.samples.left_out import LeftOut
from pipeline.samples.sources import Sources

PART = "part"

# Sources of one part have places that follow each other, those of the next begin here: more than any part has.
PLACES_OF_A_PART = 10**12

LISTED_AT_A_TIME = 4096

# Sources that are one row of the dataset, at most: as rows of their own they cost as much as all the rest of their way.
SOURCES_OF_A_ROW = 256

# Of a core, what is set apart for a task that lists, reads or writes: they wait for files more than they compute.
TASK_CPUS = 0.05
LISTING_TASKS_OF_AN_ACTOR = 4
PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Listed:
    """What has been listed: of a part, or of all.

    Attributes:
        seen: sources.
        skipped: of those, the ones that were answered by an earlier run or named twice.
        files, folders: see `pipeline.samples.left_out.LeftOut`.
        ended: parts that have come to their end.
        actors: that classify and are up, or have been.
    """

    seen: int = 0
    skipped: int = 0
    files: Counter[str] = field(default_factory=Counter)
    folders: int = 0
    ended: int = 0
    actors: int = 0

    def __add__(self, other: Listed) -> Listed:
        return Listed(
            self.seen + other.seen,
            self.skipped + other.skipped,
            self.files + other.files,
            self.folders + other.folders,
            self.ended + other.ended,
        )

    @property
    def left_out(self) -> LeftOut:
        left_out = LeftOut()
        left_out.files, left_out.folders = self.files, self.folders
        return left_out


class Tally:
    """An actor that keeps what has been listed, and which actors are up. What is done again counts once."""

    def __init__(self) -> None:
        self._parts: dict[int, Listed] = {}
        self._engines: dict[str, list[dict[str, Any]]] = {}

    def started(self, actor: str, engines: list[dict[str, Any]]) -> None:
        """An actor is up, with what is to be said of its engines."""
        self._engines[actor] = engines

    def engines(self) -> list[dict[str, Any]]:
        return [engine for engines in self._engines.values() for engine in engines]

    def report(self, part: int, listed: Listed) -> None:
        self._parts[part] = listed

    def total(self) -> Listed:
        return replace(sum(self._parts.values(), Listed()), actors=len(self._engines))


@dataclass(frozen=True)
class Listing:
    """What every listing task is given.

    Attributes:
        column: of Parquet tables, the one with the images.
        part: (index, count) of `--shard`.
        done: a reference to the `SortedKeys` of the rows there are, None without any.
        apart: whether a path that is found is to be passed over: the run's own output.
        tally: the `Tally`.
        row: sources of a row, at most.
        stdin: references to the pieces of what standard input gave.
    """

    column: str | None
    part: tuple[int, int]
    done: Any
    apart: Callable[[str], bool]
    tally: Any
    row: int = SOURCES_OF_A_ROW
    stdin: tuple[Any, ...] = ()


def list_sources(table: Any, listing: Listing) -> Iterator[Any]:
    """The sources of the parts in `table` (PART, pickled numbers and arguments) as tables of PLACE and SOURCES."""
    ray = require("ray", "ray", "classification on Ray")
    arrow = require("pyarrow", "ray", "classification on Ray")
    done = SortedKeys.merged([]) if listing.done is None else ray.get(listing.done)
    for part in table[PART].to_pylist():
        number, arguments = pickle.loads(part)
        for place, sources in _part(number, arguments, listing, done):
            begins = range(0, len(sources), listing.row)
            rows = [pickle.dumps(sources[begin : begin + listing.row]) for begin in begins]
            yield arrow.table(
                {
                    PLACE: arrow.array([place + begin for begin in begins], arrow.int64()),
                    SOURCES: arrow.array(rows, arrow.binary()),
                }
            )


def _part(number: int, arguments: Sequence[str], listing: Listing, done: SortedKeys) -> Iterator[tuple[int, Sources]]:
    """What is left to do, some sources at a time with the place of the first; the tally counts all."""
    left_out, given, seen, skipped = LeftOut(), KeySet(), 0, 0
    stdin = io.BufferedReader(Pieces(listing.stdin)) if "-" in arguments else None
    found = expand_some(arguments, column=listing.column, left_out=left_out, stdin=stdin, apart=listing.apart)

    def listed(ended: int) -> Listed:
        return Listed(seen, skipped, Counter(left_out.files), left_out.folders, ended)

    for some in _together(shard_some(found, *listing.part)):
        keys = digests(escape_all(some.keys))
        new = ~done.hold(keys)
        new[new] = given.add_digests(keys[new])
        to_do = some if new.all() else some.take(np.flatnonzero(new).tolist())
        yield number * PLACES_OF_A_PART + seen - skipped, to_do
        seen += len(some)
        skipped += len(some) - len(to_do)
        listing.tally.report.remote(number, listed(0))
    # Waited for: the driver, which asks when all has ended, could be heard before it.
    require("ray", "ray", "classification on Ray").get(listing.tally.report.remote(number, listed(1)))


def _together(found: Iterable[Sources]) -> Iterator[Sources]:
    """The same, LISTED_AT_A_TIME or somewhat more at a time."""
    some: list[Sources] = []
    for sources in found:
        some.append(sources)
        if sum(map(len, some)) >= LISTED_AT_A_TIME:
            yield Sources.joined(some)
            some = []
    if some:
        yield Sources.joined(some)


class Pieces(io.RawIOBase):
    """A stream of bytes that are in the object store, a piece at a time."""

    def __init__(self, pieces: Sequence[Any]) -> None:
        self._pieces = iter(pieces)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(require("ray", "ray", "classification on Ray").get(piece))
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def put_pieces(ray: Any, stream: BinaryIO) -> tuple[Any, ...]:
    """References to what `stream` gives until its end, in pieces; one piece is in the driver's memory at a time."""
    return tuple(ray.put(piece) for piece in iter(lambda: stream.read(PIECE_BYTES), b""))


def sources_dataset(ray: Any, parts: Iterable[Sequence[str]], listing: Listing, *, rows: int, actors: int) -> Any:
    """A dataset of the sources that `parts` name, in blocks of about `rows` rows; nothing is listed yet.

    `actors` are to be kept busy.
    """
    items = [{PART: pickle.dumps(part)} for part in enumerate(parts)]
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            list_sources,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"listing": listing},
            num_cpus=TASK_CPUS,
            concurrency=LISTING_TASKS_OF_AN_ACTOR * actors,
        )
        .repartition(target_num_rows_per_block=rows)
    )

"""What is to be classified: a key that the user knows it by, and a locator that says where its bytes are.

Both are small and picklable. The main process makes them and sends them on; a loader resolves the locator
(`pipeline.samples.reader`). Wherever a path is due, an fsspec URL (`s3://bucket/cat.jpg`) is one too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PathLocator:
    """A file, whole."""

    path: str

    def __reduce__(self) -> tuple[type[PathLocator], tuple[str]]:
        return PathLocator, (self.path,)


@dataclass(frozen=True, slots=True)
class RangeLocator:
    """`length` bytes of a file from `offset` on: a member of a tar that is not compressed."""

    path: str
    offset: int
    length: int

    def __reduce__(self) -> tuple[type[RangeLocator], tuple[str, int, int]]:
        return RangeLocator, (self.path, self.offset, self.length)


@dataclass(frozen=True, slots=True)
class RowLocator:
    """A cell of a Parquet file: `row` counts from the start of its `row_group`.

    The cell holds an image's bytes, or its path, or a struct of both (`bytes`, `path`) as Hugging Face writes it.
    """

    path: str
    row_group: int
    row: int
    column: str

    def __reduce__(self) -> tuple[type[RowLocator], tuple[str, int, int, str]]:
        return RowLocator, (self.path, self.row_group, self.row, self.column)


@dataclass(frozen=True, slots=True)
class BytesLocator:
    """The image file's bytes themselves."""

    data: bytes

    def __reduce__(self) -> tuple[type[BytesLocator], tuple[bytes]]:
        return BytesLocator, (self.data,)


@dataclass(frozen=True, slots=True)
class FailedLocator:
    """Nowhere: what lies at `path` could not be listed, and `why`. Reading it is that error."""

    path: str
    why: str

    def __reduce__(self) -> tuple[type[FailedLocator], tuple[str, str]]:
        return FailedLocator, (self.path, self.why)


# Sources that are listed together, at most, and how long the first of them waits for the others, about.
SOME = 256
SOME_S = 0.02

Locator: TypeAlias = PathLocator | RangeLocator | RowLocator | BytesLocator | FailedLocator


@dataclass(frozen=True, slots=True)
class Source:
    """One image to classify.

    Attributes:
        key: its name, unique in a run: the path as it was given, `shard.tar/member` or `table.parquet#row`. What is
            not UTF-8 in a file's name is in it as `os.fsdecode` leaves it.
        locator: where its bytes are.
        label: its class, where the source itself says so (`.cls` in a shard).
    """

    key: str
    locator: Locator
    label: int | None = None

    def __reduce__(self) -> tuple[type[Source], tuple[str, Locator, int | None]]:
        return Source, (self.key, self.locator, self.label)


class Paths(Sequence[PathLocator]):
    """Locators of files, kept and sent as their paths alone."""

    __slots__ = ("paths",)

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __reduce__(self) -> tuple[type[Paths], tuple[list[str]]]:
        return Paths, (self.paths,)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[PathLocator]:
        return map(PathLocator, self.paths)

    @overload
    def __getitem__(self, at: int) -> PathLocator: ...
    @overload
    def __getitem__(self, at: slice) -> Paths: ...
    def __getitem__(self, at: int | slice) -> PathLocator | Paths:
        return Paths(self.paths[at]) if isinstance(at, slice) else PathLocator(self.paths[at])


class Ranges(Sequence[RangeLocator]):
    """Locators of parts of one file, kept and sent as their places alone: int64 (n, 2), offset and length."""

    __slots__ = ("path", "places")

    def __init__(self, path: str, places: npt.NDArray[np.int64]) -> None:
        self.path = path
        self.places = places

    def __reduce__(self) -> tuple[type[Ranges], tuple[str, npt.NDArray[np.int64]]]:
        return Ranges, (self.path, self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[RangeLocator]:
        return (RangeLocator(self.path, *place) for place in self.places.tolist())

    @overload
    def __getitem__(self, at: int) -> RangeLocator: ...
    @overload
    def __getitem__(self, at: slice) -> Ranges: ...
    def __getitem__(self, at: int | slice) -> RangeLocator | Ranges:
        if isinstance(at, slice):
            return Ranges(self.path, self.places[at])
        return RangeLocator(self.path, *self.places[at].tolist())


Locators: TypeAlias = Sequence[Locator]
"""Paths or Ranges, where all are alike; they are the ones that cost little to send."""


class Sources(Sequence[Source]):
    """Sources by columns: what many of them cost is then not the price of as many objects.

    Attributes:
        keys, locators: of n sources.
        labels: of as many; None where no source says its class.
    """

    __slots__ = ("keys", "labels", "locators")

    def __init__(self, keys: list[str], locators: Locators, labels: list[int | None] | None = None) -> None:
        if len(keys) != len(locators) or (labels is not None and len(keys) != len(labels)):
            raise ValueError(f"{len(keys)} keys, {len(locators)} locators")
        self.keys = keys
        self.locators = locators
        self.labels = labels

    def __reduce__(self) -> tuple[type[Sources], tuple[list[str], Locators, list[int | None] | None]]:
        return Sources, (self.keys, self.locators, self.labels)

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Sources:
        """The columns of `sources`."""
        some = list(sources)
        labels = [source.label for source in some]
        locators = [source.locator for source in some]
        keys = [source.key for source in some]
        return cls(keys, _columns(locators), None if labels.count(None) == len(labels) else labels)

    @classmethod
    def joined(cls, parts: Sequence[Sources]) -> Sources:
        """The sources of `parts`, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        labels: list[int | None] | None = None
        if any(part.labels is not None for part in parts):
            labels = list(chain.from_iterable(part.labels or [None] * len(part) for part in parts))
        keys = list(chain.from_iterable(part.keys for part in parts))
        return cls(keys, joined_locators([part.locators for part in parts]), labels)

    def labelled(self, labels: list[int | None]) -> Sources:
        """The same with other labels."""
        return Sources(self.keys, self.locators, None if labels.count(None) == len(labels) else labels)

    def take(self, places: Sequence[int]) -> Sources:
        """Those at `places`, in that order."""
        keys = [self.keys[at] for at in places]
        labels = None if self.labels is None else [self.labels[at] for at in places]
        if isinstance(self.locators, Paths):
            paths = self.locators.paths
            return Sources(keys, Paths([paths[at] for at in places]), labels)
        if isinstance(self.locators, Ranges):
            return Sources(keys, Ranges(self.locators.path, self.locators.places[list(places)]), labels)
        return Sources(keys, [self.locators[at] for at in places], labels)

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> Source: ...
    @overload
    def __getitem__(self, at: slice) -> Sources: ...
    def __getitem__(self, at: int | slice) -> Source | Sources:
        if isinstance(at, slice):
            return Sources(self.keys[at], self.locators[at], None if self.labels is None else self.labels[at])
        return Source(self.keys[at], self.locators[at], None if self.labels is None else self.labels[at])


def _columns(locators: list[Locator]) -> Locators:
    """The same, as Paths or Ranges where they are alike."""
    paths = [locator.path for locator in locators if type(locator) is PathLocator]
    if len(paths) == len(locators):
        return Paths(paths)
    ranges = [locator for locator in locators if type(locator) is RangeLocator]
    if len(ranges) == len(locators) and len({locator.path for locator in ranges}) == 1:
        places = [(locator.offset, locator.length) for locator in ranges]
        return Ranges(ranges[0].path, np.array(places, np.int64))
    return locators


def some_at_a_time(sources: Iterable[Source]) -> Iterator[Sources]:
    """`sources` as they come, up to SOME together, none kept for long."""
    some: list[Source] = []
    due_s = 0.0
    for source in sources:
        if not some:
            due_s = time.monotonic() + SOME_S
        some.append(source)
        if len(some) >= SOME or time.monotonic() >= due_s:
            yield Sources.of(some)
            some = []
    if some:
        yield Sources.of(some)


def joined_locators(parts: Sequence[Locators]) -> Locators:
    """The locators of `parts`, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Paths) for part in parts):
        return Paths(list(chain.from_iterable(part.paths for part in parts if isinstance(part, Paths))))
    ranges = [part for part in parts if isinstance(part, Ranges)]
    if len(ranges) == len(parts) and len({part.path for part in ranges}) == 1:
        return Ranges(ranges[0].path, np.concatenate([part.places for part in ranges]))
    return list(chain.from_iterable(parts))

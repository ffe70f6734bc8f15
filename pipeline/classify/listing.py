"""What a command line names, to be listed in whatever process."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.samples.expand import Part, Shard, expand_parts, expand_some, look_at, shard_some
from pipeline.samples.keys import KeySet, digests, escape_all
from pipeline.samples.left_out import LeftOut
from pipeline.samples.remote import is_url
from pipeline.samples.shards import shard_sources
from pipeline.samples.sources import Sources

# What is below these is another file in every process, or none.
OWN_FOLDERS = ("/dev/", "/proc/")


class Listed(NamedTuple):
    """Sources, some together.

    Attributes:
        digests: of the keys: S16 (n,).
        again: the places of those whose keys have come before.
    """

    sources: Sources
    digests: npt.NDArray[np.bytes_]
    again: tuple[int, ...] = ()

    @classmethod
    def of(cls, sources: Sources) -> Listed:
        """As if none had come before."""
        return cls(sources, digests(escape_all(sources.keys)))


def once_each(listed: Iterable[Listed]) -> Iterator[Listed]:
    """The same, with the places of the keys that have come before."""
    given = KeySet()
    for some in listed:
        new = given.add_digests(some.digests)
        if not all(new):
            some = some._replace(again=tuple(place for place, is_new in enumerate(new) if not is_new))
        yield some


def none_apart(path: str) -> bool:
    return False


@dataclass(frozen=True)
class Listing:
    """Sources of a command line; picklable.

    Attributes:
        arguments, column: see `pipeline.samples.expand.expand`.
        part: (index, count) of `--shard`.
        labels: whether those that shards bring are wanted.
        apart: whether a path that is found is to be passed over: the run's own output.
    """

    arguments: tuple[str, ...]
    column: str | None = None
    part: tuple[int, int] = (0, 1)
    labels: bool = False
    apart: Callable[[str], bool] = none_apart

    def begin(self, left_out: LeftOut) -> Iterator[Sources]:
        """Looks at the arguments; the sources, lazily, some at a time. Raises PipelineError (see `expand`)."""
        found = expand_some(
            self.arguments, column=self.column, left_out=left_out, shard_labels=self.labels, apart=self.apart
        )
        return shard_some(found, *self.part)

    def parts(self, left_out: LeftOut) -> Iterator[Part]:
        """The same, but that shards are for others to list (see `shard`)."""
        for part in expand_parts(self.arguments, column=self.column, left_out=left_out, apart=self.apart):
            if isinstance(part, Shard):
                yield part
            else:
                yield from shard_some(iter((part,)), *self.part)

    def shard(self, shard: Shard, left_out: LeftOut) -> Iterator[Sources]:
        """The sources of one of the shards that `parts` names, lazily."""
        return shard_some(shard_sources(shard.path, left_out, labels=self.labels), *self.part)

    def look(self) -> None:
        """Looks at the arguments alone. Raises what `begin` does."""
        look_at(self.arguments, column=self.column)

    @property
    def elsewhere(self) -> bool:
        """Whether another process can list them, and once more: what comes through a pipe is there once, and here."""
        return all(a != "-" and (not a.startswith("@") or _is_everyones(a[1:])) for a in self.arguments)


def _is_everyones(path: str) -> bool:
    """Whether another process finds the same at `path`, or that nothing is there."""
    if is_url(path):
        return True
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # who lists it finds out, and says why
        return not _is_own(path)
    while not _is_own(path) and os.path.islink(path):
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return regular and not _is_own(path)


def _is_own(path: str) -> bool:
    return os.path.abspath(path).startswith(OWN_FOLDERS)

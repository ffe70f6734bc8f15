"""The process that lists sources: the interpreter of the main process has the answers to see to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any, Protocol

from pipeline.classify.ahead import Ahead
from pipeline.classify.listing import Listed, Listing, once_each
from pipeline.classify.shards import ShardListers, shard_listers
from pipeline.errors import PipelineError
from pipeline.samples.expand import Part, Shard
from pipeline.samples.left_out import LeftOut
from pipeline.stages.channels import Rates
from pipeline.stages.unasked import Unasked
from pipeline.telemetry.trace import Untraced

REMEDY = "give the same command again: a run into a file or a folder goes on after the rows that are there"


class AnyLister(Protocol):
    """Lists what a `Listing` names, from `start` on; made once it has been looked at the arguments.

    Attributes:
        left_out: what was passed over, once all is listed.
    """

    left_out: LeftOut

    def start(self) -> None:
        """Raises StageFailure where the system refuses another process."""

    def __iter__(self) -> Iterator[Listed]:
        """The sources, lazily. Raises PipelineError."""

    def close(self) -> None:
        """Give everything back. Safe to call twice, from any thread."""


def lister(listing: Listing) -> AnyLister:
    """For a process of its own; for this one where no other can read what is named.

    Raises PipelineError when an argument is not there, or needs a library.
    """
    return Lister(listing, shard_listers()) if listing.elsewhere else ListedHere(listing)


class ListedHere:
    """Lists in the thread that iterates."""

    def __init__(self, listing: Listing) -> None:
        self.left_out = LeftOut()
        self._sources = listing.begin(self.left_out)

    def start(self) -> None: ...

    def __iter__(self) -> Iterator[Listed]:
        return once_each(map(Listed.of, self._sources))

    def close(self) -> None: ...


class Lister:
    """Lists in a process of its own, which has up to `beside` others list shards."""

    def __init__(self, listing: Listing, beside: int) -> None:
        self.left_out = LeftOut()
        self._listing = listing
        self._beside = beside
        self._process: Unasked | None = None
        # What is wrong with the arguments is said at once; the process looks at them again.
        listing.look()

    def start(self) -> None:
        self._process = Unasked("list", partial(ListingWorker, self._listing, self._beside), remedy=REMEDY)

    @property
    def pid(self) -> int | None:
        """None before it is started."""
        return None if self._process is None else self._process.pid

    def __iter__(self) -> Iterator[Listed]:
        assert self._process is not None, "it has been started"
        while not isinstance(some := self._process.take(), LeftOut):
            if isinstance(some, PipelineError):
                raise some
            yield some
        self.left_out = some
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()


class ListingWorker:
    """Gives `Listed`s, and a `LeftOut` at the end, or the PipelineError that prevents it.

    Args:
        beside: how many processes list shards side by side, at most; without any, this one does.
    """

    tracer = Untraced()

    def __init__(self, listing: Listing, beside: int) -> None:
        self._listing = listing
        self._beside = beside

    def note(self) -> str:
        return "lists sources"

    def rates(self) -> Rates:
        return Rates()

    def give(self) -> Iterator[Any]:
        left_out = LeftOut()
        try:
            yield from once_each(self._listed(left_out))
            yield left_out
        except PipelineError as error:
            yield PipelineError(str(error))

    def _listed(self, left_out: LeftOut) -> Iterator[Listed]:
        if not self._beside:
            yield from map(Listed.of, Ahead(self._listing.begin(left_out)))
            return
        with closing(ShardListers(self._listing, self._beside, remedy=REMEDY)) as shards:

            def parts() -> Iterator[Part]:
                for part in self._listing.parts(left_out):
                    if isinstance(part, Shard):
                        shards.begin(part)
                    yield part

            for part in Ahead(parts()):
                if isinstance(part, Shard):
                    yield from shards.take()
                else:
                    yield Listed.of(part)
            left_out.add(shards.left_out)

    def close(self) -> None: ...

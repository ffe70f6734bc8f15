"""What a sink is to the run that fills it, and what a file format is to a sink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.errors import PipelineError
from pipeline.samples.keys import KeySet
from pipeline.sinks.rows import Rows


class SinkError(PipelineError):
    """An output that cannot be begun, gone on with or written; the message has the file and the remedy."""


@dataclass(frozen=True)
class About:
    """What an output says of itself.

    Attributes:
        identity: what makes rows comparable (the model's hash, preprocessing, top-k, class names); an output with
            another identity is not gone on with.
        notes: what else is worth knowing (versions, GPU).
    """

    identity: Mapping[str, str]
    notes: Mapping[str, str]


class Sink(Protocol):
    """Where rows go; for one thread.

    A context manager: leaving it finishes the output, or keeps what there is when it is left by an exception.

    Attributes:
        complete: the output was finished before; nothing is left to do.
        done: keys of earlier runs into this output, not to be answered again; empty when it is complete.
        rows: how many rows were written, those of earlier runs included.
        errors: how many of them are errors.
    """

    complete: bool
    done: KeySet
    rows: int
    errors: int

    def __enter__(self) -> Sink: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None: ...

    def note(self, notes: Mapping[str, str]) -> None:
        """What else the output is to say of itself, now that it is known (the GPU, say)."""

    def write(self, rows: Rows) -> None:
        """Take `rows`. Raises SinkError."""

    def count(self, rows: int, errors: int, files: Iterable[Path] = ()) -> None:
        """So many rows, with so many errors among them, came to where they are (`files`) without `write`."""

    def tick(self) -> None:
        """To be called every second or so, when no rows come: what has waited long enough is made safe."""

    def leave(self) -> None:
        """The output is not to be finished when the context is left, but gone on with by a later run."""

    def earlier(self) -> Iterator[Rows]:
        """The rows of earlier runs into this output, some ten thousand at a time."""


class Format(Protocol):
    """A file format of tables: how a part is written, read and joined to others."""

    suffix: str
    tells: bool
    """Whether a file says itself what it is about."""

    def write(self, file: BinaryIO, rows: Rows, about: About) -> None:
        """A whole file of `rows`."""

    def keys(self, path: Path) -> Iterator[tuple[list[str], int]]:
        """The keys in the file at `path`, escaped, some ten thousand at a time, each with the number of errors."""

    def read(self, path: Path) -> Iterator[Rows]:
        """The rows in the file at `path`, some ten thousand at a time."""

    def join(self, parts: Sequence[Path], file: BinaryIO, about: About) -> None:
        """The rows of `parts` as one file, with a bounded part of them in memory."""

    def about(self, path: Path) -> About | None:
        """What the file at `path` says of itself; None when it says nothing, or is no file of this format."""

"""Answers to where they go: parts that tasks write, or lines that the driver does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from pipeline.extras import require
from pipeline.ray.classifier import PLACE
from pipeline.sinks.base import About, Format
from pipeline.sinks.parquet import ParquetFormat
from pipeline.sinks.parts import PartWriter
from pipeline.sinks.rows import Rows

Count: TypeAlias = Callable[[Rows], "tuple[int, ...]"]
"""What is counted of rows (right answers, say): numbers that add up."""

ROWS, ERRORS, COUNTS, FILES, TEXT = "rows", "errors", "counts", "files", "text"


@dataclass(frozen=True)
class Totals:
    """Rows, errors among them, and what else was counted of them."""

    rows: int = 0
    errors: int = 0
    counts: tuple[int, ...] = ()

    def __add__(self, other: Totals) -> Totals:
        counts = tuple(a + b for a, b in zip_longest(self.counts, other.counts, fillvalue=0))
        return Totals(self.rows + other.rows, self.errors + other.errors, counts)


class Receiver(Protocol):
    """Where a task puts rows; picklable."""

    def take(self, rows: Rows, place: int) -> tuple[str, bytes]:
        """Take `rows`, the first of which is at `place`; the file they are in, and what the driver is to write."""


@dataclass(frozen=True)
class ToParts:
    writer: PartWriter

    def take(self, rows: Rows, place: int) -> tuple[str, bytes]:
        return str(self.writer.write(place, rows)), b""


@dataclass(frozen=True)
class ToDriver:
    """Text on its way to the driver's standard output."""

    file_format: Format

    def take(self, rows: Rows, place: int) -> tuple[str, bytes]:
        file = io.BytesIO()
        self.file_format.write(file, rows, About({}, {}))
        return "", file.getvalue()


@dataclass(frozen=True)
class ToNowhere:
    def take(self, rows: Rows, place: int) -> tuple[str, bytes]:
        return "", b""


@dataclass(frozen=True)
class Delivered:
    """One table's rows, delivered.

    Attributes:
        files: the parts that they are in.
        text: what the driver is to write.
    """

    totals: Totals
    files: tuple[Path, ...]
    text: bytes


def deliver(table: Any, receiver: Receiver, count: Count | None) -> Any:
    """Give the answers in `table` to `receiver`, by their places, what follows each other there at a time.

    So files in the order of their first places have all rows in order, whoever came first.

    What the driver hears of it is a table of one row (`delivered` reads it).
    """
    arrow = require("pyarrow", "ray", "classification on Ray")
    file_format = ParquetFormat(None)
    totals, files, texts = Totals(), [], []
    for place, batch in _runs(table.combine_chunks().sort_by(PLACE)):
        rows = file_format.rows(batch)
        file, text = receiver.take(rows, place)
        files.append(file)
        texts.append(text)
        totals += Totals(len(rows), len(rows.errors), () if count is None else count(rows))
    said: dict[str, Any] = {
        ROWS: totals.rows,
        ERRORS: totals.errors,
        COUNTS: list(totals.counts),
        FILES: [file for file in files if file],
        TEXT: b"".join(texts),
    }
    types = (arrow.int64(), arrow.int64(), arrow.list_(arrow.int64()), arrow.list_(arrow.string()), arrow.binary())
    return arrow.table(
        {name: arrow.array([value], type) for (name, value), type in zip(said.items(), types, strict=True)}
    )


def delivered(table: Any) -> Iterator[Delivered]:
    """What `deliver` said."""
    for row in table.to_pylist():
        totals = Totals(row[ROWS], row[ERRORS], tuple(row[COUNTS]))
        yield Delivered(totals, tuple(map(Path, row[FILES])), row[TEXT])


def _runs(table: Any) -> Iterator[tuple[int, Any]]:
    """Rows whose places follow each other, and the place of the first."""
    places = table[PLACE].to_numpy()
    if not len(places):
        return
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)], strict=True):
        yield int(places[begin]), table.slice(begin, end - begin).combine_chunks().to_batches()[0]

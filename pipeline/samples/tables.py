"""Images in Parquet files: the cells of one column, read forwards without holding a row group in memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.errors import ImageError, PipelineError
from pipeline.extras import require
from pipeline.samples.remote import open_binary
from pipeline.samples.sources import RowLocator, Source

TABLE_SUFFIX = ".parquet"

# Rows decoded at a time, and bytes of a column chunk read at a time: what a cursor holds beyond one Parquet page.
ROWS_AT_A_TIME = 32
BUFFER_BYTES = 1 << 20


class Table:
    """A Parquet file, open: its footer is read, its rows are not.

    Raises ImageError when it cannot be opened or is no Parquet file, PipelineError without pyarrow.
    """

    def __init__(self, path: str) -> None:
        parquet = require("pyarrow.parquet", "data", f"{path}: a Parquet file")
        self.path = path
        self._file = open_binary(path)
        try:
            self._parquet = parquet.ParquetFile(self._file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except Exception as error:  # pyarrow's errors have no common type
            self._file.close()
            raise ImageError(path, f"not a Parquet file, or cut short: {_first_line(error)}") from error

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def schema(self) -> Any:
        """The Arrow schema."""
        return self._parquet.schema_arrow

    def row_groups(self) -> list[int]:
        """How many rows each row group has."""
        metadata = self._parquet.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def cells(self, row_group: int, column: str) -> Iterator[Any]:
        """The cells of `column` in `row_group`, as Arrow scalars, in order; a few pages are in memory at a time."""
        batches = self._parquet.iter_batches(
            ROWS_AT_A_TIME, row_groups=[row_group], columns=[column], use_threads=False
        )
        for batch in batches:
            yield from batch.column(0)

    def close(self) -> None:
        self._file.close()


class RowCursor:
    """The cells of one column of one row group. Rows asked for in order cost one pass over the row group."""

    def __init__(self, path: str, row_group: int, column: str) -> None:
        self._path = path
        self._row_group = row_group
        self._column = column
        self._table: Table | None = None
        self._cells: Iterator[Any] = iter(())
        self._next = 0
        self._failed: tuple[int, ImageError] | None = None

    def cell(self, row: int) -> Any:
        """The Arrow scalar in `row`. Raises ImageError; of a damaged row group all rows from the damage on have it."""
        if self._failed is not None and row >= self._failed[0]:
            raise self._failed[1]
        try:
            if self._table is None or row < self._next:
                self._rewind()
            found = None
            while self._next <= row:
                found = next(self._cells)
                self._next += 1
        except StopIteration:
            raise self._fail(ImageError(self._path, f"row group {self._row_group} ends before row {row}")) from None
        except ImageError as error:
            raise self._fail(error) from error
        except Exception as error:  # pyarrow's errors have no common type
            why = f"row group {self._row_group} cannot be read: {_first_line(error)}"
            raise self._fail(ImageError(self._path, why)) from error
        return found

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _rewind(self) -> None:
        self.close()
        self._table = Table(self._path)
        self._cells, self._next = self._table.cells(self._row_group, self._column), 0

    def _fail(self, error: ImageError) -> ImageError:
        """Rows before the damage stay readable: they are read anew from the start."""
        self._failed = (self._next, error)
        self.close()
        return error


class Columns(Protocol):
    """Anything that has an Arrow schema, and a name for its errors."""

    @property
    def path(self) -> str: ...

    @property
    def schema(self) -> Any: ...


class NoImageColumn(PipelineError):
    """A table without a column that may hold images."""


def image_column(table: Columns, column: str | None, *, paths: bool = True) -> str:
    """The column of `table` with the images: `column`, or else the one of bytes, or else (`paths`) the one of paths.

    Raises NoImageColumn, naming the columns there are, when there is none, and PipelineError when `column` holds
    something else or several may be meant.
    """
    kinds = {str(field.name): kind_of(field.type) for field in table.schema}
    names = Counter(str(field.name) for field in table.schema)
    if column is not None:
        if column not in kinds:
            raise NoImageColumn(f"{table.path}: no column {column}; its columns are {', '.join(kinds)}")
        _check_alone(table, names, column)
        if kinds[column] is None:
            holds = f"column {column} holds {table.schema.field(column).type}"
            raise PipelineError(f"{table.path}: {holds}; an image is bytes, a path, or a struct of both")
        return column
    for wanted in ("bytes", "path") if paths else ("bytes",):
        found = [name for name, kind in kinds.items() if kind == wanted]
        if len(found) == 1:
            _check_alone(table, names, found[0])
            return found[0]
        if found:
            raise PipelineError(f"{table.path}: images may be in {' or '.join(found)}; say which with --column")
    raise NoImageColumn(f"{table.path}: no column of bytes or of paths; its columns are {', '.join(kinds)}")


def _check_alone(table: Columns, names: Counter[str], column: str) -> None:
    """Raises PipelineError where several columns have this name: it does not say which is meant."""
    if names[column] > 1:
        raise PipelineError(f"{table.path}: {names[column]} columns are called {column}; give each a name of its own")


def image_in(cell: Any, place: str, column: str) -> bytes | str:
    """An image's bytes or its path, as the Arrow scalar `cell` of `column` holds it.

    Raises ImageError with `place` when it holds neither.
    """
    if not cell.is_valid:
        raise ImageError(place, f"nothing in column {column} of this row")
    if hasattr(cell, "keys"):  # a struct
        # As in `kind_of`: `bytes` beside a path may be how many there are.
        fields = {name: cell[name] for name in cell}
        fitting = [fields[name] for name in ("bytes", "path") if name in fields and kind_of(fields[name].type) == name]
        held = [field for field in fitting if field.is_valid]
        if not held:
            raise ImageError(place, f"column {column} has neither bytes nor a path in this row")
        cell = held[0]
    if hasattr(cell, "dictionary"):
        cell = cell.value
    if kind_of(cell.type) == "path":
        # Not as text: a file's name is bytes, and those of another one's are no reason to end.
        return os.fsdecode(cell.as_buffer().to_pybytes())
    value = cell.as_py()
    if isinstance(value, (bytes, str)):
        return value
    raise ImageError(place, f"column {column} holds {cell.type}, not bytes or a path")


def table_sources(table: Table, column: str) -> Iterator[Source]:
    """A source for every row, `table.parquet#0` on. Nothing but the footer is read."""
    number = 0
    for group, rows in enumerate(table.row_groups()):
        for row in range(rows):
            yield Source(f"{table.path}#{number}", RowLocator(table.path, group, row, column))
            number += 1


def kind_of(arrow_type: Any) -> str | None:
    """What a column of `arrow_type` may hold: `bytes`, `path` or neither."""
    types = require("pyarrow.types", "data", "a Parquet file")
    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if types.is_struct(arrow_type):
        fields = {arrow_type.field(n).name: arrow_type.field(n).type for n in range(arrow_type.num_fields)}
        return next((k for k in ("bytes", "path") if k in fields and kind_of(fields[k]) == k), None)
    if any(test(arrow_type) for test in (types.is_string, types.is_large_string, types.is_string_view)):
        return "path"
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return "bytes" if any(test(arrow_type) for test in binary) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

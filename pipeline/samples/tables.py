"""Images in Parquet files: the cells of one column, read forwards without holding a row group in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pipeline.errors import ImageError
from pipeline.extras import require
from pipeline.samples.files import why_not_opened
from pipeline.samples.remote import file_system, is_url, reason

# Rows decoded at a time, and bytes of a column chunk read at a time: what a cursor holds beyond one Parquet page.
ROWS_AT_A_TIME = 32
BUFFER_BYTES = 1 << 20


def open_binary(path: str) -> BinaryIO:
    """The regular file or URL at `path`, open for reading, seekable. Raises ImageError."""
    if is_url(path):
        files, name = file_system(path)
        try:
            return cast(BinaryIO, files.open(name, "rb"))
        except Exception as error:  # each protocol has errors of its own
            raise ImageError(path, reason(error)) from error
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(path, "not a regular file")
        return open(path, "rb")
    except OSError as error:
        raise ImageError(path, why_not_opened(error)) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(path, f"not a file name: {error}") from error


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

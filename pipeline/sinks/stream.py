"""Outputs that cannot be gone on with: lines to a stream, and none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.samples.keys import KeySet
from pipeline.sinks.base import About, Format, SinkError
from pipeline.sinks.rows import Rows


class NoSink:
    """Counts rows and throws them away; see `pipeline.sinks.base.Sink`."""

    def __init__(self) -> None:
        self.complete = False
        self.done = KeySet()
        self.rows = 0
        self.errors = 0

    def __enter__(self) -> NoSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None: ...

    def note(self, notes: Mapping[str, str]) -> None: ...

    def write(self, rows: Rows) -> None:
        self.count(len(rows), len(rows.errors))

    def count(self, rows: int, errors: int, files: Iterable[Path] = ()) -> None:
        self.rows += rows
        self.errors += errors

    def tick(self) -> None: ...

    def leave(self) -> None: ...

    def earlier(self) -> Iterator[Rows]:
        return iter(())


class StreamSink(NoSink):
    """Rows in `file_format` to `stream` as they come, flushed after each call; the stream is not closed."""

    def __init__(self, stream: BinaryIO, file_format: Format) -> None:
        super().__init__()
        self._stream = stream
        self.file_format = file_format

    def __enter__(self) -> StreamSink:
        return self

    def write(self, rows: Rows) -> None:
        with self._plainly():
            self.file_format.write(self._stream, rows, About({}, {}))
            self._stream.flush()
        self.count(len(rows), len(rows.errors))

    def write_text(self, text: bytes) -> None:
        """Take rows that are in the format already; they are counted apart (`count`)."""
        with self._plainly():
            self._stream.write(text)
            self._stream.flush()

    @staticmethod
    @contextmanager
    def _plainly() -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            raise SinkError("standard output: its reader has closed it") from error
        except OSError as error:
            raise SinkError(f"standard output: cannot be written ({error.strerror or error})") from error

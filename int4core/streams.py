"""Standard output and error of a command: any name can be printed, and output that is lost is an exit status."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

LOST = 1
"""The exit status of a command that did all it should and could not say so."""


class Stream(io.TextIOBase):
    """Writes to another text stream, which may be None (closed when the program started), and never raises.

    What its encoding lacks is written as an escape sequence. After the first error nothing more is written.

    Attributes:
        error: why the stream takes no more; `` while it does.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error = ""

    def write(self, text: str) -> int:
        if self._stream is None:
            self.error = "it is closed"
        elif not self.error:
            try:
                self._write(self._stream, text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and not self.error:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("closed")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError as error:
            stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))

    def _give_up(self, error: OSError | ValueError) -> None:
        self.error = str((isinstance(error, OSError) and error.strerror) or error)
        # What is still in the stream's buffer would fail again when the interpreter ends, with a traceback.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command on such streams; its exit status, or LOST, with a sentence, where its output was lost."""
    _plug()
    before = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        try:
            status = main() or 0
        except SystemExit as error:  # argparse's, after --help or a mistake
            if isinstance(error.code, str):
                raise
            status = error.code or 0
        out.flush()
        if out.error and not status:
            print(f"error: standard output cannot be written: {out.error}", file=err)
            status = LOST
        err.flush()
    finally:
        sys.stdout, sys.stderr = before
    return status


def _plug() -> None:
    """Open standard descriptors that are closed, or the next file that is opened gets their number and their output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)

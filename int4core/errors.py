"""Errors of the engine: every message names what is wrong, where, and the remedy."""

from __future__ import annotations

from pathlib import Path

SHOWN = 60
"""Most characters of a value that a message quotes."""


def shown(text: str) -> str:
    """`text` quoted, its control characters escaped, and cut to a length that suits a message."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def printable(text: object) -> str:
    """`text` as one line, with what a terminal would act on, or cannot encode, escaped as Python does."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def printed(error: Exception) -> str:
    """The message of an error as a terminal gets it: its own `lines`, in which all else is escaped."""
    lines: tuple[str, ...] = getattr(error, "lines", (str(error),))
    return "\n".join(map(printable, lines))


class Int4CoreError(Exception):
    """Base of every error the engine raises on purpose.

    Attributes:
        lines: the message as it is printed. A name in it may hold anything, newlines too: it is parted nowhere else.
    """

    @property
    def lines(self) -> tuple[str, ...]:
        return (str(self),)


class FileError(Int4CoreError):
    """Something wrong with a file that was given to the engine.

    Attributes:
        file: the file at fault.
        line: its line, counted from 1, or 0 when the file as a whole is at fault.
        why: what is wrong, and what would be right.
    """

    def __init__(self, file: str | Path, line: int, why: str) -> None:
        self.file = str(file)
        self.line = line
        self.why = why
        name = printable(self.file)
        where = f"{name}:{line}" if line else name
        super().__init__(f"{where}: {why}")


class ModelError(FileError):
    """A model directory that cannot be read, or a model that breaks the format's rules.

    For a model made in memory, `file` is the layer's name.
    """


class EngineError(Int4CoreError):
    """The engine cannot run as asked: wrong input, unknown backend, a GPU that is not there.

    Attributes:
        log: what a compiler said of it, in many lines.
    """

    def __init__(self, why: str, log: str = "") -> None:
        super().__init__(why, log)
        self.log = log.rstrip()

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        return (str(self.args[0]), *self.log.splitlines())

"""Errors of the application: one clear message each, naming the file or process and the remedy."""

from __future__ import annotations

import errno
from pathlib import Path

_SHORTAGES = {
    errno.EMFILE: "too many open files; see ulimit -n",
    errno.ENFILE: "too many open files in the whole system",
    errno.EAGAIN: "no more processes or threads can be started; see ulimit -u and -v, and docker run --pids-limit",
    errno.ENOMEM: "not enough memory; see ulimit -v and the container's limit",
}


class PipelineError(Exception):
    """A run that cannot start or go on; the command prints the message and exits non-zero.

    Attributes:
        lines: the message as it is printed. A name in it may hold anything, newlines too: it is parted nowhere else.
    """

    @property
    def lines(self) -> tuple[str, ...]:
        return (str(self),)


class ImageError(PipelineError):
    """An image or tensor file that cannot be turned into a sample.

    Attributes:
        path: the file.
        why: the reason, in plain words.
    """

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = str(path)
        self.why = why

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.path, self.why)


def shortage(error: BaseException) -> str | None:
    """What the system has run out of, and what to do, where that is all that `error` says; None for other errors."""
    if isinstance(error, MemoryError):
        return _SHORTAGES[errno.ENOMEM]
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return _SHORTAGES[errno.EAGAIN]
    return _SHORTAGES.get(error.errno or 0) if isinstance(error, OSError) else None

"""Reading files that a user names: regular ones only, and never more than is expected of them.

A pipe without a writer, or a dead device, would hold whoever opens it; /dev/zero never ends.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

PIECE = 1 << 20


class NotRegularError(OSError):
    """What is there is a pipe, a device, a socket or a folder; `strerror` says so."""

    def __init__(self) -> None:
        super().__init__(errno.EINVAL, "is not a regular file")


class TooLargeError(OSError):
    """There is more in the file than its reader takes; `strerror` says how much that is."""

    def __init__(self, limit: int) -> None:
        super().__init__(errno.EFBIG, f"is larger than {limit:,} bytes")


@contextmanager
def open_regular(path: str | os.PathLike[str], flags: int = 0) -> Iterator[tuple[int, os.stat_result]]:
    """The same descriptor as `regular_descriptor` gives, closed at the end, and what fstat says of it."""
    fd, info = regular_descriptor(path, flags)
    try:
        yield fd, info
    finally:
        os.close(fd)


def regular_descriptor(path: str | os.PathLike[str], flags: int = 0) -> tuple[int, os.stat_result]:
    """A file descriptor for reading, which the caller closes, and what fstat says of it; never waits.

    `flags` are added to those of os.open, such as O_NOFOLLOW. Raises OSError, NotRegularError among them, when it
    cannot be opened; ValueError for a path with a null character.
    """
    # Looked at before it is opened, because opening a pipe or a device can block or act.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotRegularError
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise NotRegularError
    except BaseException:
        os.close(fd)
        raise
    return fd, info


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """All of a file of at most `limit` bytes. Raises OSError, NotRegularError and TooLargeError among them."""
    with open_regular(path) as (fd, _), open(fd, "rb", closefd=False) as file:
        # Not by fstat's size: the files of /proc have none. In pieces: a read reserves all that it is asked for.
        data = bytearray()
        while len(data) <= limit and (piece := file.read(min(PIECE, limit + 1 - len(data)))):
            data += piece
    if len(data) > limit:
        raise TooLargeError(limit)
    return bytes(data)

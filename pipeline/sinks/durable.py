"""Files that are there whole or not at all, after a crash of the machine too."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.sinks.base import SinkError
from pipeline.words import counted


def write_durably(path: Path, fill: Callable[[BinaryIO], object], temporary: Path | None = None) -> None:
    """Make `path` with what `fill` writes: synced under a temporary name, renamed, the folder synced.

    Raises what `fill` and the system raise, and then
    leaves nothing behind; `path` is as it was.
    """
    temporary = temporary_of(path) if temporary is None else temporary
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """Where `path` is written before it is there; readers of folders pass over a name with a dot."""
    return path.with_name(f".{path.name}.tmp")


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, for good."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def plainly(path: Path, kept: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """What the system says against writing at `path`, as a SinkError; `kept`: the rows that are safe."""
    try:
        yield
    except OSError as error:
        raise SinkError(f"{path}: {_remedy(error, kept())}") from error


@contextmanager
def readably(path: Path) -> Iterator[None]:
    """Whatever a library says against an output's file at `path`, as a SinkError with the remedy."""
    try:
        yield
    except Exception as error:  # pyarrow's errors have no common type
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SinkError(f"{path}: cannot be read ({why}); remove it, and its rows are made anew") from error


def _remedy(error: OSError, rows: int) -> str:
    safe = f"{counted(rows, 'row')} {'is' if rows == 1 else 'are'} safe"
    resume = f"the same command goes on; {safe}" if rows else "give the same command again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.strerror}); make room, and {resume}"
    if error.errno == errno.EFBIG:
        return f"larger than a file may be here ({error.strerror}); raise the limit (ulimit -f), and {resume}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"may not be written ({error.strerror}); change that or give --out another place"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "there is a file where a folder is due; remove it or give --out another name"
    return f"cannot be written ({error.strerror or error}); fix that, and {resume}"

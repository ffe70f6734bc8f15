"""Opening a sample's file: whatever the system says against it becomes one ImageError with a plain reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from int4core.regular import NotRegularError, regular_descriptor
from pipeline.errors import ImageError

DEFAULT_MAX_BYTES = 512 * 2**20


@contextmanager
def open_sample(path: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> Iterator[BufferedReader]:
    """The file at `path`, open for reading.

    Raises ImageError when it cannot be opened, is no regular file, is empty, or is larger than `max_bytes`.
    """
    with open_file(path) as (descriptor, size):
        if size == 0:
            raise ImageError(path, "the file is empty")
        if size > max_bytes:
            raise ImageError(path, f"{size} bytes are more than --max-image-bytes {max_bytes}")
        with open(descriptor, "rb", closefd=False) as file:
            yield file


@contextmanager
def open_file(path: str | Path) -> Iterator[tuple[int, int]]:
    """A descriptor of the regular file at `path`, and its size. Raises ImageError when there is no such thing."""
    try:
        descriptor, found = regular_descriptor(path)
    except OSError as error:
        why = "it is a folder, not a file" if os.path.isdir(path) else why_not_opened(error)
        raise ImageError(path, why) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(path, f"not a file name: {error}") from error
    try:
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


def why_not_opened(error: OSError) -> str:
    """The reason in an OSError of `open`, in plain words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, IsADirectoryError):
        return "it is a folder, not a file"
    if isinstance(error, NotRegularError):
        return f"it {error.strerror}"
    return f"it cannot be opened: {error.strerror or error}"

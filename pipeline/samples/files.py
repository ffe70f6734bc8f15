"""Opening a sample's file: whatever the system says against it becomes one ImageError with a plain reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from pipeline.errors import ImageError


@contextmanager
def open_sample(path: str | Path) -> Iterator[BufferedReader]:
    """The file at `path`, open for reading. Raises ImageError when it cannot be opened or is empty."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only the opening is guarded here
    except OSError as error:
        raise ImageError(path, why_not_opened(error)) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(path, f"not a file name: {error}") from error
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ImageError(path, "the file is empty")
        yield file


def why_not_opened(error: OSError) -> str:
    """The reason in an OSError of `open`, in plain words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, IsADirectoryError):
        return "it is a folder, not a file"
    return f"it cannot be opened: {error.strerror or error}"

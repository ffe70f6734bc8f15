"""Errors of the application: one clear message each, naming the file or process and the mend."""

from __future__ import annotations

from pathlib import Path


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

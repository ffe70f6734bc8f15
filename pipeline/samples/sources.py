"""What is to be classified: a key that the user knows it by, and a locator that says where its bytes are.

Both are small and picklable. The main process makes them and sends them on; a loader resolves the locator
(`pipeline.samples.reader`). Wherever a path is due, an fsspec URL (`s3://bucket/cat.jpg`) is one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class PathLocator:
    """A file, whole."""

    path: str

    def __reduce__(self) -> tuple[type[PathLocator], tuple[str]]:
        return PathLocator, (self.path,)


@dataclass(frozen=True, slots=True)
class RangeLocator:
    """`length` bytes of a file from `offset` on: a member of a tar that is not compressed."""

    path: str
    offset: int
    length: int

    def __reduce__(self) -> tuple[type[RangeLocator], tuple[str, int, int]]:
        return RangeLocator, (self.path, self.offset, self.length)


@dataclass(frozen=True, slots=True)
class RowLocator:
    """A cell of a Parquet file: `row` counts from the start of its `row_group`.

    The cell holds an image's bytes, or its path, or a struct of both (`bytes`, `path`) as Hugging Face writes it.
    """

    path: str
    row_group: int
    row: int
    column: str

    def __reduce__(self) -> tuple[type[RowLocator], tuple[str, int, int, str]]:
        return RowLocator, (self.path, self.row_group, self.row, self.column)


@dataclass(frozen=True, slots=True)
class BytesLocator:
    """The image file's bytes themselves."""

    data: bytes

    def __reduce__(self) -> tuple[type[BytesLocator], tuple[bytes]]:
        return BytesLocator, (self.data,)


@dataclass(frozen=True, slots=True)
class FailedLocator:
    """Nowhere: what lies at `path` could not be listed, and `why`. Reading it is that error."""

    path: str
    why: str

    def __reduce__(self) -> tuple[type[FailedLocator], tuple[str, str]]:
        return FailedLocator, (self.path, self.why)


Locator: TypeAlias = PathLocator | RangeLocator | RowLocator | BytesLocator | FailedLocator


@dataclass(frozen=True, slots=True)
class Source:
    """One image to classify.

    Attributes:
        key: its name, unique in a run: the path as it was given, `shard.tar/member` or `table.parquet#row`. What is
            not UTF-8 in a file's name is in it as `os.fsdecode` leaves it.
        locator: where its bytes are.
        label: its class, where the source itself says so (`.cls` in a shard).
    """

    key: str
    locator: Locator
    label: int | None = None

    def __reduce__(self) -> tuple[type[Source], tuple[str, Locator, int | None]]:
        return Source, (self.key, self.locator, self.label)

"""The sample library: which file is sample 0, 1, 2, ..., and what its label is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"})
TENSOR_SUFFIX = ".npy"
# A map that lies in the folder itself is used unasked; the first of these that is there.
MAP_NAMES = ("map.txt", "val_map.txt")
NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class MapEntry:
    """One line of a map file: `name`, and `label` where the line has one."""

    line: int
    name: str
    label: int | None


@dataclass(frozen=True, eq=False)
class SampleLibrary:
    """Samples in order; a sample's index is its place here.

    Attributes:
        paths: their files.
        labels: their classes, int32 (n,), read-only; None when they are not known.
        kind: `images`, or `tensors` that were prepared before.
    """

    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int32] | None
    kind: Literal["images", "tensors"]

    def __post_init__(self) -> None:
        if not self.paths:
            raise PipelineError("a sample library needs at least one sample")
        if self.labels is not None:
            if self.labels.shape != (len(self.paths),) or self.labels.dtype != np.int32:
                raise ValueError(f"labels must be int32 ({len(self.paths)},)")
            self.labels.flags.writeable = False

    @classmethod
    def from_images(
        cls, folder: str | Path, map_file: str | Path | None = None, count: int | None = None
    ) -> SampleLibrary:
        """Images of `folder`, as `map_file` (or the folder's own map.txt or val_map.txt) lists them.

        With no map: every image of the folder, by name, without labels. `count` keeps the first so many.
        Raises PipelineError.
        """
        folder = Path(folder)
        return _build(folder, map_file, count, "images", lambda name: (folder / name,))

    @classmethod
    def from_tensors(
        cls, folder: str | Path, map_file: str | Path | None = None, count: int | None = None
    ) -> SampleLibrary:
        """Tensors of `folder`, listed as in `from_images`; an image's name in a map stands for its tensor.

        The tensor of `cat.JPEG` is `cat.npy`, or else `cat.JPEG.npy`, or else `cat.JPEG` itself.
        Raises PipelineError.
        """
        folder = Path(folder)

        def candidates(name: str) -> tuple[Path, ...]:
            path = folder / name
            return path.with_suffix(TENSOR_SUFFIX), folder / f"{name}{TENSOR_SUFFIX}", path

        return _build(folder, map_file, count, "tensors", candidates)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, keep_indices: Sequence[int] | npt.NDArray[np.int64]) -> SampleLibrary:
        """The samples at `keep_indices`, in that order. Raises PipelineError when there are none."""
        keep = np.asarray(keep_indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[keep]
        return SampleLibrary(tuple(self.paths[i] for i in keep.tolist()), labels, self.kind)


def read_map(path: Path) -> tuple[MapEntry, ...]:
    """The entries of a map file: on each line a name and, optionally, a label, with a tab or spaces between.

    A name may contain spaces when a tab follows it. Blank lines are passed over. Raises PipelineError with
    file and line for a line that is malformed, a name that leaves the folder, and a name that came before.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PipelineError(f"{path}: there is no such map file") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not a text file in UTF-8: {error}") from error
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: the map file cannot be read: {error}") from error
    entries: list[MapEntry] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        entry = _parse_line(f"{path}:{number}", number, line)
        first = line_of.setdefault(entry.name, number)
        if first != number:
            raise PipelineError(f"{path}:{number}: {entry.name} is on line {first} already")
        if entries and (entry.label is None) != (entries[0].label is None):
            has = "no label" if entry.label is None else "a label"
            raise PipelineError(f"{path}:{number}: {has}, unlike the lines before; give every line a label, or none")
        entries.append(entry)
    if not entries:
        raise PipelineError(f"{path}: the map file lists no samples")
    return tuple(entries)


def _parse_line(where: str, number: int, line: str) -> MapEntry:
    fields = [f.strip() for f in line.strip().split("\t")] if "\t" in line.strip() else line.split()
    if len(fields) > 2 or not fields[0]:
        raise PipelineError(f"{where}: {len(fields)} fields; a line is NAME, or NAME, a tab or spaces, LABEL")
    name = fields[0]
    # The name of a file below the folder, on any system: Windows takes a backslash and a drive for more.
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise PipelineError(f"{where}: {name!r} does not stay within the folder of the samples")
    if len(fields) == 1:
        return MapEntry(number, name, None)
    if not re.fullmatch("[0-9]{1,9}", fields[1]):
        raise PipelineError(f"{where}: label {fields[1]!r} is not a class number (0, 1, 2, ...)")
    return MapEntry(number, name, int(fields[1]))


def _build(
    folder: Path,
    map_file: str | Path | None,
    count: int | None,
    kind: Literal["images", "tensors"],
    candidates: Callable[[str], tuple[Path, ...]],
) -> SampleLibrary:
    """`candidates` gives the files that a name of the map may stand for; the first that is there is taken."""
    if count is not None and count < 1:
        raise PipelineError(f"{count} samples were asked for; it takes at least one")
    suffixes = IMAGE_SUFFIXES if kind == "images" else frozenset({TENSOR_SUFFIX})
    names = _names_in(folder)
    if map_file is None:
        map_file = next((folder / name for name in MAP_NAMES if name in names), None)
    if map_file is None:
        found = tuple(folder / name for name in names if Path(name).suffix.lower() in suffixes)
        if not found:
            raise PipelineError(f"{folder}: no {kind} here ({', '.join(sorted(suffixes))})")
        return SampleLibrary(_first(found, count, folder), None, kind)

    map_path = Path(map_file)
    entries = _first(read_map(map_path), count, map_path)
    chosen = [next((p for p in candidates(e.name) if os.path.isfile(p)), None) for e in entries]
    missing = [f"{e.name} (line {e.line})" for e, p in zip(entries, chosen, strict=True) if p is None]
    if missing:
        more = ", ..." if len(missing) > NAMED_IN_ERRORS else ""
        raise PipelineError(
            f"{map_path}: {len(missing)} of {len(entries)} {kind} are not in {folder}: "
            f"{', '.join(missing[:NAMED_IN_ERRORS])}{more}"
        )
    paths = tuple(p for p in chosen if p is not None)
    line_of: dict[Path, int] = {}
    for entry, path in zip(entries, paths, strict=True):
        first = line_of.setdefault(path, entry.line)
        if first != entry.line:
            raise PipelineError(f"{map_path}:{entry.line}: {entry.name} is {path}, as on line {first}")
    values = [e.label for e in entries if e.label is not None]
    return SampleLibrary(paths, np.array(values, dtype=np.int32) if values else None, kind)


def _names_in(folder: Path) -> list[str]:
    """The files of `folder`, hidden ones left out, by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(f.name for f in found if f.is_file() and not f.name.startswith("."))
    except FileNotFoundError as error:
        raise PipelineError(f"{folder}: there is no such folder") from error
    except NotADirectoryError as error:
        raise PipelineError(f"{folder}: a file, where a folder of samples is due") from error
    except OSError as error:
        raise PipelineError(f"{folder}: the folder cannot be read: {error.strerror or error}") from error


def _first(items: tuple[T, ...], count: int | None, where: Path) -> tuple[T, ...]:
    """The first `count` of `items`, or all. Raises PipelineError when there are fewer."""
    if count is not None and count > len(items):
        raise PipelineError(f"{where}: {count} samples were asked for; there are {len(items)}")
    return items[:count]

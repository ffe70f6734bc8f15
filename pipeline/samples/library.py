"""The sample library: which file is sample 0, 1, 2, ..., and what its label is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from int4core.regular import read_regular
from pipeline.errors import PipelineError
from pipeline.samples import listing
from pipeline.samples.left_out import LeftOut

T = TypeVar("T")
Kind: TypeAlias = Literal["images", "tensors"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"})
TENSOR_SUFFIX = ".npy"
# A map that lies in the folder itself is used unasked; the first of these that is there.
MAP_NAMES = ("map.txt", "val_map.txt")
NAMED_IN_ERRORS = 5
# Of a map file: ten million lines.
MAX_MAP_BYTES = 2**30
# Characters of a line: more than any path has.
MOST_LINE = 2**14


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
        names: what the map calls them, or else their names in the folder; their files' names if left out.
        notices: what the user should know of how they were found, a line each.
    """

    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int32] | None
    kind: Kind
    names: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.paths:
            raise PipelineError("a sample library needs at least one sample")
        if not self.names:
            object.__setattr__(self, "names", tuple(path.name for path in self.paths))
        if len(self.names) != len(self.paths):
            raise ValueError(f"{len(self.names)} names of {len(self.paths)} samples")
        if self.labels is not None:
            if self.labels.shape != (len(self.paths),) or self.labels.dtype != np.int32:
                raise ValueError(f"labels must be int32 ({len(self.paths)},)")
            self.labels.flags.writeable = False

    @classmethod
    def from_images(
        cls,
        folder: str | Path,
        map_file: str | Path | None = None,
        count: int | None = None,
        *,
        recursive: bool = False,
        classes: int | None = None,
    ) -> SampleLibrary:
        """Images of `folder`, as `map_file` (or the folder's own map.txt or val_map.txt) lists them.

        With no map, or `recursive`: every image of the folder (and of the folders in it), by name, without labels.
        `count` keeps the first so many. Labels must lie in 0..classes-1, if `classes` is given. Raises PipelineError.
        """
        folder = Path(folder)
        place = _Place(folder, "images", IMAGE_SUFFIXES, lambda name: (folder / name,))
        return _build(place, map_file, count, recursive, classes)

    @classmethod
    def from_tensors(
        cls,
        folder: str | Path,
        map_file: str | Path | None = None,
        count: int | None = None,
        *,
        recursive: bool = False,
        classes: int | None = None,
    ) -> SampleLibrary:
        """Tensors of `folder`, listed as in `from_images`; an image's name in a map stands for its tensor.

        The tensor of `cat.JPEG` is `cat.npy`, or else `cat.JPEG.npy`, or else `cat.JPEG` itself.
        Raises PipelineError.
        """
        folder = Path(folder)

        def candidates(name: str) -> tuple[Path, ...]:
            path = folder / name
            return path.with_suffix(TENSOR_SUFFIX), folder / f"{name}{TENSOR_SUFFIX}", path

        place = _Place(folder, "tensors", frozenset({TENSOR_SUFFIX}), candidates)
        return _build(place, map_file, count, recursive, classes)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, keep_indices: Sequence[int] | npt.NDArray[np.int64]) -> SampleLibrary:
        """The samples at `keep_indices`, in that order. Raises PipelineError when there are none."""
        keep = np.asarray(keep_indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[keep]
        paths, names = (tuple(of[i] for i in keep.tolist()) for of in (self.paths, self.names))
        return SampleLibrary(paths, labels, self.kind, names, self.notices)


def read_map(path: Path) -> tuple[MapEntry, ...]:
    """The entries of a map file: on each line a name and, optionally, a label, with a tab or spaces between.

    A name may contain spaces when a tab follows it. Blank lines are passed over. Raises PipelineError with
    file and line for a line that is malformed, a name that leaves the folder, and a name that came before.
    """
    try:
        text = read_regular(path, MAX_MAP_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise PipelineError(f"{path}: there is no such map file") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not a text file in UTF-8: {error}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise PipelineError(f"{path}: the map file cannot be read: {why}") from error
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
    if len(line) > MOST_LINE:  # what is no map would otherwise be shown in full
        raise PipelineError(f"{where}: {len(line):,} characters; a line is NAME, or NAME, a tab or spaces, LABEL")
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


@dataclass(frozen=True)
class _Place:
    """Where samples are looked for.

    Attributes:
        suffixes: endings of the files that are samples where no map names them.
        candidates: the files that a name of a map may stand for; the first that is there is taken.
    """

    folder: Path
    kind: Kind
    suffixes: frozenset[str]
    candidates: Callable[[str], tuple[Path, ...]]

    def is_sample(self, name: str) -> bool:
        return Path(name).suffix.lower() in self.suffixes

    def find(self, name: str) -> Path | None:
        """The file that a name of a map stands for; None where there is none."""
        return next((p for p in self.candidates(name) if os.path.isfile(p)), None)


def _build(
    place: _Place, map_file: str | Path | None, count: int | None, recursive: bool, classes: int | None
) -> SampleLibrary:
    if count is not None and count < 1:
        raise PipelineError(f"{count} samples were asked for; it takes at least one")
    left_out = LeftOut()
    files = _list(place.folder, recursive, left_out)
    notices: list[str] = []
    if map_file is not None:
        map_path = Path(map_file)
        notices.append(f"samples as {map_path} lists them")
        return _from_map(place, map_path, read_map(map_path), files, notices, count, classes)
    for name in MAP_NAMES:
        if name not in files:
            continue
        map_path = place.folder / name
        if recursive:
            notices.append(f"{map_path} is not used: --recursive takes all {place.kind} there are; -m names a map")
            break
        try:
            entries = read_map(map_path)
            meant = any(place.find(entry.name) is not None for entry in entries)
            why = f"none of its names is one of the {place.kind}"
        except PipelineError as error:
            if _names_samples(place, map_path):
                raise
            meant, why = False, str(error)
        if meant:
            notices.append(f"samples as {map_path} lists them, which was found there; -m names another map")
            return _from_map(place, map_path, entries, files, notices, count, classes)
        notices.append(f"{map_path} is not used, as it is no map: {why}")
    return _from_listing(place, files, left_out, notices, count)


def _names_samples(place: _Place, path: Path) -> bool:
    """Whether any line of a file begins with the name of a sample: a map with a mistake in it, then."""
    try:
        lines = read_regular(path, MAX_MAP_BYTES).decode("utf-8-sig", errors="replace").split("\n")
    except OSError:
        return False
    for line in lines:
        first = re.split("\t" if "\t" in line.strip() else r"\s+", line.strip())[0]
        if first and "\0" not in first and place.find(first) is not None:
            return True
    return False


def _from_listing(
    place: _Place, files: tuple[str, ...], left_out: LeftOut, notices: list[str], count: int | None
) -> SampleLibrary:
    found = []
    for name in files:
        if place.is_sample(name):
            found.append(name)
        else:
            left_out.file(name)
    ignored = left_out.line()
    if not found:
        suffixes = ", ".join(sorted(place.suffixes))
        raise PipelineError(f"{place.folder}: no {place.kind} here ({suffixes}){'; ' * bool(ignored)}{ignored}")
    if ignored:
        notices.append(f"{place.folder}: {ignored}")
    names = _first(tuple(found), count, place.folder)
    return SampleLibrary(tuple(place.folder / n for n in names), None, place.kind, names, tuple(notices))


def _from_map(
    place: _Place,
    map_path: Path,
    entries: tuple[MapEntry, ...],
    files: tuple[str, ...],
    notices: list[str],
    count: int | None,
    classes: int | None,
) -> SampleLibrary:
    if classes is not None:
        _check_labels(map_path, entries, classes)
    named = {entry.name for entry in entries}
    unlisted = sum(name not in named and place.is_sample(name) for name in files)
    entries = _first(entries, count, map_path)
    chosen = [place.find(e.name) for e in entries]
    missing = [f"{e.name} (line {e.line})" for e, p in zip(entries, chosen, strict=True) if p is None]
    if missing:
        more = ", ..." if len(missing) > NAMED_IN_ERRORS else ""
        raise PipelineError(
            f"{map_path}: {len(missing)} of {len(entries)} {place.kind} are not in {place.folder}: "
            f"{', '.join(missing[:NAMED_IN_ERRORS])}{more}"
        )
    paths = tuple(p for p in chosen if p is not None)
    line_of: dict[Path, int] = {}
    for entry, path in zip(entries, paths, strict=True):
        first = line_of.setdefault(path, entry.line)
        if first != entry.line:
            raise PipelineError(f"{map_path}:{entry.line}: {entry.name} is {path}, as on line {first}")
    if unlisted and place.kind == "images":  # a tensor's name is seldom the one in the map
        notices.append(f"{place.folder}: ignored {unlisted:,} image{'s' * (unlisted > 1)} that the map does not list")
    values = [e.label for e in entries if e.label is not None]
    labels = np.array(values, dtype=np.int32) if values else None
    return SampleLibrary(paths, labels, place.kind, tuple(e.name for e in entries), tuple(notices))


def _check_labels(path: Path, entries: tuple[MapEntry, ...], classes: int) -> None:
    """Raises PipelineError with the line of a label that is none of `classes` classes, counted from 0."""
    labelled = [(e.line, e.label) for e in entries if e.label is not None]
    wrong = next(((line, label) for line, label in labelled if label >= classes), None)
    if wrong is None:
        return
    from_1 = all(1 <= label <= classes for _, label in labelled)
    hint = "; all labels fit if they are counted from 1: subtract 1 from each" if from_1 else ""
    line, label = wrong
    raise PipelineError(f"{path}:{line}: label {label} is no class of the model, which are 0 to {classes - 1}{hint}")


def _list(folder: Path, recursive: bool, left_out: LeftOut) -> tuple[str, ...]:
    """The files in `folder`, and with `recursive` in the folders below, by their names relative to it, in order."""
    if not folder.exists():
        raise PipelineError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise PipelineError(f"{folder}: a file, where a folder of samples is due")
    names, prefix = [], os.path.join(folder, "")
    for entry in listing.walk(str(folder), left_out) if recursive else _files_in(str(folder), left_out):
        if entry.kind == "failed":
            raise PipelineError(f"{entry.path}: the folder cannot be read: {entry.why}")
        names.append(entry.path.removeprefix(prefix))
    return tuple(sorted(names))


def _files_in(folder: str, left_out: LeftOut) -> Iterator[listing.Entry]:
    """What `walk` gives, of one folder."""
    for entry in listing.entries(folder):
        if entry.kind == "failed":
            yield entry
        elif entry.name.startswith("."):
            left_out.hidden(folder=entry.kind == "folder")
        elif entry.kind == "file":
            yield entry
        elif entry.kind == "folder":
            left_out.folder()
        else:
            left_out.other(entry.kind)


def _first(items: tuple[T, ...], count: int | None, where: Path) -> tuple[T, ...]:
    """The first `count` of `items`, or all. Raises PipelineError when there are fewer."""
    if count is not None and count > len(items):
        raise PipelineError(f"{where}: {count} samples were asked for; there are {len(items)}")
    return items[:count]

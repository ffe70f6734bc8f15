"""The sample library: which files are the samples, in which order, and what they show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError

Labels: TypeAlias = npt.NDArray[np.int32]
Kind: TypeAlias = Literal["images", "tensors"]

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
MAP_NAMES = ("map.txt", "val_map.txt")
SHOWN = 5


@dataclass(frozen=True, eq=False)
class SampleLibrary:
    """Sample i is the file `paths[i]`; `labels` is int32 (n,), or None when they are not known."""

    paths: tuple[Path, ...]
    labels: Labels | None
    kind: Kind

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def from_images(
        cls, folder: Path, map_file: Path | None = None, count: int | None = None
    ) -> SampleLibrary:
        """The images that `map_file` names, in its order; without one, see `_build`."""
        return cls._build(folder, map_file, count, "images")

    @classmethod
    def from_tensors(
        cls, folder: Path, map_file: Path | None = None, count: int | None = None
    ) -> SampleLibrary:
        """The .npy files of the samples that `map_file` names: NAME.npy with or without NAME's suffix."""
        return cls._build(folder, map_file, count, "tensors")

    @classmethod
    def _build(cls, folder: Path, map_file: Path | None, count: int | None, kind: Kind) -> SampleLibrary:
        """Without a map: the folder's own map.txt or val_map.txt, else all its files by name, unlabelled.

        Raises PipelineError: no such folder or map, a malformed line, files that are not there.
        """
        if not folder.is_dir():
            raise PipelineError(f"{folder}: no such folder of {kind}")
        if map_file is None:
            map_file = next((folder / n for n in MAP_NAMES if (folder / n).is_file()), None)
        if map_file is None:
            suffixes = IMAGE_SUFFIXES if kind == "images" else {".npy"}
            paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file())
            if not paths:
                raise PipelineError(f"{folder}: no {kind} in it ({', '.join(sorted(suffixes))})")
            return cls(tuple(paths[:count]), None, kind)
        entries = list(_entries(map_file))[:count]
        if not entries:
            raise PipelineError(f"{map_file}: it names no file")
        paths = [_locate(folder, name, kind) for name, _ in entries]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise PipelineError(
                f"{map_file}: {len(missing)} of the {len(paths)} files it names are not in {folder}: "
                f"{_some(p.name for p in missing)}"
            )
        labels = [label for _, label in entries if label is not None]
        known = len(labels) == len(entries)
        return cls(tuple(paths), np.array(labels, dtype=np.int32) if known else None, kind)


def _entries(map_file: Path) -> Iterator[tuple[str, int | None]]:
    """(name, label or None) of each line of a map file."""
    try:
        lines = map_file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise PipelineError(f"{map_file}: no such map file; it has lines of `NAME LABEL`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{map_file}: cannot be read: {error}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, label = _split(line)
        if label is not None and not (label.isascii() and label.isdecimal() and len(label) < 10):
            raise PipelineError(f"{map_file}:{number}: {label!r} is no class number: `NAME LABEL`")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise PipelineError(f"{map_file}:{number}: {name!r} leaves the folder")
        if name in seen:
            raise PipelineError(f"{map_file}:{number}: {name} stands on line {seen[name]} already")
        seen[name] = number
        yield name, None if label is None else int(label)


def _split(line: str) -> tuple[str, str | None]:
    """Name and label. A tab ends a name; without one the last word of several is the label."""
    if "\t" in line:
        name, _, label = line.partition("\t")
        return name.strip(), label.strip() or None
    words = line.rsplit(maxsplit=1)
    return (words[0].strip(), words[1]) if len(words) == 2 else (words[0], None)


def _locate(folder: Path, name: str, kind: Kind) -> Path:
    path = folder / name
    if kind == "images" or path.suffix == ".npy":
        return path
    replaced = path.with_suffix(".npy")
    return replaced if replaced.is_file() else path.with_name(path.name + ".npy")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more

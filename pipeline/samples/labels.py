"""Labels of sources: by a map file, or by the folders that they lie in."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
from pipeline.samples.expand import spelled_out
from pipeline.samples.library import read_map
from pipeline.samples.listing import entries
from pipeline.words import counted

BY_FOLDER = "folders"
BY_SHARD = "cls"
NAMED_IN_ERRORS = 5


class Labels:
    """What is known of the classes of sources, by their keys.

    With a map, a source has the label of the longest end of its key that the map names: `val/a/cat.jpg`, or else
    `a/cat.jpg`, or else `cat.jpg`. With folders, that of the folder right below the folder that was named as a source;
    of a key that lies below none (a shard's, a list's), that of the folder its file lies in.
    """

    def __init__(self, names: Mapping[str, int], roots: Sequence[str] | None = None) -> None:
        self._labels = names
        self._roots = roots

    @classmethod
    def read(cls, how: str, sources: Sequence[str], class_names: Sequence[str] | None, classes: int) -> Labels:
        """Labels from the map file `how`, or for `how` "folders" from the folders below those among `sources`.

        Folders are numbered by `class_names` if all are named there (a space may be a `_`), and else by their order,
        which takes as many as there are `classes`. Raises PipelineError, also for a label that is no class.
        """
        return cls._by_folder(sources, class_names, classes) if how == BY_FOLDER else cls._by_map(Path(how), classes)

    def of(self, key: str) -> int | None:
        """The label of the source `key`, None when there is none."""
        return self._of_folder(key) if self._roots is not None else self._of_map(key)

    def _of_map(self, key: str) -> int | None:
        while True:
            label = self._labels.get(key)
            if label is not None:
                return label
            _, slash, key = key.partition("/")
            if not slash:
                return None

    def _of_folder(self, key: str) -> int | None:
        for root in self._roots or ():
            if key.startswith(root):
                return self._labels.get(key[len(root) :].partition("/")[0])
        return self._labels.get(key.rpartition("/")[0].rpartition("/")[2])

    @classmethod
    def _by_map(cls, path: Path, classes: int) -> Labels:
        labels = {}
        for entry in read_map(path):
            if entry.label is None:
                raise PipelineError(f"{path}:{entry.line}: no label; a line is NAME, a tab or spaces, LABEL")
            if entry.label >= classes:
                raise PipelineError(
                    f"{path}:{entry.line}: label {entry.label}; the model's classes are 0 to {classes - 1}"
                )
            labels[entry.name] = entry.label
        return cls(labels)

    @classmethod
    def _by_folder(cls, sources: Sequence[str], class_names: Sequence[str] | None, classes: int) -> Labels:
        roots, found = [], set()
        for source in chain.from_iterable(map(spelled_out, sources)):
            below = _folders_in(source)
            if below:
                roots.append(source if source.endswith("/") else f"{source}/")
                found |= below
        numbers = _numbers(class_names or ())
        if found <= numbers.keys() or not found:
            if not numbers:
                raise PipelineError(
                    "--labels folders: no source is a folder with folders of classes in it, and the classes have no "
                    "names; name such a folder, or give --classes"
                )
            return cls(numbers, roots)
        if len(found) != classes:
            unknown = sorted(found - numbers.keys())
            more = ", ..." if len(unknown) > NAMED_IN_ERRORS else ""
            raise PipelineError(
                f"--labels folders: {counted(len(found), 'folder')} where the model has {classes:,} classes, and no "
                f"class is called {', '.join(unknown[:NAMED_IN_ERRORS])}{more}; give --classes with the folders' "
                "names, or a map"
            )
        return cls({name: number for number, name in enumerate(sorted(found))}, roots)


class KeptLabels:
    """Labels that sources bring with them, to be asked for by key once all are there: 12 bytes each.

    Of two keys with the same hash of 64 bits one has the other's label: among 100 million keys that is one chance in
    3,000 that there are two such.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._labels = array("i")
        self._in_order: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, key: str, label: int) -> None:
        self._hashes.append(_hash(key))
        self._labels.append(label)
        self._in_order = None

    def of(self, keys: Sequence[str]) -> list[int | None]:
        """The label of each key, None of one that has none."""
        if not self._labels:
            return [None] * len(keys)
        if self._in_order is None:
            hashes = np.array(self._hashes, np.uint64)
            order = np.argsort(hashes, kind="stable")
            self._in_order = hashes[order], np.array(self._labels, np.int32)[order]
        hashes, labels = self._in_order
        asked = np.array([_hash(key) for key in keys], np.uint64)
        place = np.minimum(np.searchsorted(hashes, asked), len(hashes) - 1)
        known = (hashes[place] == asked).tolist()
        return [label if is_known else None for label, is_known in zip(labels[place].tolist(), known, strict=True)]


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _folders_in(source: str) -> set[str]:
    """The folders right below the folder `source`; none when it is something else."""
    if source == "-" or source.startswith("@") or source.lower().endswith((".tar", ".parquet")):
        return set()
    return {entry.name for entry in entries(source) if entry.kind == "folder" and not entry.name.startswith(".")}


def _numbers(class_names: Sequence[str]) -> dict[str, int]:
    """Classes by their names, as these are and as folders are called; a name of several classes names none."""
    numbers: dict[str, int] = {}
    count = Counter(class_names)
    for number, name in enumerate(class_names):
        if count[name] == 1:
            numbers[name] = numbers[name.replace(" ", "_")] = number
    return numbers

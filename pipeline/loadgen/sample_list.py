"""The list of a run's samples, written beside its logs: which file LoadGen's `qsl_idx` 0, 1, 2, ... stood for.

Files that were left out have no number, so that the place in a map says nothing of a log. A table with tabs between,
as the csv module's `excel-tab` reads and writes it: the number, the name in the map or folder, the path, the label.
"""

from __future__ import annotations

import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from int4core.atomic import write_atomically
from int4core.regular import read_regular
from pipeline.errors import PipelineError
from pipeline.samples.library import SampleLibrary

COLUMNS = ["number", "name", "path", "label"]
STEM, ENDING = "samples", ".tsv"
MAX_BYTES = 2**31


@dataclass(frozen=True, eq=False)
class SampleList:
    """The samples of one run in the order of their numbers.

    Attributes:
        path: the file it was read from.
        names: what the map calls them, or their names in the folder.
        labels: int32 (n,), or None where the run knew none.
    """

    path: str
    names: tuple[str, ...]
    labels: npt.NDArray[np.int32] | None


def sample_list_name(prefix: str, suffix: str) -> str:
    """Its file's name among logs that LoadGen calls `prefix`accuracy`suffix`.json, and so on."""
    return f"{prefix}{STEM}{suffix}{ENDING}"


def find_sample_list(log: Path) -> Path | None:
    """The list that lies beside `log`, an accuracy log whose name may have date and time in it; None without one."""
    try:
        lists = [p for p in log.parent.iterdir() if p.name.endswith(ENDING) and STEM in p.name]
    except OSError:
        return None
    fitting = []
    for path in lists:
        prefix, _, suffix = path.name.removesuffix(ENDING).rpartition(STEM)
        if re.fullmatch(f"{re.escape(prefix)}.*accuracy{re.escape(suffix)}[.]json", log.name):
            fitting.append((len(prefix) + len(suffix), path))
    return max(fitting, default=(0, None))[1]


def write_sample_list(path: Path, library: SampleLibrary) -> None:
    """Write the list of a run on all of `library`, whole or not at all. Raises PipelineError."""
    text = io.StringIO()
    table = csv.writer(text, dialect="excel-tab")
    table.writerow(COLUMNS)
    labels = [""] * len(library) if library.labels is None else library.labels.tolist()
    for number, (name, file, label) in enumerate(zip(library.names, library.paths, labels, strict=True)):
        table.writerow([number, name, file, label])
    try:
        write_atomically(path, os.fsencode(text.getvalue()))
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written: {error.strerror}") from error


def read_sample_list(path: Path) -> SampleList:
    """Raises PipelineError, with the line, for a file that is no such list."""
    try:
        text = os.fsdecode(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    names: list[str] = []
    labels: list[int] = []
    table = csv.reader(io.StringIO(text, newline=""), dialect="excel-tab", strict=True)
    try:
        if next(table, None) != COLUMNS:
            raise PipelineError(f"{path}:1: not a list of samples: its columns are {', '.join(COLUMNS)}")
        for row in table:
            if len(row) != len(COLUMNS) or row[0] != str(len(names)) or not re.fullmatch("[0-9]{0,9}", row[3]):
                raise PipelineError(f"{path}:{table.line_num}: not sample {len(names)}: {row}"[:200])
            names.append(row[1])
            labels += [int(row[3])] if row[3] else []
    except csv.Error as error:
        raise PipelineError(f"{path}:{table.line_num}: not a list of samples: {error}") from error
    if labels and len(labels) != len(names):
        raise PipelineError(f"{path}: {len(names) - len(labels)} samples have no label, and others have")
    return SampleList(str(path), tuple(names), np.array(labels, dtype=np.int32) if labels else None)

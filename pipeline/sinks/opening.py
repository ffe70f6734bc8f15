"""From `--out` to a sink: its ending says which."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.sinks.base import About, Sink, SinkError
from pipeline.sinks.parquet import ParquetFormat
from pipeline.sinks.parts import ROWS_PER_PART, SECONDS_PER_PART, PartsSink
from pipeline.sinks.stream import NoSink, StreamSink
from pipeline.sinks.text import CsvFormat, JsonlFormat

STDOUT, NOWHERE = "-", "none"

# What a run writes beside its table, in files and in a folder.
BESIDE, PARTS = (".lock", ".about.json", ".parts"), ".parts"

FORMATS: dict[str, Callable[[Sequence[str] | None], Any]] = {
    ".parquet": ParquetFormat,
    ".csv": CsvFormat,
    ".jsonl": JsonlFormat,
}


def open_sink(
    out: str,
    *,
    identity: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    rows_per_part: int = ROWS_PER_PART,
    seconds_per_part: float = SECONDS_PER_PART,
    clock: Callable[[], float] = time.monotonic,
    stdout: BinaryIO | None = None,
    read_keys: bool = True,
) -> Sink:
    """The sink for `out`.

    That is a `.parquet`, `.csv` or `.jsonl` file, a folder (it ends in `/` or is there) of Parquet parts, `-` for JSON
    lines on `stdout`, or `none`.

    `identity` is what makes rows comparable: the model's hash, preprocessing, top-k, class names (a hash of long ones
    will do). `notes` is what else the output's metadata says. `class_names` are by class. `read_keys`: see `PartsSink`.

    Raises SinkError when the output is not to be gone on with or cannot be written, PipelineError without pyarrow.
    """
    if out == NOWHERE:
        return NoSink()
    if out == STDOUT:
        return StreamSink(stdout if stdout is not None else _standard_output(), JsonlFormat(class_names))
    about = About(identity, notes or {})
    limits: dict[str, Any] = {
        "rows_per_part": rows_per_part, "seconds_per_part": seconds_per_part, "clock": clock,
        "read_keys": read_keys,
    }  # fmt: skip
    ending = os.path.splitext(out)[1].lower()
    if out.endswith("/") or (Path(out).is_dir() and ending not in FORMATS):
        return PartsSink(out, ParquetFormat(class_names), about, folder=True, **limits)
    if ending not in FORMATS:
        endings = ", ".join(FORMATS)
        raise SinkError(
            f"--out {out}: its ending says the format ({endings}); a folder ends in /, - is standard output"
        )
    return PartsSink(out, FORMATS[ending](class_names), about, **limits)


@dataclass(frozen=True)
class Belongs:
    """Whether a path is that of an output, called with it. Picklable: sources are listed by other processes.

    Attributes:
        files, folders: what belongs to the output, by its real path; folders end in a slash.
    """

    files: frozenset[str]
    folders: tuple[str, ...]

    def __call__(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real in self.files or real.startswith(self.folders)


def belongs_to(out: str, *others: Path | None) -> Belongs:
    """Whether a path is that of the output `out`, of what is written beside it, or of one of `others`."""
    files = {os.path.realpath(path) for path in others if path is not None}
    folders: tuple[str, ...] = ()
    if out not in (STDOUT, NOWHERE):
        place = os.path.realpath(out)
        files |= {place, *(f"{place}{ending}" for ending in BESIDE)}
        folders = (f"{place}/", f"{place}{PARTS}/")
    return Belongs(frozenset(files), folders)


def _standard_output() -> BinaryIO:
    """Standard output for bytes, whatever stands in for `sys.stdout`."""
    try:
        return open(sys.stdout.fileno(), "wb", closefd=False)
    except OSError as error:
        raise SinkError(f"--out {STDOUT}: standard output cannot be written ({error.strerror or error})") from error

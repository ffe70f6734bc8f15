"""Compare two sets of predictions sample by sample, or one with the labels of a map file.

    python -m tools.compare_log A B [-m MAP]

A and B are mlperf_log_accuracy.json files; either may be a map file (lines of `file label`).
Ends with 0 when two logs agree on every sample (or one was compared with labels), 1 when they differ,
2 when something cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.errors import printable, printed
from int4core.streams import run_command
from pipeline.errors import PipelineError
from pipeline.loadgen.results import (
    NOT_PREDICTED,
    AccuracyLog,
    accuracy,
    describe,
    read_accuracy_log,
    read_labels,
)

Int32Array: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Side:
    """One file of the comparison: classes (n,), NOT_PREDICTED where it has none for a sample."""

    name: str
    classes: Int32Array


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.compare_log", description=__doc__.partition("\n")[0])
    parser.add_argument("a", type=Path, metavar="A", help="mlperf_log_accuracy.json or map file")
    parser.add_argument("b", type=Path, metavar="B", help="mlperf_log_accuracy.json or map file")
    parser.add_argument("-m", "--mapPath", dest="map_path", type=Path, metavar="MAP", help="map with labels")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="differing samples to list")
    args = parser.parse_args(argv)
    try:
        return compare(args.a, args.b, args.map_path, args.show)
    except PipelineError as error:
        print(f"compare_log: {printed(error)}", file=sys.stderr)
        return 2


def compare(a: Path, b: Path, map_path: Path | None, show: int) -> int:
    """Print the comparison; returns the exit status. Raises PipelineError."""
    sources = [_read(a), _read(b)]
    logs = [s for s in sources if isinstance(s, AccuracyLog)]
    tables = [s for s in sources if not isinstance(s, AccuracyLog)]
    if len(tables) == 2:
        raise PipelineError(f"{a} and {b}: both are map files; one of them has to be an accuracy log")
    if tables and map_path is not None:
        raise PipelineError(f"{b if logs[0] is sources[0] else a}: already a map file; leave out -m")
    labels = tables[0] if tables else None if map_path is None else read_labels(map_path)
    if labels is not None:
        count = len(labels)
    else:
        count = 1 + max((int(log.indices.max()) for log in logs if len(log.indices)), default=-1)
    if count == 0:
        raise PipelineError(f"{a}: no predictions; is it the log of an accuracy run?")
    sides = [_spread(log, count) for log in logs]
    if labels is not None:
        for side in sides:
            print(f"{printable(side.name)}: top-1 {accuracy(side.classes, labels)}")
    if len(sides) == 1:
        assert labels is not None
        _show_first("wrong", Side("label", labels), sides[0], labels, show)
        return 0
    return _compare_logs(sides[0], sides[1], labels, show)


def _read(path: Path) -> AccuracyLog | Int32Array:
    """By what is in it: an accuracy log is a JSON list."""
    try:
        with path.open("rb") as file:
            is_json = file.read(64).lstrip()[:1] in (b"[", b"{")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    return read_accuracy_log(path) if is_json else read_labels(path)


def _spread(log: AccuracyLog, count: int) -> Side:
    classes, disagreeing = log.predictions(count)
    repeated = len(log.indices) - len(np.unique(log.indices))
    missing = np.flatnonzero(classes == NOT_PREDICTED)
    if repeated:
        print(f"{printable(log.path)}: {repeated:,} repeated records; the first of each sample counts")
    if len(disagreeing):
        print(f"{printable(log.path)}: records of one sample disagree: {describe(disagreeing.tolist())}")
    if len(missing):
        print(f"{printable(log.path)}: no prediction for {len(missing):,} of {count:,}: {describe(missing.tolist())}")
    return Side(log.path, classes)


def _compare_logs(a: Side, b: Side, labels: Int32Array | None, show: int) -> int:
    both = (a.classes != NOT_PREDICTED) & (b.classes != NOT_PREDICTED)
    equal = int((both & (a.classes == b.classes)).sum())
    print(f"agreement {equal}/{both.sum()} of the samples that both have")
    _show_first("differing", a, b, labels, show)
    return 0 if bool((a.classes == b.classes).all()) else 1


def _show_first(what: str, a: Side, b: Side, labels: Int32Array | None, show: int) -> None:
    differing = np.flatnonzero(a.classes != b.classes)
    if not len(differing):
        return
    print(f"first {what} samples (of {len(differing):,}):")
    for index in differing[:show].tolist():
        known = f"  label {labels[index]}" if labels is not None and a.name != "label" else ""
        print(f"  sample {index}: {_word(a, index)}, {_word(b, index)}{known}")


def _word(side: Side, index: int) -> str:
    value = int(side.classes[index])
    name = side.name if side.name == "label" else Path(side.name).name
    return f"{name} {'none' if value == NOT_PREDICTED else value}"


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Compare two sets of predictions sample by sample, or one with the labels of a map file.

    python -m tools.compare_log A B [-m MAP]

A and B are mlperf_log_accuracy.json files; either may be a map file (lines of `file label`). Samples are known by
their names where a list of samples lies beside a log, as a run of this project writes it (mlperf_log_samples.tsv). A
log without one is taken to number all lines of the map.
Ends with 0 when two logs agree on every sample, or one that was compared with labels has one prediction for each of
its samples; 1 when they differ or predictions are missing; 2 when something cannot be read, or a log's samples are
not those of the map.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.errors import printable, printed
from int4core.regular import open_regular
from int4core.streams import run_command
from pipeline.commands.values import whole
from pipeline.errors import PipelineError
from pipeline.loadgen.results import (
    NOT_PREDICTED,
    AccuracyLog,
    describe,
    read_accuracy_log,
)
from pipeline.loadgen.sample_list import SampleList
from pipeline.report.accuracy import accuracy
from pipeline.samples.library import read_map

Int32Array: TypeAlias = npt.NDArray[np.int32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Samples:
    """What is compared: n samples.

    Attributes:
        names: what they are called; None where only their numbers are known.
        labels: classes (n,), from the map.
        path: the map's; empty without one.
    """

    count: int
    names: tuple[str, ...] | None = None
    labels: Int32Array | None = None
    path: str = ""


@dataclass(frozen=True)
class Side:
    """One file of the comparison: classes (n,), NOT_PREDICTED where it has none for a sample.

    `asked` (n,) are the samples that its run was made on; `whole`: each has one prediction.
    """

    name: str
    classes: Int32Array
    asked: BoolArray
    whole: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.compare_log", description=__doc__.partition("\n")[0])
    parser.add_argument("a", type=Path, metavar="A", help="mlperf_log_accuracy.json or map file")
    parser.add_argument("b", type=Path, metavar="B", help="mlperf_log_accuracy.json or map file")
    parser.add_argument("-m", "--mapPath", dest="map_path", type=Path, metavar="MAP", help="map with labels")
    parser.add_argument("--show", type=whole(0), default=10, metavar="N", help="differing samples to list")
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
    maps = [s for s in sources if isinstance(s, Samples)]
    if len(maps) == 2:
        raise PipelineError(f"{a} and {b}: both are map files; one of them has to be an accuracy log")
    if maps and map_path is not None:
        raise PipelineError(f"{maps[0].path}: already a map file; leave out -m")
    if map_path is not None:
        maps.append(_read_map(map_path))
    samples = maps[0] if maps else _logged_samples(logs)
    if samples.count == 0:
        raise PipelineError(f"{a}: no predictions; is it the log of an accuracy run?")
    sides = [_spread(log, samples) for log in logs]
    if samples.labels is not None:
        for side in sides:
            _say(f"{side.name}: top-1 {accuracy(side.classes[side.asked], samples.labels[side.asked])}")
    if len(sides) == 1:
        assert samples.labels is not None
        labels = Side("label", np.where(sides[0].asked, samples.labels, NOT_PREDICTED), sides[0].asked)
        _show_first("wrong", labels, sides[0], samples, show)
        return 0 if sides[0].whole else 1
    return _compare_logs(sides[0], sides[1], samples, show)


def _read(path: Path) -> AccuracyLog | Samples:
    """By what is in it: an accuracy log is a JSON list."""
    try:
        with open_regular(path) as (number, _):
            is_json = os.read(number, 64).lstrip()[:1] in (b"[", b"{")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    return read_accuracy_log(path) if is_json else _read_map(path)


def _read_map(path: Path) -> Samples:
    entries = read_map(path)
    labels = [e.label for e in entries if e.label is not None]
    if not labels:
        raise PipelineError(f"{path}: a map without labels says nothing of a log")
    return Samples(len(entries), tuple(e.name for e in entries), np.array(labels, dtype=np.int32), str(path))


def _logged_samples(logs: Sequence[AccuracyLog]) -> Samples:
    """All samples of `logs`, where no map says which there are."""
    lists = [log.samples for log in logs if log.samples is not None]
    if not lists:
        return Samples(1 + max((int(log.indices.max()) for log in logs if len(log.indices)), default=-1))
    for log in logs:
        if log.samples is None:
            raise PipelineError(
                f"{log.path}: no list of its samples is beside it, as there is beside the other; "
                "give the map that it numbers with -m"
            )
    names = tuple(dict.fromkeys(name for each in lists for name in each.names))
    return Samples(len(names), names)


def _spread(log: AccuracyLog, samples: Samples) -> Side:
    """The predictions of `log` at the places that `samples` have. Raises PipelineError for samples not among them."""
    places = np.arange(samples.count) if log.samples is None else _places(log, log.samples, samples)
    predicted, disagreeing = log.predictions(len(places))
    classes = np.full(samples.count, NOT_PREDICTED, dtype=np.int32)
    classes[places] = predicted
    asked = np.zeros(samples.count, dtype=np.bool_)
    asked[places] = True
    repeated = len(log.indices) - len(np.unique(log.indices))
    missing = np.flatnonzero(predicted == NOT_PREDICTED)
    if repeated:
        _say(f"{log.path}: {repeated:,} repeated records; the first of each sample counts")
    if len(disagreeing):
        _say(f"{log.path}: records of one sample disagree: {describe(disagreeing.tolist())}")
    if len(missing):
        _say(f"{log.path}: no prediction for {len(missing):,} of {len(places):,}: {describe(missing.tolist())}")
    if samples.names is not None and not asked.all():
        left_out = [samples.names[i] for i in np.flatnonzero(~asked).tolist()]
        _say(f"{log.path}: {len(left_out):,} of {samples.count:,} are not among its samples: {_listed(left_out)}")
    return Side(log.path, classes, asked, whole=not (len(missing) or len(disagreeing)))


def _places(log: AccuracyLog, listed: SampleList, samples: Samples) -> npt.NDArray[np.int64]:
    """Where each of the log's samples is among `samples`, int64 (number of its samples,)."""
    assert samples.names is not None, "a list of samples gives names to them all"
    place_of = {name: place for place, name in enumerate(samples.names)}
    unknown = [name for name in listed.names if name not in place_of]
    if unknown:
        raise PipelineError(
            f"{log.path}: {len(unknown):,} of its {len(listed.names):,} samples are not in {samples.path} "
            f"({_listed(unknown)}); is this the map of that run?"
        )
    places = np.array([place_of[name] for name in listed.names], dtype=np.int64)
    if samples.labels is not None and listed.labels is not None:
        other = np.flatnonzero(samples.labels[places] != listed.labels)
        if len(other):
            names = [listed.names[i] for i in other.tolist()]
            _say(f"{log.path}: {len(other):,} labels of its run are not those of {samples.path}: {_listed(names)}")
    return places


def _say(line: str) -> None:
    """Print a line in which names may hold anything."""
    print(printable(line))


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _compare_logs(a: Side, b: Side, samples: Samples, show: int) -> int:
    both = (a.classes != NOT_PREDICTED) & (b.classes != NOT_PREDICTED)
    equal = int((both & (a.classes == b.classes)).sum())
    _say(f"agreement {equal}/{both.sum()} of the samples that both have")
    _show_first("differing", a, b, samples, show)
    return 0 if bool((a.classes == b.classes).all() and (a.asked == b.asked).all()) else 1


def _show_first(what: str, a: Side, b: Side, samples: Samples, show: int) -> None:
    differing = np.flatnonzero(a.classes != b.classes)
    if not len(differing):
        return
    _say(f"first {what} samples (of {len(differing):,}):")
    for index in differing[:show].tolist():
        called = index if samples.names is None else f"{index} ({samples.names[index]})"
        known = f"  label {samples.labels[index]}" if samples.labels is not None and a.name != "label" else ""
        _say(f"  sample {called}: {_word(a, index)}, {_word(b, index)}{known}")


def _word(side: Side, index: int) -> str:
    value = int(side.classes[index])
    name = side.name if side.name == "label" else Path(side.name).name
    return f"{name} {'none' if value == NOT_PREDICTED else value}"


if __name__ == "__main__":
    sys.exit(run_command(main))

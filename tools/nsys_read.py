"""Reading what Nsight Systems exported to SQLite: kernels by layer, copies, and how much of them kernels hide.

Tables and columns: https://docs.nvidia.com/nsight-systems/UserGuide/index.html, "SQLite Schema Reference". Times in the
file are nanoseconds; a table without events is left out of it.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from tools.passes import Launch, name_layers

STEPS_BETWEEN_CLOCKS = 100_000
"""Of SQLite's machine, some milliseconds of it."""

COPY_KINDS = {1: "H2D", 2: "D2H", 8: "D2D", 10: "P2P"}
"""CUpti_ActivityMemcpyKind."""

PUSH_POP_RANGE = 59
"""NVTX_EVENTS.eventType of a range of one thread."""

READ_LIMIT_S = 600.0
"""A longer capture than can be read in this time is nothing for a table; a file made for it could take for ever."""

_THREAD_BITS = 0xFFFFFF
"""The low bits of a globalTid number the thread; without them it is the globalPid."""

Interval = tuple[int, int]


@dataclass(frozen=True)
class Activity:
    """A kernel or copy on the device, from `begin` to `end` in ns.

    Attributes:
        kind: `kernel`, or the direction of a copy: `H2D`, `D2H`, `D2D`, `P2P`.
        name: the kernel's function; for a copy its kind again.
        layer: of a kernel in a whole pass over the network, else the NVTX range it was launched in, else ``.
        bytes: copied; 0 for kernels.
    """

    begin: int
    end: int
    pid: int
    device: int
    stream: int
    kind: str
    name: str
    layer: str = ""
    bytes: int = 0

    @property
    def ns(self) -> int:
        return self.end - self.begin

    @property
    def interval(self) -> Interval:
        return self.begin, self.end


@dataclass(frozen=True)
class Range:
    """An NVTX range of one thread, in ns."""

    begin: int
    end: int
    thread: int
    name: str


@dataclass(frozen=True)
class Profile:
    """What was captured, in order of begin."""

    activities: tuple[Activity, ...]
    ranges: tuple[Range, ...]

    @property
    def kernels(self) -> tuple[Activity, ...]:
        return tuple(a for a in self.activities if a.kind == "kernel")

    @property
    def copies(self) -> tuple[Activity, ...]:
        return tuple(a for a in self.activities if a.kind != "kernel")

    @property
    def span(self) -> Interval:
        """First begin and last end on the device."""
        return self.activities[0].begin, max(a.end for a in self.activities)


@dataclass(frozen=True)
class Line:
    """A row of the table: launches of one function for one layer; `share` is of all kernels' time, 0..1."""

    layer: str
    name: str
    count: int
    total_us: float
    mean_us: float
    share: float


@dataclass(frozen=True)
class Copies:
    """All copies of one kind: their time, bytes, and the share of their time in which a kernel ran, 0..1."""

    kind: str
    count: int
    total_us: float
    bytes: int
    hidden: float

    @property
    def gbs(self) -> float:
        return self.bytes / self.total_us / 1e3 if self.total_us else 0.0


def read(
    file: Path, one_pass: Sequence[Launch] = (), copy_kernels: str = "", *, limit_s: float = READ_LIMIT_S
) -> Profile:
    """Read an export, which is left as it is.

    Args:
        one_pass: the launches of a pass over the network, to name layers by.
        copy_kernels: a regular expression; kernels that it finds a match in are host-to-device copies.
        limit_s: the most seconds that the file may take.

    Raises:
        PipelineError: no such file, no database of Nsight Systems, nothing of the device in it, it takes too long, or
            `copy_kernels` is no regular expression.
    """
    try:
        pattern = re.compile(copy_kernels) if copy_kernels else None
    except re.error as error:
        raise PipelineError(f"--copy-kernels {copy_kernels}: no regular expression: {error}") from error
    if not os.path.isfile(file):
        raise PipelineError(f"{file}: no such file; nsys profile --export=sqlite writes it")
    deadline = time.monotonic() + limit_s
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_CLOCKS)
            database.row_factory = sqlite3.Row
            ranges = tuple(_ranges(database))
            kernels = list(_kernels(database, ranges))
            copies = list(_copies(database))
    except (sqlite3.Error, TypeError, ValueError) as error:
        if time.monotonic() > deadline:
            raise PipelineError(f"{file}: not read in {limit_s:g} s; capture a shorter time with --duration") from error
        raise PipelineError(f"{file}: not an export of Nsight Systems ({error})") from error
    if not kernels and not copies:
        raise PipelineError(
            f"{file}: no kernel and no copy was captured; let the capture begin later or last longer, and see that "
            "the command uses the GPU"
        )
    named = [
        replace(kernel, kind="H2D") if pattern and pattern.search(kernel.name) else kernel
        for kernel in _with_layers(kernels, one_pass)
    ]
    return Profile(tuple(sorted([*named, *copies], key=lambda a: a.interval)), ranges)


def by_layer(profile: Profile) -> list[Line]:
    """A line a layer and function, in the order of their first launches."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for kernel in profile.kernels:
        groups[kernel.layer, kernel.name].append(kernel.ns)
    total = sum(map(sum, groups.values()))
    return [
        Line(layer, name, len(times), sum(times) / 1e3, sum(times) / len(times) / 1e3, sum(times) / total)
        for (layer, name), times in groups.items()
    ]


def by_copy(profile: Profile) -> list[Copies]:
    """A line a kind of copy. What hides a copy is any kernel on the same device, of whatever stream."""
    busy = {
        device: union(k.interval for k in profile.kernels if k.device == device)
        for device in {a.device for a in profile.activities}
    }
    groups: dict[str, list[Activity]] = defaultdict(list)
    for copy in profile.copies:
        groups[copy.kind].append(copy)
    lines = []
    for kind, copies in sorted(groups.items()):
        total = sum(copy.ns for copy in copies)
        hidden = sum(
            overlap([copy.interval for copy in copies if copy.device == device], kernels)
            for device, kernels in busy.items()
        )
        bytes_ = sum(copy.bytes for copy in copies)
        lines.append(Copies(kind, len(copies), total / 1e3, bytes_, hidden / total if total else 0.0))
    return lines


def kernels_busy(profile: Profile) -> float:
    """The share of the device's span in which a kernel ran, 0..1; of several GPUs, their mean."""
    begin, end = profile.span
    devices = {a.device for a in profile.activities}
    busy = sum(length(union(k.interval for k in profile.kernels if k.device == device)) for device in devices)
    return busy / (end - begin) / len(devices) if end > begin else 0.0


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals in order that cover the same points."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def length(intervals: Iterable[Interval]) -> int:
    return sum(end - begin for begin, end in intervals)


def overlap(intervals: Iterable[Interval], disjoint: Sequence[Interval]) -> int:
    """The sum, over `intervals`, of each one's part inside `disjoint`, which is in order."""
    total, at = 0, 0
    for begin, end in sorted(intervals):
        while at < len(disjoint) and disjoint[at][1] <= begin:
            at += 1
        for other in disjoint[at:]:
            if other[0] >= end:
                break
            total += min(end, other[1]) - max(begin, other[0])
    return total


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table; none when the export does not have it."""
    return {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}


def _rows(database: sqlite3.Connection, table: str, wanted: Sequence[str]) -> Iterator[sqlite3.Row]:
    """Rows of the table, columns that this version does not have as NULL; none when it is not there."""
    columns = _columns(database, table)
    if not columns:
        return iter(())
    chosen = ", ".join(f'"{name}"' if name in columns else f'NULL AS "{name}"' for name in wanted)
    return iter(database.execute(f"SELECT {chosen} FROM {table} ORDER BY start"))


def _strings(database: sqlite3.Connection) -> dict[int, str]:
    return {row["id"]: row["value"] for row in database.execute("SELECT id, value FROM StringIds")}


def _ranges(database: sqlite3.Connection) -> Iterator[Range]:
    rows = _rows(database, "NVTX_EVENTS", ("start", "end", "eventType", "globalTid", "text", "textId"))
    strings = _strings(database)
    for row in rows:
        if row["eventType"] == PUSH_POP_RANGE and row["end"] is not None:
            name = row["text"] if row["text"] is not None else strings.get(row["textId"], "")
            yield Range(int(row["start"]), int(row["end"]), row["globalTid"] or 0, name)


def _kernels(database: sqlite3.Connection, ranges: Sequence[Range]) -> Iterator[Activity]:
    wanted = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid", "shortName")
    strings, launched_in = _strings(database), _launch_ranges(database, ranges)
    for row in _rows(database, "CUPTI_ACTIVITY_KIND_KERNEL", wanted):
        pid, name = row["globalPid"] or 0, strings.get(row["shortName"], "unknown")
        layer = launched_in.get((pid, row["correlationId"]), "")
        yield Activity(
            int(row["start"]), int(row["end"]), pid, row["deviceId"] or 0, row["streamId"] or 0, "kernel", name, layer
        )


def _copies(database: sqlite3.Connection) -> Iterator[Activity]:
    wanted = ("start", "end", "deviceId", "streamId", "globalPid", "copyKind", "bytes")
    for row in _rows(database, "CUPTI_ACTIVITY_KIND_MEMCPY", wanted):
        kind = COPY_KINDS.get(row["copyKind"], f"copy kind {row['copyKind']}")
        place = (row["globalPid"] or 0, row["deviceId"] or 0, row["streamId"] or 0)
        yield Activity(int(row["start"]), int(row["end"]), *place, kind, kind, bytes=int(row["bytes"] or 0))


def _launch_ranges(database: sqlite3.Connection, ranges: Sequence[Range]) -> dict[tuple[int, int], str]:
    """(globalPid, correlationId) -> the innermost range around the call that launched it."""
    calls: dict[int, list[Any]] = defaultdict(list)
    for row in _rows(database, "CUPTI_ACTIVITY_KIND_RUNTIME", ("start", "globalTid", "correlationId")):
        calls[row["globalTid"] or 0].append(row)
    of_thread: dict[int, list[Range]] = defaultdict(list)
    for each in sorted(ranges, key=lambda r: r.begin):
        of_thread[each.thread].append(each)
    found = {}
    for thread, rows in calls.items():
        around: list[Range] = []
        coming = iter(of_thread[thread])
        following = next(coming, None)
        for row in rows:
            while following is not None and following.begin <= row["start"]:
                around.append(following)
                following = next(coming, None)
            # Ranges of a thread nest, so that those which have ended before this call lie on top.
            while around and around[-1].end < row["start"]:
                around.pop()
            if around:
                found[thread & ~_THREAD_BITS, row["correlationId"]] = around[-1].name
    return found


def _with_layers(kernels: Sequence[Activity], one_pass: Sequence[Launch]) -> list[Activity]:
    """The kernels with the layers of the passes they make up, stream by stream."""
    streams: dict[tuple[int, int, int], list[Activity]] = defaultdict(list)
    for kernel in sorted(kernels, key=lambda k: k.begin):
        streams[kernel.pid, kernel.device, kernel.stream].append(kernel)
    named = []
    for stream in streams.values():
        layers = name_layers([kernel.name for kernel in stream], one_pass)
        named += [replace(k, layer=layer) if layer else k for k, layer in zip(stream, layers, strict=True)]
    return named

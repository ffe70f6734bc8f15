"""A timeline of a run from our own events, as a file for Perfetto or chrome://tracing; it needs no profiler.

Host spans are times of `time.perf_counter`, which on Linux is one clock for every process of the machine. Device spans
come from CUDA events: `DeviceClock` puts them on that clock by one event whose host time is known.

The file is the Trace Event Format's JSON object: `X` events with times in microseconds, `M` events that name lanes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from int4core.atomic import write_atomically
from int4core.ranges import Ranges
from pipeline.errors import PipelineError

Scalar: TypeAlias = "str | int | float"
Record: TypeAlias = tuple[str, str, float, float, tuple[tuple[str, Scalar], ...]]
"""(name, lane, begin in s, end in s, arguments): one span, plain enough for any queue."""

Records: TypeAlias = tuple[int, str, int, tuple[Record, ...]]
"""(pid, process name, events dropped, spans): all that one process saw."""

CAPACITY = 100_000
"""Spans that a process keeps, about 20 MB; older ones give way."""


class Tracer:
    """Collects the spans of one process; its threads may share it."""

    def __init__(self, process: str, *, capacity: int = CAPACITY, ranges: Ranges | None = None) -> None:
        """`process` names the lane group; `ranges` also shows host spans to NVIDIA's profilers."""
        if capacity < 1:
            raise ValueError(f"a tracer of {capacity} spans")
        self.process = process
        self.pid = os.getpid()
        self._ranges = Ranges.silent() if ranges is None else ranges
        self._spans: deque[Record] = deque(maxlen=capacity)
        self._seen = 0
        self._lock = threading.Lock()

    @contextmanager
    def span(self, name: str, lane: str | None = None, **arguments: Scalar) -> Iterator[None]:
        """The time the block takes on the host, recorded also when it raises; `lane` is the thread's name unasked."""
        if lane is None:
            lane = threading.current_thread().name
        begin_s = time.perf_counter()
        try:
            with self._ranges.span(name):
                yield
        finally:
            self.complete(name, lane, begin_s, time.perf_counter(), **arguments)

    def complete(self, name: str, lane: str, begin_s: float, end_s: float, **arguments: Scalar) -> None:
        """A span whose times are known, in seconds of `time.perf_counter`."""
        span = (name, lane, begin_s, end_s, tuple(arguments.items()))
        with self._lock:
            self._spans.append(span)
            self._seen += 1

    def to_records(self) -> Records:
        """What another process needs to put these spans into its trace."""
        with self._lock:
            return self.pid, self.process, self._seen - len(self._spans), tuple(self._spans)


_NOTHING = nullcontext()


class Untraced:
    """In place of a Tracer where nobody wants a trace: ranges for profilers, and no more."""

    def __init__(self, ranges: Ranges | None = None) -> None:
        self._ranges = ranges if ranges is not None and ranges.listening else None

    def span(self, name: str, lane: str | None = None, **arguments: Scalar) -> AbstractContextManager[None]:
        return _NOTHING if self._ranges is None else self._ranges.span(name)

    def complete(self, name: str, lane: str, begin_s: float, end_s: float, **arguments: Scalar) -> None:
        pass

    def to_records(self) -> Records:
        return os.getpid(), "", 0, ()


AnyTracer: TypeAlias = "Tracer | Untraced"


def make_tracer(process: str, traced: bool, ranges: Ranges | None = None) -> AnyTracer:
    """The tracer of this process, which keeps spans only if `traced`. Ranges default to those of a profiled process."""
    ranges = Ranges.when_profiled() if ranges is None else ranges
    return Tracer(process, ranges=ranges) if traced else Untraced(ranges)


@dataclass(frozen=True)
class DeviceClock:
    """Device times on the host's clock.

    Attributes:
        reference: a CUDA event that the device has passed.
        reference_s: `time.perf_counter` at that moment. It is read when the wait for the event returns, so it
            is late by that wait's wake-up: some ten microseconds, the same for every span.
    """

    reference: Any
    reference_s: float
    cupy: Any = field(repr=False)

    @classmethod
    def start(cls, cupy: Any, stream: Any) -> DeviceClock:
        """Waits for `stream`, a cupy.cuda.Stream: to be called before the run, never on its hot path."""
        stream.synchronize()
        event = cupy.cuda.Event()
        event.record(stream)
        event.synchronize()
        return cls(event, time.perf_counter(), cupy)

    def seconds(self, event: Any) -> float:
        """When the device passed `event` (a timing event that is complete), on `time.perf_counter`."""
        return self.reference_s + float(self.cupy.cuda.get_elapsed_time(self.reference, event)) / 1e3

    def moved_to(self, event: Any) -> DeviceClock:
        """The same clock by a later event. CUDA gives elapsed times as float32: 4 us coarse after a minute."""
        return DeviceClock(event, self.seconds(event), self.cupy)

    def complete(self, tracer: Tracer, name: str, lane: str, begin: Any, end: Any, **arguments: Scalar) -> None:
        """The span between two complete events."""
        tracer.complete(name, lane, self.seconds(begin), self.seconds(end), **arguments)


def trace_events(traces: Iterable[Records]) -> dict[str, Any]:
    """The Trace Event Format's object of these processes; time 0 is the first span's begin."""
    processes = [trace for trace in traces if trace[1]]
    origin = min((span[2] for *_, spans in processes for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for pid, process, dropped, spans in processes:
        title = f"{process} ({dropped} earlier spans dropped)" if dropped else process
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": title}})
        lanes = {lane: number for number, lane in enumerate(sorted({span[1] for span in spans}), start=1)}
        for lane, number in lanes.items():
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": number, "args": {"name": lane}})
        for name, lane, begin_s, end_s, arguments in spans:
            events.append(
                {
                    "ph": "X",
                    "name": name,
                    "pid": pid,
                    "tid": lanes[lane],
                    "ts": round((begin_s - origin) * 1e6, 3),
                    "dur": round((end_s - begin_s) * 1e6, 3),
                    "args": dict(arguments),
                }
            )
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"dropped": sum(dropped for _, _, dropped, _ in processes)},
    }


def write_trace(file: Path, traces: Iterable[Records]) -> None:
    """Write the trace of these processes. Raises PipelineError when `file` cannot be written."""
    try:
        write_atomically(file, json.dumps(trace_events(traces), separators=(",", ":")).encode())
    except OSError as error:
        raise PipelineError(
            f"{file}: the trace cannot be written: {error.strerror}; name another file with --trace"
        ) from error

"""What a device did when, for the trace: marks in its streams become spans on the host's clock."""

from __future__ import annotations

from typing import Any

from pipeline.device.base import Marks, Parts
from pipeline.telemetry.trace import DeviceClock, Tracer

# CUDA gives the time between two events as float32; over ten seconds that is a microsecond coarse.
CLOCK_REACHES_S = 10.0


class CudaSpans:
    """The spans of one GPU's lanes, by CUDA events."""

    def __init__(self, tracer: Tracer, cupy: Any) -> None:
        """Waits for a stream: to be made before the run."""
        self._tracer = tracer
        self._cupy = cupy
        self._clock = DeviceClock.start(cupy, cupy.cuda.Stream(non_blocking=True))

    def mark(self, stream: Any) -> Any:
        event = self._cupy.cuda.Event()
        event.record(stream)
        return event

    def complete(self, lane: int, ticket: int, samples: int, marks: Marks, parts: Parts) -> None:
        whole = ("copy", "upload", *marks[:2]), ("compute", "network", *marks[2:])
        for stream, name, begin, end in (*whole, *(("decode", *part) for part in parts)):
            self._clock.complete(self._tracer, name, f"{stream} {lane}", begin, end, ticket=ticket, samples=samples)
        if self._clock.seconds(marks[-1]) - self._clock.reference_s > CLOCK_REACHES_S:
            self._clock = self._clock.moved_to(marks[-1])

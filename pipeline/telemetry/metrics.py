"""One snapshot of a run: what the dashboard draws, what plain lines print, what summary.json keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageSnapshot:
    """One stage at one moment.

    Attributes:
        name: decode, infer, complete, ...
        workers: processes or threads that do its work.
        up: how many of them have set themselves up.
        done: samples it has finished since the run began.
        rate: samples/s of the last seconds, over whole tasks (see `pipeline.telemetry.meter`).
        busy: share of its workers' time spent working, 0..1, over the same seconds.
        queued: samples waiting in front of it or being worked on.
        capacity: the most samples that may wait there (0: unbounded).
        failed: samples it could not do.
        worker_rates: the same rate, of each worker.
        counted: samples done by `counted_s` (monotonic seconds), the last moment for which that is known: what workers
            are at counts, for the time it took, when it is done.
    """

    name: str
    workers: int
    done: int
    rate: float
    busy: float
    queued: int
    capacity: int
    failed: int = 0
    worker_rates: tuple[float, ...] = ()
    up: int = 0
    counted: float = 0.0
    counted_s: float = 0.0


@dataclass(frozen=True)
class Decoded:
    """Who has decoded the files of a session whose GPU does, as far as they have been read.

    Attributes:
        gpu: files that the GPU decodes.
        gpu_bytes_per_s: of the files that were left for it, the bytes that a second of the run took.
        loaders: files that loaders decoded, by the reason why; none of them 0.
    """

    gpu: int
    gpu_bytes_per_s: float
    loaders: dict[str, int]

    def __bool__(self) -> bool:
        """Whether any has been decoded."""
        return bool(self.gpu or self.loaders)


@dataclass(frozen=True)
class Snapshot:
    """The whole run at one moment.

    Attributes:
        phase: `starting`, `loading`, `running`, under LoadGen `writing logs` (its own, all answered), or `done`.
        elapsed_s: seconds since this phase began.
        loaded, to_load: samples of what is being loaded that are there, and all of it; 0 before anything is loaded.
        completed: samples answered so far.
        expected: samples that have been asked for so far, or that there are; 0 while that is not known.
        estimated: whether `expected` is reckoned, not counted.
        rate_now: samples/s of the engines in the last seconds, over whole batches.
        rate_mean: samples/s from the first sample issued to the last one answered.
        stages: in the order data flows.
        counted, counted_s: of the engines (see `StageSnapshot`).
        latency_ms: p50, p90 and p99 of the answers so far, from issue to answer; empty before the first.
        decoded: who has decoded the files; None where loaders decode all.
    """

    phase: str
    elapsed_s: float
    completed: int
    expected: int
    rate_now: float
    rate_mean: float
    stages: tuple[StageSnapshot, ...]
    counted: float
    counted_s: float
    loaded: int = 0
    to_load: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    decoded: Decoded | None = None
    estimated: bool = False

    @property
    def slowest(self) -> str | None:
        """The busiest stage: the one the others wait for. None while nothing works."""
        working = [s for s in self.stages if s.busy > 0]
        return max(working, key=lambda s: s.busy).name if working else None

    def as_dict(self) -> dict[str, Any]:
        """As plain values; without `decoded` where there is none."""
        values = asdict(self)
        if self.decoded is None:
            del values["decoded"]
        return values

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
        done: samples it has finished since the run began.
        rate: samples/s since the snapshot before this one.
        busy: share of its workers' time spent working, 0..1, since the snapshot before this one.
        queued: samples waiting in front of it or being worked on.
        capacity: the most samples that may wait there (0: unbounded).
        failed: samples it could not do.
        worker_rates: samples/s of each worker since the snapshot before this one, where workers are told apart.
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


@dataclass(frozen=True)
class Snapshot:
    """The whole run at one moment.

    Attributes:
        phase: `starting`, `loading`, `running`, `finishing` or `done`.
        elapsed_s: seconds since this phase began.
        completed: samples answered to LoadGen so far.
        expected: samples LoadGen has issued so far (0: none yet).
        rate_now: samples/s answered since the snapshot before this one.
        rate_mean: samples/s answered since the first sample was issued.
        stages: in the order data flows.
        latency_ms: p50, p90 and p99 of the answers so far, from issue to answer; empty before the first.
    """

    phase: str
    elapsed_s: float
    completed: int
    expected: int
    rate_now: float
    rate_mean: float
    stages: tuple[StageSnapshot, ...]
    latency_ms: dict[str, float] = field(default_factory=dict)

    @property
    def slowest(self) -> str | None:
        """The busiest stage: the one the others wait for. None while nothing works."""
        working = [s for s in self.stages if s.busy > 0]
        return max(working, key=lambda s: s.busy).name if working else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

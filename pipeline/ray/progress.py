"""How far a run on Ray is: a snapshot for the dashboard, of Ray Data's own metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.ray.listing import Listed
from pipeline.telemetry.meter import Meter
from pipeline.telemetry.metrics import Snapshot, StageSnapshot

# What `now` looks back.
RECENT_S = 10.0

LIST, CLASSIFY, WRITE = "list", "classify", "write"
STAGES = {"list_sources": LIST, "SourceClassifier": CLASSIFY, "deliver": WRITE}
"""Names that operators of the run have in theirs, and the stages that they are."""


@dataclass
class Progress:
    """Counted by the thread that takes deliveries; others take snapshots.

    Attributes:
        actors: that classify.
        listed: asked what has been listed; None: not known at the moment.
        dataset: the one that is running, for its metrics; None before and afterwards.
        expected: sources that have been listed.
        skipped: of those, the ones that were answered before or named twice.
        answered: rows that have been delivered.
    """

    actors: int
    listed: Callable[[], Listed | None]
    dataset: Any = None
    expected: int = 0
    skipped: int = 0
    answered: int = 0
    _phase: str = "starting"
    _up: int = 0
    _last_stages: tuple[StageSnapshot, ...] = ()
    _meters: dict[str, Meter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._phase_began = self._began = time.monotonic()
        self._last = self._began
        self._reading = threading.Lock()  # the dataset's metrics: the run may end meanwhile

    def enter(self, phase: str) -> None:
        self._phase, self._phase_began = phase, time.monotonic()

    def add(self, rows: int) -> None:
        """So many rows have been delivered."""
        if self._phase == "starting":
            self.enter("running")
        self._last = time.monotonic()  # first: a snapshot may be taken between any two of these
        self.answered += rows

    def take(self, listed: Listed) -> None:
        """So much has been listed."""
        self.expected, self.skipped, self._up = listed.seen, listed.skipped, listed.actors

    @property
    def rate(self) -> float:
        """Rows/s from the start of the actors to the last row; 0 before any."""
        return self.answered / (self._last - self._began) if self.answered else 0.0

    def snapshot(self) -> Snapshot:
        now = time.monotonic()
        if self.dataset is not None and (listed := self.listed()) is not None:
            self.take(listed)
        with self._reading:
            stages = self._stages(now)
        classify = next((stage for stage in stages if stage.name == CLASSIFY), None)
        return Snapshot(
            phase=self._phase,
            elapsed_s=now - self._phase_began,
            completed=self.answered + self.skipped,
            expected=max(self.expected, self.answered + self.skipped),
            rate_now=0.0 if classify is None else classify.rate,
            rate_mean=self.rate,
            stages=stages,
            counted=0.0 if classify is None else classify.counted,
            counted_s=now if classify is None else classify.counted_s,
        )

    def end(self) -> None:
        """Nothing runs any more; the stages stay as they are."""
        with self._reading:
            self._last_stages, self.dataset = self._stages(time.monotonic()), None

    def _stages(self, now: float) -> tuple[StageSnapshot, ...]:
        if self.dataset is None:
            return self._last_stages
        running = tuple(self._stage(name, metrics, now) for name, metrics in self._operators())
        # Ray shows what runs from the first delivery on.
        return running or (StageSnapshot(CLASSIFY, self.actors, 0, 0.0, 0.0, 0, 0, up=self._up),)

    def _operators(self) -> list[tuple[str, Any]]:
        """The running operators that are stages, with Ray's metrics of each."""
        executor = getattr(self.dataset, "_current_executor", None)
        topology = getattr(executor, "_topology", None) or {}
        named = [(next((stage for part, stage in STAGES.items() if part in op.name), ""), op) for op in list(topology)]
        return [(stage, op.metrics) for stage, op in named if stage]

    def _stage(self, name: str, metrics: Any, now: float) -> StageSnapshot:
        # The rows of a listing are of many sources each.
        done = self.expected if name == LIST else metrics.rows_task_outputs_generated
        waiting = {LIST: 0, CLASSIFY: self.expected - self.skipped}.get(name, metrics.num_row_inputs_received) - done
        meter = self._meters.setdefault(name, Meter(now))
        if done > meter.samples:
            meter.add(now, now - meter.until_s, done - meter.samples)
        before, _ = meter.by(now - RECENT_S)
        working = metrics.num_tasks_running
        workers = self.actors if name == CLASSIFY else max(1, working)
        return StageSnapshot(
            name=name,
            workers=workers,
            done=done,
            rate=(meter.samples - before) / RECENT_S,
            busy=min(1.0, working / workers),
            queued=max(0, waiting),
            capacity=0,
            up=self._up if name == CLASSIFY else workers,
            counted=float(meter.samples),
            counted_s=meter.until_s,
        )

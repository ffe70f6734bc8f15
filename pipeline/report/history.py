"""What a series of snapshots says that no single one does: rates over time, and means per stage."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.telemetry.metrics import Snapshot, StageSnapshot

COLUMN_S = 1.0
COLUMNS = 600
RECENT_COLUMNS = 10


@dataclass(frozen=True)
class StageMean:
    """A stage over the time it was at work: samples/s, and the share of its workers that was busy.

    Time with nothing in front of the stage does not count, so this is what it can do, not what it got.
    """

    name: str
    workers: int
    done: int
    failed: int
    active_s: float
    samples_per_second: float | None
    busy: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Account:
    last: StageSnapshot
    active_s: float = 0.0
    busy_s: float = 0.0
    active_done: int = 0


class History:
    """Fed with every snapshot of a run; memory does not grow with the length of the run."""

    def __init__(self) -> None:
        self.columns: deque[float] = deque(maxlen=COLUMNS)
        """Samples/s in each second since the first sample was issued, newest last; over whole batches, so that seconds
        within one batch are alike."""
        self.peak = 0.0
        self._column_begin: tuple[float, float] | None = None
        self._stages: dict[str, _Account] = {}
        self._time: float | None = None

    def add(self, now: float, snapshot: Snapshot) -> None:
        """Take the snapshot of monotonic time `now`, seconds."""
        span = 0.0 if self._time is None else now - self._time
        self._time = now
        for stage in snapshot.stages:
            self._account(stage, span)
        if not (snapshot.expected or snapshot.completed):
            return
        if self._column_begin is None:
            self._column_begin = (snapshot.counted_s, snapshot.counted)
        began, counted = self._column_begin
        span_s = snapshot.counted_s - began
        if span_s >= COLUMN_S and snapshot.phase == "running":
            self.columns.extend([(snapshot.counted - counted) / span_s] * round(span_s / COLUMN_S))
            self.peak = max(self.peak, self.columns[-1])
            self._column_begin = (snapshot.counted_s, snapshot.counted)

    @property
    def recent(self) -> float | None:
        """Mean samples/s of the last seconds; None before the first full second."""
        last = list(self.columns)[-RECENT_COLUMNS:]
        return sum(last) / len(last) if last else None

    def stages(self) -> tuple[StageMean, ...]:
        """Every stage's means so far, in the order data flows."""
        return tuple(
            StageMean(
                name=name,
                workers=account.last.workers,
                done=account.last.done,
                failed=account.last.failed,
                active_s=account.active_s,
                samples_per_second=account.active_done / account.active_s if account.active_s else None,
                busy=account.busy_s / account.active_s if account.active_s else None,
            )
            for name, account in self._stages.items()
        )

    def _account(self, stage: StageSnapshot, span: float) -> None:
        account = self._stages.setdefault(stage.name, _Account(stage))
        progress = stage.done - account.last.done
        if progress or (stage.queued and account.last.queued):
            account.active_s += span
            account.busy_s += span * stage.busy
            account.active_done += progress
        account.last = stage

"""How far a LoadGen run is: the snapshot that dashboards and summaries are made of."""

from __future__ import annotations

import time

from pipeline.loadgen.samples import Samples
from pipeline.session.batches import Queue
from pipeline.session.session import Session
from pipeline.telemetry.metrics import Snapshot


class Progress:
    """The run's phase, and what LoadGen has asked for and been answered."""

    def __init__(self, session: Session, samples: Samples, queue: Queue) -> None:
        self._session = session
        self._samples = samples
        self._queue = queue
        self._total: int | None = None
        self.enter("starting")

    def enter(self, phase: str) -> None:
        """Name what the run is doing from now on (see `pipeline.telemetry.metrics.Snapshot.phase`)."""
        self._phase, self._phase_began = phase, time.monotonic()

    def flushed(self, total: int) -> None:
        """LoadGen asks for no more at present, and for no more at all from `total` samples on.

        Once those are answered, the run waits for it to write its logs.
        """
        self._total = total

    def snapshot(self) -> Snapshot:
        stages, answering = self._session.snapshots(), self._queue.answering
        infer = stages[1]
        loaded, to_load = self._samples.progress
        phase, began, issued = self._phase, self._phase_began, self._queue.issued
        total = self._total
        if phase == "running" and total is not None and answering is not None and answering.samples == issued >= total:
            phase, began = "writing logs", answering.last_s
        return Snapshot(
            phase=phase,
            elapsed_s=time.monotonic() - began,
            completed=0 if answering is None else answering.samples,
            expected=issued,
            rate_now=infer.rate,
            rate_mean=0.0 if answering is None else answering.rate,
            stages=stages,
            counted=infer.counted,
            counted_s=infer.counted_s,
            loaded=loaded,
            to_load=to_load,
            latency_ms=self._queue.latencies.percentiles_ms(),
        )

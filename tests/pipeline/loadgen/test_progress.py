"""What a run says that it does once LoadGen has asked for all there is."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.loadgen.progress import Progress
from pipeline.session.batches import Queue
from pipeline.session.waiting import Batching
from pipeline.telemetry.metrics import StageSnapshot


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Monotonic time, which stands at its `now`, seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def test_once_all_is_answered_loadgen_writes_its_logs(clock: SimpleNamespace) -> None:
    stages = tuple(StageSnapshot(name, 1, 0, 0.0, 0.0, 0, 0) for name in ("decode", "infer", "complete"))
    session, samples = SimpleNamespace(snapshots=lambda: stages), SimpleNamespace(progress=(0, 0))
    queue = Queue(cast(Any, None), cast(Any, None), Batching(8))
    progress = Progress(cast(Any, session), cast(Any, samples), queue)

    def now() -> tuple[str, float]:
        shown = progress.snapshot()
        return shown.phase, shown.elapsed_s

    progress.enter("running")
    queue.count_issued(8, clock.now)
    clock.now = 101.0
    queue.count_completed(8, 100.0, 101.0)
    assert now() == ("running", 1.0), "LoadGen may ask for more"
    progress.flushed(16)
    assert now() == ("running", 1.0), "another set comes"
    queue.count_issued(8, clock.now)
    clock.now = 104.0
    assert now() == ("running", 4.0)
    queue.count_completed(8, 101.0, 104.0)
    clock.now = 107.0
    assert now() == ("writing logs", 3.0)
    queue.count_issued(8, clock.now)  # which had gathered in LoadGen when it flushed
    assert now() == ("running", 7.0)
    queue.count_completed(8, 107.0, 107.0)
    assert now() == ("writing logs", 0.0)
    progress.enter("done")
    assert now() == ("done", 0.0)

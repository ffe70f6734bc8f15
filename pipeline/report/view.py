"""What a frame shows: one snapshot of a run, and what follows from it and from those before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.machine.hardware import Load
from pipeline.telemetry.metrics import Snapshot


@dataclass(frozen=True)
class Progress:
    """How far something is that has an end.

    Attributes:
        expected: 0 while nobody knows.
        what: what is counted, as it follows the figures: empty for samples answered, ` images loaded`.
        eta_s: seconds to the end, None while nothing is known.
        ended: whether the end is there.
        estimated: whether `expected` is reckoned, not counted.
    """

    done: int
    expected: int
    what: str
    eta_s: float | None
    ended: bool
    estimated: bool = False

    @property
    def counts(self) -> str:
        """`5,200 / 11,000`, `5,200 / ~11,000`, `5,200 so far`."""
        return f"{self.done:,} / {self.whole}{self.what}" if self.expected else f"{self.done:,}{self.what} so far"

    @property
    def whole(self) -> str:
        """`expected` in words: `11,000`, `~11,000`."""
        return f"{'~' * self.estimated}{self.expected:,}"


@dataclass(frozen=True)
class View:
    """All that one frame shows.

    Attributes:
        expected: samples the run will answer (0: not known yet).
        eta_s: seconds to the last of them, None while nothing is known.
        columns: samples/s of each second so far, newest last.
        load: the machine, None before its first reading.
        awaited: what the run waits for once it is set up.
    """

    title: str
    snapshot: Snapshot
    expected: int
    eta_s: float | None
    columns: Sequence[float]
    peak: float
    load: Load | None
    awaited: str = "the first query"

    @property
    def progress(self) -> Progress | None:
        """Of loading while the run loads, else of answering; None before either."""
        now = self.snapshot
        if now.phase == "loading" and now.to_load:
            left, pace = now.to_load - now.loaded, next((s.rate for s in now.stages if s.name == "decode"), 0.0)
            return Progress(now.loaded, now.to_load, " loaded", left / pace if pace else None, left == 0)
        if now.phase in ("starting", "loading") or not (self.expected or now.completed):
            return None
        ended = now.phase == "done" or (0 < self.expected <= now.completed and not now.estimated)
        return Progress(now.completed, self.expected, "", self.eta_s, ended, now.estimated)

    @property
    def waiting(self) -> str:
        """What the run waits for while there is no progress to show."""
        if self.snapshot.phase != "starting":
            return f"waiting for {self.awaited}"
        return "; ".join(
            f"{stage.up} of {stage.workers} {does}"
            for name, does in _SETS_UP.items()
            for stage in self.snapshot.stages
            if stage.name == name
        )


_SETS_UP = {
    "infer": "engines up (they read the model, prepare its kernels and measure themselves)",
    "decode": "loaders up",
    "classify": "actors up (each starts loaders and an engine)",
}

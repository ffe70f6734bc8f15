"""How far a session is: the snapshot that dashboards and summaries are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.session.session import Session
from pipeline.telemetry.interpreter import python_s
from pipeline.telemetry.metrics import Decoded, Snapshot


@dataclass
class Progress:
    """A caller's count of its own answers. One thread writes; others take snapshots.

    Attributes:
        completed: sources that are answered, those of earlier runs included.
        expected: sources there are; None while nobody has counted them.
        estimated: whether `expected` is reckoned, not counted.
        answered: of `completed`, those of this run.
        began_s: when the first source could be read (monotonic), None before.
        last_s: when the last answer came (monotonic).
        python_s: of the CPU, that this process's Python has taken from the first source to the last answer.
    """

    session: Session
    completed: int = 0
    expected: int | None = None
    estimated: bool = False
    answered: int = 0
    began_s: float | None = None
    last_s: float = 0.0
    python_s: float = 0.0

    def __post_init__(self) -> None:
        self._phase, self._phase_began = "starting", time.monotonic()
        self._python_began_s = 0.0

    def enter(self, phase: str) -> None:
        """Name what the run is doing from now on (see `pipeline.telemetry.metrics.Snapshot.phase`)."""
        self._phase, self._phase_began = phase, time.monotonic()
        if phase == "running":
            self.began_s, self._python_began_s = self._phase_began, python_s()

    def add(self, answers: int) -> None:
        """So many answers have come."""
        # First: a snapshot may be taken between any two of these.
        self.last_s, self.python_s = time.monotonic(), python_s() - self._python_began_s
        self.completed += answers
        self.answered += answers

    @property
    def rate(self) -> float:
        """Answers/s from the first source to the last answer; 0 before any."""
        return 0.0 if self.began_s is None or not self.answered else self.answered / (self.last_s - self.began_s)

    @property
    def main_rate(self) -> float | None:
        """Answers/s that this process's Python could have seen to, were it never idle; None before any.

        At least `rate`: its threads may be in the system side by side, and the kernel counts that, too.
        """
        return max(self.rate, self.answered / self.python_s) if self.answered and self.python_s else None

    def decoded(self) -> Decoded | None:
        """Who has decoded the files; None where loaders decode all."""
        return self.session.loading.decoded(self.rate / max(1, self.answered))

    def snapshot(self) -> Snapshot:
        stages = self.session.snapshots()
        infer = stages[1]
        return Snapshot(
            phase=self._phase,
            elapsed_s=time.monotonic() - self._phase_began,
            completed=self.completed,
            expected=0 if self.expected is None else max(self.expected, self.completed),
            estimated=self.estimated,
            rate_now=infer.rate,
            rate_mean=self.rate,
            stages=stages,
            counted=infer.counted,
            counted_s=infer.counted_s,
            decoded=self.decoded(),
        )

"""From the first question to the last answer, by the clock that nobody sets and by the one that somebody may."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answering:
    """A time of answering.

    Attributes:
        samples: that were answered.
        first_s, last_s: when the first query came and the last answer was given, monotonic.
        clock_step_s: by how much the system's clock was set forward between the two; below 0: back.
    """

    samples: int
    first_s: float
    last_s: float
    clock_step_s: float

    @property
    def rate(self) -> float:
        """Samples/s."""
        return self.samples / max(self.last_s - self.first_s, 1e-9)

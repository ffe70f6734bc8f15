"""The clock by which a stage judges its workers, for tests of workers that take too long: it goes on as a test says.

By a real one any worker of a busy machine may be too slow, and a test of one that is waits as long as is allowed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.stages import process as process_module
from pipeline.stages.clock import LONGEST_STEP_S, AwakeClock


class JudgedClock(AwakeClock):
    """Stands still, but for what `let_pass` allows: the longest step at each look of the stage's thread."""

    def __init__(self) -> None:
        super().__init__()
        self._until_s = 0.0
        self._when: Callable[[], bool] = lambda: True

    def let_pass(self, seconds: float, when: Callable[[], bool] = lambda: True) -> None:
        """So many seconds from now on, each at a look at which `when` is true.

        A worker is found to have begun up to a step late, and judged up to a step late: two more than its limit are
        enough for that, and too few for whatever comes after it.
        """
        self._when = when
        self._until_s = self.now_s + seconds

    @property
    def is_over(self) -> bool:
        """Whether all that was allowed has passed."""
        return self.now_s >= self._until_s

    def tick(self) -> float:
        if not self.is_over and self._when():
            self.now_s += LONGEST_STEP_S
        return self.now_s


def judged_clock(monkeypatch: pytest.MonkeyPatch) -> JudgedClock:
    """The clock of the one stage that is made from now on, which looks at it often."""
    clock = JudgedClock()
    monkeypatch.setattr(process_module, "AwakeClock", lambda: clock)
    monkeypatch.setattr(process_module, "POLL_S", 0.02)
    return clock

"""The time by which workers are judged."""

from __future__ import annotations

import time

# A step that is longer was not spent watching.
LONGEST_STEP_S = 1.0


class AwakeClock:
    """Seconds that its owner was awake, as it shows by calling `tick` several times per second.

    What passes while the process is stopped (Ctrl-Z) or the machine sleeps does not count: the workers stood still
    too.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._last = time.monotonic()

    def tick(self) -> float:
        """Move on; the time by this clock. For one thread; `now_s` may be read by any."""
        last, self._last = self._last, time.monotonic()
        self.now_s += min(self._last - last, LONGEST_STEP_S)
        return self.now_s

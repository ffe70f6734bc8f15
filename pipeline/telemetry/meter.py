"""What a worker has done by any moment, each piece of work spread evenly over the seconds that it took.

A count moves only when a batch ends, so that counts say nothing of a time shorter than a batch: over 2 s, batches of
3 s are none or one. Spread over the time that each batch took, they are the rate in every moment.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# Pieces that together are shorter than this are kept as one.
RESOLUTION_S = 0.05

# Pieces that are kept: more than 200 s of short ones. What is older counts as done at any time that is asked for.
PIECES = 4096


@dataclass
class _Piece:
    begin_s: float
    end_s: float
    samples: int
    busy_s: float


class Meter:
    """One worker's work. Times are monotonic seconds. Not thread-safe.

    Attributes:
        samples, busy_s: all that it has done.
        until_s: when its last piece ended; when the meter was made, before the first.
    """

    def __init__(self, now_s: float) -> None:
        self.samples = 0
        self.busy_s = 0.0
        self.until_s = now_s
        self._pieces: deque[_Piece] = deque(maxlen=PIECES)

    def add(self, now_s: float, busy_s: float, samples: int) -> None:
        """A piece of work ended at `now_s` and took `busy_s`; pieces come in the order they end."""
        self.samples += samples
        self.busy_s += busy_s
        self.until_s = now_s
        begin_s = now_s - busy_s
        last = self._pieces[-1] if self._pieces else None
        if last is None or now_s - min(begin_s, last.begin_s) > RESOLUTION_S:
            self._pieces.append(_Piece(begin_s, now_s, samples, busy_s))
            return
        last.begin_s = min(begin_s, last.begin_s)
        last.end_s = now_s
        last.samples += samples
        last.busy_s += busy_s

    def by(self, time_s: float) -> tuple[float, float]:
        """(samples, busy seconds) done by `time_s`."""
        samples, busy_s = float(self.samples), self.busy_s
        for piece in reversed(self._pieces):
            if piece.end_s <= time_s:
                break
            after = 1.0
            if time_s > piece.begin_s:
                after = (piece.end_s - time_s) / (piece.end_s - piece.begin_s)
            samples -= after * piece.samples
            busy_s -= after * piece.busy_s
        return samples, busy_s

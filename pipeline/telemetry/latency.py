"""Latencies as they come, for the dashboard: a histogram that never grows. LoadGen's own figures are the result."""

from __future__ import annotations

import math

import numpy as np

# Bins from 10 us to 10,000 s, each 2 % wider than the one before: a percentile is known to within 2 %.
FIRST_S = 1e-5
GROWTH = 1.02
BINS = math.ceil(math.log(1e9) / math.log(GROWTH))
PERCENTILES = (50.0, 90.0, 99.0)


class Latencies:
    """One thread adds; others may read."""

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, dtype=np.int64)

    def add(self, seconds: float, samples: int) -> None:
        """`samples` were answered `seconds` after the first of them was issued."""
        place = math.log(max(seconds, FIRST_S) / FIRST_S) / math.log(GROWTH)
        self._counts[min(BINS - 1, int(place))] += samples

    def percentiles_ms(self) -> dict[str, float]:
        """`p50`, `p90` and `p99` in milliseconds; empty before the first answer."""
        counts = self._counts.cumsum()
        if not counts[-1]:
            return {}
        places = np.searchsorted(counts, [p / 100 * counts[-1] for p in PERCENTILES])
        return {
            f"p{p:g}": FIRST_S * GROWTH ** (place + 1) * 1e3
            for p, place in zip(PERCENTILES, places.tolist(), strict=True)
        }

"""What an audit's run is compared by: a scenario's official figure, and how far two of them may differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A rate, or a latency in ns.
_FIGURES = {
    "Offline": "result_samples_per_second",
    "Server": "result_completed_samples_per_sec",
    "SingleStream": "early_stopping_latency_ss",
    "MultiStream": "early_stopping_latency_ms",
}
# Latencies this short vary more from run to run.
_SHORT_NS = {"SingleStream": 200_000, "MultiStream": 1_600_000}
TOLERANCE, SHORT_TOLERANCE = 0.10, 0.20


def figure(scenario: str, values: Mapping[str, Any]) -> float:
    """The official figure of a run, from its detail log; 0 where it has none."""
    return float(values.get(_FIGURES[scenario], 0))


def is_latency(scenario: str) -> bool:
    return scenario in _SHORT_NS


def tolerance(scenario: str, reference: float) -> float:
    """The share by which an audit's figure may differ from `reference`."""
    return SHORT_TOLERANCE if reference <= _SHORT_NS.get(scenario, -1) else TOLERANCE

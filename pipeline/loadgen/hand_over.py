"""What it costs that LoadGen hands a long query over as two Python lists, before anything can start on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.loadgen.results import LoadGenResult
from pipeline.telemetry.answering import Answering

WORTH_SAYING = 0.005
"""The share of a run from which on it is said."""


@dataclass(frozen=True)
class HandOver:
    """How one Offline query came.

    Attributes:
        arrays: whether as an array of LoadGen's own memory.
        seconds: of the timed run that were over when its first samples came.
        share: of the run.
    """

    arrays: bool
    seconds: float
    share: float

    @property
    def sentence(self) -> str | None:
        """For the user, where there is something to gain."""
        if self.arrays or self.share < WORTH_SAYING:
            return None
        return (
            f"LoadGen's lists of the query took {self.seconds:.3g} s, {self.share:.1%} of the run; "
            "python -m tools.build_loadgen builds a LoadGen without, for --loadgen-path"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def hand_over(result: LoadGenResult, answering: Answering | None, *, arrays: bool) -> HandOver | None:
    """None but for an Offline performance run: other queries are short."""
    whole_s = result.latency_ns.get("max", 0.0) / 1e9
    if (result.scenario, result.mode) != ("Offline", "PerformanceOnly") or answering is None or whole_s <= 0:
        return None
    # LoadGen's time of the whole query, less the pipeline's of answering it.
    seconds = max(0.0, whole_s - (answering.last_s - answering.first_s))
    return HandOver(arrays, seconds, seconds / whole_s)

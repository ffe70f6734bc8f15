"""MLPerf's rounds: the seeds and settings that they ask of ResNet-50, and the LoadGen that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError
from pipeline.loadgen.scenarios import SERVER_LATENCY_NS

SAMPLES = 50_000
"""Images of the validation set, which an accuracy run covers."""

PERFORMANCE_SAMPLES = 1024
"""The least number of different samples in a performance run."""

MIN_DURATION_MS = 600_000
OFFLINE_SAMPLES = 24_576
MULTI_STREAM_SAMPLES = 8

# Settings of LoadGen that only audits and experiments want.
_OFF = ("performance_issue_unique", "performance_issue_same", "test05", "accuracy_sample_count_override")


@dataclass(frozen=True)
class Round:
    """One round of MLPerf Inference.

    Attributes:
        seeds: qsl_rng_seed, sample_index_rng_seed and schedule_rng_seed, by these names.
        wheel: the newest version of mlcommons-loadgen whose built-in rules have these seeds.
        suites: those with ResNet-50.
    """

    name: str
    seeds: Mapping[str, int]
    wheel: str
    suites: tuple[str, ...]


def _round(name: str, wheel: str, suites: tuple[str, ...], qsl: int, sample_index: int, schedule: int) -> Round:
    seeds = {"qsl_rng_seed": qsl, "sample_index_rng_seed": sample_index, "schedule_rng_seed": schedule}
    return Round(name, seeds, wheel, suites)


ROUNDS: Mapping[str, Round] = {
    found.name: found
    for found in (
        _round(
            "v6.1", "6.0.17", ("edge",), 2085463073848966840, 2747215439041700203, 16159082839903944936
        ),
        _round(
            "v6.0", "6.0.15", ("edge",), 2465351861681999779, 14276810075590677512, 3936089224930324775
        ),
        _round(
            "v5.1", "6.0.4", ("edge",), 1780908523862526354, 14771362308971278857, 18209322760996052031
        ),
        _round(
            "v5.0", "5.0.21", ("datacenter", "edge"), 6023615788873153749, 15036839855038426416, 9933818062894767841
        ),
    )
}  # fmt: skip


def round_of(settings: Mapping[str, Any]) -> str | None:
    """The round that the seeds among `settings` (TestSettings, or a log's) belong to; None: to none."""
    found = (r.name for r in ROUNDS.values() if all(settings.get(name) == seed for name, seed in r.seeds.items()))
    return next(found, None)


def check_official(name: str, settings: Mapping[str, Any], *, trial: bool = False) -> None:
    """Raises PipelineError, with every fault, for plain TestSettings that are not the official ones of round `name`.

    A `trial` may be shorter and ask for fewer samples.
    """
    faults = [*_seeds(ROUNDS[name], settings), *_settings(settings, trial)]
    if faults:
        raise PipelineError(f"--round {name}: " + "; ".join(faults))


def seeds_remedy(round: Round) -> str:
    """How to come by the LoadGen of a round."""
    return f"install the LoadGen of {round.name}: pip install mlcommons-loadgen=={round.wheel}"


def _seeds(wanted: Round, settings: Mapping[str, Any]) -> list[str]:
    if all(settings.get(name) == seed for name, seed in wanted.seeds.items()):
        return []
    found = round_of(settings)
    whose = "those of no round" if found is None else f"{found}'s"
    return [f"the seeds of this LoadGen and these settings are {whose}; {seeds_remedy(wanted)}"]


def _settings(settings: Mapping[str, Any], trial: bool) -> list[str]:
    scenario = settings["scenario"]
    bounds: list[tuple[str, str, float]] = [
        ("performance_sample_count_override", "at least", PERFORMANCE_SAMPLES),
    ]
    if not trial:
        bounds.append(("min_duration_ms", "at least", MIN_DURATION_MS))
    if scenario == "Offline":
        bounds.append(("min_query_count", "at least", 1 if trial else OFFLINE_SAMPLES))
    elif scenario == "SingleStream":
        bounds.append(("single_stream_target_latency_percentile", "exactly", 0.9))
    elif scenario == "MultiStream":
        bounds.append(("multi_stream_target_latency_percentile", "exactly", 0.99))
        bounds.append(("multi_stream_samples_per_query", "exactly", MULTI_STREAM_SAMPLES))
    else:
        bounds.append(("server_target_latency_ns", "at most", SERVER_LATENCY_NS))
        bounds.append(("server_target_latency_percentile", "exactly", 0.99))
    bounds += [(name, "exactly", 0) for name in _OFF]
    faults = [
        f"--lgts_{name} is {settings[name]:g} and has to be {kind} {bound:g}"
        for name, kind, bound in bounds
        if not _holds(kind, float(settings[name]), bound)
    ]
    if settings["mode"] == "FindPeakPerformance":
        faults.append("--test-mode FindPeakPerformance gives no official result")
    return faults


def _holds(kind: str, value: float, bound: float) -> bool:
    if kind == "exactly":
        return abs(value - bound) < 1e-9
    return value >= bound if kind == "at least" else value <= bound

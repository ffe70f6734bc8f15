"""A small folder of runs in which nothing is wrong, and ways to change one thing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.loadgen.rounds import ROUNDS
from tools.submission.init import init
from tools.submission.plan import MEASUREMENTS, SYSTEM, Limits, Plan
from tools.submission.system import FILL_IN

SAMPLES, WRONG = 40, 7
LIMITS = Limits(SAMPLES, 1024, 600_000, 24_576, audit=True)
SCENARIOS = ("Offline", "SingleStream", "MultiStream", "Server")
PLAN = Plan("v6.1", "ACME", "open", "edge", "box", trial=False)

_FIGURES: dict[str, dict[str, Any]] = {
    "Offline": {"result_samples_per_second": 1000.0},
    "Server": {"result_completed_samples_per_sec": 500.0},
    "SingleStream": {"early_stopping_latency_ss": 1_000_000, "early_stopping_latency_ms": 1_500_000},
    "MultiStream": {"early_stopping_latency_ms": 8_000_000},
}


def make_good(folder: Path) -> Path:
    """All scenarios, all runs."""
    init(folder, PLAN, {}, lambda _line: None)
    for name in (SYSTEM, MEASUREMENTS):
        change_json(folder / name, lambda values: values.update(dict.fromkeys(_open_fields(values), "known")))
    change_json(folder / SYSTEM, lambda values: values.update(status="available"))
    (folder / "calibration.md").write_text("As published.\n")
    for scenario in SCENARIOS:
        for kind in ("accuracy", "performance", "TEST01", "TEST04"):
            _make_run(folder / "runs" / scenario / kind, scenario, kind)
    return folder


def _open_fields(values: dict[str, Any]) -> list[str]:
    return [name for name, value in values.items() if FILL_IN in value]


def _make_run(place: Path, scenario: str, kind: str) -> None:
    place.mkdir(parents=True)
    accuracy = kind == "accuracy"
    values: dict[str, Any] = {
        "loadgen_version": "6.0.17 @ 0123456789",
        "effective_scenario": scenario,
        "effective_test_mode": "AccuracyOnly" if accuracy else "PerformanceOnly",
        "effective_min_duration_ms": 600_000,
        "effective_min_query_count": 1,
        "effective_samples_per_query": 30_000 if scenario == "Offline" else 8 if scenario == "MultiStream" else 1,
        "effective_target_latency_ns": 15_000_000 if scenario == "Server" else 0,
        "effective_target_latency_percentile": 0.99,
        "effective_performance_sample_count": 1024,
        "effective_performance_issue_same": kind == "TEST04",
        "effective_accuracy_log_rng_seed": 7 if kind == "TEST01" else 0,
        "effective_accuracy_log_sampling_target": 4096 if kind == "TEST01" else 0,
        "qsl_reported_total_count": SAMPLES,
        "qsl_reported_performance_count": 1024,
        **{f"effective_{name}": seed for name, seed in ROUNDS["v6.1"].seeds.items()},
    }
    if not accuracy:
        values |= {"result_validity": "VALID", "early_stopping_met": True, **_FIGURES[scenario]}
    detail = [{"key": key, "value": value, "metadata": {"is_error": False}} for key, value in values.items()]
    _write_detail(place, detail)
    (place / "mlperf_log_summary.txt").write_text(
        f"Scenario : {scenario}\nResult is : VALID\n\nNo errors encountered during test.\n"
    )
    logged = {"accuracy": range(SAMPLES), "TEST01": range(0, SAMPLES, 3)}.get(kind, range(0))
    write_predictions(place, {index: answer(index) for index in logged})
    rows = "".join(f"{n}\t{n}.jpg\t/x/{n}.jpg\t{n % 10}\n" for n in range(SAMPLES))
    (place / "mlperf_log_samples.tsv").write_text("number\tname\tpath\tlabel\n" + rows)
    (place / "mlperf_log_user.conf").write_text("*.Offline.target_qps = 900\n")
    (place / "command.txt").write_text(f"python -m pipeline.offline --scenario {scenario}\n")
    good = SAMPLES - WRONG
    summary = {
        "settings": {"target": "1 GPU"},
        "hardware": {"gpus": [{"name": "H200"}]},
        "accuracy": {"correct": good, "total": SAMPLES} if accuracy else None,
        "identity": {"model": "ab" * 32, "commit": "cd" * 20, "round_of_seeds": "v6.1"},
    }
    (place / "summary.json").write_text(json.dumps(summary))
    if accuracy:
        (place / "accuracy.txt").write_text(f"accuracy={100 * good / SAMPLES:.3f}%, good={good}, total={SAMPLES}\n")


def answer(index: int) -> int:
    """The class that the model gives sample `index`: wrong for the first few."""
    return index % 10 + (1 if index < WRONG else 0)


def write_predictions(place: Path, answers: dict[int, int]) -> None:
    records = [
        {"seq_id": n, "qsl_idx": index, "data": found.to_bytes(4, "little").hex().upper()}
        for n, (index, found) in enumerate(answers.items())
    ]
    text = "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n"
    (place / "mlperf_log_accuracy.json").write_text(text)


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_log(place: Path, *, error: str = "", **values: Any) -> None:
    """Change records of a detail log."""
    path = place / "mlperf_log_detail.txt"
    detail = [json.loads(line.removeprefix(":::MLLOG ")) for line in path.read_text().splitlines()]
    known = {record["key"] for record in detail}
    assert values.keys() <= known, "only what a good log has can be changed"
    for record in detail:
        record["value"] = values.get(record["key"], record["value"])
    if error:
        detail.append({"key": "error_runtime", "value": error, "metadata": {"is_error": True}})
    _write_detail(place, detail)


def _write_detail(place: Path, detail: list[dict[str, Any]]) -> None:
    text = "".join(f":::MLLOG {json.dumps(record)}\n" for record in detail)
    (place / "mlperf_log_detail.txt").write_text(text)

"""LoadGen's scenarios, run as a user runs them, and the plans behind them."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.loadgen.scenarios import SERVER_SHARE, Scenario, batch_plan, expectations
from tests.pipeline.application import LongRun, offline


@pytest.fixture
def inputs(model_dir: Path, images: Path) -> list[object]:
    return ["--model", model_dir, "--images", images, "--no-dashboard"]


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


SHORT_RUNS: list[tuple[Scenario, list[object], str]] = [
    # Expected latencies that no machine reaches: LoadGen has an error where answers come so fast that it runs out of
    # queries, and warming up may have been as many times too slow on a busy machine.
    ("SingleStream", ["--lgts_single_stream_expected_latency_ns", 50_000], "90 % of queries within"),
    (
        "MultiStream",
        ["--lgts_multi_stream_samples_per_query", 3, "--lgts_multi_stream_expected_latency_ns", 50_000],
        "99 % of queries within",
    ),
    ("Server", ["--lgts_server_target_qps", 60, "--lgts_server_target_latency_ns", 10**9], "samples/s"),
]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(("scenario", "options", "says"), SHORT_RUNS, ids=[run[0] for run in SHORT_RUNS])
def test_a_short_run(inputs: list[object], tmp_path: Path, scenario: str, options: list[object], says: str) -> None:
    done = offline(
        *inputs, "--scenario", scenario, *options, "--lgts_min_duration_ms", 700, "--lgts_min_query_count", 20,
        "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    found = summary_of(tmp_path)
    assert found["loadgen"]["scenario"] == scenario
    assert not found["loadgen"]["errors"]
    latency = found["loadgen"]["latency_ns"]
    assert 0 < latency["50.00"] <= latency["90.00"] <= latency["99.00"]
    assert found["throughput"]["completed"] >= 20
    assert re.search(r"p50 [\d.]+ m?s", done.stderr)
    if scenario == "Server":
        # A machine that stands still for a moment answers them late.
        assert 0 < found["loadgen"]["samples_per_second"] < 100
        assert found["loadgen"]["settings"]["target_qps"] == 60
        assert found["settings"]["batch_size"] == 8


def test_a_server_that_answers_too_late_is_told_what_to_change(inputs: list[object], tmp_path: Path) -> None:
    done = offline(
        *inputs, "--scenario", "Server", "--max-batch", 4, "--batch-step", 2, "--busy-at", 2, "--batch-timeout-us", 0,
        "--lgts_server_target_qps", 50, "--lgts_server_target_latency_ns", 1000,
        "--lgts_min_duration_ms", 500, "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "LoadGen: INVALID" in done.stdout
    assert "took longer than 0.001 ms" in done.stdout
    assert "--lgts_server_target_qps" in done.stdout


def test_two_engines_share_the_work(inputs: list[object], tmp_path: Path) -> None:
    done = offline(
        *inputs, "--engines", 2, "-b", 2, "--lgts_min_duration_ms", 300, "--lgts_offline_expected_qps", 1500,
        "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "engine 1 of 2" in done.stdout
    assert "engine 2 of 2" in done.stdout
    rates = summary_of(tmp_path)["engines"]
    assert len(rates) == 2
    assert min(engine["samples"] for engine in rates) > 0
    assert sum(engine["samples"] for engine in rates) == summary_of(tmp_path)["throughput"]["completed"]


@pytest.mark.parametrize("victim", [0, 1])
def test_either_engine_killed_ends_the_run_and_leaves_nothing(
    model_dir: Path, images: Path, tmp_path: Path, victim: int
) -> None:
    run = LongRun(model_dir, images, tmp_path, "--engines", 2, "-b", 2, "--lgts_offline_expected_qps", 5000)
    try:
        pid = run.wait_running()["infer"][victim]
        os.kill(pid, signal.SIGKILL)
        assert run.finish() == 1
        assert f"worker {victim} (pid {pid}) was killed by SIGKILL" in run.output
        run.assert_nothing_left()
    finally:
        run.end()


def plan(scenario: Scenario, **given: Any) -> Any:
    options: dict[str, Any] = {
        "gpu": True, "batch_size": None, "max_batch": None, "batch_step": None, "batch_timeout_us": None,
        "busy_at": None, "inflight": 3,
        "samples_per_query": 8,
    }  # fmt: skip
    return batch_plan(scenario, **(options | given))


def test_plans() -> None:
    assert plan("Offline").sizes.values == (1024,)
    assert plan("Offline", gpu=False).sizes.values == (16,)
    assert plan("Offline", batch_size=7).sizes.values == (7,)
    assert plan("Offline").hold_s == 0
    assert (plan("SingleStream").sizes.values, plan("SingleStream").inflight) == ((1,), 1)
    assert (plan("MultiStream").sizes.values, plan("MultiStream").inflight) == ((8,), 1)
    server = plan("Server", max_batch=100, batch_timeout_us=500)
    assert (server.sizes.values, server.hold_s, server.inflight) == ((1, 8, 32, 100), 0.0005, 3)
    assert plan("Server", batch_timeout_us=0).hold_s == 0
    assert server.busy_at == 1
    stepped = plan("Server", max_batch=100, batch_step=40, busy_at=2)
    assert (stepped.sizes.values, stepped.busy_at) == ((1, 40, 80, 100), 2)


def test_what_loadgen_is_told_to_expect() -> None:
    fields, said = expectations("Server", (), 1000.0, 1)
    assert fields == {"server_target_qps": 1000 * SERVER_SHARE}
    assert "600.0 samples/s" in said
    assert expectations("Server", ("server_target_qps",), 1000.0, 1) == ({}, "")
    assert expectations("Offline", (), 0.0, 1) == ({}, "")
    assert expectations("Offline", (), 1000.0, 1)[0] == {"offline_expected_qps": 1300.0}
    assert expectations("MultiStream", (), 1000.0, 8)[0] == {"multi_stream_expected_latency_ns": 2_000_000}

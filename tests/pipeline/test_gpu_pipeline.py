"""The application on a GPU: equal to the CPU, and nothing left behind by faults."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.defaults import DEFAULT_MODEL, DEMO_IMAGES
from tests.pipeline.application import LongRun, offline, predictions

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cupy", "clean")]


@pytest.mark.parametrize("h2d", ["runs", "gather", "staged"])
def test_every_way_of_copying_gives_the_classes_of_the_cpu(
    model_dir: Path, images: Path, expected: np.ndarray, tmp_path: Path, h2d: str
) -> None:
    out = tmp_path / "out"
    done = offline(
        "--model", model_dir, "--images", images, "-b", 5, "--test-mode", "AccuracyOnly", "--output-dir", out,
        "--h2d", h2d, gpu="auto",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"samples by {h2d}" in done.stdout
    assert predictions(out) == dict(enumerate(expected.tolist()))


def test_kernel_numbers_that_do_not_fit_are_told_or_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("# engine: int4core\nfc=5\n")
    options = ("--autoconfig", file, "-b", 8, "--test-mode", "AccuracyOnly", "--gpus", "0,0")
    done = offline(*options, "--output-dir", tmp_path / "out", gpu="auto")
    assert done.returncode == 0, done.stderr
    said = f"{file}:2: fc: kernel 5 does not fit here"
    assert done.stdout.count(said) == 1, "once for both engines"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [notice.startswith(said) for notice in summary["notices"]] == [True]
    strict = offline(*options, "--strict", "--output-dir", tmp_path / "strict", gpu="auto")
    assert strict.returncode == 1
    assert said in strict.stderr
    assert "Traceback" not in strict.stderr


def test_two_engine_processes_share_a_gpu(tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "trace.json"
    done = offline(
        "--gpus", "0,0", "-b", 128, "--output-dir", out, "--trace", file,
        "--lgts_min_duration_ms", 1000, "--lgts_offline_expected_qps", 100_000, gpu="auto",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["engines"]) == 2
    assert all(engine["samples"] > 0.2 * summary["throughput"]["completed"] for engine in summary["engines"])
    assert summary["accuracy"]["correct"] / summary["accuracy"]["total"] > 0.8
    energy = summary["energy"]
    assert 0 < energy["images"] <= summary["throughput"]["completed"]
    assert [gpu["clock_mhz"] > 0 for gpu in energy["gpus"]] == [True]
    assert set(summary["verdict"]["ceilings"]) == {"engine", "h2d", "loadgen"}
    events = json.loads(file.read_text())["traceEvents"]
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = {}
    names: dict[tuple[int, str], int] = {}
    for event in events:
        if event["name"] in ("upload", "network"):
            lanes.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
            names[event["pid"], event["name"]] = names.get((event["pid"], event["name"]), 0) + 1
    assert len({pid for pid, _ in names}) == 2
    assert min(names.values()) > 100
    for spans in lanes.values():
        # A batch's upload, or its network, begins when the lane's last one is over.
        assert all(a[1] <= b[0] + 1 for a, b in pairwise(sorted(spans)))


def test_more_batches_than_the_gpu_has_memory_for_is_one_clear_error(tmp_path: Path) -> None:
    done = offline("-b", 8192, "--inflight", 32, "--output-dir", tmp_path / "out", gpu="auto")
    assert done.returncode == 1
    assert "choose a smaller --batch_size" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_largest_batch_that_can_be_asked_for_is_one_clear_error(tmp_path: Path) -> None:
    done = offline("-b", 1 << 24, "--output-dir", tmp_path / "out", gpu="auto")
    assert done.returncode == 1
    assert "choose a smaller --batch_size" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def long_run(cupy: object, tmp_path: Path) -> Iterator[LongRun]:
    run = LongRun(
        DEFAULT_MODEL, DEMO_IMAGES, tmp_path / "out", "-b", 256, "--lgts_offline_expected_qps", 50_000, gpu="auto"
    )
    try:
        yield run
    finally:
        run.end()


def test_a_killed_gpu_process_ends_the_run(long_run: LongRun) -> None:
    pid = long_run.wait_running()["infer"][0]
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert long_run.finish() == 1
    assert time.monotonic() - began < 10
    assert "stage infer" in long_run.output
    assert "SIGKILL" in long_run.output
    long_run.assert_nothing_left()


@pytest.mark.parametrize("delay", [0.5, 1.5, 3.0, 5.0, None])
def test_an_interrupt_at_any_moment_leaves_nothing(long_run: LongRun, delay: float | None) -> None:
    if delay is None:
        long_run.wait_running()
    else:
        long_run.wait_heeding()
        time.sleep(delay)
    os.killpg(long_run.process.pid, signal.SIGINT)
    assert long_run.finish() == 130
    long_run.assert_nothing_left()

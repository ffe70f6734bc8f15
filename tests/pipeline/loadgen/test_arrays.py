"""A LoadGen that takes arrays: what goes in and out of it, and, where one is built, a test of the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.loadgen.binding import PIECE, RESPONSES, Completions, LoadGenSession, takes_arrays
from pipeline.loadgen.hand_over import hand_over
from pipeline.loadgen.results import read_accuracy_log, read_result
from pipeline.telemetry.answering import Answering
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.loadgen.test_loadgen import NULL_SUT
from tests.pipeline.loadgen.test_results import detail

SAMPLE = np.dtype([("id", "<u8"), ("index", "<u8")])
BUILD = os.environ.get("LOADGEN_ARRAYS", "")


class Recording:
    """The two functions of such a build, and what a session needs beside them."""

    def __init__(self) -> None:
        self.issue: Any = None
        self.answers: list[tuple[int, int]] = []

    def ConstructArraySUT(self, issue: Any, flush: Any) -> int:  # noqa: N802 (LoadGen's name)
        self.issue = issue
        return 1

    def ConstructQSL(self, *_args: Any) -> int:  # noqa: N802
        return 2

    def DestroyFastSUT(self, _sut: int) -> None:  # noqa: N802
        pass

    def DestroyQSL(self, _qsl: int) -> None:  # noqa: N802
        pass

    def QuerySamplesCompleteArray(self, responses: Any) -> None:  # noqa: N802
        assert responses.flags.c_contiguous
        assert responses.dtype.itemsize == 32
        for response in responses:
            address, size = int(response["data"]), int(response["size"])
            assert size == 4
            offset = (address - self.base) // 4
            self.answers.append((int(response["id"]), int(self.data[offset])))

    def watch(self, completions: Completions) -> None:
        self.data = completions._data
        self.base = completions._data.ctypes.data


def test_a_query_comes_in_pieces_of_loadgens_own_memory() -> None:
    lg = Recording()
    pieces = []
    completions = Completions(lg)
    session = LoadGenSession(
        lg, completions=completions, count=9, performance_count=9, load=lambda _i: None, unload=lambda _i: None,
        issue=lambda ids, indices: pieces.append((ids, indices)), flush=lambda: None, on_error=lambda _e: None,
    )  # fmt: skip
    count = 2 * PIECE + 3
    samples = np.zeros(count, dtype=SAMPLE)
    samples["id"] = np.arange(count, dtype=np.uint64) + np.uint64(2**63)
    samples["index"] = np.arange(count) % 9
    with session:
        lg.issue(samples)
    assert [len(ids) for ids, _ in pieces] == [PIECE, PIECE, 3]
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in pieces]), samples["id"])
    np.testing.assert_array_equal(np.concatenate([indices for _, indices in pieces]), samples["index"])
    assert all(indices.dtype == np.int64 for _, indices in pieces)
    assert all(np.shares_memory(ids, samples) for ids, _ in pieces)


def test_answers_go_back_as_an_array() -> None:
    lg = Recording()
    completions = Completions(lg)
    lg.watch(completions)
    count = RESPONSES + 5
    classes = (np.arange(count) % 1000 - 3).astype(np.int32)
    completions.complete(np.arange(count, dtype=np.uint64) + 7, classes)
    assert lg.answers == [(number + 7, int(found)) for number, found in enumerate(classes)]


def test_the_wheel_has_lists() -> None:
    import mlperf_loadgen as lg

    assert not takes_arrays(lg)


@pytest.mark.parametrize(("arrays", "says"), [(False, "took 2 s, 20.0% of the run"), (True, None)])
def test_lists_cost_what_was_over_before_the_first_sample(tmp_path: Path, arrays: bool, says: str | None) -> None:
    records: list[tuple[str, Any]] = [
        ("effective_scenario", "Offline"),
        ("effective_test_mode", "PerformanceOnly"),
        ("result_validity", "VALID"),
        ("result_max_latency_ns", 10_000_000_000),
    ]
    result = read_result(detail(tmp_path, *records))
    found = hand_over(result, Answering(1000, 100.0, 108.0, 0.0), arrays=arrays)
    assert found is not None
    assert (found.seconds, found.share) == (pytest.approx(2.0), pytest.approx(0.2))
    assert (found.sentence is None) if says is None else (found.sentence is not None and says in found.sentence)
    quick = hand_over(result, Answering(1000, 100.0, 109.99, 0.0), arrays=arrays)
    assert quick is not None
    assert quick.sentence is None


def test_other_scenarios_have_short_queries(tmp_path: Path) -> None:
    records: list[tuple[str, Any]] = [("effective_scenario", "Server"), ("effective_test_mode", "PerformanceOnly")]
    assert hand_over(read_result(detail(tmp_path, *records)), Answering(9, 0.0, 1.0, 0.0), arrays=False) is None


@pytest.mark.skipif(not BUILD, reason="LOADGEN_ARRAYS names no folder of python -m tools.build_loadgen")
def test_the_real_one(tmp_path: Path) -> None:
    program = NULL_SUT.replace("lg = load_module()", f"lg = load_module(Path({BUILD!r}))")
    for mode, settings in (
        ("PerformanceOnly", ["offline_expected_qps=50000000", "min_duration_ms=10", "min_query_count=1"]),
        ("AccuracyOnly", []),
    ):
        out = tmp_path / mode
        out.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program, str(out), mode, "none", *settings],
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        seen = json.loads(done.stdout)
        assert not seen["failure"]
        assert read_result(out).errors == ()
        assert seen["issued"] == (550_000 if mode == "PerformanceOnly" else 300)
    assert read_result(tmp_path / "PerformanceOnly").valid
    log = read_accuracy_log(tmp_path / "AccuracyOnly" / "mlperf_log_accuracy.json")
    np.testing.assert_array_equal(log.classes, log.indices % 1000 - 3)
    assert sorted(log.indices.tolist()) == list(range(300))

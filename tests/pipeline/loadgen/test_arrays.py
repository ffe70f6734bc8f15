"""A LoadGen that takes arrays: what goes in and out of it, and, where one is built, a test of the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.loadgen.binding import PIECE, RESPONSES, Completions, LoadGenSession, takes_arrays
from pipeline.loadgen.hand_over import hand_over
from pipeline.loadgen.results import read_accuracy_log, read_result
from pipeline.session.waiting import SHORT
from pipeline.telemetry.answering import Answering
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.loadgen.test_loadgen import NULL_SUT
from tests.pipeline.loadgen.test_results import detail

SAMPLE = np.dtype([("id", "<u8"), ("index", "<u8")])
BUILD = os.environ.get("LOADGEN_ARRAYS", "")


class Recording:
    """The functions of such a build, and what a session needs beside them."""

    def __init__(self) -> None:
        self.issue: Any = None
        self.answers: list[tuple[int, int]] = []
        self.gathered = np.zeros(0, dtype=SAMPLE)

    def ConstructGatheringSUT(self, issue: Any, due: Any, flush: Any, short_below: int) -> int:  # noqa: N802 (LoadGen's name)
        self.issue, self.due, self.short_below = issue, due, short_below
        return 1

    def TakeGathered(self, sut: int) -> tuple[Any, float]:  # noqa: N802
        assert sut == 1
        taken, self.gathered = self.gathered, np.zeros(0, dtype=SAMPLE)
        return taken, 5.0

    def CallAt(self, sut: int, count: int) -> bool:  # noqa: N802
        assert sut == 1
        return 0 < count <= len(self.gathered)

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


def session_of(lg: Recording, **given: Any) -> LoadGenSession:
    nothing: dict[str, Any] = {name: lambda *_args: None for name in ("load", "unload", "issue", "flush", "on_error")}
    return LoadGenSession(lg, completions=Completions(lg), count=9, performance_count=9, **(nothing | given))


def test_a_query_comes_in_pieces_of_loadgens_own_memory() -> None:
    lg = Recording()
    pieces = []
    session = session_of(lg, issue=lambda ids, indices: pieces.append((ids, indices)))
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


def test_without_anyone_to_fetch_them_short_queries_are_issued_too() -> None:
    lg = Recording()
    with session_of(lg) as session:
        assert session.gathering is None
        assert lg.short_below == 0


def test_short_queries_gather_until_they_are_taken() -> None:
    lg, due = Recording(), list[int]()
    session = session_of(lg, due=lambda: due.append(1))
    gathering = session.gathering
    assert gathering is not None
    assert lg.short_below == SHORT
    lg.due()
    assert due == [1]
    assert gathering.take() is None
    lg.gathered = np.array([(2**63 + 1, 4), (7, 5)], dtype=SAMPLE)
    assert [gathering.call_at(count) for count in (0, 1, 2, 3)] == [False, True, True, False]
    taken = gathering.take()
    assert taken is not None
    ids, indices, since = taken
    assert (ids.tolist(), indices.tolist(), since) == ([2**63 + 1, 7], [4, 5], 5.0)
    assert (ids.dtype, indices.dtype) == (np.uint64, np.int64)
    lg.gathered = np.zeros(3, dtype=SAMPLE)
    session.close()
    assert gathering.take() is None, "LoadGen's side of it is gone"
    assert not gathering.call_at(1)


def test_what_is_raised_where_short_queries_are_due_is_kept() -> None:
    lg, errors = Recording(), list[BaseException]()

    def fail() -> None:
        raise ValueError("no")

    with session_of(lg, due=fail, on_error=errors.append):
        lg.due()
        lg.due()
    assert [str(error) for error in errors] == ["no"]


def test_a_build_of_before_is_to_be_built_again(tmp_path: Path) -> None:
    (tmp_path / f"mlperf_loadgen{EXTENSION_SUFFIXES[0]}").touch()
    program = (
        "import importlib.util, sys, types; from pathlib import Path; from pipeline.loadgen import binding\n"
        "old = types.SimpleNamespace(ConstructArraySUT=1, QuerySamplesCompleteArray=1)\n"
        "loader = types.SimpleNamespace(exec_module=lambda module: None)\n"
        "importlib.util.spec_from_file_location = lambda *_: types.SimpleNamespace(loader=loader)\n"
        "importlib.util.module_from_spec = lambda _: old\n"
        "try: binding.load_module(Path(sys.argv[1]))\n"
        "except binding.PipelineError as error: print(error, binding.MODULE in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert "is of an earlier tools.build_loadgen; build it again: " in done.stdout
    assert done.stdout.endswith(f"-m tools.build_loadgen {tmp_path} False\n")


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


# Answers short queries as they are taken, in twos at least, from a thread of its own.
TAKING = """
import sys, threading
from pathlib import Path
import numpy as np
from pipeline.loadgen.binding import Completions, LoadGenSession, SettingsSpec, load_module, make_settings

build, out, mode = sys.argv[1:]
lg = load_module(Path(build))
completions, due, taken, long = Completions(lg), threading.Event(), [], []

def answer():
    while True:
        due.wait()
        due.clear()
        while True:
            if (some := session.gathering.take()) is not None:
                taken.append(len(some[0]))
                completions.complete(some[0], (some[1] % 1000 - 3).astype(np.int32))
            if not session.gathering.call_at(1 if mode == "AccuracyOnly" else 2):
                break

session = LoadGenSession(lg, completions=completions, count=300, performance_count=128, load=lambda i: None,
                         unload=lambda i: None, issue=lambda ids, indices: long.append(len(ids)), due=due.set,
                         flush=lambda: due.set(), on_error=lambda error: sys.exit(str(error)))
threading.Thread(target=answer, daemon=True).start()
settings = {"server_target_qps": 20000.0, "server_coalesce_queries": True, "server_target_latency_ns": 10**9}
settings |= {"min_duration_ms": 300, "min_query_count": 1}
spec = SettingsSpec(None, None, settings, {}, mode, Path(out), "Server")
with session:
    session.run(*make_settings(lg, spec))
print(sum(taken), len(taken), len(long))
"""


@pytest.mark.skipif(not BUILD, reason="LOADGEN_ARRAYS names no folder of python -m tools.build_loadgen")
@pytest.mark.parametrize("mode", ["PerformanceOnly", "AccuracyOnly"])
def test_the_real_one_gathers_short_queries(tmp_path: Path, mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKING, BUILD, str(tmp_path), mode],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    samples, takes, long = map(int, done.stdout.split())
    result = read_result(tmp_path)
    assert (result.errors, long) == ((), 0)
    if mode == "AccuracyOnly":
        log = read_accuracy_log(tmp_path / "mlperf_log_accuracy.json")
        assert sorted(log.indices.tolist()) == list(range(300))
        np.testing.assert_array_equal(log.classes, log.indices % 1000 - 3)
        return
    assert result.valid
    assert samples > 4000
    assert takes < samples

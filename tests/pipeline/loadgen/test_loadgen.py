"""The real LoadGen, each test in a process of its own: it keeps global state."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.loadgen.binding import (
    PIECE,
    RESPONSES,
    Completions,
    LoadGenSession,
    SettingsSpec,
    make_settings,
    samples_at_a_time,
)
from pipeline.loadgen.results import find_log, read_accuracy_log, read_result, read_summary
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S

# A null SUT: it answers index % 1000 - 3 from a thread that outlives the test. argv: output folder, mode,
# fault, then `field=value` test settings; prints what it saw as JSON.
NULL_SUT = """
import json, os, queue, sys, threading, time
from pathlib import Path
import numpy as np
from pipeline.loadgen.binding import Completions, LoadGenSession, SettingsSpec, load_module, make_settings

out, mode, fault, *given = sys.argv[1:]
lg = load_module()
settings = {k: json.loads(v) for k, v in (g.split("=") for g in given)}
seen = {"loads": [], "unloads": [], "issued": 0, "flushes": 0, "types": [], "errors": []}
work = queue.SimpleQueue()

def load(indices):
    seen["loads"].append(len(indices))
    seen["types"].append([type(indices).__name__, str(indices.dtype)])
    if fault == "load":
        raise RuntimeError("cannot load")

def unload(indices):
    seen["unloads"].append(len(indices))
    if fault == "unload":
        raise RuntimeError("cannot unload")

def issue(ids, indices):
    seen["issued"] += len(ids)
    seen["types"].append([type(ids).__name__, str(ids.dtype)])
    if fault == "issue":
        raise RuntimeError("cannot issue")
    if fault == "silent":
        print("waiting", flush=True, file=sys.stderr)
    else:
        work.put((ids, indices))

def flush():
    seen["flushes"] += 1

def on_error(error):
    seen["errors"].append(str(error))
    if fault in ("load", "issue"):  # LoadGen waits for ever: the owner leaves
        print(json.dumps(seen), flush=True)
        os._exit(7)

completions = Completions(lg)
session = LoadGenSession(lg, completions=completions, count=300, performance_count=128, load=load, unload=unload,
                         issue=issue, flush=flush, on_error=on_error)

def answer():
    while True:
        ids, indices = work.get()
        for some in np.array_split(np.arange(len(ids)), 3):
            completions.complete(ids[some], (indices[some] % 1000 - 3).astype(np.int32))

threading.Thread(target=answer, daemon=True).start()
test, log = make_settings(lg, SettingsSpec(None, None, settings, {}, mode, Path(out)))
failure = []

def run():
    try:
        with session:
            session.run(test, log)
    except Exception as error:
        failure.append(f"{type(error).__name__}: {error}")

thread = threading.Thread(target=run, daemon=True)
try:
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    os._exit(130)
seen["failure"] = failure
print(json.dumps(seen), flush=True)
"""


def null_sut(out: Path, mode: str, *settings: str, fault: str = "none") -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", NULL_SUT, str(out), mode, fault, *settings],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_performance_ends_valid(tmp_path: Path) -> None:
    # One query of 1.1 x 50 million/s x 10 ms: far more than a null SUT completes in 10 ms.
    code, seen = null_sut(
        tmp_path / "new" / "out", "PerformanceOnly",
        "min_duration_ms=10", "offline_expected_qps=50000000", "min_query_count=1",
    )  # fmt: skip
    assert code == 0
    assert seen["failure"] == []
    assert seen["issued"] == 550_000
    assert seen["loads"] == seen["unloads"] == [128]
    assert seen["flushes"] == 1
    load, *pieces = seen["types"]
    assert load == ["ndarray", "int64"]
    assert pieces == [["ndarray", "uint64"]] * -(-550_000 // PIECE), "a long query comes in pieces"
    result = read_result(tmp_path / "new" / "out")
    assert (result.valid, result.mode, result.scenario) == (True, "PerformanceOnly", "Offline")
    assert result.reasons == ()
    assert result.samples_per_second is not None
    assert result.samples_per_second > 0
    assert result.settings["samples_per_query"] == 550_000
    assert result.latency_ns["max"] >= result.latency_ns["99.00"] > 0
    summary = read_summary(find_log(tmp_path / "new" / "out", "summary.txt"))
    assert summary.valid is True
    assert summary.samples_per_second == pytest.approx(result.samples_per_second)


def test_a_run_that_is_too_short_says_what_to_change(tmp_path: Path) -> None:
    code, _ = null_sut(
        tmp_path, "PerformanceOnly", "min_duration_ms=3600000", "offline_expected_qps=10", "min_query_count=1"
    )
    assert code == 0
    result = read_result(tmp_path)
    assert result.valid is False
    assert len(result.reasons) == 1
    assert "at least 3600 s are required" in result.reasons[0].what
    assert "--lgts_offline_expected_qps from 10 to" in result.reasons[0].remedy
    assert "INVALID" in result.verdict()


def test_accuracy_logs_every_answer(tmp_path: Path) -> None:
    code, seen = null_sut(tmp_path, "AccuracyOnly")
    assert code == 0
    assert seen["loads"] == seen["unloads"] == [128, 128, 44]
    predictions, disagreeing = read_accuracy_log(find_log(tmp_path, "accuracy.json")).predictions(300)
    np.testing.assert_array_equal(predictions, np.arange(300) - 3)
    assert len(disagreeing) == 0
    result = read_result(tmp_path)
    assert result.valid is None
    assert result.errors == ()
    assert "INVALID" not in result.verdict().replace("VALID or INVALID", "")


@pytest.mark.parametrize("mode", ["AccuracyOnly", "PerformanceOnly"])
@pytest.mark.parametrize("override", [50, 200, 1024])
def test_how_many_samples_are_loaded_at_a_time(mode: str, override: int, tmp_path: Path) -> None:
    _, seen = null_sut(
        tmp_path, mode, f"performance_sample_count_override={override}", "min_duration_ms=1",
        "min_query_count=1",
    )  # fmt: skip
    settings = lg.TestSettings()
    settings.performance_sample_count_override = override
    assert max(seen["loads"]) == samples_at_a_time(settings, 300, 128)
    assert samples_at_a_time(lg.TestSettings(), 300, 128) == 128


def test_a_submission_run_does_both(tmp_path: Path) -> None:
    code, seen = null_sut(
        tmp_path, "SubmissionRun", "min_duration_ms=10", "offline_expected_qps=30000000", "min_query_count=1"
    )
    assert code == 0
    assert seen["loads"] == [128, 128, 44, 128]
    assert read_result(tmp_path).valid is True
    log = read_accuracy_log(find_log(tmp_path, "accuracy.json"))
    np.testing.assert_array_equal(log.predictions(300)[0], np.arange(300) - 3)


def test_what_loadgen_refuses_is_said_in_plain_words(tmp_path: Path) -> None:
    code, seen = null_sut(tmp_path, "FindPeakPerformance")
    assert code == 0
    assert seen["issued"] == 0
    result = read_result(tmp_path)
    assert result.valid is False
    assert "Server scenario only" in result.verdict()
    assert "--test-mode PerformanceOnly" in result.verdict()


@pytest.mark.parametrize("fault", ["load", "issue"])
def test_an_error_in_a_callback_reaches_the_owner(fault: str, tmp_path: Path) -> None:
    code, seen = null_sut(tmp_path, "PerformanceOnly", fault=fault)
    assert code == 7
    assert seen["errors"] == [f"cannot {fault}"]


def test_an_error_in_the_last_callback_is_raised_by_run(tmp_path: Path) -> None:
    code, seen = null_sut(tmp_path, "PerformanceOnly", "min_duration_ms=10", "min_query_count=1", fault="unload")
    assert code == 0
    assert seen["errors"] == ["cannot unload"]
    assert seen["failure"] == ["RuntimeError: cannot unload"]


@pytest.mark.parametrize("in_the_way", ["summary.txt", "detail.txt", "accuracy.json", "trace.json"])
def test_logs_that_cannot_be_written_are_an_error_and_no_abort(in_the_way: str, tmp_path: Path) -> None:
    (tmp_path / f"mlperf_log_{in_the_way}").mkdir()
    test, log = make_settings(lg, SettingsSpec(None, None, {}, {}, "PerformanceOnly", tmp_path))
    nothing = lambda *_: None  # noqa: E731
    with (
        LoadGenSession(
            lg, completions=Completions(lg), count=4, performance_count=4, load=nothing, unload=nothing, issue=nothing,
            flush=nothing, on_error=nothing,
        ) as session,
        pytest.raises(PipelineError, match=rf"{in_the_way}: LoadGen's log cannot be written"),
    ):  # fmt: skip
        session.run(test, log)
    assert [p.name for p in tmp_path.iterdir()] == [f"mlperf_log_{in_the_way}"]


def test_the_main_thread_hears_ctrl_c_while_loadgen_waits(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NULL_SUT, str(tmp_path), "PerformanceOnly", "silent"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == "interrupted\n"


CONFIG = """
import sys
from pathlib import Path
from pipeline.errors import PipelineError
from pipeline.loadgen.binding import SettingsSpec, load_module, make_settings
mlperf, user, *given = (None if a == "-" else a for a in sys.argv[1:])
spec = SettingsSpec(mlperf and Path(mlperf), user and Path(user), dict(g.split("=") for g in given), {},
                    "AccuracyOnly", Path("out"))
spec = SettingsSpec(**{**vars(spec), "test_settings": {k: int(v) for k, v in spec.test_settings.items()}})
try:
    test, log = make_settings(load_module(), spec)
except PipelineError as error:
    sys.exit(str(error))
print(test.min_duration_ms, test.min_query_count, test.offline_expected_qps,
      test.performance_sample_count_override, test.mode.name, test.scenario.name)
"""


def configured(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CONFIG, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.fixture
def confs(tmp_path: Path) -> tuple[Path, Path]:
    mlperf, user = tmp_path / "mlperf.conf", tmp_path / "user.conf"
    mlperf.write_text("# rules\n*.Offline.min_duration = 61000\n*.Offline.min_query_count = 3\n")
    user.write_text("resnet50.Offline.target_qps = 500\n*.Offline.min_duration = 700\n")
    return mlperf, user


def test_order_of_the_settings(confs: tuple[Path, Path]) -> None:
    mlperf, user = confs
    plain = lg.TestSettings()
    defaults = [str(plain.min_duration_ms), str(plain.min_query_count), str(plain.offline_expected_qps), "0"]
    tail = ["AccuracyOnly", "Offline"]
    assert configured("-", "-").stdout.split() == [*defaults, *tail]
    assert configured(mlperf, "-").stdout.split() == ["61000", "3", "1.0", "0", *tail]
    assert configured(mlperf, user).stdout.split() == ["700", "3", "500.0", "0", *tail]
    # A user.conf alone goes on top of the rules that are built in: 1,024 samples, and more queries.
    alone = configured("-", user).stdout.split()
    assert alone[0] == "700"
    assert alone[2:] == ["500.0", "1024", *tail]
    assert configured(mlperf, user, "min_duration_ms=5").stdout.split()[0] == "5"


def test_a_config_file_that_loadgen_cannot_read_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.conf"
    bad.write_text("# fine\n*.Offline.min_duration = 3\n*.Offline.min_duration 700\n")
    done = configured("-", bad)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{bad}:3: LoadGen cannot read this")
    assert "none.conf: no such file" in configured(tmp_path / "none.conf", "-").stderr


def test_a_config_file_that_never_ends_is_not_begun(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        for spec in (
            SettingsSpec(path, None, {}, {}, "PerformanceOnly", tmp_path),
            SettingsSpec(None, path, {}, {}, "PerformanceOnly", tmp_path),
        ):
            with pytest.raises(PipelineError, match=f"{path}: is not a regular file"):
                make_settings(lg, spec)


def test_settings_land_in_the_right_object(tmp_path: Path) -> None:
    spec = SettingsSpec(
        None, None, {"print_timestamps": True}, {"log_mode": "Synchronous", "prefix": "x_"},
        "PerformanceOnly", tmp_path,
    )  # fmt: skip
    test, log = make_settings(lg, spec)
    assert test.print_timestamps is True
    assert log.log_mode == lg.LoggingMode.Synchronous
    assert log.log_output.prefix == "x_"
    assert log.log_output.outdir == str(tmp_path)
    assert log.enable_trace is False
    with pytest.raises(PipelineError, match="--lgts_nothing"):
        make_settings(lg, SettingsSpec(None, None, {"nothing": 1}, {}, "PerformanceOnly", tmp_path))
    with pytest.raises(PipelineError, match="--test-mode"):
        make_settings(lg, SettingsSpec(None, None, {}, {}, "Quick", tmp_path))


class Recorder:
    """Stands in for the binding, and keeps what each response said when it was completed."""

    class QuerySampleResponse:
        def __init__(self, sample: int, data: int, size: int) -> None:
            self.id, self.data, self.size = sample, data, size

    def __init__(self) -> None:
        self.calls: list[list[tuple[int, bytes]]] = []
        self.objects: set[int] = set()

    def ConstructFastSUT(self, _issue: object, _flush: object) -> int:  # noqa: N802
        return 1

    def ConstructQSL(self, *_arguments: object) -> int:  # noqa: N802
        return 2

    def QuerySamplesComplete(self, responses: list[QuerySampleResponse]) -> None:  # noqa: N802
        self.objects |= {id(r) for r in responses}
        self.calls.append([(r.id, ctypes.string_at(r.data, r.size)) for r in responses])


def test_completions_are_little_endian_and_their_objects_are_reused() -> None:
    def nothing(*_arguments: object) -> None:
        return

    recorder = Recorder()
    completions = Completions(recorder)
    count = RESPONSES + 7
    ids = np.arange(count, dtype=np.uint64) + np.uint64(2**63)
    classes = np.arange(count, dtype=np.int32) - 1
    completions.complete(ids, classes)
    completions.complete(ids[:3], classes[:3])
    assert [len(call) for call in recorder.calls] == [RESPONSES, 7, 3]
    flat = recorder.calls[0] + recorder.calls[1]
    assert [i for i, _ in flat] == ids.tolist()
    assert b"".join(data for _, data in flat) == classes.astype("<i4").tobytes()
    assert len(recorder.objects) == RESPONSES
    with pytest.raises(ValueError, match="3 ids and 2 classes"):
        completions.complete(ids[:3], classes[:2])
    with pytest.raises(ValueError, match="performance_count"):
        LoadGenSession(
            recorder, completions=completions, count=5, performance_count=6, load=nothing, unload=nothing,
            issue=nothing, flush=nothing, on_error=nothing,
        )  # fmt: skip

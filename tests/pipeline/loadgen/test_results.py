from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlperf_loadgen as lg
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.loadgen.options import parse
from pipeline.loadgen.results import (
    NOT_PREDICTED,
    LoadGenResult,
    describe,
    find_log,
    read_accuracy_log,
    read_result,
    read_summary,
)
from pipeline.loadgen.summary import summarise, write_summary
from pipeline.report.accuracy import accuracy
from pipeline.report.history import StageMean
from pipeline.telemetry.metrics import Snapshot
from tests.paths import SHARED, needs_shared


def detail(folder: Path, *records: tuple[str, Any], errors: tuple[str, ...] = (), summary: str = "") -> Path:
    lines = [(key, value, False) for key, value in records] + [("error_runtime", e, True) for e in errors]
    text = ""
    for key, value, error in lines:
        about = {"is_error": error, "is_warning": False}
        text += f":::MLLOG {json.dumps({'key': key, 'value': value, 'metadata': about})}\n"
    (folder / "mlperf_log_detail.txt").write_text(text)
    text = summary or "\nNo warnings encountered during test.\n\nNo errors encountered during test.\n"
    (folder / "mlperf_log_summary.txt").write_text(text)
    return folder


def test_each_failed_condition_is_a_reason_with_a_mend(tmp_path: Path) -> None:
    folder = detail(
        tmp_path,
        ("effective_test_mode", "PerformanceOnly"),
        ("effective_min_duration_ms", 600_000),
        ("effective_target_qps", 100.0),
        ("effective_samples_per_query", 66_000),
        ("effective_min_query_count", 24_576),
        ("result_validity", "INVALID"),
        ("result_samples_per_second", 1234.5),
        ("result_min_duration_met", False),
        ("result_min_queries_met", False),
        ("early_stopping_met", False),
    )
    result = read_result(folder)
    assert result.valid is False
    assert [r.what for r in result.reasons] == [
        "the run lasted 53.46 s, and at least 600 s are required",
        "fewer queries than the minimum of 24576",
        "too few queries for LoadGen's statistics",
    ]
    assert "from 100 to 1235 (target_qps in user.conf)" in result.reasons[0].remedy
    assert "--lgts_min_query_count" in result.reasons[1].remedy
    assert len(result.verdict().splitlines()) == 4


RAN_OUT = "Ending early: Ran out of generated queries to issue before the minimum query count and test duration."


@pytest.mark.parametrize(
    ("scenario", "figures", "what", "remedy"),
    [
        (
            "SingleStream",
            {"effective_target_qps": 100, "result_query_count": 4000, "result_mean_latency_ns": 2_500_000},
            "the run lasted 10 s, and at least 600 s are required",
            "lower --lgts_single_stream_expected_latency_ns from 10000000 to 2500000 (target_latency in user.conf, ms)",
        ),
        (
            "MultiStream",
            {"effective_target_qps": 100, "result_query_count": 100, "result_mean_latency_ns": 9_900_000},
            "the run lasted 0.99 s, and at least 600 s are required",
            "lower --lgts_multi_stream_expected_latency_ns from 10000000 to 5000000 (target_latency in user.conf, ms)",
        ),
        (
            "Server",
            {"effective_target_qps": 100, "result_query_count": 2000, "result_completed_samples_per_sec": 99.5},
            "the run lasted 20.1 s, and at least 600 s are required",
            "raise --lgts_max_duration_ms and --lgts_max_query_count (0: no limit)",
        ),
        (
            "Offline",
            {"effective_target_qps": 100, "effective_samples_per_query": 6600, "result_samples_per_second": 220},
            "the run lasted 30 s, and at least 600 s are required",
            "raise --lgts_offline_expected_qps from 100 to 220 (target_qps in user.conf)",
        ),
    ],
)
def test_a_run_too_short_names_the_option_of_its_scenario(
    scenario: str, figures: dict[str, float], what: str, remedy: str, tmp_path: Path
) -> None:
    verdict = (("result_validity", "INVALID"), ("result_min_duration_met", False), ("effective_min_duration_ms", 600e3))
    records = (("effective_scenario", scenario), *figures.items(), *verdict)
    result = read_result(detail(tmp_path, *records, errors=(RAN_OUT, "something else")))
    assert [r.what for r in result.reasons] == [what, "LoadGen logged an error: error_runtime: something else"]
    assert result.reasons[0].remedy == f"{remedy}, or, for a trial, lower --lgts_min_duration_ms"


def test_errors_are_reasons_and_are_told_for_a_valid_result_too(tmp_path: Path) -> None:
    verdict = ("result_validity", "INVALID")
    result = read_result(detail(tmp_path, verdict, errors=("it broke",)))
    assert result.reasons[0].what == "LoadGen logged an error: error_runtime: it broke"
    valid = read_result(detail(tmp_path, ("result_validity", "VALID"), errors=("it broke",)))
    assert valid.valid is True
    assert "it broke" in valid.verdict()


def test_a_reason_that_only_the_summary_gives(tmp_path: Path) -> None:
    text = "Result is : INVALID\nRecommendations:\n * Do something else.\n"
    result = read_result(detail(tmp_path, ("result_validity", "INVALID"), summary=text))
    assert result.reasons[0].what == "LoadGen says: Do something else."


def test_logs_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"mlperf_log_detail\.txt: LoadGen has not written this log"):
        read_result(tmp_path)
    with pytest.raises(PipelineError, match="has not written"):
        read_result(tmp_path / "none")
    detail(tmp_path, ("result_validity", "VALID"))
    path = tmp_path / "mlperf_log_detail.txt"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PipelineError, match=r"detail\.txt:1: a damaged record"):
        read_result(tmp_path)
    path.write_text("nothing\n")
    with pytest.raises(PipelineError, match="no LoadGen record"):
        read_result(tmp_path)
    (tmp_path / "mlperf_log_summary.txt").write_text("")
    with pytest.raises(PipelineError, match="no LoadGen summary"):
        read_summary(tmp_path / "mlperf_log_summary.txt")


def test_find_log_knows_prefix_date_and_suffix(tmp_path: Path) -> None:
    path = tmp_path / "x_2026-01-02T03:04:05Z_summary_run.txt"
    path.write_text("")
    assert find_log(tmp_path, "summary.txt", "x_", "_run") == path
    with pytest.raises(PipelineError):
        find_log(tmp_path, "summary.txt", "x_")


def write_log(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
    return path


def record(index: int, value: int) -> dict[str, Any]:
    data = value.to_bytes(4, "little", signed=True).hex().upper()
    return {"seq_id": 0, "qsl_idx": index, "data": data}


def test_accuracy_log_is_little_endian_int32(tmp_path: Path) -> None:
    log = read_accuracy_log(write_log(tmp_path / "log.json", [record(2, 938), record(0, -3), record(1, 2**31 - 1)]))
    assert log.indices.tolist() == [2, 0, 1]
    assert log.classes.tolist() == [938, -3, 2**31 - 1]
    predictions, disagreeing = log.predictions(5)
    assert predictions.tolist() == [-3, 2**31 - 1, 938, NOT_PREDICTED, NOT_PREDICTED]
    assert disagreeing.tolist() == []


def test_repeated_records(tmp_path: Path) -> None:
    log = read_accuracy_log(write_log(tmp_path / "log.json", [record(1, 5), record(0, 2), record(1, 6), record(0, 2)]))
    predictions, disagreeing = log.predictions(2)
    assert predictions.tolist() == [2, 5]
    assert disagreeing.tolist() == [1]
    with pytest.raises(PipelineError, match="sample 1 is logged and there are 1"):
        log.predictions(1)


def test_a_performance_run_s_accuracy_log_is_empty(tmp_path: Path) -> None:
    log = read_accuracy_log(write_log(tmp_path / "log.json", []))
    assert len(log.indices) == len(log.classes) == 0


def test_a_truncated_accuracy_log(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.json", [record(n, n) for n in range(100)])
    text = path.read_text()
    for keep in (len(text) // 2, len(text) - 3, 1, 0):
        path.write_text(text[:keep])
        with pytest.raises(PipelineError, match=r"log\.json:\d+: not JSON \(the file is cut off"):
            read_accuracy_log(path)


@pytest.mark.parametrize(
    "bad",
    [{"qsl_idx": 1}, {"qsl_idx": "1", "data": "00000000"}, {"qsl_idx": 1, "data": "000000"},
     {"qsl_idx": 1, "data": "0000000G"}, {"qsl_idx": 2**70, "data": "00000000"}, 3, None,
     {"qsl_idx": 1.5, "data": "00000000"}, {"qsl_idx": 1, "data": 12345678},
     {"qsl_idx": True, "data": "00000000"}, {"qsl_idx": 1, "data": "00 00 00"}],
)  # fmt: skip
def test_a_record_of_another_form_is_named(bad: Any, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.json", [record(0, 1), bad, record(2, 1)])
    with pytest.raises(PipelineError, match="record 1 is not a prediction"):
        read_accuracy_log(path)


def test_a_log_nested_without_end_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text("[" * 100_000)
    with pytest.raises(PipelineError, match="not JSON"):
        read_accuracy_log(path)
    (tmp_path / "mlperf_log_summary.txt").write_text("Result is : VALID\n")
    (tmp_path / "mlperf_log_detail.txt").write_text(":::MLLOG " + "[" * 100_000 + "\n")
    with pytest.raises(PipelineError, match=r"detail\.txt:1: a damaged record"):
        read_result(tmp_path)


@needs_shared
def test_the_published_summaries() -> None:
    for name, rate in (
        ("T4x8", 71517.1), ("T4x20", 181237.0), ("TitanRTXx4", 100711.0),
    ):  # fmt: skip
        summary = read_summary(SHARED / "published" / f"{name}_mlperf_log_summary.txt")
        assert summary.valid is True
        assert summary.samples_per_second == rate
        assert summary.values["Scenario"] == "Offline"


def test_describe() -> None:
    assert describe([3, 1]) == "3, 1"
    assert describe(range(1007), limit=2) == "0, 1 and 1,005 more"


def summary_of(folder: Path, **parts: Any) -> dict[str, Any]:
    log = lg.LogSettings()
    log.log_output.outdir = str(folder)
    given: dict[str, Any] = {
        "test_settings": lg.TestSettings(),
        "log_settings": log,
        "target": "CPU",
        "model": Path("some/model"),
        "samples": 10,
        "batch_size": 4,
        "snapshot": None,
        "stages": (),
    }
    path = write_summary(folder, summarise(parse(["--count", "10"]), **(given | parts)))
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_summary_of_a_whole_run(tmp_path: Path) -> None:
    result = LoadGenResult(
        "Offline", "PerformanceOnly", True, 12.5, (), (), (), {"max": 3.0}, {"target_qps": 1}, "6.0 @ abc"
    )
    summary = summary_of(
        tmp_path / "new",
        snapshot=Snapshot("done", 1.0, 10, 10, 0.0, 12.5, (), 10.0, 0.8),
        stages=(StageMean("infer", 1, 10, 0, 0.8, 12.5, 0.9),),
        bad_images=(SimpleNamespace(path=Path("a.jpg"), why="cut off"),),
        result=result,
        accuracy=accuracy([1, 1], [1, 2]),
        extra={"note": "x"},
    )
    assert summary["settings"]["options"]["count"] == 10
    assert summary["settings"]["test_settings"]["mode"] == "PerformanceOnly"
    assert summary["settings"]["log_settings"]["prefix"] == "mlperf_log_"
    assert summary["hardware"]["cores"] >= 1
    assert summary["hardware"]["memory_bytes"] > 0
    assert summary["hardware"]["cpu"]
    assert summary["versions"]["numpy"] == np.__version__
    assert summary["versions"]["loadgen"] == "6.0 @ abc"
    assert summary["throughput"] == {"completed": 10, "samples_per_second_mean": 12.5}
    assert summary["stages"][0]["name"] == "infer"
    assert summary["stages"][0]["samples_per_second"] == 12.5
    assert summary["bad_images"] == [{"path": "a.jpg", "why": "cut off"}]
    assert summary["loadgen"]["valid"] is True
    assert summary["accuracy"]["correct"] == 1
    assert summary["note"] == "x"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["summary.json"]


def test_summary_of_a_run_that_did_not_get_far(tmp_path: Path) -> None:
    summary = summary_of(tmp_path)
    assert summary["loadgen"] is summary["accuracy"] is summary["throughput"] is None
    assert summary["versions"]["loadgen"]


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_summary(tmp_path, {"a": 1})
    before = path.read_text()
    with pytest.raises(ValueError, match="nan"):
        write_summary(tmp_path, {"a": math.nan})
    with pytest.raises(PipelineError, match="cannot be written"):
        write_summary(path, {"a": 1})
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_the_early_stopping_estimate_is_the_official_figure(tmp_path: Path) -> None:
    folder = detail(
        tmp_path,
        ("effective_test_mode", "PerformanceOnly"),
        ("effective_scenario", "SingleStream"),
        ("result_validity", "VALID"),
        ("early_stopping_met", True),
        ("early_stopping_latency_ss", 373_800_000),
        ("early_stopping_latency_ms", 391_000_000),
        ("result_90.00_percentile_latency_ns", 269_000_000),
    )
    result = read_result(folder)
    assert result.estimate_ns == 373_800_000
    assert result.more_queries is None
    assert result.verdict().splitlines() == [
        "LoadGen: VALID, 373.800 ms by early stopping (official), 90 % of queries within 269.000 ms",
        "  not under the rules of MLPerf, which --round gives",
    ]
    assert result.verdict("rules of v6.1").splitlines()[1] == "  rules of v6.1"


@pytest.mark.parametrize(
    ("scenario", "said", "more", "remedy"),
    [
        (
            "Server",
            " * Run unsuccessful.  * Processed 1000 queries.  * Would need to run at least 12471 more queries,  with ",
            12471,
            "raise --lgts_min_query_count to 13471, or ask for fewer samples/s (--lgts_server_target_qps)",
        ),
        (
            "MultiStream",
            " * Only processed 60 queries.  * Need to process at least 662 queries for early stopping.",
            602,
            "raise --lgts_min_query_count to 1602",
        ),
    ],
)
def test_early_stopping_says_how_many_more_queries(
    tmp_path: Path, scenario: str, said: str, more: int, remedy: str
) -> None:
    folder = detail(
        tmp_path,
        ("effective_test_mode", "PerformanceOnly"),
        ("effective_scenario", scenario),
        ("result_validity", "INVALID"),
        ("result_query_count", 1000),
        ("early_stopping_met", False),
        ("early_stopping_latency_ms", 0),
        ("early_stopping_result", said),
    )
    result = read_result(folder)
    assert result.more_queries == more
    assert result.estimate_ns is None
    assert f"early stopping needs {more:,} more queries" in result.reasons[0].what
    assert result.reasons[0].remedy == remedy

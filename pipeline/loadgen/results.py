"""What LoadGen left behind: its verdict in plain words, its measurements, and the predictions it logged."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
from pipeline.loadgen.sample_list import SampleList, find_sample_list, read_sample_list

Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]

NOT_PREDICTED = -1
_MLLOG = ":::MLLOG "
# Samples/s in Offline, in Server, and queries/s in SingleStream; MultiStream has only latencies.
_RATES = (
    "result_samples_per_second",
    "result_completed_samples_per_sec",
    "result_qps_with_loadgen_overhead",
)
# The percentile of latency that counts, by scenario.
_JUDGED_BY = {"SingleStream": "90.00", "MultiStream": "99.00", "Server": "99.00"}
# Scenarios of one query after another, planned by how long an answer is expected to take.
_EXPECTED_LATENCY = {
    "SingleStream": "--lgts_single_stream_expected_latency_ns",
    "MultiStream": "--lgts_multi_stream_expected_latency_ns",
}
# The official figure of scenarios that are judged by latency.
_ESTIMATES = {"SingleStream": "early_stopping_latency_ss", "MultiStream": "early_stopping_latency_ms"}
_MORE_QUERIES = re.compile(r"at least (\d+) more queries")
_ALL_QUERIES = re.compile(r"Only processed (\d+) queries.*?process at least (\d+) queries")
_RAN_OUT = "Ran out of generated queries"
# With --lgls_prefix_with_datetime. Any other text there makes it somebody else's file.
_DATE_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ_"
_CLASS = re.compile(r"[0-9A-Fa-f]{8}")


@dataclass(frozen=True)
class Reason:
    """Why a result is INVALID, and what to change."""

    what: str
    remedy: str


@dataclass(frozen=True)
class LoadGenResult:
    """LoadGen's account of one test.

    Attributes:
        valid: its verdict; None where it gives none (accuracy runs have none).
        samples_per_second: Offline's metric, and what the other scenarios answered; None in accuracy runs.
        reasons: why the result is INVALID; empty when it is VALID.
        estimate_ns: of SingleStream and MultiStream, the official figure: the latency that early stopping gives for the
            90th or 99th percentile; None where there were too few queries, and in other scenarios.
        more_queries: how many more queries early stopping asks for; None where it is met.
        latency_ns: `min`, `max`, `mean` and percentiles (`99.00`), from a sample's issue to its answer.
        settings: the effective settings, by LoadGen's names.
    """

    scenario: str
    mode: str
    valid: bool | None
    samples_per_second: float | None
    reasons: tuple[Reason, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    latency_ns: dict[str, float]
    settings: dict[str, Any]
    version: str
    estimate_ns: float | None = None
    more_queries: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def verdict(self, rules: str | None = None) -> str:
        """The outcome for the user, a line and more for reasons; `rules` are those that it was under."""
        if self.valid is None and not self.errors:
            return f"LoadGen: {self.mode} ended; this mode has no VALID or INVALID"
        lines = [f"LoadGen: {'VALID' if self.valid else 'INVALID'}{self._metric()}"]
        lines += [f"  {reason.what}; {reason.remedy}" for reason in self.reasons]
        if self.valid:
            lines.append(f"  {rules or 'not under the rules of MLPerf, which --round gives'}")
            lines += [f"  LoadGen logged an error all the same: {error}" for error in self.errors]
        return "\n".join(lines)

    def _metric(self) -> str:
        """What the scenario is judged by, in a few words that begin with a comma."""
        rate = "" if self.samples_per_second is None else f", {self.samples_per_second:,.1f} samples/s"
        percentile = _JUDGED_BY.get(self.scenario)
        if percentile is None or percentile not in self.latency_ns:
            return rate
        latency = f"{float(percentile):g} % of queries within {self.latency_ns[percentile] / 1e6:,.3f} ms"
        if self.scenario == "Server":
            return f"{rate}, {latency}"
        estimate = (
            "" if self.estimate_ns is None else f", {self.estimate_ns / 1e6:,.3f} ms by early stopping (official)"
        )
        return f"{estimate}, {latency}"


@dataclass(frozen=True)
class TextSummary:
    """mlperf_log_summary.txt: its `name : value` lines, and what it says about the outcome.

    `valid` is None where the text has no verdict.
    """

    valid: bool | None
    samples_per_second: float | None
    values: dict[str, str]
    recommendations: tuple[str, ...]


def find_log(folder: Path, name: str, prefix: str = "mlperf_log_", suffix: str = "") -> Path:
    """The newest of `find_logs`. Raises PipelineError when there is none."""
    found = find_logs(folder, name, prefix, suffix)
    if not found:
        stem, dot, ending = name.partition(".")
        raise PipelineError(
            f"{folder / f'{prefix}{stem}{suffix}{dot}{ending}'}: LoadGen has not written this log: "
            "the run ended before the test did"
        )
    return found[-1]


def find_logs(folder: Path, name: str, prefix: str = "mlperf_log_", suffix: str = "") -> list[Path]:
    """The logs called `name` (`summary.txt`, `detail.txt`, `accuracy.json`) in `folder`, the newest last.

    LoadGen names a log prefix, date and time if asked to, name, suffix. Raises PipelineError.
    """
    stem, dot, ending = name.partition(".")
    pattern = re.compile(rf"{re.escape(prefix)}({_DATE_TIME})?{stem}{re.escape(suffix + dot + ending)}")
    try:
        found = [p for p in folder.iterdir() if pattern.fullmatch(p.name)] if os.path.isdir(folder) else []
        return sorted(found, key=lambda p: p.lstat().st_mtime_ns)
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be read: {error.strerror}") from error


def read_summary(path: Path) -> TextSummary:
    """Parse a mlperf_log_summary.txt, of this version of LoadGen or of the first one (v0.5)."""
    values: dict[str, str] = {}
    recommendations = []
    for line in _read_text(path).splitlines():
        if line.startswith(" * "):
            recommendations.append(line[3:].strip())
        elif match := re.fullmatch(r"\s*(\S.*?)\s*:\s+(.*?)\s*", line):
            values[match[1]] = match[2]
    if not values and "encountered" not in _read_text(path):
        raise PipelineError(f"{path}: this is no LoadGen summary, or an empty one: the test did not end")
    verdict = values.get("Result is")
    rate = values.get("Samples per second")
    return TextSummary(
        valid=None if verdict is None else verdict == "VALID",
        samples_per_second=None if rate is None else _number(path, rate),
        values=values,
        recommendations=tuple(recommendations),
    )


def read_result(folder: Path, prefix: str = "mlperf_log_", suffix: str = "") -> LoadGenResult:
    """Read the detail and summary logs of the test that wrote into `folder`. Raises PipelineError."""
    detail_path = find_log(folder, "detail.txt", prefix, suffix)
    summary = read_summary(find_log(folder, "summary.txt", prefix, suffix))
    values: dict[str, Any] = {}
    errors, warnings = [], []
    for record in read_detail(detail_path):
        values[record["key"]] = record["value"]
        about = f"{record['key']}: {record['value']}"
        if record["metadata"].get("is_error"):
            errors.append(about)
        elif record["metadata"].get("is_warning"):
            warnings.append(about)
    verdict = values.get("result_validity")
    valid = summary.valid if verdict is None else verdict == "VALID"
    if errors and verdict is None:
        valid = False
    latencies = {}
    for key, value in values.items():
        if match := re.fullmatch(r"result_(.+?)(_percentile)?_latency_ns", key):
            latencies[match[1]] = float(value)
    rate = _rate(values) or summary.samples_per_second
    estimate = float(values.get(_ESTIMATES.get(str(values.get("effective_scenario")), ""), 0))
    return LoadGenResult(
        scenario=str(values.get("effective_scenario", values.get("requested_scenario", ""))),
        mode=str(values.get("effective_test_mode", values.get("requested_test_mode", ""))),
        valid=valid,
        samples_per_second=rate,
        reasons=_reasons(values, errors, summary) if valid is False else (),
        errors=tuple(errors),
        warnings=tuple(warnings),
        latency_ns=latencies,
        settings={k[len("effective_") :]: v for k, v in values.items() if k.startswith("effective_")},
        version=str(values.get("loadgen_version", "")),
        estimate_ns=estimate or None,
        more_queries=None if values.get("early_stopping_met") is not False else _more_queries(values),
    )


def _rate(values: dict[str, Any]) -> float:
    """Samples/s, by what the scenario calls it; 0 where it has no such figure."""
    return float(next((values[key] for key in _RATES if key in values), 0.0))


def read_detail(path: Path) -> list[dict[str, Any]]:
    """The records of a mlperf_log_detail.txt, each with `key`, `value` and `metadata`."""
    records = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.startswith(_MLLOG):
            continue
        try:
            record = json.loads(line[len(_MLLOG) :])
            record["key"], record["value"], record["metadata"].get("is_error")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise PipelineError(f"{path}:{number}: a damaged record: the run did not end well") from None
        records.append(record)
    if not records:
        raise PipelineError(f"{path}: no LoadGen record in it: the test did not begin, or LoadGen is too old")
    return records


def _reasons(values: dict[str, Any], errors: list[str], summary: TextSummary) -> tuple[Reason, ...]:
    reasons = []
    if values.get("result_min_duration_met") is False:
        reasons.append(_too_short(values))
    if values.get("result_min_queries_met") is False:
        wanted = values.get("effective_min_query_count")
        reasons.append(
            Reason(
                f"fewer queries than the minimum of {wanted}",
                "raise --lgts_max_query_count and --lgts_max_duration_ms (0: no limit), "
                "or lower --lgts_min_query_count",
            )
        )
    if values.get("result_perf_constraints_met") is False:
        reasons.append(_too_late(values))
    if values.get("early_stopping_met") is False:
        reasons.append(_too_few(values))
    explained = bool(reasons)
    reasons += [_from_error(error) for error in errors if not (explained and _RAN_OUT in error)]
    if not reasons:
        said = "; ".join(summary.recommendations) or "no reason is logged"
        reasons.append(Reason(f"LoadGen says: {said}", "see its detail log"))
    return tuple(reasons)


def _too_short(values: dict[str, Any]) -> Reason:
    """What LoadGen planned for the expected rate or latency was answered before the minimum duration."""
    wanted_s = float(values.get("effective_min_duration_ms", 0)) / 1000
    trial = "or, for a trial, lower --lgts_min_duration_ms"
    scenario = values.get("effective_scenario", "Offline")
    if scenario in _EXPECTED_LATENCY:
        option, latency_ns = _EXPECTED_LATENCY[scenario], float(values.get("result_mean_latency_ns", 0))
        lasted_s = latency_ns * float(values.get("result_query_count", 0)) / 1e9
        expected_ns = 1e9 / max(float(values.get("effective_target_qps", 0)), 1e-9)
        remedy = (
            f"lower {option} from {expected_ns:.0f} to {max(1, math.floor(min(latency_ns, expected_ns / 2)))} "
            f"(target_latency in user.conf, ms), {trial}"
        )
    elif scenario == "Server":
        lasted_s = float(values.get("result_query_count", 0)) / (_rate(values) or math.inf)
        remedy = f"raise --lgts_max_duration_ms and --lgts_max_query_count (0: no limit), {trial}"
    else:
        rate, expected = _rate(values), float(values.get("effective_target_qps", 0))
        lasted_s = float(values.get("effective_samples_per_query", 0)) / (rate or math.inf)
        # LoadGen issues 1.1 x expected_qps x min_duration samples; asking for the measured rate leaves 10 %.
        remedy = (
            f"raise --lgts_offline_expected_qps from {expected:g} to {math.ceil(max(rate, expected + 1))} "
            f"(target_qps in user.conf), {trial}"
        )
    lasted = f"{lasted_s:.4g} s" if lasted_s else "less"
    return Reason(f"the run lasted {lasted}, and at least {wanted_s:.4g} s are required", remedy)


def _too_late(values: dict[str, Any]) -> Reason:
    bound_ms = float(values.get("effective_target_latency_ns", 0)) / 1e6
    share = float(values.get("effective_target_latency_percentile", 0.99))
    late = int(values.get("result_overlatency_query_count", 0))
    total = max(1, int(values.get("result_query_count", 1)))
    asked = float(values.get("effective_target_qps", 0))
    return Reason(
        f"{late / total:.1%} of the queries took longer than {bound_ms:g} ms, and {1 - share:.1%} may",
        f"ask for fewer than {asked:,.0f} samples/s (--lgts_server_target_qps), or try another --max-batch or "
        "--batch-timeout-us",
    )


def _too_few(values: dict[str, Any]) -> Reason:
    more, asked = _more_queries(values), int(values.get("result_query_count", 0))
    if more is None:
        return Reason("too few queries for LoadGen's statistics", "raise --lgts_min_query_count or the duration")
    if values.get("effective_scenario") == "Server":
        return Reason(
            f"early stopping needs {more:,} more queries, all of them in time",
            f"raise --lgts_min_query_count to {asked + more}, or ask for fewer samples/s (--lgts_server_target_qps)",
        )
    return Reason(f"early stopping needs {more:,} more queries", f"raise --lgts_min_query_count to {asked + more}")


def _more_queries(values: dict[str, Any]) -> int | None:
    """What LoadGen's sentence on early stopping asks for; None where it does not say."""
    said = str(values.get("early_stopping_result", ""))
    if match := _MORE_QUERIES.search(said):
        return int(match[1])
    if match := _ALL_QUERIES.search(said):
        return int(match[2]) - int(match[1])
    return None


def _from_error(error: str) -> Reason:
    if "peak performance" in error.lower():
        return Reason(
            "this LoadGen finds peak performance in the Server scenario only",
            "use --test-mode PerformanceOnly: its samples/s is the peak of an Offline run",
        )
    return Reason(f"LoadGen logged an error: {error}", "fix its cause and run again")


@dataclass(frozen=True)
class AccuracyLog:
    """The records of one mlperf_log_accuracy.json in file order: sample indices (n,) and classes (n,).

    `samples` says what the indices stand for; None where no such list lies beside the log.
    """

    path: str
    indices: Int64Array
    classes: Int32Array
    samples: SampleList | None = None

    def predictions(self, count: int) -> tuple[Int32Array, Int64Array]:
        """Class of each of `count` samples, int32 (count,), NOT_PREDICTED where there is no record; and
        the samples that have several records that disagree, int64 (k,): the first record counts.

        Raises PipelineError for an index outside the samples.
        """
        outside = (self.indices < 0) | (self.indices >= count)
        if outside.any():
            worst = int(self.indices[outside][0])
            of = "map" if self.samples is None else f"list ({self.samples.path})"
            raise PipelineError(
                f"{self.path}: sample {worst} is logged and there are {count}; is this the {of} of that run?"
            )
        predictions = np.full(count, NOT_PREDICTED, dtype=np.int32)
        predictions[self.indices[::-1]] = self.classes[::-1]
        disagreeing = self.indices[predictions[self.indices] != self.classes]
        return predictions, np.unique(disagreeing)


def read_accuracy_log(path: Path) -> AccuracyLog:
    """Parse a mlperf_log_accuracy.json, where `data` is one little-endian int32 class in hex; and its list of samples.

    Raises PipelineError for a truncated file, or a record that is not of that form.
    """
    text = _read_text(path)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        cut = "" if text.rstrip().endswith("]") else " (the file is cut off: its run did not end)"
        raise PipelineError(f"{path}:{line}: not JSON{cut}: {error}") from None
    if not isinstance(records, list):
        raise PipelineError(f"{path}: not a LoadGen accuracy log: its outermost value is no list")
    for number, record in enumerate(records):
        if not _is_record(record):
            raise PipelineError(
                f"{path}: record {number} is not a prediction (qsl_idx, and data of 8 hex digits): "
                f"{json.dumps(record)[:120]}"
            )
    indices = np.array([r["qsl_idx"] for r in records], dtype=np.int64)
    data = bytes.fromhex("".join(r["data"] for r in records))
    beside = find_sample_list(path)
    samples = None if beside is None else read_sample_list(beside)
    return AccuracyLog(str(path), indices, np.frombuffer(data, dtype="<i4").astype(np.int32), samples)


def check_accuracy_log(folder: Path, prefix: str = "mlperf_log_", suffix: str = "") -> None:
    """Raises PipelineError where the newest accuracy log is cut off: LoadGen says nothing of a write that fails."""
    path = find_log(folder, "accuracy.json", prefix, suffix)
    try:
        with path.open("rb") as file:
            file.seek(-min(64, file.seek(0, os.SEEK_END)), os.SEEK_END)
            whole = file.read().rstrip().endswith(b"]")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    if not whole:
        raise PipelineError(f"{path}: is cut off: LoadGen could not write all of it; is the disk full? Run again")


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    index, data = record.get("qsl_idx"), record.get("data")
    if type(index) is not int or not 0 <= index < 2**63:
        return False
    return isinstance(data, str) and _CLASS.fullmatch(data) is not None


def describe(items: Iterable[int], limit: int = 5) -> str:
    """`3, 17, 20 and 4 more`, for messages."""
    listed = list(items)
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return ", ".join(map(str, listed[:limit])) + more


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PipelineError(f"{path}: {text!r} is not a number") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error

"""Each rule of `check`: a good small folder, one thing wrong, and that rule alone finds it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.tools.submission.good import (
    LIMITS,
    PLAN,
    SAMPLES,
    SCENARIOS,
    answer,
    change_json,
    change_log,
    make_good,
    write_predictions,
)
from tools.submission.check import FAULTY, ON_TRIAL, READY, find_faults, report
from tools.submission.plan import OFFICIAL, SMALL, Limits
from tools.submission.rules import RULES
from tools.submission.work import read_work


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_good(tmp_path_factory.mktemp("good") / "folder")


@pytest.fixture
def good(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "folder"))


def broken(folder: Path, limits: Limits = LIMITS) -> set[str]:
    """The rules that something in `folder` breaks."""
    return {fault.rule for fault in find_faults(read_work(folder, limits))}


def test_nothing_is_wrong_in_a_good_folder(template: Path) -> None:
    said: list[str] = []
    assert report(read_work(template, LIMITS), said.append) == READY
    assert said == [f"READY: {len(RULES)} rules hold for 16 runs"]


@pytest.mark.parametrize(
    ("name", "rules"), [("calibration.md", set()), ("runs/Offline/accuracy/accuracy.txt", {"accuracy"})]
)
def test_a_text_that_is_not_utf_8_is_read_as_far_as_it_goes(name: str, rules: set[str], good: Path) -> None:
    (good / name).write_bytes("gewählt aus 500 Bildern".encode("latin-1"))
    assert broken(good) == rules


def test_the_limits_are_the_official_ones() -> None:
    assert asdict(OFFICIAL) == {
        "samples": 50_000,
        "performance_samples": 1024,
        "min_duration_ms": 600_000,
        "offline_samples": 24_576,
        "audit": True,
    }


def place(folder: Path, name: str) -> Path:
    return folder / "runs" / name


def _invalid(folder: Path) -> None:
    change_log(place(folder, "Offline/TEST04"), result_validity="INVALID")


def _error(folder: Path) -> None:
    change_log(place(folder, "Server/accuracy"), error="Multiple conf files are used.")


def _seed(folder: Path) -> None:
    change_log(place(folder, "SingleStream/TEST01"), effective_schedule_rng_seed=1)


def _duration(folder: Path) -> None:
    change_log(place(folder, "Offline/TEST01"), effective_min_duration_ms=599_999)


def _offline_samples(folder: Path) -> None:
    change_log(place(folder, "Offline/performance"), effective_samples_per_query=24_575)


def _early_stopping(folder: Path) -> None:
    change_log(place(folder, "MultiStream/performance"), early_stopping_met=False)


def _server_target(folder: Path) -> None:
    change_log(place(folder, "Server/performance"), effective_target_latency_ns=15_000_001)


def _server_share(folder: Path) -> None:
    change_log(place(folder, "Server/performance"), effective_target_latency_percentile=0.9)


def _dataset_reported(folder: Path) -> None:
    change_log(place(folder, "Offline/accuracy"), qsl_reported_total_count=SAMPLES - 1)


def _performance_samples(folder: Path) -> None:
    # What the settings say over the library is not what it has.
    change_log(place(folder, "Offline/performance"), qsl_reported_performance_count=1023)


def _accuracy_as_float32(folder: Path) -> None:
    text = f"accuracy={100 / SAMPLES:.3f}%, good=1, total={SAMPLES}\n"
    (place(folder, "Offline/accuracy") / "accuracy.txt").write_text(text)


def _accuracy_in_the_summary(folder: Path) -> None:
    path = place(folder, "Offline/accuracy") / "summary.json"
    change_json(path, lambda values: values["accuracy"].update(correct=1))


def _model(folder: Path) -> None:
    path = place(folder, "Server/TEST04") / "summary.json"
    change_json(path, lambda values: values["identity"].update(model="ef" * 32))


def _commit(folder: Path) -> None:
    path = place(folder, "Offline/accuracy") / "summary.json"
    change_json(path, lambda values: values["identity"].update(commit="ef" * 20))


def _gpu(folder: Path) -> None:
    path = place(folder, "Offline/accuracy") / "summary.json"
    change_json(path, lambda values: values["hardware"]["gpus"].append({"name": "H200"}))


def _loadgen(folder: Path) -> None:
    change_log(place(folder, "SingleStream/TEST04"), loadgen_version="6.0.16 @ 0123456789")


def _dirty(folder: Path) -> None:
    for path in folder.glob("runs/*/*/summary.json"):
        change_json(path, lambda values: values["identity"].update(commit="cd" * 20 + "-dirty"))


def _no_digest(folder: Path) -> None:
    for path in folder.glob("runs/*/*/summary.json"):
        change_json(path, lambda values: values.pop("identity"))


def _test01_differs(folder: Path) -> None:
    answers = {index: answer(index) for index in range(0, SAMPLES, 3)}
    write_predictions(place(folder, "MultiStream/TEST01"), {**answers, 3: 999})


def _test01_is_empty(folder: Path) -> None:
    write_predictions(place(folder, "MultiStream/TEST01"), {})


def _test01_is_slow(folder: Path) -> None:
    change_log(place(folder, "Offline/TEST01"), result_samples_per_second=899.0)


def _test04_is_fast(folder: Path) -> None:
    change_log(place(folder, "Offline/TEST04"), result_samples_per_second=1100.0)


def _test04_is_quick(folder: Path) -> None:
    change_log(place(folder, "SingleStream/TEST04"), early_stopping_latency_ss=900_000)


def _audit_was_not_read(folder: Path) -> None:
    change_log(place(folder, "Offline/TEST04"), effective_performance_issue_same=False)


def _audit_in_the_performance_run(folder: Path) -> None:
    change_log(
        place(folder, "Offline/performance"),
        effective_accuracy_log_rng_seed=7,
        effective_accuracy_log_sampling_target=4096,
    )


def _to_fill_in(folder: Path) -> None:
    change_json(folder / "system.json", lambda values: values.update(cooling="FILL IN: air or liquid"))


def _field_missing(folder: Path) -> None:
    change_json(folder / "system.json", lambda values: values.pop("hw_notes"))


def _field_empty(folder: Path) -> None:
    change_json(folder / "system.json", lambda values: values.update(host_networking=""))


def _model_to_fill_in(folder: Path) -> None:
    change_json(folder / "measurements.json", lambda values: values.update(weight_data_types=""))


def _status(folder: Path) -> None:
    change_json(folder / "system.json", lambda values: values.update(status="soon"))


def _other_submitter(folder: Path) -> None:
    change_json(folder / "system.json", lambda values: values.update(submitter="Other"))


def _no_calibration(folder: Path) -> None:
    (folder / "calibration.md").unlink()


def _run_missing(folder: Path) -> None:
    shutil.rmtree(place(folder, "Server/TEST01"))


def _log_damaged(folder: Path) -> None:
    (place(folder, "Server/TEST04") / "mlperf_log_detail.txt").write_text(":::MLLOG {")


def _other_scenario(folder: Path) -> None:
    change_log(place(folder, "Server/accuracy"), effective_scenario="Offline")


def _other_mode(folder: Path) -> None:
    change_log(place(folder, "Offline/accuracy"), effective_test_mode="PerformanceOnly")


MUTATIONS: list[tuple[str, Callable[[Path], None]]] = [
    ("valid", _invalid),
    ("errors", _error),
    ("seeds", _seed),
    ("duration", _duration),
    ("offline_samples", _offline_samples),
    ("early_stopping", _early_stopping),
    ("server_target", _server_target),
    ("server_target", _server_share),
    ("dataset", _dataset_reported),
    ("performance_samples", _performance_samples),
    ("accuracy", _accuracy_as_float32),
    ("accuracy", _accuracy_in_the_summary),
    ("identity", _model),
    ("identity", _commit),
    ("identity", _gpu),
    ("identity", _loadgen),
    ("identity", _dirty),
    ("identity", _no_digest),
    ("test01", _test01_differs),
    ("test01", _test01_is_empty),
    ("audit_rates", _test01_is_slow),
    ("audit_rates", _test04_is_fast),
    ("audit_rates", _test04_is_quick),
    ("audits_on", _audit_was_not_read),
    ("audits_on", _audit_in_the_performance_run),
    ("description", _to_fill_in),
    ("description", _field_missing),
    ("description", _field_empty),
    ("description", _model_to_fill_in),
    ("description", _status),
    ("description", _other_submitter),
    ("description", _no_calibration),
    ("scenarios", _run_missing),
    ("scenarios", _log_damaged),
    ("scenarios", _other_scenario),
    ("scenarios", _other_mode),
]


@pytest.mark.parametrize(("rule", "change"), MUTATIONS, ids=[change.__name__.strip("_") for _, change in MUTATIONS])
def test_one_thing_wrong_breaks_its_rule_and_no_other(good: Path, rule: str, change: Callable[[Path], None]) -> None:
    change(good)
    assert broken(good) == {rule}


def test_every_rule_has_a_mutation() -> None:
    assert {rule for rule, _ in MUTATIONS} | {"closed"} == set(RULES)


def test_a_sample_without_a_prediction_is_no_whole_run(good: Path) -> None:
    write_predictions(place(good, "Offline/accuracy"), {index: answer(index) for index in range(1, SAMPLES)})
    assert broken(good) >= {"dataset"}


@pytest.fixture
def closed(good: Path) -> Path:
    """A folder that the closed division takes."""
    shutil.rmtree(good / "runs" / "Server")
    (good / "submission.json").write_text(json.dumps(asdict(replace(PLAN, division="closed"))))
    change_json(good / "system.json", lambda values: values.update(division="closed"))
    change_json(good / "measurements.json", lambda values: values.update(retraining="no"))
    assert not broken(good)
    return good


def test_closed_takes_no_retrained_model(closed: Path) -> None:
    change_json(closed / "measurements.json", lambda values: values.update(retraining="yes"))
    assert broken(closed) == {"closed"}


def test_closed_wants_its_scenarios(closed: Path) -> None:
    shutil.rmtree(closed / "runs" / "MultiStream")
    assert broken(closed) == {"closed"}


def test_closed_has_an_accuracy_to_reach(closed: Path) -> None:
    for scenario in SCENARIOS[:3]:
        wrong = {index: answer(index) if index > 11 else 99 for index in range(SAMPLES)}
        write_predictions(place(closed, f"{scenario}/accuracy"), wrong)
    assert "closed" in broken(closed)


def test_a_trial_is_never_ready(good: Path) -> None:
    (good / "submission.json").write_text(json.dumps(asdict(replace(PLAN, trial=True))))
    change_log(place(good, "Offline/performance"), effective_min_duration_ms=10, effective_samples_per_query=9)
    work = read_work(good)
    assert work.limits == SMALL
    said: list[str] = []
    assert report(work, said.append) == ON_TRIAL
    assert said[0].startswith("TRIAL: ")
    change_log(place(good, "Offline/performance"), result_validity="INVALID")
    assert report(read_work(good), said.append) == FAULTY

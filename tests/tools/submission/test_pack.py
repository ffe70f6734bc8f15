"""`pack`: the rounds' trees, what is handed in of the logs, and what is made of the official checker's words."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.report.commit import commit
from tests.tools.submission.good import LIMITS, PLAN, change_json, change_log, make_good
from tools.submission.check import FAULTY, ON_TRIAL, READY
from tools.submission.official import _finding
from tools.submission.pack import pack
from tools.submission.truncate import KEPT, truncate
from tools.submission.work import Work, read_work

COMMIT = commit()
pytestmark = pytest.mark.skipif(COMMIT is None, reason="packs the source of a commit: needs a checkout of git")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_good(tmp_path_factory.mktemp("good") / "folder")
    assert COMMIT is not None
    for path in folder.glob("runs/*/*/summary.json"):
        change_json(path, lambda values: values["identity"].update(commit=COMMIT.removesuffix("-dirty")))
    return folder


@pytest.fixture
def good(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "folder"))


def work_of(folder: Path, round_name: str = "v6.1", *, trial: bool = False) -> Work:
    (folder / "submission.json").write_text(json.dumps(asdict(replace(PLAN, round=round_name, trial=trial))))
    return read_work(folder, LIMITS)


def test_all_of_a_scenario_lies_together_since_v6(good: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    assert pack(work_of(good), out, None, said.append) == READY
    assert said[-1].startswith("not checked officially")
    top = out / "open" / "ACME"
    scenario = top / "results" / "box" / "resnet50-int4" / "Offline"
    assert {str(path.relative_to(scenario)) for path in scenario.rglob("*") if path.is_file()} == {
        "user.conf",
        "measurements.json",
        "README.md",
        *(f"performance/run_1/mlperf_log_{name}.txt" for name in ("summary", "detail")),
        *(f"accuracy/mlperf_log_{name}" for name in ("summary.txt", "detail.txt", "accuracy.json")),
        "accuracy/accuracy.txt",
        *(f"TEST01/performance/run_1/mlperf_log_{name}.txt" for name in ("summary", "detail")),
        *(f"TEST04/performance/run_1/mlperf_log_{name}.txt" for name in ("summary", "detail")),
        "TEST01/verify_accuracy.txt",
        "TEST01/verify_performance.txt",
        "TEST01/accuracy/mlperf_log_accuracy.json",
        "TEST01/accuracy/accuracy.txt",
        "TEST04/verify_performance.txt",
    }  # fmt: skip
    assert (scenario / "TEST01" / "verify_accuracy.txt").read_text().splitlines()[-1] == "TEST PASS"
    assert (scenario / "TEST04" / "verify_performance.txt").read_text().splitlines()[-1] == "TEST PASS"
    assert "    python -m pipeline.offline --scenario Offline" in (scenario / "README.md").read_text()
    assert json.loads((top / "model_mapping.json").read_text()) == {"resnet50-int4": "resnet"}
    assert (top / "systems" / "box.json").is_file()
    assert (top / "calibration.md").is_file()
    assert len(list((top / "src").glob("int4-resnet50-*.tar.gz"))) == 1
    assert (top / "results" / "box" / "system_meta.json").is_file()
    assert not list(out.rglob("summary.json"))


def test_descriptions_and_audits_lay_apart_before(good: Path, tmp_path: Path) -> None:
    # The logs' seeds are v6.1's, which v5.1 does not take.
    seeds = {"qsl_rng_seed": 1780908523862526354, "sample_index_rng_seed": 14771362308971278857}
    for path in good.glob("runs/*/*"):
        change_log(
            path,
            effective_schedule_rng_seed=18209322760996052031,
            **{f"effective_{name}": seed for name, seed in seeds.items()},
        )
    out = tmp_path / "out"
    assert pack(work_of(good, "v5.1"), out, None, lambda _line: None) == READY
    top = out / "open" / "ACME"
    place = "box/resnet50-int4/Server"
    assert sorted(path.name for path in (top / "measurements" / place).iterdir()) == [
        "README.md", "box_Server.json", "user.conf",
    ]  # fmt: skip
    assert sorted(path.name for path in (top / "compliance" / place).iterdir()) == ["TEST01", "TEST04"]
    assert sorted(path.name for path in (top / "results" / place).iterdir()) == ["accuracy", "performance"]
    assert (top / "code" / "README.md").is_file()


def test_a_faulty_folder_is_not_packed(good: Path, tmp_path: Path) -> None:
    change_log(good / "runs" / "Offline" / "TEST01", result_validity="INVALID")
    said: list[str] = []
    assert pack(work_of(good), tmp_path / "out", None, said.append) == FAULTY
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(good: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="is not empty"):
        pack(work_of(good), good, None, lambda _line: None)


def test_a_long_log_keeps_its_ends_and_its_hash(tmp_path: Path) -> None:
    log, accuracy = tmp_path / "log", tmp_path / "accuracy.txt"
    content = bytes(range(256)) * 64
    log.write_bytes(content)
    accuracy.write_text("accuracy=1.000%, good=1, total=100\n")
    truncate(log, accuracy)
    assert log.read_bytes() == content[:KEPT] + b"\n\n...\n\n" + content[-KEPT:]
    lines = accuracy.read_text().splitlines()
    assert lines == ["accuracy=1.000%, good=1, total=100", "", f"hash={sha256(content).hexdigest()}"]


CHECKER = """
import sys
print("[x INFO] Loading")
for line in {lines!r}:
    print("[x ERROR]", line)
print("[x ERROR] NoResults here")
sys.exit({status})
"""
VERIFICATION = """
import sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("-o") + 1]) / "{audit}"
(out / "accuracy").mkdir(parents=True)
(out / "accuracy" / "mlperf_log_accuracy.json").write_text("[]")
(out / "verify_performance.txt").write_text(" ".join(sys.argv[1:]))
"""


def checkout(folder: Path, *lines: str) -> Path:
    """A checkout whose checker says `lines`."""
    place = folder / "tools" / "submission" / "submission_checker"
    place.mkdir(parents=True)
    (place / "main.py").write_text(CHECKER.format(lines=lines, status=1 if lines else 0))
    for audit in ("TEST01", "TEST04"):
        (folder / "compliance" / audit).mkdir(parents=True)
        (folder / "compliance" / audit / "run_verification.py").write_text(VERIFICATION.format(audit=audit))
    return folder


def test_what_the_official_checker_says_decides(good: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert pack(work_of(good), tmp_path / "out", checkout(tmp_path / "theirs"), said.append) == READY
    assert said[-1] == "their checker: submission looks OK"
    verified = tmp_path / "out/open/ACME/results/box/resnet50-int4/Offline/TEST01/verify_performance.txt"
    assert "--dtype int32" in verified.read_text()


def test_their_errors_come_with_a_remedy(good: Path, tmp_path: Path) -> None:
    said: list[str] = []
    theirs = checkout(tmp_path / "theirs", "a/log Test duration less than 600s in user config.")
    assert pack(work_of(good), tmp_path / "out", theirs, said.append) == FAULTY
    assert said[-2:] == ["  run again with a min_duration of 600 s", "their checker: submission has errors"]


def test_a_trial_ends_as_a_trial(good: Path, tmp_path: Path) -> None:
    said: list[str] = []
    theirs = checkout(tmp_path / "theirs", "a/log Test duration less than 600s in user config.")
    assert pack(work_of(good, trial=True), tmp_path / "out", theirs, said.append) == ON_TRIAL
    assert said[-1] == "their checker: submission looks OK, but for what a trial cannot have"
    assert (tmp_path / "out" / "TRIAL").is_file()
    another = checkout(tmp_path / "other", "a/log qsl_rng_seed is wrong, expected=1, found=2")
    assert pack(work_of(good, trial=True), tmp_path / "second", another, said.append) == FAULTY


def test_no_checkout(good: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="name a checkout of mlcommons/inference"):
        pack(work_of(good), tmp_path / "out", tmp_path, lambda _line: None)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("'NoneType' object has no attribute 'get'", "init"),
        ("x.json, field cooling requires a meaningful response but is empty", "fill the field in"),
        ("x qsl_rng_seed is wrong, expected=2465351861681999779, found=2085463073848966840", "LoadGen of the round"),
        ("x accurcy run does not cover all dataset, accuracy samples: 1200, dataset size: 50000", "50,000 images"),
        ("Early stopping condition was not met, msg= * Would need to run at least 12471 more queries", "more queries"),
        ("accuracy.json is not truncated", "pack again"),
        ("x not hash value for accuracy.txt", "pack again"),
        ("x Required minimum samples per query not met by user config, Expected=24576", "24,576"),
    ],
)
def test_each_of_their_messages_has_a_remedy(error: str, remedy: str) -> None:
    assert remedy in _finding(error).remedy


def test_a_file_in_the_place_of_the_tree(good: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(PipelineError, match="out: Not a directory; name a new folder"):
        pack(work_of(good), tmp_path / "out", None, print)

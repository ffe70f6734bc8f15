"""`run`: what it refuses before it starts, and a trial of one scenario from init to check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from pipeline.commands import values
from pipeline.loadgen.binding import load_module
from pipeline.loadgen.options import build_parser
from pipeline.loadgen.outputs import locked
from pipeline.loadgen.rounds import ROUNDS
from pipeline.memory.arena import segment_folder
from tests.paths import ROOT
from tests.pipeline.application import CPU, lives
from tests.pipeline.conftest import PATIENCE_S
from tools.submission.__main__ import main
from tools.submission.check import find_faults
from tools.submission.start import _PATHS, _from_anywhere
from tools.submission.work import read_work

INSTALLED = next((r.name for r in ROUNDS.values() if r.wheel == metadata.version("mlcommons-loadgen")), None)
needs_a_round = pytest.mark.skipif(INSTALLED is None, reason="the installed LoadGen is not a round's newest")
SETTINGS = {
    "status": "available",
    "cooling": "air",
    "host_memory_configuration": "one",
    "host_networking": "Ethernet",
    "host_networking_topology": "N/A",
    "host_storage_type": "SSD",
    "retraining": "yes",
    "starting_weights_filename": "none",
    "weight_data_types": "int4",
    "weight_transformations": "none",
}


def new(folder: Path, *options: str, round_name: str | None = INSTALLED) -> str:
    assert round_name is not None
    given = [text for name, value in SETTINGS.items() for text in ("--set", f"{name}={value}")]
    assert (
        main(["init", "--round", round_name, "--submitter", "A", "--system", "b", *options, *given, str(folder)]) == 0
    )
    (folder / "calibration.md").write_text("Random weights.\n")
    return str(folder)


@pytest.fixture
def short_map(tmp_path: Path) -> list[str]:
    path = tmp_path / "map.txt"
    path.write_text("a.jpg 1\nb.jpg 2\n")
    return ["--images", str(tmp_path), "-m", str(path)]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `run` says when it does not start."""
    assert main(["run", *arguments]) == 1
    return capsys.readouterr().err


@needs_a_round
def test_a_map_of_another_length(tmp_path: Path, short_map: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = new(tmp_path / "w")
    said = refusal(capsys, "--scenario", "Offline", folder, *short_map)
    assert "2 lines; the validation set has 50,000 images" in said
    assert not (tmp_path / "w" / "runs").exists()


@needs_a_round
def test_no_map_and_no_labels(tmp_path: Path, short_map: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = new(tmp_path / "w", "--trial")
    assert "name the map" in refusal(capsys, "--scenario", "Offline", folder, *short_map[:2])
    (tmp_path / "map.txt").write_text("a.jpg\n")
    assert "label of each image" in refusal(capsys, "--scenario", "Offline", folder, *short_map)


@needs_a_round
@pytest.mark.parametrize("option", [["--count", "1"], ["--skip-bad-images"]])
def test_a_part_of_the_samples(
    option: list[str], tmp_path: Path, short_map: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = new(tmp_path / "w", "--trial")
    with pytest.raises(SystemExit):
        main(["run", "--scenario", "Offline", folder, *short_map, *option])
    assert f"{option[0]} contradict each other" in capsys.readouterr().err


def test_another_rounds_loadgen(tmp_path: Path, short_map: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    other = next(name for name in ("v6.0", "v6.1") if name != INSTALLED)
    folder = new(tmp_path / "w", "--trial", round_name=other)
    said = refusal(capsys, "--scenario", "Offline", folder, *short_map)
    assert f"pip install mlcommons-loadgen=={ROUNDS[other].wheel}" in said


@needs_a_round
def test_a_stray_audit(tmp_path: Path, short_map: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = new(tmp_path / "w", "--trial")
    stray = tmp_path / "w" / "runs" / "Offline" / "performance" / "audit.config"
    stray.parent.mkdir(parents=True)
    stray.write_text("*.*.mode = 2\n")
    assert f"{stray}: LoadGen would read it" in refusal(capsys, "--scenario", "Offline", folder, *short_map)


@needs_a_round
@pytest.mark.parametrize("option", ["--test-mode=AccuracyOnly", "--output-dir", "--lgls_prefix=x"])
def test_what_the_folder_gives(
    option: str, tmp_path: Path, short_map: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = new(tmp_path / "w", "--trial")
    said = refusal(capsys, "--scenario", "Offline", folder, *short_map, option)
    assert f"{option.partition('=')[0]}: that is given by the folder" in said


def test_paths_hold_in_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--model", "m", "-m", "map.txt", "--user_conf_path=u.conf", "--gpu", "cpu", "--model=/a", "-mb", "-p/c"]
    at = str(tmp_path)
    assert _from_anywhere(given) == [
        "--model", f"{at}/m", "-m", f"{at}/map.txt", f"--user_conf_path={at}/u.conf", "--gpu", "cpu", "--model=/a",
        f"-m{at}/b", "-p/c",
    ]  # fmt: skip


def test_every_file_that_a_run_reads_is_known_as_one() -> None:
    written = {"--output-dir", "--trace", "--report"}
    of_no_round = {"--mlperf_conf_path"}
    files = {
        name
        for action in build_parser(load_module())._actions
        if action.type in (values.path, values.text_path)
        for name in action.option_strings
    }
    assert files - written - of_no_round == set(_PATHS)


@needs_a_round
def test_a_trial_from_init_to_check(
    model_dir: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = new(tmp_path / "w", "--trial")
    # An earlier start's: a performance run does not empty a log with predictions.
    earlier = tmp_path / "w" / "runs" / "Offline" / "TEST01" / "mlperf_log_accuracy.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('[{"seq_id": 0, "qsl_idx": 0, "data": "00000000"}]')
    given = [*CPU, "--loaders", "1", "--model", str(model_dir), "--images", str(images), "-m"]
    options = ["--no-dashboard", "--lgts_min_duration_ms", "10", "--lgts_min_query_count", "200"]
    status = main(["run", "--scenario", "Offline", folder, *given, str(images / "map.txt"), *options])
    assert status == 0, capfd.readouterr().err
    work = read_work(Path(folder))
    runs = work.scenarios["Offline"]
    assert {kind: run.result.settings["performance_issue_same"] for kind, run in runs.items()} == {
        "accuracy": False, "performance": False, "TEST01": False, "TEST04": True,
    }  # fmt: skip
    assert len(runs["TEST01"].log.indices) > 0
    assert runs["accuracy"].correct()[1] == len(runs["accuracy"].log.indices) == 24
    assert {path.parent.name for path in (tmp_path / "w").rglob("audit.config")} == {"TEST01", "TEST04"}
    assert (tmp_path / "w" / "TRIAL").is_file()
    # Of 24 images no run can draw 1,024; and outside a checkout there is no commit.
    assert {fault.rule for fault in find_faults(work)} - {"identity"} == {"performance_samples"}


@needs_a_round
def test_nothing_is_run_after_an_invalid_run(
    model_dir: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = new(tmp_path / "w", "--trial")
    given = [*CPU, "--loaders", "1", "--model", str(model_dir), "--images", str(images), "-m", str(images / "map.txt")]
    # One sample, which does not last an hour.
    short = ["--lgts_min_duration_ms", "3600000", "--lgts_min_query_count", "1", "--lgts_offline_expected_qps", "1e-6"]
    assert main(["run", "--scenario", "Offline", folder, *given, "--no-dashboard", *short]) == 1
    refused = capfd.readouterr().err.splitlines()[-1]
    assert refused.startswith("submission: Offline/performance is INVALID: the run lasted")
    assert "at least 3600 s are required: raise --lgts_offline_expected_qps from 1e-06 to" in refused
    assert refused.endswith("start the scenario again")
    assert {path.name for path in (tmp_path / "w" / "runs" / "Offline").iterdir()} == {"accuracy", "performance"}
    assert refused.removeprefix("submission: ").startswith(
        *(fault.what for fault in find_faults(read_work(Path(folder))) if fault.rule == "valid")
    ), "as check says it"


@needs_a_round
@pytest.mark.parametrize("held", [".", "runs/Offline/TEST01"], ids=["a start", "a run whose start was killed"])
def test_one_that_is_under_way_keeps_its_folders(
    held: str, model_dir: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = new(tmp_path / "w", "--trial")
    place = tmp_path / "w" / "runs" / "Offline" / "TEST01"
    place.mkdir(parents=True)
    given = ["--model", str(model_dir), "--images", str(images), "-m", str(images / "map.txt")]
    with locked(tmp_path / "w" / held, "not now"):
        said = refusal(capsys, "--scenario", "Offline", folder, *given)
    assert said == f"submission: {tmp_path / 'w' / held}: another run is writing there; wait until it has ended\n"
    assert place.exists()


@needs_a_round
@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)], ids=["kill", "a terminal's Ctrl-C"]
)
def test_a_signal_ends_the_run_that_is_under_way_and_leaves_nothing(
    send: Callable[[int, int], None], number: signal.Signals, model_dir: Path, images: Path, tmp_path: Path
) -> None:
    folder = new(tmp_path / "w", "--trial")
    given = [*CPU, "--loaders", "1", "--model", str(model_dir), "--images", str(images), "-m", str(images / "map.txt")]
    long = ["--no-dashboard", "--lgts_min_duration_ms", "600000"]
    start = subprocess.Popen(
        [sys.executable, "-m", "tools.submission", "run", "--scenario", "Offline", folder, *given, *long],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        assert start.stdout is not None
        assert "Offline, performance\n" in start.stdout
        assert any(line.startswith("running 0") for line in start.stdout)
        started = psutil.Process(start.pid).children(recursive=True)
        send(start.pid, number)
        said, _ = start.communicate(timeout=PATIENCE_S)
        assert start.returncode == 128 + number
        assert said.endswith(
            f"stopped: interrupted by {number.name}\nsubmission: stopped: interrupted by {number.name}\n"
        )
        assert "Traceback" not in said
        assert len(started) > 2
        assert not any(map(lives, started))
        assert not [s for process in started for s in segment_folder().glob(f"int4-resnet50-{process.pid}-*")]
    finally:
        for process in [*started, start]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

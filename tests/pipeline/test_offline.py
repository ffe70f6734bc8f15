"""The whole application, run as a user runs it: processes, shared memory, LoadGen, faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from int4core import Model
from pipeline.loadgen.sample_list import read_sample_list
from pipeline.memory.arena import segment_folder
from pipeline.report.verdict import EXCEEDED
from tests.paths import ROOT, SHARED, needs_shared
from tests.pipeline.application import LongRun, command, labels_of, lives, offline, predictions, run_with
from tests.pipeline.conftest import PATIENCE_S, wait_for
from tests.pipeline.report.parsed import Page
from tools.compare_log import main as compare_log


@pytest.mark.usefixtures("clean")
def test_accuracy_mode_answers_every_sample_exactly(
    model_dir: Path, images: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = offline(
        "--model", model_dir, "--images", images, "-b", 5, "--test-mode", "AccuracyOnly", "--output-dir", out
    )
    assert done.returncode == 0, done.stderr
    assert predictions(out) == dict(enumerate(expected.tolist()))
    summary = json.loads((out / "summary.json").read_text())
    correct = int((expected == labels_of(images)).sum())
    assert summary["accuracy"]["correct"] == correct
    assert summary["accuracy"]["total"] == len(expected)
    assert f"{correct}/{len(expected)}" in done.stdout + done.stderr


@pytest.mark.usefixtures("clean")
def test_a_library_larger_than_what_may_be_loaded_at_a_time(
    model_dir: Path, images: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = offline(
        "--model", model_dir, "--images", images, "-b", 4, "--test-mode", "AccuracyOnly", "--output-dir", out,
        "--lgts_performance_sample_count_override", 7,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert predictions(out) == dict(enumerate(expected.tolist()))
    summary = json.loads((out / "summary.json").read_text())
    assert decoded(out) == len(expected), "every file once"
    assert summary["energy"] is None
    assert "images/J" not in done.stdout
    measured = summary["verdict"]["measured"]
    assert 0 <= measured["decodes_per_sample"] <= 1
    assert ("Decoding was over before the clock started" in done.stdout) == (not measured["decode_timed"])


@pytest.mark.usefixtures("clean")
def test_a_performance_run_decodes_what_loadgen_chooses(model_dir: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = offline(
        "--model", model_dir, "--images", images, "-b", 4, "--output-dir", out, "--lgts_min_duration_ms", 100,
        "--lgts_performance_sample_count_override", 7, "--lgts_offline_expected_qps", 100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert decoded(out) == 7
    assert "Decoding was over before the clock started" in done.stdout


@pytest.mark.usefixtures("clean")
def test_bad_images_found_under_the_engine_are_all_named(model_dir: Path, images: Path, tmp_path: Path) -> None:
    folder = spoil(images, tmp_path / "images")
    done = offline(
        "--model", model_dir, "--images", folder, "--output-dir", tmp_path / "out", "--test-mode", "AccuracyOnly",
        "--lgts_performance_sample_count_override", 4,
    )  # fmt: skip
    assert done.returncode == 1
    assert "2 of 24 files cannot be read" in done.stderr
    assert "3.jpg" in done.stderr
    assert "11.jpg" in done.stderr
    assert "Traceback" not in done.stderr


def decoded(out: Path) -> int:
    stages = {stage["name"]: stage for stage in json.loads((out / "summary.json").read_text())["stages"]}
    return int(stages["decode"]["done"])


@pytest.mark.usefixtures("clean")
def test_performance_mode_ends_valid(model_dir: Path, images: Path, tmp_path: Path) -> None:
    conf = tmp_path / "user.conf"
    keys = {"min_duration": 500, "target_qps": 6000, "min_query_count": 1}
    conf.write_text("".join(f"*.Offline.{key} = {value}\n" for key, value in keys.items()))
    out = tmp_path / "out"
    done = offline(
        "--model", model_dir, "--images", images, "-b", 8, "--user_conf_path", conf, "--output-dir", out,
        "--lgts_min_duration_ms", 500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Result is : VALID" in (out / "mlperf_log_summary.txt").read_text(), done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["loadgen"]["valid"] is True
    assert {s["name"] for s in summary["stages"]} == {"decode", "infer", "complete"}


@pytest.mark.usefixtures("clean")
def test_a_run_ends_with_a_verdict_and_a_timeline(model_dir: Path, images: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "trace.json"
    done = offline(
        "--model", model_dir, "--images", images, "-b", 8, "--output-dir", out, "--trace", file,
        "--lgts_min_duration_ms", 300, "--lgts_offline_expected_qps", 3000, "--engines", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict = json.loads((out / "summary.json").read_text())["verdict"]
    assert set(verdict["ceilings"]) == {"engine", "loadgen"}
    assert verdict["measured"]["decode_per_loader"] > 0
    # The engine's ceiling is measured at the start: where others get a core back since, a run exceeds it.
    assert verdict["share_of_ceiling"] > 0
    assert (verdict["bound"] == "unknown") == (verdict["share_of_ceiling"] > EXCEEDED)
    assert all(sentence in done.stdout for sentence in verdict["sentences"])
    assert "Decoding was over before the clock started" in done.stdout
    events = json.loads(file.read_text())["traceEvents"]
    # Where there are several nodes of memory, its own follows the name.
    processes = {e["pid"]: e["args"]["name"].partition(",")[0] for e in events if e["name"] == "process_name"}
    assert sorted(processes.values()) == ["engine 0", "engine 1", "loader 0", "loader 1", "pipeline"]
    seen = {(processes[e["pid"]].split()[0], e["name"]) for e in events if e["ph"] == "X"}
    parts = {("pipeline", "issue"), ("pipeline", "batch"), ("pipeline", "deliver")}
    assert seen == parts | {("engine", "network"), ("loader", "decode")}
    tickets = [sorted(e["args"]["ticket"] for e in events if e["name"] == name) for name in ("batch", "network")]
    assert tickets[0] == tickets[1] == list(range(len(tickets[0])))
    assert len(tickets[0]) > 10


@pytest.mark.usefixtures("clean")
def test_bad_images_fail_the_run_before_the_timed_part_and_all_are_named(
    model_dir: Path, images: Path, tmp_path: Path
) -> None:
    folder = spoil(images, tmp_path / "images")
    done = offline("--model", model_dir, "--images", folder, "--output-dir", tmp_path / "out")
    assert done.returncode == 1
    assert "3.jpg" in done.stderr
    assert "11.jpg" in done.stderr
    assert "--skip-bad-images" in done.stderr
    assert not (tmp_path / "out" / "mlperf_log_detail.txt").exists()


@pytest.mark.usefixtures("clean")
def test_bad_images_are_dropped_when_asked(
    model_dir: Path, images: Path, expected: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = spoil(images, tmp_path / "images"), tmp_path / "out"
    # The right labels but one: numbers that shift where files are left out show in top-1.
    labels = expected.tolist()
    labels[20] = (labels[20] + 1) % 10
    (folder / "map.txt").write_text("".join(f"{n}.jpg\t{label}\n" for n, label in enumerate(labels)))
    done = offline(
        "--model", model_dir, "--images", folder, "--output-dir", out, "--test-mode", "AccuracyOnly",
        "--skip-bad-images", "--report", tmp_path / "page.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"samples as {folder / 'map.txt'} lists them, which was found there" in done.stdout
    good = [n for n in range(len(expected)) if n not in (3, 11)]
    assert predictions(out) == dict(enumerate(expected[good].tolist()))
    assert len({*expected[:3].tolist()} | {*expected[12:].tolist()}) > 2, "classes that would hide a shift"
    summary = json.loads((out / "summary.json").read_text())
    assert [Path(b["path"]).name for b in summary["bad_images"]] == ["3.jpg", "11.jpg"]
    assert (summary["accuracy"]["correct"], summary["accuracy"]["total"]) == (len(good) - 1, len(good))
    assert f"report: {tmp_path / 'page.html'}" in done.stdout
    page = Page((tmp_path / "page.html").read_text())
    assert [Path(a["title"]).name for a in page.all("span", "key")] == ["3.jpg", "11.jpg"]
    assert page.all("section", "chart"), "a run over time"
    assert "22\nimages answered" in page.words
    assert "95.45 %\ntop-1" in page.words
    assert "This run asked for classes alone, and no scores." in page.words
    assert f"options.output_dir\n{out}" in page.words

    listed = read_sample_list(out / "mlperf_log_samples.tsv")
    assert listed.names == tuple(f"{n}.jpg" for n in good)
    assert listed.labels is not None
    assert listed.labels.tolist() == [labels[n] for n in good]
    capsys.readouterr()
    assert compare_log([str(out / "mlperf_log_accuracy.json"), str(folder / "map.txt")]) == 0
    said = capsys.readouterr().out
    assert f"top-1 {len(good) - 1}/{len(good)}" in said
    assert "2 of 24 are not among its samples: 3.jpg, 11.jpg" in said
    assert "sample 20 (20.jpg): label" in said


def spoil(images: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in images.iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[: len(data) // 2] if file.name in ("3.jpg", "11.jpg") else data)
    return folder


@pytest.fixture
def long_run(model_dir: Path, images: Path, tmp_path: Path) -> Iterator[LongRun]:
    run = LongRun(model_dir, images, tmp_path / "out", "-b", 4, "--lgts_offline_expected_qps", 5000)
    try:
        yield run
    finally:
        run.end()


def test_a_killed_engine_ends_the_run(long_run: LongRun) -> None:
    pid = long_run.wait_running()["infer"][0]
    os.kill(pid, signal.SIGKILL)
    assert long_run.finish() == 1
    assert "stage infer" in long_run.output
    assert f"pid {pid}" in long_run.output
    assert "SIGKILL" in long_run.output
    long_run.assert_nothing_left()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_group_ends_the_run_in_its_timed_part(
    long_run: LongRun, number: signal.Signals, status: int
) -> None:
    pids = long_run.wait_running()
    if number == signal.SIGTERM:  # a loader that dies is replaced, and the run goes on
        loader = psutil.Process(pids["decode"][0])
        loader.kill()
        wait_for(lambda: not lives(loader))
        long_run.read_until(r"running.*img/s")
    # A terminal, and a system that shuts down, send it to every process of the group at once.
    os.killpg(long_run.process.pid, number)
    assert long_run.finish() == status
    assert number.name in long_run.output
    assert "Traceback" not in long_run.output
    long_run.assert_nothing_left()


# What every process of the run below imports when it starts: from the moment there is such a file, it is an hour later.
LATER = """
import os, time
real = time.monotonic
time.monotonic = lambda: real() + (3600 if os.path.exists({file!r}) else 0)
"""


def test_a_group_that_was_stopped_for_longer_than_the_timeouts_goes_on(
    model_dir: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LATER.format(file=str(tmp_path / "later")))
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    options = ("-b", 4, "--lgts_offline_expected_qps", 5000)
    run = LongRun(model_dir, images, tmp_path / "out", *options, env=os.environ | {"PYTHONPATH": path})
    try:
        run.wait_running()
        os.killpg(run.process.pid, signal.SIGSTOP)  # Ctrl-Z
        run.wait_until(lambda: all(process.status() == psutil.STATUS_STOPPED for process in run.group()))
        (tmp_path / "later").touch()
        os.killpg(run.process.pid, signal.SIGCONT)
        run.read_until(r"running 1:00:.*img/s")
        run.read_until(r"running 1:00:.*img/s")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.finish() == 130
        assert "silent" not in run.output
    finally:
        run.end()


@pytest.mark.parametrize("delay", [0.0, 0.3])
@pytest.mark.parametrize("moment", [LongRun.wait_heeding, LongRun.wait_child])
def test_a_signal_at_any_moment_of_the_start_leaves_nothing(
    long_run: LongRun, moment: Callable[[LongRun], None], delay: float
) -> None:
    moment(long_run)
    time.sleep(delay)
    os.killpg(long_run.process.pid, signal.SIGINT)
    assert long_run.finish() == 130
    assert "Traceback" not in long_run.output
    long_run.assert_nothing_left()


def test_workers_end_with_a_killed_main_process_and_the_next_run_sweeps(
    long_run: LongRun, model_dir: Path, images: Path, tmp_path: Path
) -> None:
    long_run.wait_running()
    long_run.process.kill()
    long_run.finish()
    stale = list(segment_folder().glob(f"int4-resnet50-{long_run.process.pid}-*"))
    assert len(stale) == 2, "the arena and the exchange"
    long_run.wait_gone()
    done = offline(
        "--model", model_dir, "--images", images, "--output-dir", tmp_path / "next",
        "--test-mode", "AccuracyOnly",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not any(segment.exists() for segment in stale)
    assert all(segment.name in done.stdout + done.stderr for segment in stale)


@pytest.mark.usefixtures("clean")
def test_an_image_whose_name_is_not_utf_8_on_a_strict_terminal(model_dir: Path, images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    (folder / "a.jpg").write_bytes((images / "0.jpg").read_bytes())
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"no image")
    done = offline(
        "--model", model_dir, "--images", folder, "--output-dir", out, "--skip-bad-images", "--test-mode",
        "AccuracyOnly", env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "udcff.jpg" in done.stdout
    assert json.loads((out / "summary.json").read_text())["bad_images"][0]["path"].endswith("\udcff.jpg")


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("options", [["--no-dashboard"], ["--json"]], ids=["lines", "json"])
def test_a_full_standard_output_ends_the_run_before_its_timed_part(
    options: list[str], model_dir: Path, images: Path, tmp_path: Path
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--model", model_dir, "--images", images, "--output-dir", tmp_path / "out", *options),
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("error: standard output cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# A run whose first answer of the timed part waits for a file.
WAITS = """
import sys, time
from pathlib import Path
from pipeline import offline
from pipeline.loadgen.binding import Completions

answer, file = Completions.complete, Path(sys.argv.pop(1))

def complete(self, ids, classes):
    while not file.exists():
        time.sleep(0.01)
    answer(self, ids, classes)

Completions.complete = complete
sys.exit(offline.main())
"""


@pytest.mark.usefixtures("clean")
def test_a_reader_that_goes_away_in_the_timed_part_costs_the_status_not_the_results(
    model_dir: Path, images: Path, tmp_path: Path
) -> None:
    out, lost = tmp_path / "out", tmp_path / "lost"
    options = command(
        "--model", model_dir, "--images", images, "--output-dir", out, "--json", "--lgts_min_duration_ms", 100,
        "--lgts_offline_expected_qps", 1000, "-b", 4,
    )[3:]  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, "-c", WAITS, lost, *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stderr is not None
    assert any(line.startswith("{") and json.loads(line)["phase"] == "running" for line in run.stdout)
    run.stdout.close()
    wait_for(lambda: os.readlink(f"/proc/{run.pid}/fd/1") == os.devnull)  # it has noticed
    lost.touch()
    said = run.stderr.read()
    assert run.wait(PATIENCE_S) == 1
    assert said.endswith("error: standard output cannot be written: Broken pipe\n")
    assert json.loads((out / "summary.json").read_text())["loadgen"]["samples_per_second"] > 0


def label_10(folder: Path) -> Path:
    (folder / "labels").write_text("0.jpg 9\n1.jpg 10\n")
    return folder / "labels"


MISTAKES: list[tuple[str, Callable[[Path], list[object]], str]] = [
    ("no such model", lambda p: ["--model", p / "none"], "none"),
    ("no such images", lambda p: ["--images", p / "none"], "none"),
    ("no such map", lambda p: ["-m", p / "none.txt"], "none.txt"),
    ("a label that is no class", lambda p: ["-m", label_10(p)], "labels:2: label 10 is no class of the model"),
    ("a GPU that is not there", lambda p: ["--gpu", "t4"], "t4"),
    ("no such autoconfig", lambda p: ["-a", p / "none"], "none"),
    ("more than a batch can be", lambda p: ["-b", 2 * 10**9], "not a whole number from 1 to 16,777,216"),
    ("no folder for the trace", lambda p: ["--trace", p / "none" / "trace.json"], "trace.json"),
    ("a file where the output folder is due", lambda p: ["--output-dir", ROOT / "README.md"], "cannot be made"),
]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(("options", "named"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_clear_message(
    options: Callable[[Path], list[object]], named: str, model_dir: Path, images: Path, tmp_path: Path
) -> None:
    done = offline("--model", model_dir, "--images", images, *options(tmp_path))
    assert done.returncode in (1, 2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@needs_shared
@pytest.mark.usefixtures("clean")
def test_the_published_model_on_real_images(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample = SHARED / "imagenet" / "sample200"
    done = offline(
        "--model", SHARED / "model-v0.5" / "model", "--images", sample, "-m", sample / "map.txt",
        "--test-mode", "AccuracyOnly", "--output-dir", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    golden = np.load(SHARED / "golden" / "sample200_logits.npz")["logits"]
    # The golden accumulators become logits by the model's own scale.
    scale = Model.load(SHARED / "model-v0.5" / "model").network.scale.out_scale
    classes = (golden.astype(np.float32) / scale).argmax(axis=1)
    assert predictions(out) == dict(enumerate(classes.tolist()))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"]["correct"] == int((classes == labels_of(sample)).sum())


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("pipeline.offline", ("--test-mode", "AccuracyOnly", "--output-dir", "OUT", "--images")),
        ("pipeline.classify.__main__", ("--out", "OUT.csv")),
    ],
)
def test_a_model_that_is_replaced_before_the_engines_have_read_it_is_one_sentence(
    module: str, options: tuple[str, ...], model_dir: Path, images: Path, tmp_path: Path
) -> None:
    """Else its answers would stand under the digest of the model before."""
    folder = tmp_path / "model"
    Model.load(model_dir).save(folder)
    replaced = f"""
from int4core.random_model import random_model
from pipeline.session.session import Session
start = Session.start
def late(session):
    random_model(blocks=(1, 1, 1, 1), width=16, classes=10, pool=2, seed=4).save({str(folder)!r})
    start(session)
Session.start = late
"""
    given = [option.replace("OUT", str(tmp_path / "out")) for option in options]
    done = run_with(replaced, module, "--model", folder, *given, images)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{folder}: is not the model that this run began with" in done.stdout + done.stderr

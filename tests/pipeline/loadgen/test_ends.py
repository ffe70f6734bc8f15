"""What no run survives is said in a sentence, leaves nothing behind, and is never a crash of the interpreter."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.pipeline.application import CPU, offline
from tests.pipeline.conftest import IMAGES, PATIENCE_S, wait_for

FAULTY = """
import os, sys, time
from pipeline import offline
from pipeline.loadgen import binding, command
from pipeline.loadgen.progress import Progress
from pipeline.session.batches import Queue

def fault(*_args, **_options):
    {fault}

{place} = fault
code = offline.main(sys.argv[1:])
print("status", code, flush=True)
sys.exit(code)
"""


def faulty(place: str, fault: str, *options: object) -> list[str]:
    return [sys.executable, "-c", FAULTY.format(place=place, fault=fault), *CPU, *map(str, options)]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("place", "fault", "said"),
    [
        ("Queue.put", "raise RuntimeError('boom')", "error: RuntimeError: boom"),
        ("Queue.put", "raise MemoryError", "error: not enough memory"),
        ("binding._unsigned", "raise MemoryError", "error: not enough memory"),
        ("binding.Completions.complete", "raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_whatever_happens_in_a_callback_the_run_ends_with_its_message_and_1(
    place: str, fault: str, said: str, model_dir: Path, images: Path, tmp_path: Path
) -> None:
    options = ("--model", model_dir, "--images", images, "--output-dir", tmp_path / "out", "--loaders", 1, "-b", 4)
    done = subprocess.run(faulty(place, fault, *options), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == ("memory" not in said), "where a fault of ours was raised is of use"


def test_the_summary_has_the_last_answer_however_late_it_is_counted(
    model_dir: Path, images: Path, tmp_path: Path
) -> None:
    late = faulty(
        "count = Queue.count_completed; Queue.count_completed", "time.sleep(0.5); count(*_args)",
        "--model", model_dir, "--images", images, "--output-dir", tmp_path, "--loaders", 1, "-b", IMAGES,
        "--test-mode", "AccuracyOnly",
    )  # fmt: skip
    done = subprocess.run(late, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["throughput"]["completed"] == IMAGES


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("mode", ["AccuracyOnly", "PerformanceOnly"])
def test_the_last_thing_that_a_run_does_is_waiting_for_loadgens_logs(
    mode: str, model_dir: Path, images: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        faulty(
            "enter = Progress.enter; Progress.enter",
            "_args[1] == 'done' and print('before:', _args[0].snapshot().phase); enter(*_args)",
            "--model", model_dir, "--images", images, "--output-dir", tmp_path / "out", "--loaders", 1, "-b", 4,
            "--test-mode", mode, "--lgts_performance_sample_count_override", 7, "--lgts_min_duration_ms", 1,
        ),
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "before: writing logs\n" in done.stdout


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("kept", [0, 600])
def test_predictions_that_a_full_disk_has_cut_off_are_no_success(
    kept: int, model_dir: Path, images: Path, tmp_path: Path
) -> None:
    log = tmp_path / "out" / "mlperf_log_accuracy.json"
    done = subprocess.run(
        faulty(
            "run = binding.LoadGenSession.run; binding.LoadGenSession.run",
            f"run(*_args); os.truncate({str(log)!r}, {kept})",
            "--model", model_dir, "--images", images, "--output-dir", log.parent, "--test-mode", "AccuracyOnly",
        ),
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert f"error: {log}: is cut off: LoadGen could not write all of it; is the disk full?" in done.stderr
    assert not (log.parent / "summary.json").exists()


@pytest.mark.usefixtures("clean")
def test_too_few_file_descriptors(model_dir: Path, images: Path, tmp_path: Path) -> None:
    for limit in (14, 20):
        done = offline(
            "--model", model_dir, "--images", images, "--output-dir", tmp_path / "out",
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )  # fmt: skip
        assert done.returncode == 1, (limit, done.stderr)
        assert "too many open files; see ulimit -n" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("clean")
def test_too_little_memory(model_dir: Path, images: Path, tmp_path: Path) -> None:
    done = offline(
        "--model", model_dir, "--images", images, "--output-dir", tmp_path / "out",
        "-b", 20_000,  # ten times what 320 MiB just held where neither Numba nor CuPy is installed
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (320 << 20, 320 << 20)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("clean")
def test_a_signal_acts_while_preparing_waits_for_what_never_comes(images: Path, tmp_path: Path) -> None:
    waits = "os.mkdir(os.environ['BEGUN']); open(os.environ['FIFO'])"  # as a network mount that is dead does
    os.mkfifo(tmp_path / "fifo")
    environment = os.environ | {"FIFO": str(tmp_path / "fifo"), "BEGUN": str(tmp_path / "begun")}
    process = subprocess.Popen(
        faulty("command.SampleLibrary.from_images", waits, "--images", images, "--output-dir", tmp_path / "out"),
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for((tmp_path / "begun").exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "stopped: interrupted by SIGINT\n"
    assert not (tmp_path / "out").exists()

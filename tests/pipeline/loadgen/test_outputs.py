"""The folders a run writes into: one run's alone, refused where they hold another, tried before anything is decoded."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.loadgen import outputs as outputs_module
from pipeline.loadgen.command import command
from pipeline.loadgen.options import parse
from pipeline.loadgen.outputs import Outputs
from pipeline.session.supervisor import Supervisor

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=timezone.utc)


def outputs(*arguments: object) -> Outputs:
    return Outputs(parse([str(a) for a in arguments]), NOW)


def leave_a_run(folder: Path, prefix: str = "mlperf_log_", predictions: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text("{}")
    for name in ("summary.txt", "detail.txt"):
        (folder / f"{prefix}{name}").write_text("of the first run")
    (folder / f"{prefix}accuracy.json").write_text(f"[\n{predictions}\n]\n")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_of_one_second_get_folders_of_their_own() -> None:
    with outputs() as first, outputs() as second, outputs() as third:
        assert [o.folder.as_posix() for o in (first, second, third)] == [
            "results/20260102T030405Z",
            "results/20260102T030405Z-2",
            "results/20260102T030405Z-3",
        ]
        assert all(o.folder.is_dir() for o in (first, second, third))


def test_a_folder_is_one_run_s_while_it_lasts() -> None:
    with outputs("--output-dir", "out"):
        with pytest.raises(PipelineError, match="out: another run is writing there; name another folder"):
            outputs("--output-dir", "out", "--overwrite")
        with pytest.raises(PipelineError, match="another run is writing there"):
            outputs("--output-dir", "new", "--lgls_outdir", "out")
    with outputs("--output-dir", "out"):
        pass


def test_a_folder_that_holds_a_run_is_refused_unless_asked() -> None:
    folder = leave_a_run(Path("out"))
    with pytest.raises(PipelineError) as caught:
        outputs("--output-dir", "out")
    assert str(caught.value) == (
        "out holds a run (mlperf_log_summary.txt, mlperf_log_detail.txt, mlperf_log_accuracy.json, summary.json): "
        "name another folder with --output-dir, or replace it with --overwrite"
    )
    with outputs("--output-dir", "out", "--overwrite") as ours:
        assert len(list(folder.iterdir())) == 4, "nothing goes before the new run is about to write"
        ours.clear()
        assert list(folder.iterdir()) == []


def test_other_files_of_the_folder_stay() -> None:
    folder = leave_a_run(Path("out"))
    mine = {"notes.txt", "mlperf_log_of_may_detail.txt", "my_summary.txt"}
    for name in mine:
        (folder / name).write_text("mine")
    with outputs("--output-dir", "out", "--overwrite") as ours:
        ours.clear()
    assert {file.name for file in folder.iterdir()} == mine
    leave_a_run(folder, prefix="")
    with outputs("--output-dir", "out", "--overwrite", "--lgls_prefix", "") as ours:
        ours.clear()
    assert {file.name for file in folder.iterdir()} == mine


def test_loadgen_s_own_folder_prefix_and_suffix_count() -> None:
    leave_a_run(Path("logs"), prefix="x_")
    with outputs("--output-dir", "out", "--lgls_outdir", "logs"):
        pass
    with pytest.raises(PipelineError, match="logs holds a run"):
        outputs("--output-dir", "out", "--lgls_outdir", "logs", "--lgls_prefix", "x_")


@pytest.mark.parametrize("mode", ["PerformanceOnly", "FindPeakPerformance"])
def test_predictions_are_never_emptied_by_a_performance_run(mode: str) -> None:
    folder = leave_a_run(Path("out"), predictions='{"seq_id": 0, "qsl_idx": 0, "data": "00000000"}')
    with pytest.raises(PipelineError, match=f"accuracy.json holds predictions, and a {mode} run would empty it"):
        outputs("--output-dir", "out", "--overwrite", "--test-mode", mode)
    assert "qsl_idx" in (folder / "mlperf_log_accuracy.json").read_text()
    with outputs("--output-dir", "out", "--overwrite", "--test-mode", "AccuracyOnly"):
        pass
    leave_a_run(folder)
    with outputs("--output-dir", "out", "--overwrite", "--test-mode", mode):
        pass


def test_folders_that_stay_empty_go_again_and_others_do_not() -> None:
    with outputs("--output-dir", "a/b/c") as ours:
        assert ours.folder.is_dir()
    assert not Path("a").exists()
    Path("a").mkdir()
    with outputs("--output-dir", "a/b") as ours:
        (ours.folder / "log").write_text("")
    assert Path("a/b/log").exists()
    with outputs(), pytest.raises(PipelineError):
        outputs("--trace", "none/trace.json")
    assert not Path("results").exists()


def test_an_empty_folder_that_another_run_has_taken_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Outputs] = []
    remove = outputs_module._remove_empty

    def after_another(folder: Path) -> None:
        if not others:
            others.append(outputs("--output-dir", "a/b"))
        remove(folder)

    monkeypatch.setattr(outputs_module, "_remove_empty", after_another)
    with outputs("--output-dir", "a/b"):
        pass
    with others[0] as other:
        (other.folder / "log").write_text("")
    assert Path("a/b/log").exists()


def test_a_folder_that_goes_before_it_is_locked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    lock = fcntl.flock

    def after_its_removal(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        Path("out").rmdir()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", after_its_removal)
    with outputs("--output-dir", "out") as ours:
        assert ours.folder.is_dir()
        with pytest.raises(PipelineError, match="another run is writing there"):
            outputs("--output-dir", "out")
    assert not Path("out").exists(), "whoever makes it removes it"


def in_the_way(path: Path) -> list[str]:
    path.write_text("")
    return ["--output-dir", str(path)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (lambda p: in_the_way(p / "file"), "file: cannot be made: File exists"),
        (lambda p: ["--output-dir", in_the_way(p / "file")[1] + "/below"], "below: cannot be made: Not a directory"),
        (lambda p: ["--lgls_outdir", in_the_way(p / "file")[1]], "file: cannot be made: File exists"),
        (lambda p: in_the_way(p / "results")[:0], "results: cannot be made: File exists"),
        (lambda p: ["--output-dir", "/proc/self/out"], "/proc/self/out: cannot be made: No such file"),
        (lambda p: ["--lgls_prefix", "x" * 250], "accuracy.json: cannot be written: File name too long"),
        (lambda p: ["--trace", str(p / "none" / "t.json")], "t.json: there is no folder"),
        (lambda p: ["--trace", str(p)], "is a folder; name a file in it"),
        (lambda p: ["--trace", "/proc/self/trace.json"], "trace.json: cannot be written: No such file"),
        (lambda p: ["--report", str(p / "none" / "r.html")], "r.html: there is no folder"),
        (lambda p: ["--report", str(p)], "is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(
    arguments: Callable[[Path], list[str]], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(here)
    with pytest.raises(PipelineError, match=says):
        outputs(*given)
    before = sorted(here.rglob("*"))
    # The same from the command, before it has looked at the images: there are none.
    assert command(["--images", "none", *given], Supervisor()) == 1
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_takes_no_file(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(PipelineError, match=f"out: cannot be written to: {os.strerror(code)}; name another folder"):
        outputs("--output-dir", "out")
    assert not Path("out").exists()


def test_a_device_as_the_trace_s_target_is_left_alone() -> None:
    with outputs("--trace", os.devnull):
        pass
    assert Path(os.devnull).is_char_device()


def test_the_console_says_that_loadgen_reads_an_audit_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--images", "none", "--gpu", "cpu"], Supervisor()) == 1
    assert "audit" not in capsys.readouterr().out
    (here / "audit.config").write_text("*.*.mode = 2\n")
    assert command(["--images", "none", "--gpu", "cpu"], Supervisor()) == 1
    said = f"{here / 'audit.config'} is there: LoadGen reads it, over every option"
    assert said in capsys.readouterr().out

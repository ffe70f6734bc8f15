"""What ends a run before its time, and what is there afterwards."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipeline.classify import command as command_module
from pipeline.classify import writing as writing_module
from pipeline.classify.command import command
from pipeline.session.abandon import abandon
from pipeline.session.session import Session
from pipeline.session.supervisor import Supervisor
from pipeline.sinks import parts
from pipeline.sinks.opening import open_sink
from tests.paths import ROOT
from tests.pipeline.application import CPU
from tests.pipeline.classify.conftest import Classify, rows_in
from tests.pipeline.conftest import IMAGES, PATIENCE_S
from tests.pipeline.slow_image import Killer, slow_jpeg


@pytest.fixture(autouse=True)
def nothing_left(clean: None) -> None:
    """After each test."""


@contextmanager
def pipe_of(path: Path, lines: str, then: Callable[[], object]) -> Iterator[None]:
    """A list that is a pipe: with these lines, still open when `then` is called, and until it returns."""
    os.mkfifo(path)

    def write() -> None:
        with path.open("w") as end:
            end.write(lines)
            end.flush()
            then()

    writer = threading.Thread(target=write)
    writer.start()
    yield
    writer.join(PATIENCE_S)
    path.unlink()


def lines_of(images: Path, count: int) -> str:
    return "".join(f"{images / f'{number}.jpg'}\n" for number in range(count))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_is_answered(
    number: signal.Signals,
    classify: Classify,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The sources do not end by themselves; how many there are is not known, and not made up."""
    out, answered, over = tmp_path / "rows.jsonl", threading.Event(), threading.Event()
    write = command_module.ClassifyCommand._write
    keys: list[str] = []

    def written(self: Any, sink: Any, answers: Any) -> None:
        write(self, sink, answers)
        keys.extend(answer.source.key for answer in answers)
        if len(keys) == 4:
            answered.set()

    def interrupt() -> None:
        answered.wait(PATIENCE_S)
        os.kill(os.getpid(), number)
        over.wait(PATIENCE_S)

    monkeypatch.setattr(command_module.ClassifyCommand, "_write", written)
    with pipe_of(tmp_path / "list", lines_of(images, 4), interrupt):
        assert classify(f"@{tmp_path / 'list'}", "--out", out) == 128 + number
        over.set()
    said = capsys.readouterr()
    assert f"stopped: interrupted by {number.name}" in said.err
    assert "4 so far" in said.err
    assert "LoadGen" not in said.out + said.err
    assert not out.exists()
    with pipe_of(tmp_path / "list", lines_of(images, IMAGES), lambda: None):
        assert classify(f"@{tmp_path / 'list'}", "--out", out) == 0
    assert "going on after 4 rows" in capsys.readouterr().out
    assert [os.path.basename(row["key"]) for row in rows_in(out)] == [f"{n}.jpg" for n in range(IMAGES)]


def test_a_signal_ends_a_dry_run(classify: Classify, images: Path, tmp_path: Path) -> None:
    over = threading.Event()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(PATIENCE_S)

    with pipe_of(tmp_path / "list", lines_of(images, 4), interrupt):
        # The thread that reads the list cannot be made to end, and the process would with it.
        exits: list[int] = []
        with pytest.MonkeyPatch.context() as patched, suppress(SystemExit):
            patched.setattr(os, "_exit", lambda status: exits.append(status))
            exits.append(classify(f"@{tmp_path / 'list'}", "--out", tmp_path / "rows.csv", "--dry-run"))
        over.set()
    assert set(exits) == {130}


def test_a_second_signal_leaves_nothing_behind(model_dir: Path, images: Path, tmp_path: Path) -> None:
    supervisor = Supervisor()
    assert (
        command([str(images), "--out", str(tmp_path / "a.csv"), "--model", str(model_dir), "--dry-run"], supervisor)
        == 0
    )
    assert supervisor.abandon is abandon


def test_a_signal_while_standard_input_is_waited_for(model_dir: Path, images: Path, tmp_path: Path) -> None:
    """A thread that waits in the interpreter's own buffer would abort it at its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.classify", "-", "--out", "rows.csv", *CPU, "--model", model_dir],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    process.stdin.write(lines_of(images, 1))
    process.stdin.flush()
    said = ""
    for line in process.stdout:
        said += line
        if "1 so far" in line:
            process.send_signal(signal.SIGINT)
            break
    said += process.stdout.read()
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 130, said
    watchdog.cancel()
    assert "Fatal" not in said
    assert "interrupted by SIGINT" in said


def test_standard_input_that_is_closed(
    classify: Classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert classify("-", "--out", tmp_path / "rows.csv") == 1
    assert "standard input is closed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(
    classify: Classify,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, real = tmp_path / "rows.parquet", parts.write_durably

    def full(path: Path, fill: Callable[[BinaryIO], object]) -> None:
        if path.name == "part-000001.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, fill)

    monkeypatch.setattr(writing_module, "ROWS_AT_A_TIME", 4)
    monkeypatch.setattr(command_module, "open_sink", partial(open_sink, rows_per_part=8))
    with monkeypatch.context() as patched:
        patched.setattr(parts, "write_durably", full)
        assert classify(images, "--out", out) == 1
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "8 rows are safe" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp"))
    assert classify(images, "--out", out) == 0
    assert sorted(os.path.basename(row["key"]) for row in rows_in(out)) == sorted(f"{n}.jpg" for n in range(IMAGES))


def test_rows_that_could_not_be_written_are_not_written_again(
    classify: Classify, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Moody(io.BytesIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            written = super().write(data)
            if self.writes == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return written

    stream = Moody()
    monkeypatch.setattr(writing_module, "ROWS_AT_A_TIME", 1)
    monkeypatch.setattr(command_module, "open_sink", partial(open_sink, stdout=stream))
    assert classify(images / "0.jpg", images / "1.jpg", "--out", "-") == 1
    assert "No space left" in capsys.readouterr().err
    assert stream.getvalue().count(b"0.jpg") == 1


def test_two_runs_into_one_output(
    classify: Classify, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.parquet"
    with open_sink(str(out), identity={}) as sink:
        sink.leave()
        assert classify(images, "--out", out) == 1
    said = capsys.readouterr().err
    assert f"process {os.getpid()}" in said
    assert "is writing it" in said


def test_an_image_that_kills_its_loader_twice_is_a_row(
    classify: Classify, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding it takes minutes, and a loader that is at it is killed: as if memory had ended."""
    hostile = tmp_path / "hostile.jpg"
    hostile.write_bytes(slow_jpeg())
    sessions: list[Session] = []
    start = Session.start

    def started(self: Session) -> None:
        sessions.append(self)
        start(self)

    monkeypatch.setattr(Session, "start", started)
    with Killer(hostile, lambda: sessions[0].loading.stage._children if sessions else ()):
        assert classify(images / "0.jpg", hostile, images / "1.jpg", "--out", tmp_path / "rows.jsonl") == 0
    first, bad, last = rows_in(tmp_path / "rows.jsonl")
    assert "SIGKILL" in bad["error"]
    assert first["error"] is last["error"] is None
    assert sessions[0].loading.stage.replaced >= 2


def test_an_engine_that_is_killed_ends_the_run_and_the_next_one_goes_on(
    classify: Classify,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, over = tmp_path / "rows.csv", threading.Event()
    real = Session.classify_in_batches

    def killing(self: Session, *args: Any, **kwargs: Any) -> Iterator[Any]:
        batches = real(self, *args, **kwargs)
        # On a busy machine, the first are none yet.
        yield next(answers for answers in batches if len(answers))
        os.kill(self.batches.infer.pids[0], signal.SIGKILL)
        yield from batches

    with (
        monkeypatch.context() as patched,
        pipe_of(tmp_path / "list", lines_of(images, 8), lambda: over.wait(PATIENCE_S)),
    ):
        patched.setattr(Session, "classify_in_batches", killing)
        assert classify(f"@{tmp_path / 'list'}", "--out", out) == 1
        over.set()
    assert "stage infer: worker 0" in (said := capsys.readouterr().err)
    assert "SIGKILL" in said
    assert classify(images, "--out", out) == 0
    assert "going on after" in capsys.readouterr().out
    assert len({row["key"] for row in rows_in(out)}) == len(rows_in(out)) == IMAGES

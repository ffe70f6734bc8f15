"""Outputs that are refused: another writer's, another identity's, and whatever else is in the way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from tests.paths import ROOT
from tests.pipeline.sinks.made import IDENTITY, made
from tests.pipeline.sinks.outputs import KEYS, abandon, names, opened, refused

pytestmark = pytest.mark.usefixtures("here")


def test_a_second_writer_is_refused(out: str) -> None:
    with opened(out) as sink:
        with pytest.raises(PipelineError, match=rf"process {os.getpid()} on .* is writing it; wait for it") as caught:
            opened(out)
        assert str(caught.value).startswith(os.path.realpath(out))
        sink.write(made(KEYS))
    with opened(out) as again:
        assert again.complete


def test_a_lock_whose_owner_cannot_be_noted_is_a_lock_all_the_same(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk; what is to be written says so, with the remedy."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        sink = opened(out)
    assert "another process is writing it" in refused(out)
    with sink:
        sink.write(made(KEYS))
    with opened(out) as again:
        assert again.complete


def test_the_lock_of_a_dead_writer_is_free(out: str) -> None:
    code = (
        "import os, sys; from pipeline.sinks.opening import open_sink; from tests.pipeline.sinks.made import *\n"
        f"sink = open_sink({out!r}, identity=IDENTITY); print('open', flush=True); sys.stdin.read()"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=path)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"open\n"
    assert f"process {process.pid} on" in refused(out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with opened(out) as sink:
        sink.write(made(KEYS))
    assert not [name for name in names() if "lock" in name]


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize("finished", [False, True])
def test_another_identity_is_refused(out: str, name: str, finished: bool) -> None:
    sink = opened(out)
    sink.write(made(KEYS))
    sink.cut()
    if finished:
        sink.finish()
    abandon(sink)
    message = refused(out, identity={**IDENTITY, name: "other"})
    assert f"has rows of another {name} ({IDENTITY[name]}, this run has other)" in message
    assert "give --out another name" in message
    assert "another more (none, this run has 1)" in refused(out, identity={**IDENTITY, "more": "1"})
    less = {key: value for key, value in IDENTITY.items() if key != name}
    assert f"another {name} ({IDENTITY[name]}, this run has none)" in refused(out, identity=less)
    with opened(out, notes={"gpu": "another"}) as again:
        assert again.complete == finished


def test_what_is_in_the_way(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        Path(name).write_text("mine")
        assert "is there already, and not as an output of this command; remove it or" in refused(name)
        assert Path(name).read_text() == "mine"
    Path("e.csv").touch()
    assert "is there already" in refused("e.csv")
    Path("d.csv").mkdir()
    assert "d.csv: is a folder; give --out another name" in refused("d.csv")
    os.mkfifo("f.csv")
    assert "f.csv: is not a regular file; give --out another name, or -" in refused("f.csv")
    Path("null.csv").symlink_to("/dev/null")
    with pytest.raises(PipelineError, match="/dev/null: is not a regular file"):
        opened("null.csv")
    assert Path("/dev/null").is_char_device()
    assert not Path("/dev/null.lock").exists()
    Path("images").mkdir()
    Path("images/cat.jpg").touch()
    Path("images/.cat.jpg.tmp").touch()
    message = refused("images")
    assert "is in it, and nothing says that it is an output of this command" in message
    assert "images: .cat.jpg.tmp is in it" in message
    Path("file").touch()
    assert "there is a file where a folder is due" in refused("file/")
    assert "there is a file where a folder is due" in refused("file/a.csv")
    Path("g.csv.parts").mkdir()
    Path("g.csv.parts/mine").touch()
    assert "mine is in it" in refused("g.csv")
    assert "its ending says the format (.parquet, .csv, .jsonl)" in refused("a.txt")
    assert "its ending says the format" in refused("none/at/all")


def test_a_part_of_an_output_is_none() -> None:
    pytest.importorskip("pyarrow")
    with opened("parts/") as sink:
        sink.write(made(KEYS))
    assert "does not say how many rows it has, as a part of an output" in refused("parts/part-000000.parquet")
    with opened("parts/") as again:
        assert again.complete


def test_a_link_is_followed() -> None:
    Path("far").mkdir()
    Path("a.csv").symlink_to("far/b.csv")
    with opened("a.csv") as sink:
        sink.write(made(KEYS))
    assert names() == ["a.csv", "far", "far/b.csv", "far/b.csv.about.json"]
    assert Path("a.csv").is_symlink()
    with opened("a.csv") as again:
        assert again.complete


def test_parts_of_someone_else_beside_a_finished_file_are_left_alone() -> None:
    with opened("a.csv") as sink:
        sink.write(made(KEYS))
    Path("a.csv.parts").mkdir()
    Path("a.csv.parts/mine").touch()
    with opened("a.csv") as again:
        assert again.complete
    assert Path("a.csv.parts/mine").exists()

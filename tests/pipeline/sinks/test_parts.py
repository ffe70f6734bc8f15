"""Outputs that are gone on with: parts, kills, locks, full disks, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.sinks import durable
from pipeline.sinks import parts as parts_module
from pipeline.sinks.base import Sink, SinkError
from pipeline.sinks.lock import OutputLock
from pipeline.sinks.opening import open_sink
from pipeline.sinks.parts import PartsSink
from pipeline.sinks.rows import Rows
from tests.paths import ROOT
from tests.pipeline.sinks.kills import kill_and_go_on
from tests.pipeline.sinks.made import CLASSES, IDENTITY, as_tuples, made

OUTS = ("a.parquet", "a.csv", "a.jsonl", "parts/")
KEYS = [f"d/{n}.jpg" for n in range(100)]


class Clock:
    """Seconds that pass when they are made to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=OUTS)
def out(request: pytest.FixtureRequest) -> str:
    if not request.param.endswith((".csv", ".jsonl")):
        pytest.importorskip("pyarrow")
    return str(request.param)


def opened(out: str, **options: Any) -> PartsSink:
    sink = open_sink(out, **{"identity": IDENTITY, "class_names": CLASSES, **options})
    assert isinstance(sink, PartsSink)
    return sink


def refused(out: str, **options: Any) -> str:
    before = [name for name in names() if not name.endswith("lock")]
    with pytest.raises(PipelineError) as caught:
        open_sink(out, **{"identity": IDENTITY, "class_names": CLASSES, **options})
    assert [name for name in names() if not name.endswith("lock")] == before
    return str(caught.value)


def abandon(sink: PartsSink) -> None:
    """What a kill does to a sink: nothing is written any more, and the lock is free."""
    os.close(sink._lock._descriptor)
    sink._lock._descriptor = -1


def rows_of(sink: Sink) -> list[tuple[object, ...]]:
    return [row for rows in sink.earlier() for row in as_tuples(rows)]


def names() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def test_a_run_from_end_to_end(out: str) -> None:
    with opened(out) as sink:
        assert not sink.complete
        assert len(sink.done) == 0
        for start in range(0, 100, 8):
            sink.write(made(KEYS[start : start + 8]))
        sink.note({"gpu": "none"})
    expected = made(KEYS)
    assert (sink.rows, sink.errors) == (100, len(expected.errors))
    left = {
        "a.parquet": ["a.parquet"],
        "a.csv": ["a.csv", "a.csv.about.json"],
        "a.jsonl": ["a.jsonl", "a.jsonl.about.json"],
        "parts/": ["parts", "parts/_SUCCESS", "parts/_about.json", "parts/part-000000.parquet"],
    }[out]
    assert names() == left
    before = {name: os.stat(name).st_mtime_ns for name in names()[-3:] if os.path.isfile(name)}
    with opened(out) as again:
        assert again.complete
        assert (again.rows, again.errors) == (sink.rows, sink.errors)
        assert rows_of(again) == as_tuples(expected)
    assert names() == left
    assert before == {name: os.stat(name).st_mtime_ns for name in before}


def test_nothing_to_write_is_an_output(out: str) -> None:
    with opened(out):
        pass
    with opened(out) as again:
        assert again.complete
        assert again.rows == 0
        assert rows_of(again) == []


def test_parts_by_rows_and_by_time(out: str) -> None:
    clock = Clock()
    sink = opened(out, rows_per_part=30, seconds_per_part=30.0, clock=clock)
    count = lambda: len(sink._parts())  # noqa: E731
    sink.write(made(KEYS[:29]))
    assert count() == 0
    sink.write(made(KEYS[29:32]))
    assert count() == 1
    sink.write(made(KEYS[32:33]))
    clock.now += 29
    sink.write(made(KEYS[33:34]))
    assert count() == 1
    clock.now += 1
    sink.tick()
    assert count() == 2
    clock.now += 1000
    sink.tick()
    assert count() == 2
    sink.write(made(KEYS[34:35]))
    clock.now += 30
    sink.write(made(KEYS[35:36]))
    assert count() == 3
    sink.write(made(KEYS[36:40]))
    abandon(sink)

    with opened(out) as again:
        assert rows_of(again) == as_tuples(made(KEYS[:36]))
        assert [key in again.done for key in KEYS] == [True] * 36 + [False] * 64
        again.write(made(KEYS[36:]))
    with opened(out) as finished:
        assert rows_of(finished) == as_tuples(made(KEYS))


def interrupted(out: str, keys: list[str]) -> None:
    with suppress(KeyboardInterrupt), opened(out) as sink:
        sink.write(made(keys))
        raise KeyboardInterrupt


def test_an_exception_keeps_what_came_in(out: str) -> None:
    interrupted(out, KEYS[:5])
    with opened(out) as again:
        assert not again.complete
        assert again.rows == len(again.done) == 5


def test_an_output_that_is_left_is_not_finished(out: str) -> None:
    with opened(out) as sink:
        sink.leave()
    assert names() == (["parts"] if out == "parts/" else [])
    interrupted(out, [])
    assert names() == (["parts"] if out == "parts/" else [])
    with opened(out) as sink:
        sink.write(made(KEYS[:5]))
        sink.leave()
    with opened(out) as again:
        assert not again.complete
        assert again.rows == 5


def test_keys_of_any_bytes_are_done(out: str) -> None:
    odd = ["\udcff.jpg", "\\xff.jpg", "new\nline", 'a,"b"', "é", ""]
    interrupted(out, odd)
    with opened(out) as again:
        assert all(key in again.done for key in odd)
        assert len(again.done) == len(odd)
        assert "ÿ.jpg" not in again.done


@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments(out: str, seed: int) -> None:
    kill_and_go_on(out, kills=2, seed=seed)
    assert not any((ROOT / name).exists() for name in OUTS)


class Death(BaseException):
    """A kill at a step that random moments would rarely meet."""


class NoCleanUp:
    """In place of what a dead process does not do."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> None:
        raise Death

    def __exit__(self, *_: object) -> None: ...


STEPS = ((os, "open"), (os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "rmdir"), (Path, "mkdir"))


@pytest.mark.parametrize(("owner", "call"), STEPS, ids=[name for _, name in STEPS])
def test_killed_at_every_step(out: str, owner: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies at the first, second, ... of these calls until a run gets through, each time with nothing cleaned up."""
    real = getattr(owner, call)
    for at in range(100):
        left, locks = [at], []

        class DyingLock(OutputLock):
            def __init__(self, *args: Any, locks: list[OutputLock] = locks) -> None:
                self._descriptor = -1
                locks.append(self)
                super().__init__(*args)

            def release(self) -> None: ...

        def dying(*args: Any, left: list[int] = left, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise Death
            left[0] -= 1
            return real(*args, **kwargs)

        died = False
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, dying)
            patch.setattr(durable, "suppress", NoCleanUp)
            patch.setattr(parts_module, "OutputLock", DyingLock)
            try:
                sink = opened(f"{at}-{out}", rows_per_part=40)
                sink.write(made(KEYS[:50]))
                sink.write(made(KEYS[50:]))
                sink.finish()
            except Death:
                died = True
        for lock in locks:
            if lock._descriptor >= 0:
                os.close(lock._descriptor)
        with opened(f"{at}-{out}") as again:
            if not again.complete:
                assert again.rows == len(again.done)
                again.write(made([key for key in KEYS if key not in again.done]))
        with opened(f"{at}-{out}") as finished:
            assert finished.complete
            assert rows_of(finished) == as_tuples(made(KEYS))
        assert not [name for name in names() if name.endswith((".tmp", "lock", ".parts"))]
        if not died:
            break
    assert at < 99
    # A folder has no final file, after which something is removed.
    assert at > 0 or (call == "rmdir" and out == "parts/")


def test_a_second_writer_is_refused(out: str) -> None:
    with opened(out) as sink:
        with pytest.raises(PipelineError, match=rf"process {os.getpid()} on .* is writing it; wait for it") as caught:
            opened(out)
        assert str(caught.value).startswith(os.path.realpath(out))
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


def test_a_damaged_part(out: str) -> None:
    sink = opened(out)
    sink.write(made(KEYS))
    sink.cut()
    part = sink._parts()[0]
    abandon(sink)
    part.write_bytes(part.read_bytes()[:-20] + b'\n"{')
    message = refused(out)
    assert f"{part}: cannot be read (" in message
    assert "remove it, and its rows are made anew" in message
    part.unlink()
    with opened(out) as again:
        assert len(again.done) == 0
        again.write(made(KEYS))


def test_a_damaged_about(out: str) -> None:
    sink = opened(out)
    abandon(sink)
    (sink._parts_folder / "_about.json").write_text("{}")
    assert "_about.json: damaged" in refused(out)


class TestFullDisk:
    """Writes that the system refuses, in the middle of a part and of the final file."""

    @staticmethod
    @contextlib.contextmanager
    def _files_of_4_kib() -> Iterator[None]:
        """Around the writes alone: the limit is the process's, and what a test runner prints may go to a file too."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def test_a_part_larger_than_the_system_allows(self, out: str) -> None:
        many = [f"{n}{'x' * 50}{hash((n, 1))}" for n in range(3000)]
        sink = opened(out, rows_per_part=10)
        sink.write(made(KEYS[:10]))
        with self._files_of_4_kib(), pytest.raises(PipelineError) as caught, sink:
            sink.write(made(many))
        assert "larger than a file may be here" in str(caught.value)
        assert "the same command goes on; 10 rows are safe" in str(caught.value)
        assert sink.rows == 10
        assert not [name for name in names() if name.endswith((".tmp", ".lock"))]
        with pytest.raises(PipelineError, match="nothing can be written any more"):
            sink.write(made(KEYS[20:30]))
        with pytest.raises(PipelineError, match="nothing can be written any more"):
            sink.finish()
        with opened(out) as again:
            assert again.rows == 10

    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (errno.ENOSPC, "the disk is full (No space left on device); make room, and the same command goes on; "),
            (errno.EDQUOT, "the disk is full"),
            (errno.EACCES, "may not be written (Permission denied); change that or give --out another place"),
            (errno.EIO, "cannot be written (Input/output error); fix that, and the same command goes on"),
        ],
    )
    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_at_the_end(self, out: str, number: int, words: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(os, call)

        def full(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        sink = opened(out)
        sink.write(made(KEYS))
        sink.cut()
        monkeypatch.setattr(os, call, full)
        with pytest.raises(PipelineError) as caught, sink:
            pass
        assert str(caught.value).startswith(f"{os.path.realpath(out)}: ")
        assert words in str(caught.value)
        monkeypatch.setattr(os, call, real)
        assert not [name for name in names() if name.endswith((".tmp", ".lock"))]
        with opened(out) as again:
            assert not again.complete
            assert again.rows == 100
        with opened(out) as finished:
            assert rows_of(finished) == as_tuples(made(KEYS))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_may_not_be_written(self) -> None:
        Path("d").mkdir(mode=0o555)
        assert "the lock file cannot be made (Permission denied); give --out another place" in refused("d/a.csv")


def test_about_is_readable(out: str) -> None:
    with opened(out, notes={"version": "1"}) as sink:
        sink.write(made(KEYS))
        sink.note({"gpu": "H100"})
    notes = {"version": "1", "gpu": "H100", "rows": "100", "errors": str(sink.errors)}
    if out == "a.parquet":
        from pipeline.sinks.parquet import ParquetFormat

        about = ParquetFormat(None).about(Path(out))
        assert about is not None
        assert (about.identity, about.notes) == (IDENTITY, notes)
        return
    about_path = Path("parts/_about.json") if out == "parts/" else Path(f"{out}.about.json")
    found = json.loads(about_path.read_text())
    assert (found["identity"], found["notes"]) == (IDENTITY, notes)


def test_a_folder_is_a_dataset(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    with opened("parts/", rows_per_part=10) as sink:
        for key in KEYS:
            sink.write(made([key]))
        assert dataset.dataset("parts").count_rows() == 100
    assert dataset.dataset("parts").to_table(["key"]).column("key").to_pylist() == KEYS


def test_parts_that_other_processes_write_are_the_outputs(out: str) -> None:
    """In the order of their numbers, whoever comes first; a task that is tried again writes the same part."""
    with opened(out, read_keys=False) as sink:
        writer = pickle.loads(pickle.dumps(sink.writer()))
        for number in (7, 0, 7):
            writer.write(number, made(KEYS[number : number + 5]))
        sink.leave()
    with opened(out) as sink:
        assert (len(sink.done), sink.rows) == (10, 10)
        sink.write(made(KEYS[50:51]))  # a run of this process alone goes on after them
        sink.leave()
    with opened(out, read_keys=False) as sink:
        assert (len(sink.earlier_parts), len(sink.done), sink.rows) == (3, 0, 0)
        part = sink.writer().write(0, made(KEYS[60:62]))  # and one of other processes after that
        assert len(list(sink.writer().folder.glob("part-*"))) == 4
        wanted = made([*KEYS[:5], *KEYS[7:12], KEYS[50], *KEYS[60:62]])
        sink.count(len(wanted), len(wanted.errors), [part])
    with opened(out) as sink:
        assert (sink.complete, sink.rows, sink.errors) == (True, len(wanted), len(wanted.errors))
        assert as_tuples(Rows.concatenate(list(sink.earlier()))) == as_tuples(wanted)


@pytest.mark.parametrize("read_keys", [True, False])
def test_tasks_that_outlive_their_run_write_no_more(out: str, read_keys: bool) -> None:
    """Not once another run goes on, whose rows theirs are too; and what slips in between is not kept."""
    with opened(out, read_keys=False) as first:
        late = first.writer()
        late.write(0, made(KEYS[:5]))
        first.leave()
    with opened(out, read_keys=read_keys) as second:
        with pytest.raises(SinkError, match="another run goes on with this output"):
            late.write(1, made(KEYS[5:10]))
        # As if it had been at its renaming.
        part = second._parts()[0]
        part.with_stem(f"part-{late.first + 1}").write_bytes(part.read_bytes())
        if read_keys:
            second.write(made(KEYS[5:10]))
        else:
            files = [second.writer().write(0, made(KEYS[5:10]))]
            second.count(5, 0)
            second.count(5, 0, files)
    with pytest.raises(SinkError):
        late.write(1, made(KEYS[5:10]))
    with opened(out) as sink:
        assert sink.complete
        assert as_tuples(Rows.concatenate(list(sink.earlier()))) == as_tuples(made(KEYS[:10]))


def test_tasks_write_nothing_to_a_run_that_began_where_theirs_had_left_nothing(out: str) -> None:
    with opened(out, read_keys=False) as first:
        late = first.writer()
        first.leave()
    with opened(out, read_keys=False) as second:
        with pytest.raises(SinkError, match="another run goes on with this output"):
            late.write(0, made(KEYS[:5]))
        second.leave()


def test_a_part_is_not_written_where_the_outputs_folder_is_another(tmp_path: Path) -> None:
    with opened("a.jsonl", read_keys=False) as sink:
        writer = replace(sink.writer(), folder=tmp_path)
        with pytest.raises(SinkError, match="give --out a name in a folder that all nodes share"):
            writer.write(0, made(KEYS[:1]))
        assert not list(tmp_path.glob("part*"))
        sink.leave()

"""Outputs interrupted, killed, damaged or out of room: what was safe is kept, and the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.sinks import durable
from pipeline.sinks import parts as parts_module
from pipeline.sinks.base import SinkError
from pipeline.sinks.lock import OutputLock
from tests.paths import ROOT
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.sinks.kills import kill_and_go_on
from tests.pipeline.sinks.made import as_tuples, made
from tests.pipeline.sinks.outputs import KEYS, OUTS, abandon, names, opened, refused, rows_of

pytestmark = pytest.mark.usefixtures("here")


def interrupted(out: str, keys: list[str]) -> None:
    with suppress(KeyboardInterrupt), opened(out) as sink:
        sink.write(made(keys))
        raise KeyboardInterrupt


def test_an_exception_keeps_what_came_in(out: str) -> None:
    interrupted(out, KEYS[:5])
    with opened(out) as again:
        assert not again.complete
        assert again.rows == len(again.done) == 5


def test_an_output_that_is_left_while_it_is_written_is_locked_until_that_is_done(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, disk = threading.Event(), threading.Event()
    write = parts_module.write_durably

    def stalled(path: Path, fill: Any, temporary: Path | None = None) -> None:
        if path.name.startswith("part-"):
            writing.set()
            disk.wait(PATIENCE_S)
        write(path, fill, temporary)

    monkeypatch.setattr(parts_module, "write_durably", stalled)
    sink = opened(out, rows_per_part=5)
    with suppress(KeyboardInterrupt), sink:
        writer = threading.Thread(target=sink.write, args=(made(KEYS[:5]),))
        writer.start()
        assert writing.wait(PATIENCE_S)
        raise KeyboardInterrupt
    assert f"process {os.getpid()} on" in refused(out)
    disk.set()
    writer.join(PATIENCE_S)
    with pytest.raises(SinkError, match="this run has left it"):
        sink.write(made(KEYS[5:]))
    with opened(out) as again:
        assert rows_of(again) == as_tuples(made(KEYS[:5]))


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

"""Files that appear whole or not at all, and what is never replaced."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from int4core.atomic import expect_writable, write_atomically


@pytest.fixture
def umask() -> Iterator[None]:
    """One that takes from others what they usually may."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file", b"text")
    assert (tmp_path / "new" / "file").read_bytes() == b"text"
    assert mode(tmp_path / "new" / "file") == 0o640
    write_atomically(tmp_path / "mine", b"text", 0o600)
    assert mode(tmp_path / "mine") == 0o600


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("kept", [0o600, 0o666])
def test_a_file_that_is_there_keeps_its_mode(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(kept)
    write_atomically(file, b"new")
    assert (file.read_bytes(), mode(file)) == (b"new", kept)


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_bytes(b"old")
    for name in ("old", "not yet there"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(f"folder/{name}")
        write_atomically(link, b"new")
        assert link.is_symlink()
        assert (tmp_path / "folder" / name).read_bytes() == b"new"
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["not yet there", "old"]


def test_a_device_is_written_into(tmp_path: Path) -> None:
    """A terminal, which needs no rights to make; the link stands for what `--trace /dev/stdout` names."""
    ours, theirs = os.openpty()
    try:
        device = Path(os.ttyname(theirs))
        before = device.stat()
        (tmp_path / "link").symlink_to(device)
        for path in (device, tmp_path / "link"):
            write_atomically(path, b"text")
            assert os.read(ours, 100) == b"text"
        assert device.stat().st_ino == before.st_ino
        assert stat.S_ISCHR(device.stat().st_mode)
    finally:
        os.close(ours)
        os.close(theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    writer = os.open(pipe, os.O_WRONLY)  # without one, the reader might see the end before the first byte
    data = bytes(200_000)  # more than a pipe holds: the reader is waited for

    def read() -> None:
        with open(reader, "rb") as file:
            found.append(file.read())

    thread = threading.Thread(target=read)
    write = threading.Thread(target=write_atomically, args=(pipe, data))
    write.start()
    thread.start()
    write.join(120)
    os.close(writer)
    thread.join(120)
    assert found == [data]
    assert pipe.is_fifo()


def test_a_pipe_that_nobody_reads_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        write_atomically(tmp_path / "pipe", b"text")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"text")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_whether_a_file_could_be_written_is_known_before_there_is_one(tmp_path: Path) -> None:
    expect_writable(tmp_path / "made" / "on the way" / "file")
    assert list((tmp_path / "made" / "on the way").iterdir()) == []
    (tmp_path / "file").write_bytes(b"kept")
    expect_writable(tmp_path / "file")
    expect_writable(Path(os.devnull))
    for path, error in ((tmp_path / "made", IsADirectoryError), (tmp_path / "file" / "below", FileExistsError)):
        with pytest.raises(error):
            expect_writable(path)
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]

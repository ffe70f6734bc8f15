"""Files that a user names: only regular ones are opened, and no more of them is read than is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from int4core.regular import NotRegularError, TooLargeError, open_regular, read_regular


@pytest.fixture(params=["pipe", "folder", "device", "link to a device"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "special"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    return path


def test_what_is_no_regular_file_is_refused_at_once(special: Path) -> None:
    with pytest.raises(NotRegularError) as caught:
        read_regular(special, 100)
    assert caught.value.strerror == "is not a regular file"


def test_a_file_is_read_whole_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_regular(tmp_path / name, 10) == b"0123456789"
        with pytest.raises(TooLargeError) as caught:
            read_regular(tmp_path / name, 9)
        assert caught.value.strerror == "is larger than 9 bytes"


def test_a_file_whose_size_is_not_told_is_read() -> None:
    assert os.stat("/proc/self/status").st_size == 0
    assert read_regular("/proc/self/status", 1 << 16).startswith(b"Name:")


def test_a_file_that_becomes_a_pipe_after_the_look_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    as_it_was = os.stat(tmp_path / "file")
    (tmp_path / "file").unlink()
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda *_: as_it_was)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotRegularError), open_regular(tmp_path / "file"):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic link"), open_regular(tmp_path / "link", os.O_NOFOLLOW):
        pass


def test_reading_takes_no_memory_for_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_regular(tmp_path / "file", 1 << 60) == b"0123456789"

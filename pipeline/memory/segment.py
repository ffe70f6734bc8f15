"""Shared-memory segments: named files in /dev/shm that one process owns and others map.

A segment's name carries the pid and start time of the process that made it, so that a later run can tell a dead
run's segment from a living one's and sweep it. Space is reserved when the segment is made: a full /dev/shm is an
error at the start, never a bus error later.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from pipeline.errors import PipelineError

_PREFIX = "int4-resnet50"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-(\d+)-[0-9a-f]+")


def segment_folder() -> Path:
    """/dev/shm where there is one (Linux), else the folder for temporary files."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() else Path(tempfile.gettempdir())


class Segment:
    """A mapped segment. The process that creates it owns its life; others attach to it.

    Attributes:
        path: the file.
        bytes: the whole of it, uint8 (size,), writable.
    """

    def __init__(self, path: str, fd: int, size: int, *, owner: bool) -> None:
        self.path = path
        self._owner_pid = os.getpid() if owner else None
        try:
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    @classmethod
    def create(cls, size: int, what: str, mend: str, folder: Path | None = None) -> Segment:
        """Make a segment of `size` bytes, zeroed, for `what` (`1,024 samples`).

        Raises PipelineError, ending in `mend`, when the folder has no room for it.
        """
        folder = segment_folder() if folder is None else folder
        started = int(psutil.Process().create_time() * 1000)
        path = folder / f"{_PREFIX}-{os.getpid()}-{started}-{secrets.token_hex(4)}"
        _check_room(folder, size, what, mend)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:
                os.ftruncate(fd, size)
        except OSError as error:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise PipelineError(f"{path}: cannot reserve {mib(size)} for {what}: {error.strerror}; {mend}") from error
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return cls(str(path), fd, size, owner=True)

    @classmethod
    def attach(cls, path: str, size: int) -> Segment:
        """Map a segment that another process made. Raises PipelineError when it is gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise PipelineError(f"{path}: this segment is gone, its run has ended") from None
        return cls(path, fd, size, owner=False)

    def close(self) -> None:
        """Unmap; the owner also removes the file. Safe to call twice."""
        if self._owner_pid == os.getpid():
            Path(self.path).unlink(missing_ok=True)
        self.bytes = np.empty(0, dtype=np.uint8)
        try:
            self._map.close()
        except BufferError:
            # A view of it is still alive somewhere; the mapping goes with the process.
            return


def sweep_stale(folder: Path | None = None) -> list[Path]:
    """Remove segments whose process is dead, and return what was removed."""
    folder = segment_folder() if folder is None else folder
    removed = []
    for path in folder.glob(f"{_PREFIX}-*"):
        match = _NAME.fullmatch(path.name)
        if match is None or _is_running(int(match[1]), int(match[2])):
            continue
        try:
            path.unlink()
        except (FileNotFoundError, PermissionError):
            continue  # swept by another run, or another user's
        removed.append(path)
    return removed


def _is_running(pid: int, started_ms: int) -> bool:
    """Whether `pid` still is the process that started then; a pid that was reused is not.

    The tolerance is for clock adjustments: the kernel's start time is relative to boot.
    """
    try:
        return bool(abs(psutil.Process(pid).create_time() * 1000 - started_ms) < 5000)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _check_room(folder: Path, size: int, what: str, mend: str) -> None:
    free = os.statvfs(folder)
    room = free.f_bavail * free.f_frsize
    if folder == Path("/dev/shm"):
        room = min(room, psutil.virtual_memory().available)
    if size > room:
        raise PipelineError(
            f"{folder}: {what} need {mib(size)} of shared memory and {mib(room)} are free; {mend}, or enlarge it "
            f"(mount -o remount,size=SIZE {folder}; docker run --shm-size SIZE)"
        )


def mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"

"""Shared-memory segments: named files in /dev/shm, or in INT4CORE_SHM_DIR, that one process owns and others map.

The owner holds a lock on its segment for as long as it lives, so that a later run knows a dead run's segment from a
living one's and sweeps it, even where it cannot see the owner's process (in another container). Space is reserved when
the segment is made: a full /dev/shm is an error at the start, never a bus error later.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from pipeline.errors import PipelineError

_SHM = Path("/dev/shm")
_PREFIX = "int4-resnet50"
_NAME = re.compile(rf"{_PREFIX}-\d+-[0-9a-f]+")

# From <linux/mman.h>, since Linux 5.14; Python has no name for it.
_MADV_POPULATE_READ = 22

# Names to try before it is given up: each could be swept in the moment before it is locked.
_TRIES = 100


def segment_folder() -> Path:
    """INT4CORE_SHM_DIR, else /dev/shm where there is one (Linux), else the folder for temporary files.

    Raises PipelineError for an INT4CORE_SHM_DIR that is no folder.
    """
    if given := os.environ.get("INT4CORE_SHM_DIR"):
        if not Path(given).is_dir():
            raise PipelineError(f"INT4CORE_SHM_DIR: {given} is no folder; it takes one in memory, a tmpfs")
        return Path(given)
    return _SHM if _SHM.is_dir() else Path(tempfile.gettempdir())


class Segment:
    """A mapped segment. The process that creates it owns its life; others attach to it.

    Attributes:
        path: the file.
        bytes: the whole of it, uint8 (size,), writable.
    """

    def __init__(self, path: str, fd: int, size: int, *, owner: bool) -> None:
        self.path = path
        self._owner_pid = os.getpid() if owner else None
        self._fd = fd  # the owner's lock is on it
        try:
            self._map = mmap.mmap(fd, size)
        except OSError as error:
            raise PipelineError(f"{path}: {mib(size)} cannot be mapped: {error.strerror}; see ulimit -v") from error
        finally:
            if not owner:
                os.close(fd)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    @classmethod
    def create(cls, size: int, what: str, remedy: str, folder: Path | None = None) -> Segment:
        """Make a segment of `size` bytes, zeroed, for `what` (`1,024 samples`).

        Raises PipelineError, ending in `remedy`, when the folder has no room for it.
        """
        folder = segment_folder() if folder is None else folder
        _check_room(folder, size, what, remedy)
        path, fd = _create_locked(folder)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:
                os.ftruncate(fd, size)
            return cls(str(path), fd, size, owner=True)
        except BaseException as error:
            path.unlink(missing_ok=True)
            os.close(fd)
            if isinstance(error, OSError):
                why = f"cannot reserve {mib(size)} for {what}: {error.strerror}; {remedy}"
                raise PipelineError(f"{path}: {why}") from error
            raise

    @classmethod
    def attach(cls, path: str, size: int) -> Segment:
        """Map a segment that another process made. Raises PipelineError when it is gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise PipelineError(f"{path}: this segment is gone, its run has ended") from None
        except OSError as error:
            raise PipelineError(f"{path}: this segment cannot be opened: {error.strerror}") from error
        return cls(path, fd, size, owner=False)

    def map_pages(self, begin: int, end: int) -> bool:
        """Have this process map all pages of these bytes at once, if the system can; whether it could.

        A page that is touched first takes 0.6 to 1 us, for each process anew. Side by side they take 0.08.
        """
        begin -= begin % mmap.PAGESIZE
        try:
            # Sixteen are mapped for one that is read, and one for one that is written; both may be written then.
            self._map.madvise(_MADV_POPULATE_READ, begin, end - begin)
        except OSError:
            return False  # an older system, or too little memory: whoever touches them will see
        return True

    def close(self) -> None:
        """Unmap; the owner also removes the file. Safe to call twice."""
        if self._owner_pid == os.getpid():
            Path(self.path).unlink(missing_ok=True)
            os.close(self._fd)
        self._owner_pid = None
        self.bytes = np.empty(0, dtype=np.uint8)
        try:
            self._map.close()
        except BufferError:
            # A view of it is still alive somewhere; the mapping goes with the process.
            return


def sweep_stale(folder: Path | None = None) -> list[Path]:
    """Remove this user's segments whose owner is dead, and return what was removed.

    What else has such a name, whoever made it, is passed over.
    """
    folder = segment_folder() if folder is None else folder
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [path for name in names if _NAME.fullmatch(name) and _sweep(path := folder / name)]


def remove_own(folder: Path | None = None) -> None:
    """Remove the segments of this process, for one that has no time to close them."""
    folder = segment_folder() if folder is None else folder
    for path in folder.glob(f"{_PREFIX}-{os.getpid()}-*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _create_locked(folder: Path) -> tuple[Path, int]:
    """An empty segment and its descriptor, which holds the lock. Raises PipelineError."""
    for _ in range(_TRIES):
        path = folder / f"{_PREFIX}-{os.getpid()}-{secrets.token_hex(4)}"
        fd = -1
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return path, fd
        except (FileExistsError, BlockingIOError):
            pass  # the name of another, or being swept this moment
        except OSError as error:
            if fd >= 0:
                path.unlink(missing_ok=True)
                os.close(fd)
            raise PipelineError(f"{path}: no shared memory can be made here: {error.strerror}") from error
        if fd >= 0:
            path.unlink(missing_ok=True)
            os.close(fd)
    raise PipelineError(f"{folder}: no shared memory can be made here: every new segment is taken away at once")


def _sweep(path: Path) -> bool:
    """Remove a segment if it is one of ours and nobody holds its lock; whether it was removed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except OSError:
        return False  # alive, or swept by another run
    finally:
        os.close(fd)


def _check_room(folder: Path, size: int, what: str, remedy: str) -> None:
    try:
        free = os.statvfs(folder)
    except OSError as error:
        raise PipelineError(f"{folder}: no shared memory can be made here: {error.strerror}") from error
    room = free.f_bavail * free.f_frsize
    if folder.is_relative_to(_SHM):
        room = min(room, psutil.virtual_memory().available)
    if size > room:
        raise PipelineError(
            f"{folder}: {what} need {mib(size)} of shared memory and {mib(room)} are free; {remedy}, or enlarge it "
            f"(mount -o remount,size=SIZE {folder}; docker run --shm-size SIZE)"
        )


def mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"

"""One writer at a time: a lock file that is free again when its owner is dead."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from pipeline.sinks.base import SinkError


class OutputLock:
    """Holds the lock at `path` for the output `out` from its making until `release`.

    The lock is the system's (flock), not the file's being there: it goes with the process, however that ends.
    Raises SinkError, naming the owner, when another has it.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self._path = path
        while True:
            self._descriptor = _open(path)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.read(self._descriptor, 1000).decode(errors="replace").strip() or "another process"
                os.close(self._descriptor)
                raise SinkError(f"{out}: {owner} is writing it; wait for it, or give --out another name") from error
            except OSError as error:
                os.close(self._descriptor)
                raise SinkError(
                    f"{path}: cannot be locked ({error.strerror}); give --out a name on a file system with locks"
                ) from error
            if self._is_at_its_place():
                break
            os.close(self._descriptor)  # its owner was about to remove it
        with suppress(OSError):  # a full disk: it is a lock without that, too
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_at_its_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise SinkError(f"{path}: the lock file cannot be made ({error.strerror}); give --out another place") from error

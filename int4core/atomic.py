"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path`, making its folder; readers see the old file or the new one, never a part.

    Links are followed, and stay. A file that is there keeps its mode; a new one has `mode` less the process's umask.
    What is there and is no regular file (a device, a pipe) is written into, as a shell would: it is never replaced.

    Raises OSError (for a pipe that nobody reads, too), and then leaves what was there.
    """
    kept: int | None = None
    with contextlib.suppress(FileNotFoundError):
        there = os.stat(path)
        if not stat.S_ISREG(there.st_mode):
            _write_into(path, data)
            return
        kept = stat.S_IMODE(there.st_mode)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if kept is not None:
                os.fchmod(file.fileno(), kept)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _write_into(path: Path, data: bytes) -> None:
    # Without O_NONBLOCK a pipe's opening would wait for a reader; a reader that is there is waited for.
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    os.set_blocking(fd, True)
    with open(fd, "wb") as file:
        file.write(data)


def expect_writable(path: Path) -> None:
    """Make the folder of `path`, and raise the OSError that `write_atomically` would: before work that is lost then."""
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{secrets.token_hex(8)}.part")
    try:
        part.touch()
    finally:
        part.unlink(missing_ok=True)

"""The folder of compiled kernels. What lies there runs on the GPU, so only its user may have put it there.

A file is called KEY-DIGEST.cubin: the key is everything that affects the binary, the digest is of the binary itself,
so that a file that was cut short, or put there by hand, is not loaded. Files are written to another name and renamed:
any number of processes may share the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from int4core.atomic import write_atomically
from int4core.errors import EngineError, printable
from int4core.home import xdg_folder
from int4core.regular import read_regular

CACHE_DIR = "INT4CORE_CACHE_DIR"
"""Environment variable: the folder, instead of `int4core` below XDG_CACHE_HOME or ~/.cache."""

HEX_DIGITS = 32
"""Of a key, and of a digest in a file's name."""

LOCK = "lock"
"""File of the folder that whoever compiles holds."""

MAX_BYTES = 64 << 20
"""Most bytes of a binary; the network's have tens of kilobytes."""

_REMEDY = f"name a folder with {CACHE_DIR}"
_NAME = re.compile(rf"([0-9a-f]{{{HEX_DIGITS}}})-([0-9a-f]{{{HEX_DIGITS}}})\.cubin")


def cache_folder() -> Path:
    named = os.environ.get(CACHE_DIR)
    if named:
        return Path(named)
    return xdg_folder("XDG_CACHE_HOME", ".cache") / "int4core"


def why_not_trusted(path: Path) -> str:
    """Why somebody else could have put there what is in `path`, with the remedy; `` when nobody could.

    Raises OSError when it cannot be looked at.
    """
    info = os.stat(path)
    if info.st_uid != os.geteuid():
        return f"belongs to user {info.st_uid}, not to this one: name a folder of your own with {CACHE_DIR}"
    if info.st_mode & 0o022:
        mode = f"{info.st_mode & 0o777:03o}"
        return f"can be written by other users (mode {mode}): remove it, or name another folder with {CACHE_DIR}"
    return ""


@dataclass(frozen=True)
class Found:
    """Binaries by key, and how many files had another content than their names say, and were removed."""

    files: dict[str, Path]
    damaged: int


class KernelCache:
    """The cache in `folder`, which is made, for its user alone, when the first binary comes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, keys: Collection[str]) -> Found:
        """What is there of `keys`.

        Raises EngineError: the folder or a file is another user's, could be changed by one, or cannot be read.
        """
        files, damaged = {}, 0
        try:
            if not self.folder.exists():
                return Found({}, 0)
            self._expect_trusted(self.folder)
            for name in sorted(os.listdir(self.folder)):
                match = _NAME.fullmatch(name)
                if match is None or match[1] not in keys:
                    continue
                file = self.folder / name
                with contextlib.suppress(FileNotFoundError):  # another process has removed it as damaged
                    self._expect_trusted(file)
                    if _digest(read_regular(file, MAX_BYTES)) == match[2]:
                        files[match[1]] = file
                    else:
                        damaged += 1
                        file.unlink()
        except OSError as error:
            raise EngineError(f"{printable(str(self.folder))}: cannot be read: {error.strerror}; {_REMEDY}") from error
        return Found(files, damaged)

    def keep(self, key: str, binary: bytes) -> Path:
        """Write a binary and give its file.

        Raises EngineError: the folder is another user's, could be changed by one, or cannot be written.
        """
        file = self.folder / f"{key}-{_digest(binary)}.cubin"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._expect_trusted(self.folder)
            write_atomically(file, binary, 0o600)
        except OSError as error:
            raise EngineError(f"{printable(str(file))}: cannot be written: {error.strerror}; {_REMEDY}") from error
        return file

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process is: so that each kernel is compiled by one of them, and the others find it.

        On a file system without locks, others may be: both then write whole files of the same names.

        Raises EngineError: the folder is another user's, could be changed by one, or cannot be written.
        """
        file = self.folder / LOCK
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._expect_trusted(self.folder)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EngineError(f"{printable(str(file))}: cannot be written: {error.strerror}; {_REMEDY}") from error
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    def _expect_trusted(path: Path) -> None:
        if why := why_not_trusted(path):
            raise EngineError(f"{printable(str(path))}: {why}; kernels are not loaded from it")


def _digest(binary: bytes) -> str:
    return hashlib.sha256(binary).hexdigest()[:HEX_DIGITS]

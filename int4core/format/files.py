"""Opening the files of a model folder that may be hostile: links, pipes, devices, wrong sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from int4core.errors import ModelError, shown
from int4core.regular import NotRegularError, open_regular

TEXT_LIMIT = 16 << 10
"""Most bytes of a layer file; the published ones have at most 260."""

DATA_LIMIT = 1 << 30
"""Most bytes of all data files of a model; ResNet-50 has 14 MB."""

MODEL = "model"
"""The file that names the network, and the first component of every data path that is written."""


class Refused(Exception):
    """A file that will not be read. Caught where the text that names the file is known."""


class ModelFolder:
    """A folder that files are read from, and never from outside it.

    Attributes:
        path: the folder, as the caller named it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not os.path.isdir(self.path):
            hint = " (name the folder that holds it)" if os.path.isfile(self.path) else _left_of(self.path)
            raise ModelError(self.path, 0, f"a model is a folder with a file named {MODEL}, not this{hint}")
        if os.path.isfile(self.path / MODEL / MODEL):
            raise ModelError(self.path, 0, f"is not a model itself; load {self.path / MODEL}")
        self._root = os.path.realpath(self.path)
        self._folder = _identity(self._root)
        self._used: dict[tuple[int, int], str] = {}
        self._data_left = DATA_LIMIT

    def read_text(self, name: str) -> bytes:
        """The layer file `name`. Raises Refused."""
        with self._open(name) as (fd, info):
            if info.st_size > TEXT_LIMIT:
                raise Refused(f"has {info.st_size} bytes; a layer file has at most {TEXT_LIMIT}")
            return os.read(fd, TEXT_LIMIT)

    def read_data(self, reference: str, nbytes: int) -> npt.NDArray[np.uint8]:
        """All `nbytes` bytes of the file that a `!` line names. Nothing is allocated before the size fits.

        The path is relative to the parent of the model folder, and its first component is `model` or the
        folder's own name; both mean this folder, so a model that was renamed still loads.

        Raises Refused when the file is missing, of another size, not inside the folder, or already the
        data of another tensor: memory must stay in proportion to the files.
        """
        relative = self._relative(reference)
        with self._open(relative) as (fd, info):
            if info.st_size != nbytes:
                raise Refused(f"has {info.st_size} bytes, and the declared tensor takes {nbytes}")
            self._claim(relative, info)
            data = np.empty(nbytes, np.uint8)
            view, done = data.data, 0
            while done < nbytes:
                count = os.readv(fd, [view[done:]])
                if not count:
                    raise Refused(f"ended after {done} of {nbytes} bytes")
                done += count
            return data

    def _relative(self, reference: str) -> str:
        if os.path.isabs(reference):
            raise Refused("is absolute; data paths are relative to the parent of the model folder")
        first, *rest = reference.split("/")
        if not rest or any(part in ("", ".", "..") for part in rest) or "\\" in reference:
            raise Refused(f"is not a plain path such as {MODEL}/npdata/conv1.weight")
        if first not in (MODEL, os.path.basename(self._root), self.path.name):
            raise Refused(f"leaves the model folder; it must begin with {MODEL}/")
        return "/".join(rest)

    def _claim(self, relative: str, info: os.stat_result) -> None:
        identity = (info.st_dev, info.st_ino)
        if identity in self._used:
            raise Refused(f"is one file with {shown(self._used[identity])}, which is the data of another tensor")
        self._used[identity] = relative
        self._data_left -= info.st_size
        if self._data_left < 0:
            raise Refused(f"takes the model's data past {DATA_LIMIT >> 20} MiB, the most that is read")

    @contextmanager
    def _open(self, relative: str) -> Iterator[tuple[int, os.stat_result]]:
        real = os.path.realpath(os.path.join(self._root, relative))
        if os.path.commonpath([real, self._root]) != self._root:
            raise Refused("is a link that leaves the model folder")
        try:
            with open_regular(real, os.O_NOFOLLOW) as opened:
                if _identity(self._root) != self._folder:
                    raise Refused("is another model's: the folder was replaced while it was read; load it again")
                yield opened
        except NotRegularError as error:
            raise Refused(str(error.strerror)) from None
        except OSError as error:
            raise Refused(f"cannot be read: {error.strerror}") from None


def beside(name: str, role: str) -> str:
    """How the folders begin that a save has beside the model folder `name`: `new` ones, and `old` ones moved aside."""
    return f".{name}.{role}-"


def _left_of(path: Path) -> str:
    """Where a save had moved the model to, which was killed before it put another one at `path`; or ``."""
    try:
        target = Path(os.path.realpath(path))
        left = [name for name in os.listdir(target.parent) if name.startswith(beside(target.name, "old"))]
    except (OSError, ValueError):
        return ""
    return f"; {target.parent / min(left)} is what a save that was killed had moved aside" if left else ""


def _identity(folder: str) -> tuple[int, int] | None:
    """What tells a folder from another one that takes its place; None where there is none."""
    try:
        info = os.stat(folder)
    except OSError:
        return None
    return info.st_dev, info.st_ino

"""An image that takes minutes to decode, whatever the machine; and what kills the loaders that are at it."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from pipeline.stages.child import Child


def slow_jpeg(side: int = 3000, scans: int = 20_000) -> bytes:
    """A progressive JPEG of under a megabyte that repeats its last scan."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * scans + data[end:]


class Killer:
    """Kills every loader of a stage that is at the file `path`, from `with` to its end.

    Args:
        workers: the stage's workers at the moment.
    """

    def __init__(self, path: Path, workers: Callable[[], Iterable[Child]]) -> None:
        self._path = str(path)
        self._workers = workers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill(self) -> None:
        killed: set[int] = set()
        while not self._over.wait(0.01):
            for child in tuple(self._workers()):
                if child.pid not in killed and _path_under_way(child) == self._path:
                    killed.add(child.pid)
                    os.kill(child.pid, signal.SIGKILL)


def _path_under_way(child: Child) -> str | None:
    at = None if child.place is None else child.place.read()
    task = None if at is None else child.tasks.get(at[0])
    return None if at is None or task is None else getattr(task.body.locators[at[1]], "path", None)

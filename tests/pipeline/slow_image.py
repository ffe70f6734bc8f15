"""An image that takes minutes to decode, whatever the machine; and what ends the loaders that are at it."""

from __future__ import annotations

import io
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.stages.child import Child
from pipeline.stages.clock import AwakeClock
from pipeline.stages.process import ProcessStage


def slow_jpeg(side: int = 3000, scans: int = 20_000) -> bytes:
    """A progressive JPEG of under a megabyte that repeats its last scan."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * scans + data[end:]


class _Watch(ABC):
    """Looks at a stage's loaders all the time, from `with` to its end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.01):
            self._look()

    @abstractmethod
    def _look(self) -> None: ...


class Killer(_Watch):
    """Kills every loader of a stage that is at the file `path`.

    Args:
        workers: the stage's workers at the moment.
    """

    def __init__(self, path: Path, workers: Callable[[], Iterable[Child]]) -> None:
        super().__init__()
        self._path = str(path)
        self._workers = workers
        self._killed: set[int] = set()

    def _look(self) -> None:
        for child in tuple(self._workers()):
            if child.pid not in self._killed and _path_under_way(child) == self._path:
                self._killed.add(child.pid)
                os.kill(child.pid, signal.SIGKILL)


class Hour(_Watch):
    """Has an hour pass, for a stage, when the file `path` is all that its loaders are at.

    So no other file ever takes too long, whatever the machine is busy with.
    """

    def __init__(self, path: Path, stage: ProcessStage[Any, Any]) -> None:
        super().__init__()
        self._path = str(path)
        self._stage = stage
        self._clock = stage._clock = _Jumping(stage._clock.now_s)

    def _look(self) -> None:
        busy = [child for child in self._stage._children if child.tasks or not child.ready]
        # The stage has seen it there, or it would count from now on.
        if [_path_under_way(child) for child in busy] == [self._path] and busy[0].seen_at == _at(busy[0]):
            self._clock.hours.append(3600.0)
            self._over.set()


class _Jumping(AwakeClock):
    def __init__(self, now_s: float) -> None:
        super().__init__()
        self.now_s = now_s
        self.hours: deque[float] = deque()

    def tick(self) -> float:
        super().tick()
        while self.hours:
            self.now_s += self.hours.popleft()
        return self.now_s


def _at(child: Child) -> tuple[int, int] | None:
    return None if child.place is None else child.place.read()


def _path_under_way(child: Child) -> str | None:
    at = _at(child)
    task = None if at is None else child.tasks.get(at[0])
    return None if at is None or task is None else getattr(task.body.locators[at[1]], "path", None)

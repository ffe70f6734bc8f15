"""A stage whose one worker is a thread of the main process."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from pipeline.stages.base import Stage, StageFailure
from pipeline.stages.channels import Stop, Task

T = TypeVar("T")
R = TypeVar("R")


class ThreadStage(Stage[T, R]):
    """Runs `work` on every task in one thread, in the order they were submitted."""

    def __init__(
        self,
        name: str,
        work: Callable[[T], R],
        *,
        capacity: int,
        on_result: Callable[[Task[T], R], None],
        on_failure: Callable[[StageFailure], None],
    ) -> None:
        super().__init__(name, 1, capacity, on_result, on_failure)
        self._work = work
        self._tasks: queue.SimpleQueue[Task[T] | Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"stage-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._tasks.put(Stop())
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _enqueue(self, task: Task[T]) -> None:
        self._tasks.put(task)

    def _run(self) -> None:
        while not isinstance(task := self._tasks.get(), Stop):
            began = time.perf_counter()
            try:
                result = self._work(task.body)
                self._finish(task, result, time.perf_counter() - began)
            except StageFailure as failure:
                self._fail(failure)
                return
            except Exception as error:
                what = f"failed: {type(error).__name__}: {error}"
                self._fail(StageFailure(self.name, what, traceback.format_exc()))
                return

"""A stage whose one worker is a thread of the main process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.stages.base import Stage, StageFailure
from pipeline.stages.channels import Stop, Task

T = TypeVar("T")
R = TypeVar("R")

# How long the task under way may take to end when the stage is stopped.
GRACE_S = 2.0


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
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        self._tasks.put(Stop())
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(GRACE_S)  # one that hangs ends with the process

    def _is_served(self) -> bool:
        return self._thread.ident is None or self._thread.is_alive()

    def do_now(self, task: Task[T]) -> None:
        """Do a task at once, in the thread that calls and ahead of what waits; it counts as any other.

        For tasks so small that handing them on costs more. `work` has to bear being called by two threads.
        """
        with self._changed:
            self._count_in(task)
        self._do(task)

    def _enqueue(self, task: Task[T]) -> None:
        self._tasks.put(task)

    def _up(self) -> int:
        return int(self._thread.is_alive())

    def _under_way(self) -> Sequence[int]:
        return (self._queued,)

    def _run(self) -> None:
        while not isinstance(task := self._tasks.get(), Stop):
            if not self._do(task):
                return

    def _do(self, task: Task[T]) -> bool:
        """Whether it went well; if it did not, the stage has failed."""
        began = time.perf_counter()
        try:
            result = self._work(task.body)
            self._finish(task, result, time.perf_counter() - began)
        except StageFailure as failure:
            self._fail(failure)
            return False
        except BaseException as error:
            self._fail(StageFailure.of(self.name, "its thread", error))
            return False
        return True

"""Workers of stages under test, apart from the tests: what their processes import is on the way of each of them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.stages.channels import FROM_WORKER, TO_WORKER, Channel, Rates, Ready, Task
from pipeline.telemetry.trace import Records, Untraced

Body: TypeAlias = tuple[str, ...]


class Doubler:
    """Doubles numbers; a negative one makes it raise, a huge one makes it hang."""

    def __init__(self, number: int = 0, *, fail_at_start: bool = False) -> None:
        self.tracer = Untraced()
        if fail_at_start:
            raise RuntimeError("cannot set up")

    def note(self) -> str:
        return f"pid {os.getpid()}"

    def rates(self) -> Rates:
        return Rates(expected=50.0)

    def work(self, task: Task[int]) -> int:
        body = task.body
        if body < 0:
            raise ValueError(f"{body} is negative")
        if body > 10**6:
            time.sleep(600)
        time.sleep(0.01)
        return 2 * body

    def close(self) -> None:
        pass


class Spared(Doubler):
    """Says how many objects the collector leaves out."""

    def work(self, task: Task[int]) -> int:
        return gc.get_freeze_count()


class Gated(Doubler):
    """Begins no task before `gate` is open."""

    def __init__(self, gate: Event, number: int) -> None:
        super().__init__(number)
        self._gate = gate

    def work(self, task: Task[int]) -> int:
        self._gate.wait()
        return super().work(task)


class Teller(Doubler):
    """Gives words; some it acts on."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self._words = words

    def give(self) -> Iterator[str]:
        for word in self._words:
            if word == "raise":
                raise ValueError(word)
            if word == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "wait":
                time.sleep(600)
            yield word


class Starter(Doubler):
    """Has a program run for every task, and waits for it."""

    def work(self, task: Task[int]) -> int:
        return subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], check=False).returncode


class Shouter:
    """Makes words upper case. `kill` kills it, `hang` hangs; `/path` kills it, or `~/path` hangs it, the first time."""

    def __init__(self, number: int = 0) -> None:
        self.tracer = Untraced()

    def note(self) -> str:
        return "shouter"

    def rates(self) -> Rates:
        return Rates()

    def work(self, task: Task[Body], begin: Callable[[int], None]) -> list[str]:
        if task.body[0].startswith("~"):
            self._once(task.body[0][1:], lambda: time.sleep(600))
        done = []
        for number, word in enumerate(task.body):
            begin(number)
            if word == "raise":
                raise ValueError("no such word")
            if word == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "hang":
                time.sleep(600)
            if word.startswith("/"):
                self._once(word, lambda: os.kill(os.getpid(), signal.SIGKILL))
            done.append(word.upper())
        return done

    def _once(self, path: str, what: Callable[[], object]) -> None:
        if not Path(path).exists():
            Path(path).touch()
            what()

    def close(self) -> None:
        pass


class DiesTraced(Shouter):
    """A Shouter whose number 0 dies when it is asked for its trace."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(number)
        if number == 0:
            self.tracer = _Deadly()


class _Deadly(Untraced):
    def to_records(self) -> Records:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().to_records()


def tell_mask(pipe: Any, _make_worker: object) -> None:
    """The main function of a worker that says which signals it was born with blocked, and does nothing about any."""
    channel = Channel(pipe, sends=FROM_WORKER, receives=TO_WORKER)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    channel.send(Ready(" ".join(sorted(signal.Signals(number).name for number in blocked))))
    channel.receive()

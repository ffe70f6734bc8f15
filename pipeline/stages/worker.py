"""What runs inside a worker process: set up, serve tasks until told to stop, report any crash."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pipeline.channels import FROM_WORKER, TO_WORKER, Channel, ChannelClosed, Crashed, Done, Ready, Stop

T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Worker(Protocol[T_contra, R_co]):
    """The work of a stage; built inside its process, so that it may hold a GPU context or a mapping."""

    def note(self) -> str:
        """What it runs on, in a few words."""

    def rate(self) -> float:
        """Samples/s it expects to do, 0 when it cannot know."""

    def work(self, body: T_contra) -> R_co:
        """Do one task."""

    def close(self) -> None:
        """Give everything back."""


def serve(pipe: Any, make_worker: Callable[[], Worker[Any, Any]]) -> None:
    """The main function of a worker process. Ends when told to, or when the main process is gone."""
    # Ctrl-C reaches the whole process group; the main process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(pipe, sends=FROM_WORKER, receives=TO_WORKER)
    worker: Worker[Any, Any] | None = None
    try:
        worker = make_worker()
        channel.send(Ready(worker.note(), worker.rate()))
        while not isinstance(task := channel.receive(), Stop):
            began = time.perf_counter()
            body = worker.work(task.body)
            channel.send(Done(task.ticket, body, time.perf_counter() - began))
    except ChannelClosed:
        pass
    except BaseException as error:
        with contextlib.suppress(ChannelClosed):
            channel.send(Crashed(f"{type(error).__name__}: {error}", traceback.format_exc()))
        sys.exit(1)
    finally:
        if worker is not None:
            worker.close()

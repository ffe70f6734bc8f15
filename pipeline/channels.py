"""How the main process and its workers talk: typed messages over one pipe per worker.

A pipe of its own for every worker means that a worker killed at any moment can take no lock and no
message of another with it, and that its death shows at once as the end of its pipe. How many tasks may
be under way is bounded by the sender (see `pipeline.stages.process`), so a pipe never fills up.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Task(Generic[T]):
    """Work for a stage. `samples` is how many samples it stands for, in every count and rate."""

    ticket: int
    samples: int
    body: T


@dataclass(frozen=True)
class Done(Generic[R]):
    """A finished task, and the seconds its worker spent on it."""

    ticket: int
    body: R
    busy_s: float


@dataclass(frozen=True)
class Ready:
    """A worker has set itself up; `note` says what it runs on, `rate` how many samples/s it expects to do.

    A worker that cannot know its rate says 0.
    """

    note: str
    rate: float = 0.0


@dataclass(frozen=True)
class Crashed:
    """A worker gives up; `message` is one line, `traceback` the whole story."""

    message: str
    traceback: str


@dataclass(frozen=True)
class Stop:
    """The last message to a worker."""


TO_WORKER: tuple[type, ...] = (Task, Stop)
FROM_WORKER: tuple[type, ...] = (Ready, Done, Crashed)


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """One end of a worker's pipe: sends and receives only the message types it was made for."""

    def __init__(
        self, pipe: Connection[Any, Any], sends: tuple[type, ...], receives: tuple[type, ...]
    ) -> None:
        self.pipe = pipe
        self._sends = sends
        self._receives = receives

    def send(self, message: Any) -> None:
        """Raises ChannelClosed when nobody will read it, TypeError for a type that does not belong here."""
        if not isinstance(message, self._sends):
            raise TypeError(f"{type(message).__name__} does not travel this way")
        try:
            self.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosed from None

    def receive(self) -> Any:
        """The next message; blocks. Raises ChannelClosed when there will be none."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise ChannelClosed from None
        if not isinstance(message, self._receives):
            raise TypeError(f"{type(message).__name__} does not travel this way")
        return message

    def pending(self) -> bool:
        """Whether a message, or the end of the pipe, is there to be received now."""
        try:
            return self.pipe.poll()
        except (BrokenPipeError, ConnectionResetError):
            return True

    def close(self) -> None:
        self.pipe.close()

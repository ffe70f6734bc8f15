"""How the main process and its workers talk: typed messages over one pipe per worker.

A pipe of its own for every worker means that a worker killed at any moment can take no lock and no
message of another with it, and that its death shows at once as the end of its pipe. How many tasks may
be under way is bounded by the sender (see `pipeline.stages.process`), so a pipe never fills up.

Messages whose body is a record of the exchange (see `pipeline.memory.exchange`) are a few packed bytes: they are the
ones that come at the rate of the engine. The others, of loaders and of starting and ending, are pickled.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from pipeline.telemetry.trace import Records

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
class Rates:
    """What a worker has measured of itself while setting up, in samples/s.

    Attributes:
        expected: what it will do, all its parts at work; 0 where it cannot know.
        engine: its network alone, on inputs that are in place; None where that was not measured.
        h2d: its copies to the device alone.
    """

    expected: float = 0.0
    engine: float | None = None
    h2d: float | None = None


@dataclass(frozen=True)
class Ready:
    """A worker has set itself up; `note` says what it runs on, `notices` what of its orders it does not follow."""

    note: str
    rates: Rates = Rates()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Crashed:
    """A worker gives up; `message` is one line, `traceback` the whole story."""

    message: str
    traceback: str


@dataclass(frozen=True)
class ReportTrace:
    """Asks a worker for the spans it has seen."""


@dataclass(frozen=True)
class Traced:
    """A worker's spans (see `pipeline.telemetry.trace`)."""

    records: Records


@dataclass(frozen=True)
class Stop:
    """The last message to a worker."""


_TASK, _DONE, _PICKLED = b"T", b"D", b"P"
_TASK_FIELDS = struct.Struct("<qii")  # ticket, samples, record
_DONE_FIELDS = struct.Struct("<qd")  # ticket, busy_s


def encode(message: Any) -> bytes:
    """A message as bytes: one that names its kind, then fields, or a pickle."""
    if type(message) is Task and type(message.body) is int:
        return _TASK + _TASK_FIELDS.pack(message.ticket, message.samples, message.body)
    if type(message) is Done and message.body is None:
        return _DONE + _DONE_FIELDS.pack(message.ticket, message.busy_s)
    return _PICKLED + pickle.dumps(message)


def decode(data: bytes) -> Any:
    """What `encode` made. Only of bytes that a process of ours sent: a pickle can run code."""
    kind = data[:1]
    if kind == _TASK:
        return Task(*_TASK_FIELDS.unpack_from(data, 1))
    if kind == _DONE:
        ticket, busy_s = _DONE_FIELDS.unpack_from(data, 1)
        return Done(ticket, None, busy_s)
    return pickle.loads(data[1:])


# The system counts a limit in clock ticks; no wait that anyone sees the end of is longer.
_LONGEST_S = 1e6

TO_WORKER: tuple[type, ...] = (Task, ReportTrace, Stop)
FROM_WORKER: tuple[type, ...] = (Ready, Done, Traced, Crashed)


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """One end of a worker's pipe: sends and receives only the message types it was made for.

    With `timeout_s`, an end that stops in the middle of a message, or does not take one, counts as gone after that.
    """

    def __init__(
        self,
        pipe: Connection[Any, Any],
        sends: tuple[type, ...],
        receives: tuple[type, ...],
        timeout_s: float | None = None,
    ) -> None:
        self.pipe = pipe
        if timeout_s is not None:
            _limit(pipe.fileno(), timeout_s)
        # Connection.poll makes a selector at every call, which costs more than a small message.
        self._poll = select.poll()
        self._poll.register(pipe.fileno(), select.POLLIN)
        self._sends = sends
        self._receives = receives

    def send(self, message: Any) -> None:
        """Raises ChannelClosed when nobody will read it, TypeError for a type that does not belong here."""
        if not isinstance(message, self._sends):
            raise TypeError(f"{type(message).__name__} does not travel this way")
        try:
            self.pipe.send_bytes(encode(message))
        except OSError:
            raise ChannelClosed from None

    def receive(self) -> Any:
        """The next message; blocks. Raises ChannelClosed when there will be none."""
        try:
            message = decode(self.pipe.recv_bytes())
        except (EOFError, OSError):  # OSError: among others, an end in the middle of a message
            raise ChannelClosed from None
        if not isinstance(message, self._receives):
            raise TypeError(f"{type(message).__name__} does not travel this way")
        return message

    def pending(self, wait_s: float = 0.0) -> bool:
        """Whether a message, or the end of the pipe, is there to be received, now or within `wait_s` seconds."""
        if not wait_s:
            return bool(self._poll.poll(0))
        # The other calls of the system wait for whole milliseconds.
        return bool(select.select([self.pipe], [], [], wait_s)[0])

    def close(self) -> None:
        self.pipe.close()


def _limit(fd: int, seconds: float) -> None:
    """Bound every wait for the socket `fd`, which a duplex pipe is."""
    limit = struct.pack("ll", int(min(seconds, _LONGEST_S)), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(fd)) as end:  # an option is of the socket, whichever descriptor it comes through
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

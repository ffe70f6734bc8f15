"""What the scheduler asks of a device: streams, events, batches, and copies to and from them.

All calls return at once; what they ask for happens later, in the order of a stream. `pipeline.device.cuda` is the
real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

B = TypeVar("B", bound="Batch")

Marks: TypeAlias = tuple[Any, Any, Any, Any]
"""Where a batch's upload begins and ends in its copy stream, its network in its compute stream."""


Parts: TypeAlias = Sequence[tuple[str, Any, Any]]
"""What a device did for a batch's upload in a stream of its own: names, with the marks of begin and end."""


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Any) -> None:
        """Put the mark behind all that `stream` has been asked for so far."""

    @property
    def done(self) -> bool:
        """Whether the device has passed the mark."""

    def synchronize(self) -> None:
        """Wait until it has."""


class Batch(Protocol):
    """Device memory for `n` samples, their activations and their answers."""

    @property
    def n(self) -> int: ...

    def run(self, stream: Any) -> None:
        """Compute the answers to what was uploaded."""


class Device(Protocol[B]):
    """A device that can reach the arena and the exchange."""

    def stream(self) -> Any: ...

    def event(self) -> Event: ...

    def wait(self, stream: Any, event: Event) -> None:
        """Let `stream` go on only when the device has passed `event`."""

    def batch(self, n: int) -> B:
        """Raises PipelineError when there is no memory for it."""

    def upload(self, batch: B, record: int, count: int, stream: Any) -> None:
        """Copy the samples that a record of the exchange names into the first `count` places of the batch."""

    def download(self, batch: B, record: int, count: int, stream: Any) -> None:
        """Copy the first `count` answers of the batch towards the record: classes, and what else it has room for."""

    def parts(self, batch: B) -> Parts:
        """Of the upload before, once the batch is answered; nothing where it is not asked to mark them."""

    def collect(self, batch: B, record: int, count: int) -> None:
        """On the host, after the download: the answers are in the record when this returns."""

    def close(self) -> None:
        """Give everything back, once nothing runs any more."""


class Spans(Protocol):
    """Is notified when the parts of a batch ran."""

    def mark(self, stream: Any) -> Any:
        """A mark behind all that `stream` has been asked for so far, whose time is known later."""

    def complete(self, lane: int, ticket: int, samples: int, marks: Marks, parts: Parts) -> None:
        """A lane has finished a batch; the device has passed all its marks."""

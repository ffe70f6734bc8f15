"""How many sources there are: counted beside the run by a process that yields to all others.

Shards are not listed once more for that: it says how many bytes they have.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from pipeline.classify.listing import Listing
from pipeline.classify.total import Counted
from pipeline.errors import ImageError, PipelineError
from pipeline.samples.expand import Shard
from pipeline.samples.left_out import LeftOut
from pipeline.samples.shards import shard_bytes
from pipeline.stages.channels import Rates
from pipeline.stages.unasked import Unasked
from pipeline.telemetry.trace import Untraced

# What is listed sooner than this is not counted besides.
PATIENCE_S = 1.0
LOWEST = 19


class Counter:
    """Counts what a `Listing` names, unless it is stopped before it begins.

    Args:
        say: called with a line when the count is lost; the run goes on without.

    Attributes:
        counted: None until it has come to its end.
    """

    def __init__(self, listing: Listing, say: Callable[[str], None]) -> None:
        self.counted: Counted | None = None
        self._listing = listing
        self._say = say
        self._starting = threading.Lock()
        self._stopped = threading.Event()
        self._process: Unasked | None = None
        self._thread = threading.Thread(target=self._run, name="count", daemon=True)

    def start(self) -> None:
        """Where the sources can be listed twice."""
        if self._listing.elsewhere:
            self._thread.start()

    def stop(self) -> None:
        """Safe to call twice, from any thread."""
        with self._starting:
            self._stopped.set()
        if self._process is not None:
            self._process.close()

    def _run(self) -> None:
        if self._stopped.wait(PATIENCE_S):
            return
        try:
            with self._starting:
                if self._stopped.is_set():
                    return
                self._process = Unasked("count", partial(CountingWorker, self._listing), remedy="the run goes on")
            with suppress(OSError):  # before it has imported anything
                os.setpriority(os.PRIO_PROCESS, self._process.pid, LOWEST)
            counted = self._process.take()
            if isinstance(counted, PipelineError):
                raise counted
            self.counted = counted
        except PipelineError as error:
            if not self._stopped.is_set():
                self._say(f"how many sources there are is not known: {error}")
        finally:
            self.stop()


class CountingWorker:
    """Gives a `Counted`, or the PipelineError that prevents it."""

    tracer = Untraced()

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def note(self) -> str:
        return "counts sources"

    def rates(self) -> Rates:
        return Rates()

    def give(self) -> Iterator[Any]:
        sources = size = 0
        try:
            for part in self._listing.parts(LeftOut()):
                if isinstance(part, Shard):
                    with suppress(ImageError):  # its only source is that failure
                        size += shard_bytes(part.path)
                else:
                    sources += len(part)
            yield Counted(sources, size)
        except PipelineError as error:
            yield PipelineError(str(error))

    def close(self) -> None: ...

"""How many sources there are: counted beside the run by a process that yields to all others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from pipeline.classify.listing import Listing
from pipeline.errors import PipelineError
from pipeline.samples.left_out import LeftOut
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
        total: sources there are, None until they have been counted.
    """

    def __init__(self, listing: Listing, say: Callable[[str], None]) -> None:
        self.total: int | None = None
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
            total = self._process.take()
            if isinstance(total, PipelineError):
                raise total
            self.total = total
        except PipelineError as error:
            if not self._stopped.is_set():
                self._say(f"how many sources there are is not known: {error}")
        finally:
            self.stop()


class CountingWorker:
    """Gives the number of sources, or the PipelineError that prevents it."""

    tracer = Untraced()

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def note(self) -> str:
        return "counts sources"

    def rates(self) -> Rates:
        return Rates()

    def give(self) -> Iterator[Any]:
        try:
            yield sum(map(len, self._listing.begin(LeftOut())))
        except PipelineError as error:
            yield PipelineError(str(error))

    def close(self) -> None: ...

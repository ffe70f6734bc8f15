"""A session with LoadGen's side of it: its sample library, its queries, and how far they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from pipeline.commands.setup import Setup
from pipeline.loadgen.progress import Progress
from pipeline.loadgen.queries import Complete, Queries
from pipeline.loadgen.samples import Samples
from pipeline.samples.library import SampleLibrary
from pipeline.session.session import Session
from pipeline.session.spec import SessionSpec
from pipeline.stages.base import StageFailure


@dataclass(frozen=True)
class Prepared:
    """What the command line comes to: where it computes, with which model, on which samples.

    Attributes:
        at_a_time: samples that LoadGen has loaded at a time, at most.
        ahead: whether it will ask for every sample.
    """

    setup: Setup
    library: SampleLibrary
    spec: SessionSpec
    at_a_time: int
    ahead: bool


class LoadGenRun:
    """Holds everything that has to be given back; `with` gives it back on every way out."""

    def __init__(self, prepared: Prepared, complete: Complete, on_failure: Callable[[StageFailure], None]) -> None:
        library = prepared.library
        self._held = ExitStack()
        try:
            self.session = self._held.enter_context(Session(prepared.spec, on_failure=on_failure))
            self.samples = Samples(self.session.loading, library, at_a_time=prepared.at_a_time, ahead=prepared.ahead)
            self._held.callback(self.samples.stop)
            self.queries = Queries(self.samples, len(library), complete)
            self.queue = self.session.queries(self.queries, prepared.spec.batching)
            self.progress = Progress(self.session, self.samples, self.queue)
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> LoadGenRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

"""A run over a cluster: sources that are listed in tasks, classified by actors, and written in tasks."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.commands.options import EngineOptions, LoaderOptions
from pipeline.commands.session import batch_size
from pipeline.errors import PipelineError
from pipeline.extras import require
from pipeline.ray.classifier import SourceClassifier
from pipeline.ray.cluster import Layout
from pipeline.ray.dataset import map_images
from pipeline.ray.delivery import Count, Delivered, Receiver, deliver, delivered
from pipeline.ray.listing import SOURCES_OF_A_ROW, TASK_CPUS, Listed, Listing, Tally, put_pieces, sources_dataset
from pipeline.ray.progress import Progress
from pipeline.ray.units import STDIN
from pipeline.samples.expand import open_stdin

LOCAL = "local"

LOGS = "`ray logs` has what it says of it"
OURS = ("pipeline.", "int4core.")
# The last line of a traceback.
RAISED = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*): (.+)")

# A task of an actor is so many batches: few enough to share out evenly, enough for a driver of many actors.
BATCHES_OF_A_TASK = {True: 8, False: 2}
"""By whether the actor has a GPU."""
TASKS_OF_A_PART = 2

# Blocks of sources and of answers; without this limit Ray gives a listing's first block on after 128 MiB of it.
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """What a run is to do.

    Attributes:
        parts: the arguments of each part of the sources (see `pipeline.ray.units`).
        column, shard, done, apart: see `pipeline.ray.listing.Listing`.
        ordered: whether deliveries come in the order of the sources.
        receiver, count: see `pipeline.ray.delivery`.
    """

    parts: list[tuple[str, ...]]
    column: str | None
    shard: tuple[int, int]
    done: Any
    apart: Callable[[str], bool]
    engine: EngineOptions
    loaders: LoaderOptions
    top: int
    classes: Path | None
    ordered: bool
    receiver: Receiver
    count: Count | None


@dataclass(frozen=True)
class Connection:
    """Ray, connected; `close` parts with a cluster that was connected to here, and ends one that was made here."""

    library: Any
    ours: bool

    def close(self) -> None:
        if self.ours:
            self.library.shutdown()


def connect(address: str) -> Connection:
    """Ray at `address`, or a new one on this machine (LOCAL). Raises PipelineError: not installed, not there.

    To be called in the main thread.
    """
    ray = require("ray", "ray", "--ray")
    require("ray.data", "ray", "--ray")
    ours = not ray.is_initialized()
    # Its core would write to the terminal itself, past whoever draws there; what ends a run is raised as well.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ours:
        # It takes SIGTERM for itself, and who runs us heeds signals already.
        heeded = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # a node that does not start in time is nothing more special
            raise PipelineError(f"--ray {address}: {_first_line(error)}; `ray status` says what runs where") from error
        finally:
            signal.signal(signal.SIGTERM, heeded)
    # What ends a run is raised, and said once.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return Connection(ray, ours)


class Run:
    """Sources of a command line through a cluster; iterating gives what has been delivered, as it is.

    Attributes:
        progress: counted here.
    """

    def __init__(self, ray: Any, wanted: Wanted, layout: Layout) -> None:
        self._ray = ray
        self._wanted = wanted
        self._tally = ray.remote(Tally).options(num_cpus=0).remote()
        self._asked: Any = None
        self._layout = layout
        self.progress = Progress(layout.actors, self._listed_now)

    def __iter__(self) -> Generator[Delivered, None, None]:
        """Raises PipelineError for whatever ends the run: of ours, with its reason; of Ray's, in its words."""
        try:
            self.progress.dataset = dataset = self._dataset()
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for some in delivered(table):
                    self.progress.add(some.totals.rows)
                    yield some
        except self._ray.exceptions.RayError as error:
            raise _ours(error) from error
        finally:
            self.progress.end()

    def stop(self) -> None:
        """End what is under way, from whatever thread; what iterates then ends."""
        executor = getattr(self.progress.dataset, "_current_executor", None)
        if executor is not None:
            executor.shutdown(force=True)

    def listed(self) -> Listed:
        """What has been listed, once the run is over; its progress is then of all."""
        total: Listed = self._ray.get(self._tally.total.remote())
        self.progress.take(total)
        return total

    def engines(self) -> list[dict[str, Any]]:
        """What is to be said of the engines, as of one machine's."""
        engines: list[dict[str, Any]] = self._ray.get(self._tally.engines.remote())
        return engines

    def _listed_now(self) -> Listed | None:
        """What had been listed a moment ago; None while the answer is on its way."""
        if self._asked is None:
            self._asked = self._tally.total.remote()
        ready, _ = self._ray.wait([self._asked], timeout=0)
        if not ready:
            return None
        listed: Listed = self._ray.get(self._asked)
        self._asked = None
        return listed

    def _dataset(self) -> Any:
        wanted, data = self._wanted, self._ray.data
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        context.execution_options.preserve_order = wanted.ordered
        batch = batch_size(wanted.engine, gpu=bool(self._layout.gpus))
        sources_of_a_task, row = batch * BATCHES_OF_A_TASK[bool(self._layout.gpus)], min(batch, SOURCES_OF_A_ROW)
        rows = sources_of_a_task // row
        stdin = put_pieces(self._ray, open_stdin()) if any(STDIN in part for part in wanted.parts) else ()
        listing = Listing(wanted.column, wanted.shard, wanted.done, wanted.apart, self._tally, row, stdin)
        loaders = replace(wanted.loaders, processes=wanted.loaders.processes or self._layout.loaders)
        options = {
            "engine": wanted.engine,
            "loaders": loaders,
            "top": wanted.top,
            "classes": wanted.classes,
            "started": partial(_started, self._tally),
        }
        with data.DataContext.current(context):
            sources = sources_dataset(self._ray, wanted.parts, listing, rows=rows, actors=self._layout.actors)
            # All of a task in one call: sources are small, and what a call ends with the engine waits for.
            answers = map_images(sources, SourceClassifier, options, self._layout, batch=rows)
            return answers.map_batches(
                deliver,
                batch_size=sources_of_a_task * TASKS_OF_A_PART,
                batch_format="pyarrow",
                fn_kwargs={"receiver": wanted.receiver, "count": wanted.count},
                num_cpus=TASK_CPUS,
            )


def _started(tally: Any, engines: list[dict[str, Any]]) -> None:
    """Called in an actor."""
    ray = require("ray", "ray", "--ray")
    tally.started.remote(ray.get_runtime_context().get_actor_id(), engines)


def _ours(error: BaseException) -> PipelineError:
    """The error of this package that `error` was raised for, or else its first line as one."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        if isinstance(cause, PipelineError):
            return PipelineError(str(getattr(cause, "cause", cause)))
        chain.append(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    # Of what prevents an actor Ray keeps the text alone: a traceback, and whose error it was.
    raised = [match for match in map(RAISED.fullmatch, str(error).splitlines()) if match]
    if raised and '\n  File "' in str(error):
        name, why = raised[-1].groups()
        return PipelineError(why if name.startswith(OURS) else f"Ray: {name}: {why}; {LOGS}")
    return PipelineError(f"Ray: {_first_line(error)}; {LOGS}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""The callable classes that Ray Data makes actors of: tables with images in, tables with answers out."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.commands.options import (
    DEFAULT_IMAGE_TIMEOUT_S,
    DEFAULT_STAGE_TIMEOUT_S,
    GPU_IN_FLIGHT,
    EngineOptions,
    LoaderOptions,
)
from pipeline.commands.session import session_spec
from pipeline.commands.setup import set_up
from pipeline.errors import ImageError, PipelineError
from pipeline.ray.actor import engine_here
from pipeline.ray.work import Work
from pipeline.samples.classes import read_classes
from pipeline.samples.images import ImageRules
from pipeline.samples.sources import BytesLocator, FailedLocator, Locator, PathLocator, Source, Sources
from pipeline.samples.tables import image_column, image_in, kind_of
from pipeline.sinks.parquet import ParquetFormat
from pipeline.sinks.rows import COLUMNS

ANSWERS = COLUMNS[1:]
DEFAULT_TOP = 5

# Of a dataset of sources: pickled `Sources`, and the place of the first of them; of their answers: the place of each.
SOURCES, PLACE = "sources", "place"


@dataclass(frozen=True)
class InBatch:
    """What an error calls the table that a batch is."""

    schema: Any
    path: str = "the dataset"


class Classifier:
    """For `Dataset.map_batches(Classifier, batch_format="pyarrow", ...)`; see `pipeline.ray.classify` for the rest.

    Takes an Arrow table with a column of image files' bytes, of their paths or URLs, or of Hugging Face's structs of
    both. Gives one with `class_id`, `class_name`, `score`, `top_ids`, `top_scores` and `error`, a row for a row, in the
    same order; all other columns are kept, the images' too unless it holds their bytes. An image that cannot be
    classified is a row with an error.

    It has its loaders and its engine for as long as the actor lives, and takes calls from several threads: batches of
    one overlap those of another, and no more images are in memory than the session has slots for.

    Args:
        model: the folder, on every node; None: the one that comes with this package.
        column: of the images; None: the one of bytes, or else of paths.
        top: classes of each answer.
        classes: a file with a name a line instead of the model's classes.txt.
        gpu: what to compute on: `auto` (the actor's GPU, or the CPU), `cpu`, or a chip by name.
        batch_size, loaders: of the engine and processes that decode; None: by what there is.
        resize: whether images are resized before the centre crop.
        rules, image_timeout_s: which images are taken, and how long one may take.
        autoconfig, inflight, cpu_backend: see the classify command.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        column: str | None = None,
        top: int = DEFAULT_TOP,
        classes: str | Path | None = None,
        gpu: str = "auto",
        batch_size: int | None = None,
        loaders: int | None = None,
        resize: bool = True,
        rules: ImageRules | None = None,
        image_timeout_s: float = DEFAULT_IMAGE_TIMEOUT_S,
        autoconfig: str | Path | None = None,
        inflight: int = GPU_IN_FLIGHT,
        cpu_backend: str = "auto",
    ) -> None:
        engine = EngineOptions(
            model=None if model is None else Path(model),
            gpu=gpu,
            gpus=None,
            cpu_backend=cpu_backend,
            engines=1,
            inflight=inflight,
            h2d="auto",
            batch_size=batch_size,
            autoconfig=None if autoconfig is None else Path(autoconfig),
            strict=False,
            timeout_s=DEFAULT_STAGE_TIMEOUT_S,
        )
        self._open(
            engine,
            LoaderOptions(loaders, resize, rules or ImageRules(), image_timeout_s),
            top,
            None if classes is None else Path(classes),
        )
        self._column = column

    def _open(self, engine: EngineOptions, loaders: LoaderOptions, top: int, classes: Path | None) -> None:
        setup = set_up(engine_here(engine), lambda line: None)
        names = read_classes(classes, setup.model, setup.network.classes)
        if not 1 <= top <= setup.network.classes:
            raise PipelineError(f"top {top}: the model has {setup.network.classes} classes")
        self._format = ParquetFormat(names)
        self._work = Work(session_spec(setup, engine, loaders, top=top))

    def __call__(self, table: Any) -> Any:
        """An Arrow table of n rows to another of n rows. Raises PipelineError: no such column, or engines that die."""
        column = image_column(InBatch(table.schema), self._column)
        kept = [
            name for name in table.column_names if name != column or kind_of(table.schema.field(name).type) == "path"
        ]
        taken = [name for name in kept if name in ANSWERS]
        if taken:
            raise PipelineError(f"the dataset has a column {taken[0]} already; rename it")
        answers = self._format.table(self._work.rows(partial(_sources, table[column], column)))
        out = table.select(kept)
        for name in ANSWERS:
            out = out.append_column(answers.schema.field(name), answers[name])
        return out

    def close(self) -> None:
        """End the loaders and the engine. Safe to call twice."""
        self._work.close()

    def __del__(self) -> None:
        # The way out of an actor: Ray lets go of it. One that failed to be made has nothing to close.
        with suppress(AttributeError):
            self.close()


class SourceClassifier(Classifier):
    """The same for a dataset of sources (columns PLACE and SOURCES), as the command lists them.

    A row for each source comes out.
    """

    def __init__(
        self,
        engine: EngineOptions,
        loaders: LoaderOptions,
        top: int,
        classes: Path | None,
        started: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        """`started` is called when it is up, with what is to be said of its engines."""
        self._open(engine, loaders, top, classes)
        started([{"note": note} for note in self._work.session.batches.infer.notes])

    def __call__(self, table: Any) -> Any:
        lots: list[Sources] = [pickle.loads(row) for row in table[SOURCES].to_pylist()]
        rows = self._work.rows(lambda: lots)
        first = table[PLACE].to_numpy()
        places = [place + np.arange(len(lot)) for place, lot in zip(first, lots, strict=True)]
        return self._format.table(rows).append_column(PLACE, [np.concatenate([np.empty(0, np.int64), *places])])


def _sources(cells: Any, column: str) -> Iterator[tuple[Source]]:
    """A source for each cell, by itself; the bytes of one are copied out of the table when its turn has come."""
    for number, cell in enumerate(cells):
        yield (Source(str(number), _locator(cell, column)),)


def _locator(cell: Any, column: str) -> Locator:
    try:
        image = image_in(cell, "the dataset", column)
    except ImageError as error:
        return FailedLocator(error.path, error.why)
    return PathLocator(image) if isinstance(image, str) else BytesLocator(image)

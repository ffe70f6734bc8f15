"""Small pictures of what a report shows, made as the loaders make samples: by their rules, in a process of their own.

A file that kills its process, or takes too long, is a picture that there is not, with the reason.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TypeAlias

from PIL import Image

from pipeline.errors import ImageError
from pipeline.samples.preprocess import Preprocessor
from pipeline.samples.reader import Reader
from pipeline.samples.sources import Locator
from pipeline.stages.base import StageFailure
from pipeline.stages.channels import Rates, Task
from pipeline.stages.confined import NativeOutput, limit_memory
from pipeline.stages.load import SPARE_BYTES, Preparation
from pipeline.stages.lost import Lost, triage
from pipeline.stages.process import ProcessStage
from pipeline.stages.worker import serve_items
from pipeline.telemetry.trace import AnyTracer, make_tracer

SIDE = 144
QUALITY = 72
PER_TASK = 8
WORKERS = 2

IMAGE_TIMEOUT_S = 10.0
TOTAL_S = 60.0
SETUP_TIMEOUT_S = 60.0

NO_TENSOR = "a prepared tensor has no picture"
NOWHERE = "where its bytes are was not kept"
NO_TIME = "there was no time left for it"


@dataclass(frozen=True)
class Picture:
    """A JPEG file's bytes, or `why` there is none."""

    jpeg: bytes = b""
    why: str = ""


@dataclass(frozen=True)
class _Work:
    """Sources by their place among all, and where they are."""

    places: tuple[int, ...]
    locators: tuple[Locator, ...]

    def only(self, items: tuple[int, ...]) -> _Work:
        return _Work(tuple(self.places[i] for i in items), tuple(self.locators[i] for i in items))


_Made: TypeAlias = "tuple[Picture, ...]"


class Painter:
    """The stage's worker: what the network sees of each image, SIDE pixels a side."""

    def __init__(self, preparation: Preparation, number: int) -> None:
        self._preprocessor = Preprocessor(preparation.size, preparation.resize, preparation.rules)
        self._reader = Reader(preparation.rules.max_bytes)
        self._printed = NativeOutput()
        self.tracer: AnyTracer = make_tracer(f"pictures {number}", False)

    def note(self) -> str:
        return "pictures"

    def rates(self) -> Rates:
        return Rates()

    def work(self, task: Task[_Work], begin: Callable[[int], None]) -> _Made:
        made = []
        for item, locator in enumerate(task.body.locators):
            begin(item)
            made.append(self._picture(locator))
        return tuple(made)

    def close(self) -> None:
        self._reader.close()
        self._printed.close()

    def _picture(self, locator: Locator) -> Picture:
        try:
            image = self._preprocessor.picture(self._reader.read(locator), "image")
        except ImageError as error:
            return Picture(why=error.why)
        finally:
            self._printed.drop()
        if image.width > SIDE:
            image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        file = BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return Picture(jpeg=file.getvalue())


def confined_painter(preparation: Preparation, number: int) -> Painter:
    """A painter whose process fails to allocate what the rules do not allow."""
    painter = Painter(preparation, number)
    limit_memory(preparation.rules.max_memory + SPARE_BYTES)
    return painter


def make_pictures(
    locators: Sequence[Locator | None],
    preparation: Preparation,
    *,
    image_timeout_s: float = IMAGE_TIMEOUT_S,
    total_s: float = TOTAL_S,
    workers: int = WORKERS,
    over: threading.Event | None = None,
    make_painter: Callable[[Preparation, int], Painter] = confined_painter,
) -> list[Picture]:
    """A picture of each, or the reason why there is none. Takes little more than `total_s` seconds at most.

    Whatever images are like, nothing is raised.

    Args:
        over: is set when all are made; where another thread sets it before, the others are not made.
        make_painter: makes a worker; picklable.
    """
    if preparation.kind == "tensors":
        return [Picture(why=NO_TENSOR)] * len(locators)
    pictures = [Picture(why=NOWHERE if locator is None else NO_TIME) for locator in locators]
    wanted = [(place, locator) for place, locator in enumerate(locators) if locator is not None]
    if wanted:
        made = over or threading.Event()
        _Studio(wanted, pictures, partial(make_painter, preparation), image_timeout_s, workers, made).run(total_s)
    return pictures


class _Studio:
    """One stage over all that is wanted; what is made is put into `pictures`."""

    def __init__(
        self,
        wanted: Sequence[tuple[int, Locator]],
        pictures: list[Picture],
        make_painter: Callable[[int], Painter],
        image_timeout_s: float,
        workers: int,
        over: threading.Event,
    ) -> None:
        self._image_timeout_s = image_timeout_s
        self._wanted = wanted
        self._pictures = pictures
        self._left = len(wanted)
        self._over = over
        self._tickets = itertools.count()
        self._stage: ProcessStage[_Work, _Made] = ProcessStage(
            "pictures",
            make_painter,
            workers=min(workers, len(wanted)),
            capacity=len(wanted),
            timeout_s=SETUP_TIMEOUT_S,
            on_result=self._on_result,
            on_failure=self._on_failure,
            serve=serve_items,
            on_lost=self._on_lost,
            item_timeout_s=image_timeout_s,
        )

    def run(self, total_s: float) -> None:
        try:
            self._stage.launch()
            for begin in range(0, len(self._wanted), PER_TASK):
                places, locators = zip(*self._wanted[begin : begin + PER_TASK], strict=True)
                self._stage.submit(self._task(_Work(places, locators)))
            self._over.wait(total_s)
        except StageFailure as failure:
            self._on_failure(failure)
        finally:
            self._stage.stop()

    def _task(self, work: _Work) -> Task[_Work]:
        return Task(next(self._tickets), len(work.places), work)

    def _put(self, place: int, picture: Picture) -> None:
        self._pictures[place] = picture
        self._left -= 1
        if not self._left:
            self._over.set()

    def _on_result(self, task: Task[_Work], made: _Made) -> None:
        for place, picture in zip(task.body.places, made, strict=True):
            self._put(place, picture)

    def _on_lost(self, task: Task[_Work], lost: Lost) -> None:
        blame, again = triage(task.samples, lost)
        if blame is not None:
            late = f"making it took longer than {self._image_timeout_s:g} s"
            self._put(task.body.places[blame], Picture(why=late if lost.overstayed else f"its process {lost.why}"))
        for items in again:
            self._stage.put_back(self._task(task.body.only(items)))

    def _on_failure(self, failure: StageFailure) -> None:
        for place, _locator in self._wanted:
            if self._pictures[place].why == NO_TIME:
                self._pictures[place] = Picture(why=str(failure))
        self._over.set()

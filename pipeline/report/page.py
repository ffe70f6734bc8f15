"""A run as one page of HTML: nothing of it comes from elsewhere, and nothing in it runs.

Whatever comes from outside (names, reasons, settings) passes through two escapes, for every expression of the template
alike: `readable`, and Jinja's own for HTML. The page forbids itself scripts and the network besides.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from int4core.atomic import write_atomically
from int4core.errors import printable
from pipeline.errors import PipelineError
from pipeline.extras import require
from pipeline.machine.hardware import Load
from pipeline.report.charts import Chart, Curve, bars_path, number, over_time
from pipeline.report.collector import SCORE_BINS, Collected, Collector, Shown, cut
from pipeline.report.drawing import clock
from pipeline.report.energy import Energy
from pipeline.report.history import StageMean
from pipeline.report.pictures import Picture, make_pictures
from pipeline.report.timeline import Series, Timeline
from pipeline.report.verdict import Verdict
from pipeline.samples.sources import Locator, PathLocator
from pipeline.stages.load import Preparation
from pipeline.telemetry.metrics import Snapshot

TEMPLATES = Path(__file__).parent / "templates"
SCORE_BARS = 50
TOP_CLASSES = 12
MOST_FACTS = 200
LONGEST_FACT = 300
LONGEST_NAME = 120


class Share(Protocol):
    """So many of so many, and the 95 % interval: `pipeline.report.accuracy.Accuracy` is one."""

    @property
    def correct(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Ending:
    """What is known of a run once it is over.

    Attributes:
        title: the model and what it ran on.
        rate: images/s of the whole run; `peak`: of its best second. None where not known.
        stages: what each did, as `History.stages()` has it.
        preparation: what loaders did with a source; pictures are made by the same rules.
        energy: what the GPUs used; None on the CPU.
        accuracy: `top-1` and `top-5`, as far as labels are known.
        class_names: by class; None where they have none.
        facts: settings, versions, hardware: a table each, nested as in summary.json.
        notes: what else the reader should know, a sentence each.
    """

    title: str
    rate: float | None
    peak: float | None
    stages: Sequence[StageMean]
    preparation: Preparation
    verdict: Verdict | None = None
    energy: Energy | None = None
    accuracy: Sequence[tuple[str, Share]] = ()
    class_names: Sequence[str] | None = None
    facts: Mapping[str, Mapping[str, Any]] | None = None
    notes: Sequence[str] = ()


class Reporter:
    """Gathers what the page at `path` shows while a run goes on, and writes it at the end.

    Raises PipelineError without the extra.

    Attributes:
        answers: to be fed with every answer.
        timeline: fed by `observe`, which a Dashboard calls.
    """

    def __init__(self, path: Path, classes: int, label_of: Callable[[str], int | None] | None = None) -> None:
        """`classes` and `label_of`: see `pipeline.report.collector.Collector`."""
        self.path = path
        self.answers = Collector(classes, label_of)
        self.timeline = Timeline()
        self._pictured = threading.Event()
        self._given_up = False
        self._template = _environment().get_template("page.html")

    def observe(self, now_s: float, snapshot: Snapshot, load: Load | None) -> None:
        """Take the state of the run and of the machine at monotonic time `now_s`."""
        self.timeline.add(now_s, snapshot, load)

    def give_up(self) -> None:
        """Have `write`, in another thread, end its processes and return without a page."""
        self._given_up = True
        self._pictured.set()

    def write(self, ending: Ending) -> None:
        """Make the pictures and write the page, whole or not at all. Raises PipelineError."""
        collected = self.answers.collected()
        shown = [*collected.lowest, *collected.errors]
        pictures = make_pictures([_where(s) for s in shown], ending.preparation, over=self._pictured)
        if self._given_up:
            return
        text = self._template.render(_contents(ending, collected, self.timeline, pictures))
        try:
            write_atomically(self.path, text.encode())
        except OSError as error:
            why = error.strerror or error
            raise PipelineError(f"--report {self.path}: cannot be written: {why}; give it another place") from error


def readable(value: object) -> object:
    """Text in which all is seen: a byte of a name that is not UTF-8 as `\\xff`, what is not printable escaped."""
    if not isinstance(value, str) or value.isprintable() or hasattr(value, "__html__"):
        return value  # the last: a macro's output, of which every expression has been here
    return printable(NOT_UTF8.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", value))


# What os.fsdecode makes of such a byte.
NOT_UTF8 = re.compile("[\udc80-\udcff]")


def _environment() -> Any:
    jinja2 = require("jinja2", "report", "--report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "count": _count, "number": number, "name": _name}
    return environment


def _contents(ending: Ending, collected: Collected, timeline: Timeline, pictures: Sequence[Picture]) -> dict[str, Any]:
    """What the template shows."""
    tiles = [
        _Tile.of(shown, picture, ending.class_names)
        for shown, picture in zip([*collected.lowest, *collected.errors], pictures, strict=True)
    ]
    lowest = len(collected.lowest)
    return {
        "ending": ending,
        "collected": collected,
        "seconds": timeline.seconds,
        "accuracy": [(name, share.correct / share.total, share) for name, share in ending.accuracy],
        "charts": [chart for chart in _charts(timeline) if chart is not None],
        "classes": _top_classes(collected, ending.class_names),
        "used": int((collected.classes > 0).sum()),
        "strip": bars_path(collected.classes.tolist(), gap=0.0),
        "scores": _score_bars(collected),
        "median": _median(collected),
        "lowest": tiles[:lowest],
        "errors": tiles[lowest:],
        "facts": _facts(ending.facts or {}),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


@dataclass(frozen=True)
class _Tile:
    """A source that is shown by itself; `image` is a data URL, or empty where `why` says why there is none."""

    shown: Shown
    answer: str
    label: str
    image: str
    why: str

    @classmethod
    def of(cls, shown: Shown, picture: Picture, names: Sequence[str] | None) -> _Tile:
        image = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}" if picture.jpeg else ""
        answer = "" if shown.class_id is None else _class_name(shown.class_id, names)
        label = "" if shown.label is None else _class_name(shown.label, names)
        return cls(shown, answer, label, image, picture.why)

    @property
    def wrong(self) -> bool:
        return self.shown.label is not None and self.shown.label != self.shown.class_id


@dataclass(frozen=True)
class _Bar:
    """A bar of a histogram: its length as a share of the longest, and how many it stands for."""

    name: str
    share: float
    count: int


def _charts(timeline: Timeline) -> Iterator[Chart | None]:
    seconds, phases = timeline.seconds, timeline.phases
    yield over_time("Images per second", [Curve("images/s", timeline.rate())], seconds, filled=True, phases=phases)
    kinds: dict[str, list[Series]] = {}
    for series in timeline.series():
        kinds.setdefault(series.kind, []).append(series)

    def curves(kind: str, name: str) -> list[Curve]:
        return [Curve(name.format(s.name), timeline.means(s)) for s in kinds.get(kind, ())]

    busy = [*curves("busy", "{}"), *curves("cpu", "all cores")]
    yield over_time("Busy", busy, seconds, percent=True, phases=phases)
    yield over_time("GPU clock, MHz", curves("clock", "GPU {}"), seconds, unit="MHz", phases=phases)
    yield over_time("GPU power, W", curves("power", "GPU {}"), seconds, unit="W", phases=phases)


def _top_classes(collected: Collected, names: Sequence[str] | None) -> list[_Bar]:
    counts = collected.classes
    order = np.argsort(-counts, kind="stable")[:TOP_CLASSES]
    chosen = [int(c) for c in order if counts[c]]
    return [_Bar(_class_name(c, names), counts[c] / counts[chosen[0]], int(counts[c])) for c in chosen]


def _score_bars(collected: Collected) -> list[_Bar]:
    counts = collected.scores.reshape(SCORE_BARS, -1).sum(axis=1)
    largest = max(1, int(counts.max()))
    names = [f"{i / SCORE_BARS:.2f} to {(i + 1) / SCORE_BARS:.2f}" for i in range(SCORE_BARS)]
    return [_Bar(name, count / largest, int(count)) for name, count in zip(names, counts.tolist(), strict=True)]


def _median(collected: Collected) -> float | None:
    """The score that half of the answers have or exceed, to one bin."""
    if not collected.scored:
        return None
    return int(np.searchsorted(np.cumsum(collected.scores), collected.scored / 2)) / SCORE_BINS


def _facts(facts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]], int]]:
    """Each table: its name, its rows, and how many rows are left out."""
    tables = []
    for title, table in facts.items():
        rows = [(cut(name, LONGEST_FACT), cut(value, LONGEST_FACT)) for name, value in _flat(table)]
        tables.append((title, rows[:MOST_FACTS], max(0, len(rows) - MOST_FACTS)))
    return tables


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """What was given, a row each; what is None, or an empty list, was not."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{place}")
    elif isinstance(value, list | tuple):
        if value:
            yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, str(value)


def _where(shown: Shown) -> Locator | None:
    """Where its bytes are. Of an earlier run's answers only the key is known, which may be a file's name."""
    if shown.locator is None and "\0" not in shown.key and os.path.isfile(shown.key):
        return PathLocator(shown.key)
    return shown.locator


def _class_name(class_id: int, names: Sequence[str] | None) -> str:
    return names[class_id] if names is not None and 0 <= class_id < len(names) else f"class {class_id}"


def _count(value: int) -> str:
    return f"{value:,}"


def _name(text: str) -> str:
    """A name as it is shown, cut where it would fill the page."""
    return cut(str(readable(text)), LONGEST_NAME)

"""What a run knows before it classifies anything: the model, its classes' names, the sources' labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.classify.options import Options
from pipeline.commands.options import EngineOptions
from pipeline.commands.setup import Setup, set_up
from pipeline.errors import PipelineError
from pipeline.samples.classes import read_classes
from pipeline.samples.labels import BY_SHARD, Labels


@dataclass(frozen=True)
class Beginning:
    """`labels` are None where sources bring theirs or have none."""

    setup: Setup
    names: Sequence[str] | None
    labels: Labels | None


def begin(options: Options, engine: EngineOptions, say: Callable[[str], None]) -> Beginning:
    """Read what `options` name, for the engine that computes. Raises PipelineError or Int4CoreError."""
    setup = set_up(engine, say)
    classes = setup.network.classes
    names = read_classes(options.classes, setup.model, classes)
    labels = None
    if options.labels is not None and options.labels != BY_SHARD:
        labels = Labels.read(options.labels, options.sources, names, classes)
    if options.top > classes:
        raise PipelineError(f"--top {options.top}: the model has {classes} classes")
    return Beginning(setup, names, labels)

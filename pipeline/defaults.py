"""What a run uses when it is told nothing: a model and a few images that come with the package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from int4core.errors import ModelError
from int4core.model import Model
from int4core.random_model import random_model

DEMO_IMAGES = Path(__file__).parent / "demo"

# A small stand-in: one block a stage and a quarter of ResNet-50's width, 224x224 inputs, 1,000 classes.
_STAND_IN = {"blocks": (1, 1, 1, 1), "width": 16, "classes": 1000, "seed": 0}


@dataclass(frozen=True)
class DefaultModel:
    """A model folder, and what the user should know of it."""

    path: Path
    notice: str


def cache_folder() -> Path:
    """INT4CORE_CACHE, or int4core in the user's cache folder."""
    if named := os.environ.get("INT4CORE_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "int4core"


def default_model() -> DefaultModel:
    """The random-weight stand-in, written to the cache folder on first use."""
    path = cache_folder() / "untrained" / "model"
    try:
        Model.load(path)
    except ModelError:
        path.parent.mkdir(parents=True, exist_ok=True)
        random_model(**_STAND_IN).save(path)  # type: ignore[arg-type]
    return DefaultModel(
        path,
        "the model is UNTRAINED (random weights, made for trying the pipeline out): its answers mean "
        "nothing; name a trained one with --model",
    )

"""What a run uses by default: the model and the images that come with the package."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import PipelineError

DEMO_IMAGES = Path(__file__).parent / "demo"
DEFAULT_MODEL = Path(__file__).parents[1] / "model"


def default_model() -> Path:
    """The folder of the model that comes with a checkout or a wheel. Raises PipelineError without it."""
    if not (DEFAULT_MODEL / "model").is_file():
        raise PipelineError(
            f"{DEFAULT_MODEL}: the model that comes with this package is not there; install it again, "
            "or name a model folder with --model"
        )
    return DEFAULT_MODEL

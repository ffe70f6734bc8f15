"""The model of a process: the one that its run began with, whatever has come to the folder since."""

from __future__ import annotations

from pathlib import Path

from int4core.model import Model
from pipeline.errors import PipelineError

SHOWN = 12
"""Digits of a digest that a message quotes."""


def load_model(folder: Path, digest: str | None) -> Model:
    """The model in `folder`, whose `Model.digest` has to be `digest`; None: whichever is there.

    Raises ModelError, and PipelineError for another model.
    """
    model = Model.load(folder)
    if digest is not None and (found := model.digest) != digest:
        raise PipelineError(
            f"{folder}: is not the model that this run began with (SHA-256 {found[:SHOWN]}..., not "
            f"{digest[:SHOWN]}...): it was replaced meanwhile, or is another one on this machine; start again"
        )
    return model

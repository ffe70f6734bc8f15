"""The LoadGen of this machine, for the doctor."""

from __future__ import annotations

from importlib import metadata

from pipeline.errors import PipelineError
from pipeline.loadgen.binding import load_module
from pipeline.machine.probe import Library


def find_loadgen() -> Library:
    """The binding that runs would use: its version and place, or why there is none."""
    try:
        module = load_module()
    except PipelineError as error:
        return Library(error=str(error))
    try:
        version = metadata.version("mlcommons-loadgen")
    except metadata.PackageNotFoundError:
        version = ""
    return Library(version, str(module.__file__))

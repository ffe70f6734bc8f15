"""Libraries that not every installation has, asked for when they are needed and not before."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from int4core.install import install_command
from pipeline.errors import PipelineError


def is_installed(module: str) -> bool:
    """Whether a library is there; it is not imported."""
    return importlib.util.find_spec(module) is not None


def require(module: str, extra: str, what: str) -> Any:
    """Import `module`, which the package's `extra` brings.

    Raises PipelineError, saying that `what` needs it and how to install it, when it is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise PipelineError(
            f"{what} needs {library}, which cannot be imported ({error}): {install_command(extra)}"
        ) from error

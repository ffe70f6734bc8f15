"""A file of JSON, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from int4core.atomic import write_atomically
from pipeline.errors import PipelineError


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` to `path`. Raises PipelineError when it cannot be written."""
    try:
        write_atomically(path, json.dumps(values, indent=2, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written: {error.strerror}") from error

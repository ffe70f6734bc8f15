"""Files that a run writes at its end are tried before it begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipeline.errors import PipelineError

# A disk that takes no more than this takes no run's logs either.
TRIED_BYTES = 1 << 20


def check_file(option: str, file: Path) -> None:
    """Whether `file`, named with `option`, can be written: before a run, not after it. Raises PipelineError."""
    folder = file.parent
    if not os.path.isdir(folder):
        raise PipelineError(f"{option} {file}: there is no folder {folder}")
    if os.path.isdir(file):
        raise PipelineError(f"{option} {file}: is a folder; name a file in it")
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            if not os.access(file, os.W_OK):
                raise PipelineError(f"{option} {file}: no permission to write to it")
            return
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(file)).parent) as tried:
            tried.write(bytes(TRIED_BYTES))
    except OSError as error:
        raise PipelineError(f"{option} {file}: cannot be written: {error.strerror}; name another file") from error

"""Names of classes: a file with a name a line, in the order of their numbers."""

from __future__ import annotations

from pathlib import Path

from int4core.regular import read_regular
from pipeline.errors import PipelineError
from pipeline.samples.files import why_not_opened

CLASSES_NAME = "classes.txt"
MAX_CLASSES_BYTES = 2**24


def read_classes(path: Path | None, model: Path, count: int) -> tuple[str, ...] | None:
    """The names of the `count` classes of the model in the folder `model`.

    They are read from `path`, or else from the folder's classes.txt; None when there is neither. Raises PipelineError
    when the file cannot be read, is not UTF-8, or has another number of names, or a line without one.
    """
    if path is None:
        path = model / CLASSES_NAME
        if not path.exists():
            return None
    try:
        text = read_regular(path, MAX_CLASSES_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not a text file in UTF-8: {error}") from error
    except OSError as error:
        raise PipelineError(f"{path}: the names of the classes cannot be read: {why_not_opened(error)}") from error
    names = tuple(line.strip() for line in text.rstrip("\r\n").split("\n"))
    if len(names) != count:
        raise PipelineError(
            f"{path}: {len(names):,} lines, and the model has {count:,} classes; it takes a name a line"
        )
    if "" in names:
        raise PipelineError(f"{path}:{names.index('') + 1}: a line without a name; it takes a name a line")
    return names

"""Files by path or by URL: s3://, gs://, https:// and what else is installed for fsspec."""

from __future__ import annotations

import os
import re
from typing import Any, BinaryIO, cast

from int4core.regular import open_regular
from pipeline.errors import ImageError, PipelineError
from pipeline.extras import require
from pipeline.samples.files import why_not_opened

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Nobody is asked what is behind a URL that ends as a shard or a table does.
FOLDER = "it is a folder, not a file; name it with a / at the end"


def is_url(path: str) -> bool:
    return URL.match(path) is not None


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and the path in it. Raises PipelineError when a library is missing."""
    core = require("fsspec.core", "remote", f"{url}: a source by URL")
    try:
        found, path = core.url_to_fs(url)
    except ImportError as error:  # fsspec names the library of the protocol
        raise PipelineError(f"{url}: {error} (pip install it beside fsspec)") from error
    except Exception as error:  # each protocol has errors of its own
        raise PipelineError(f"{url}: {reason(error)}") from error
    return found, str(path)


def reason(error: Exception) -> str:
    """Why a file system's call failed, in one line; the errors of the libraries below fsspec are of any type."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_folder(files: Any, path: str) -> bool:
    try:
        return bool(files.isdir(path))
    except Exception:  # whatever has gone wrong before has done so again
        return False


def open_binary(path: str) -> BinaryIO:
    """The regular file or URL at `path`, open for reading, seekable. Raises ImageError."""
    if is_url(path):
        try:
            files, name = file_system(path)
        except PipelineError as error:
            raise ImageError(path, str(error).removeprefix(f"{path}: ")) from error
        try:
            return cast(BinaryIO, files.open(name, "rb"))
        except Exception as error:  # each protocol has errors of its own
            why = FOLDER if _is_folder(files, name) else reason(error)
            raise ImageError(path, why) from error
    try:
        with open_regular(path) as (descriptor, _):
            return open(os.dup(descriptor), "rb")
    except OSError as error:
        raise ImageError(path, why_not_opened(error)) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(path, f"not a file name: {error}") from error

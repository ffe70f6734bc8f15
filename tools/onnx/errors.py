"""Errors of the ONNX tool, and the one place that says how to install what it needs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from int4core.errors import FileError, Int4CoreError
from int4core.install import install_command


class OnnxError(Int4CoreError):
    """A network that a form cannot hold, or a comparison that failed; the message names the layer."""


class OnnxFileError(FileError):
    """An ONNX file that cannot be read, written or imported; `why` names the node."""


def need(modules: Sequence[str]) -> None:
    """Raises OnnxError, naming the extra, unless all of `modules` can be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise OnnxError(f"this command needs {name}: {install_command('interop')}") from error

"""Errors of the fine-tuning tool, and the one place that imports torch lazily."""

from __future__ import annotations

import importlib
from types import ModuleType

from int4core.install import install_command


class FinetuneError(Exception):
    """A step that cannot be done as asked; the message names the file or layer and the remedy."""


def need_torch() -> ModuleType:
    """The torch module. Raises FinetuneError, naming the extra, where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise FinetuneError(f"this command needs PyTorch: {install_command('train')}") from error

"""Errors of the fine-tuning tool, and the one place that imports torch lazily."""

from __future__ import annotations

import importlib
from types import ModuleType


class FinetuneError(Exception):
    """A step that cannot be done as asked; the message names the file or layer and the mend."""


def need_torch() -> ModuleType:
    """The torch module. Raises FinetuneError, naming the extra, where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise FinetuneError("this command needs PyTorch: pip install 'int4-resnet50[train]'") from error

"""Backends by name, imported only when asked for: a GPU's needs more than NumPy."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from int4core.backends.base import Backend
from int4core.errors import EngineError

if TYPE_CHECKING:
    from int4core.model import Model

BACKENDS = {
    "numpy": ("int4core.backends.numpy.backend", "NumpyBackend"),
    "cuda": ("int4core.backends.cuda.backend", "CudaBackend"),
}
"""Name -> module and class; the class takes (model, *, batch_size, **options)."""


def create_backend(name: str, model: Model, *, batch_size: int, **options: Any) -> Backend:
    """Build the backend called `name` for `model`.

    Raises:
        EngineError: the name is unknown, an option is not the backend's, or the backend cannot run here.
    """
    if name not in BACKENDS:
        raise EngineError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    module, attribute = BACKENDS[name]
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(f"backend {name!r} cannot be loaded: {error}") from error
    try:
        inspect.signature(factory).bind(model, batch_size=batch_size, **options)
    except TypeError as error:
        raise EngineError(f"backend {name!r}: {error}") from None
    backend: Backend = factory(model, batch_size=batch_size, **options)
    return backend


__all__ = ["BACKENDS", "Backend", "create_backend"]

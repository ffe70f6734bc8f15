"""Backends by name, imported only when asked for: a GPU's needs more than NumPy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from int4core.backends.base import Backend
from int4core.errors import EngineError
from int4core.install import install_command
from int4core.options import BackendOptions, CudaOptions, NumpyOptions, TorchOptions

if TYPE_CHECKING:
    from int4core.model import Model

BACKENDS: dict[str, tuple[str, str, type[BackendOptions]]] = {
    "numpy": ("int4core.backends.numpy.backend", "NumpyBackend", NumpyOptions),
    "torch": ("int4core.backends.torch.backend", "TorchBackend", TorchOptions),
    "cuda": ("int4core.backends.cuda.backend", "CudaBackend", CudaOptions),
}
"""Name -> module, class and the class of its options; the first takes (model, batch_size, options)."""

EXTRAS = ("torch",)
"""Backends that need an extra of their own name."""


def create_backend(name: str, model: Model, batch_size: int, options: BackendOptions | None = None) -> Backend:
    """Build the backend called `name` for `model`; without options, with its own defaults.

    Raises:
        EngineError: the name is unknown, the options are another backend's, or the backend cannot run here.
    """
    if name not in BACKENDS:
        raise EngineError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    module, attribute, kind = BACKENDS[name]
    if options is not None and not isinstance(options, kind):
        raise EngineError(f"backend {name!r} takes {kind.__name__}, not {type(options).__name__}")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        remedy = f": {install_command(name)}" if name in EXTRAS else ""
        raise EngineError(f"backend {name!r} cannot be loaded: {error}{remedy}") from error
    backend: Backend = factory(model, batch_size, options or kind())
    return backend


__all__ = ["BACKENDS", "Backend", "create_backend"]

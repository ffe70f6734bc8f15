"""What a run's results depend on, by version."""

from __future__ import annotations

import importlib.metadata
import platform

_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def versions() -> dict[str, str | None]:
    """Versions by name; None for what is not installed."""
    cupy = next((v for name in _CUPY if (v := installed(name)) is not None), None)
    return {
        "int4-resnet50": installed("int4-resnet50"),
        "python": platform.python_version(),
        "numpy": installed("numpy"),
        "pillow": installed("pillow"),
        "cupy": cupy,
        "torch": installed("torch"),
        "numba": installed("numba"),
    }


def installed(name: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

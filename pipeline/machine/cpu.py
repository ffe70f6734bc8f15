"""Which backend computes on the CPU: PyTorch's convolutions where they are installed, NumPy where they are not."""

from __future__ import annotations

import importlib.util
import platform

from int4core.install import install_command
from pipeline.errors import PipelineError

CPU_BACKENDS = ("auto", "torch", "numpy")

TITLES = {"torch": "PyTorch", "numpy": "NumPy"}

TORCH_NEEDS = ("torch", "numba")
"""What the backend `torch` imports."""

MACHINES = ("x86_64", "AMD64")
"""Where PyTorch has oneDNN's integer convolutions; elsewhere it is taken when it is asked for."""


def choose_cpu(requested: str) -> str:
    """The engine's backend that a `--cpu-backend` choice means; nothing is imported.

    Raises PipelineError when `torch` is asked for and a library of it is not installed.
    """
    missing = missing_of_torch()
    if requested == "torch" and missing:
        raise PipelineError(f"--cpu-backend torch: {' and '.join(missing)} not installed: {install_command('torch')}")
    if requested == "auto":
        return "numpy" if missing or platform.machine() not in MACHINES else "torch"
    return requested


def missing_of_torch() -> tuple[str, ...]:
    """What of TORCH_NEEDS is not installed."""
    return tuple(name for name in TORCH_NEEDS if importlib.util.find_spec(name) is None)

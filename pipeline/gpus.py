"""Which GPUs are here, and which backend a `--gpu` choice means."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

import pynvml

from int4core.backends import BACKENDS
from pipeline.errors import PipelineError

# The names the driver gives these chips, as whole words: `NVIDIA A100-SXM4-80GB`, `Tesla T4`.
_CHIPS = {
    "t4": r"\bT4\b",
    "titan_rtx": r"\bTITAN RTX\b",
    "a100": r"\bA100\b",
    "l4": r"\bL4\b",
    "h100": r"\bH100\b",
    "h200": r"\bH200\b",
}
GPU_CHOICES = ("auto", "cpu", *_CHIPS)


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver names it; `key` is our name for the chip, None for one we have no name for."""

    index: int
    name: str
    key: str | None


@dataclass(frozen=True)
class Target:
    """What a run runs on: the engine's backend, the GPU if any, and what to tell the user about it."""

    backend: str
    gpu: Gpu | None
    notice: str


def chip_of(name: str) -> str | None:
    """Our name for the chip that the driver calls `name`."""
    return next((key for key, pattern in _CHIPS.items() if re.search(pattern, name)), None)


def list_gpus() -> tuple[Gpu, ...]:
    """Every GPU the driver shows; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
            name = name.decode() if isinstance(name, bytes) else name
            found.append(Gpu(index, name, chip_of(name)))
        return tuple(found)
    finally:
        pynvml.nvmlShutdown()


def choose(requested: str, gpus: tuple[Gpu, ...] | None = None) -> Target:
    """Turn a `--gpu` choice into a target.

    `auto` takes the first GPU, or the CPU where there is none or the engine has no backend for GPUs; a
    chip by name takes that chip or fails. Raises PipelineError when it cannot be had: the chip, the
    backend, or CuPy.
    """
    if requested == "cpu":
        return Target("numpy", None, "CPU, as asked")
    gpus = list_gpus() if gpus is None else gpus
    here = ", ".join(f"{g.index}: {g.name}" for g in gpus) or "no NVIDIA GPU that the driver shows"
    if requested == "auto":
        if not gpus:
            return Target("numpy", None, "CPU: no NVIDIA GPU was found")
        gpu = gpus[0]
        if "cuda" not in BACKENDS:
            return Target("numpy", None, f"CPU: this version computes on no GPU yet, {gpu.name} included")
    else:
        matching = [g for g in gpus if g.key == requested]
        if not matching:
            raise PipelineError(f"--gpu {requested}: not here ({here}); use --gpu auto or --gpu cpu")
        gpu = matching[0]
        if "cuda" not in BACKENDS:
            raise PipelineError(f"--gpu {requested}: this version computes on no GPU yet; use --gpu cpu")
    if importlib.util.find_spec("cupy") is None:
        raise PipelineError(
            f"GPU {gpu.index} is a {gpu.name}, but CuPy is not installed: "
            "pip install 'int4-resnet50[cuda12]' (driver for CUDA 12) or 'int4-resnet50[cuda13]'; "
            "or run on the CPU with --gpu cpu"
        )
    return Target("cuda", gpu, f"GPU {gpu.index}: {gpu.name}")

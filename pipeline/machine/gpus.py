"""Which GPUs are here, and which backend a `--gpu` choice means."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import pynvml

from int4core.backends.cuda.chips import CHIPS, name_of
from int4core.install import install_command
from pipeline.errors import PipelineError
from pipeline.machine.cpu import TITLES, choose_cpu

GPU_CHOICES = ("auto", "cpu", *CHIPS)


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver names it.

    Attributes:
        key: our name for the chip, None for one we have no name for.
        bus_id: its PCI address, empty where the driver does not report it.
    """

    index: int
    name: str
    key: str | None
    bus_id: str = ""


@dataclass(frozen=True)
class Target:
    """What a run runs on: the engine's backend, the GPUs if any, and what to report to the user.

    A GPU may be there twice: then two engines share it.
    """

    backend: str
    gpus: tuple[Gpu, ...]
    notice: str

    @property
    def gpu(self) -> Gpu | None:
        """The first of them."""
        return self.gpus[0] if self.gpus else None

    @property
    def key(self) -> str | None:
        """Our name of the chip, None without one or when the chips differ."""
        keys = {gpu.key for gpu in self.gpus}
        return keys.pop() if len(keys) == 1 else None

    @property
    def bus_ids(self) -> tuple[str, ...]:
        """PCI addresses, one per GPU; empty when one is not known: then CUDA's current GPU is taken."""
        ids = tuple(gpu.bus_id for gpu in self.gpus)
        return ids if all(ids) else ()


def list_gpus() -> tuple[Gpu, ...]:
    """Every GPU the driver shows; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            found.append(Gpu(index, name, name_of(name), bus_id_of(handle)))
        return tuple(found)
    finally:
        pynvml.nvmlShutdown()


def bus_id_of(handle: Any) -> str:
    """The PCI address of an NVML device, empty where the driver does not report it."""
    try:
        return _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
    except pynvml.NVMLError:
        return ""


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def choose_target(
    requested: str,
    gpus: tuple[Gpu, ...] | None = None,
    numbers: tuple[int, ...] | None = None,
    cpu_backend: str = "auto",
) -> Target:
    """Turn a `--gpu` choice, the `--gpus` numbers where some were given, and a `--cpu-backend` choice into a target.

    `auto` takes the first GPU, or the CPU where there is none; a chip by name takes that chip or fails. Raises
    PipelineError when it cannot be had: the chip, CuPy, or the backend of the CPU.
    """
    if requested == "cpu":
        return _cpu(cpu_backend, "as asked")
    gpus = list_gpus() if gpus is None else gpus
    here = ", ".join(f"{g.index}: {g.name}" for g in gpus) or "no NVIDIA GPU that the driver shows"
    chosen = _chosen(requested, gpus, numbers, here)
    if not chosen:
        return _cpu(cpu_backend, "no NVIDIA GPU was found")
    if importlib.util.find_spec("cupy") is None:
        raise PipelineError(
            f"GPU {chosen[0].index} is a {chosen[0].name}, but CuPy is not installed: "
            f"{install_command('cuda13')} (cuda12 with a driver for CUDA 12); "
            "or run on the CPU with --gpu cpu"
        )
    return Target("cuda", chosen, ", ".join(f"GPU {gpu.index}: {gpu.name}" for gpu in chosen))


def _cpu(backend: str, why: str) -> Target:
    chosen = choose_cpu(backend)
    return Target(chosen, (), f"CPU by {TITLES[chosen]}: {why}")


def _chosen(requested: str, gpus: tuple[Gpu, ...], numbers: tuple[int, ...] | None, here: str) -> tuple[Gpu, ...]:
    """The GPUs that were asked for; none only for `auto` without numbers where there is none."""
    if numbers is not None:
        by_index = {gpu.index: gpu for gpu in gpus}
        missing = [number for number in numbers if number not in by_index]
        if missing:
            raise PipelineError(f"--gpus {','.join(map(str, numbers))}: {missing[0]} is not here ({here})")
        chosen = tuple(by_index[number] for number in numbers)
        other = [gpu for gpu in chosen if requested not in ("auto", gpu.key)]
        if other:
            raise PipelineError(f"--gpus: GPU {other[0].index} is a {other[0].name}, not a {requested} ({here})")
        unknown = [gpu for gpu in chosen if not gpu.bus_id]
        if unknown and len(gpus) > 1:
            raise PipelineError(
                f"--gpus: the driver does not report the PCI address of GPU {unknown[0].index}: which of them it is "
                "is not known; leave --gpus out, and choose the GPU with CUDA_VISIBLE_DEVICES"
            )
        return chosen
    if requested == "auto":
        return gpus[:1]
    matching = tuple(gpu for gpu in gpus if gpu.key == requested)
    if not matching:
        raise PipelineError(f"--gpu {requested}: not here ({here}); use --gpu auto or --gpu cpu")
    return matching[:1]

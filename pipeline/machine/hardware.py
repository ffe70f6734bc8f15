"""The machine a run is on: what it has, for the record, and how busy it is, for the dashboard."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pynvml

from int4core.cores import usable_cores

MOST_LOADERS = 32


@dataclass(frozen=True)
class GpuLoad:
    """One GPU at one moment; a field is None where the driver does not report it.

    Attributes:
        busy: 0..1.
        energy_j: what it has used since the driver was loaded.
    """

    index: int
    name: str
    busy: float | None
    memory_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None
    power_limit_w: float | None
    clock_mhz: int | None
    temperature_c: int | None
    energy_j: float | None = None


@dataclass(frozen=True)
class Load:
    """The machine at one moment; `cpu` is the share of all cores that is busy, 0..1."""

    cores: int
    cpu: float
    memory_bytes: int
    memory_total_bytes: int
    gpus: tuple[GpuLoad, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Monitor:
    """Reads the load since its reading before. Take one per second at most: each costs system calls."""

    def __init__(self, gpus: tuple[int, ...] | None = None) -> None:
        """`gpus`: driver indices to watch; None watches all there are."""
        self._nvml = _start_nvml()
        self._gpus: list[tuple[int, Any, str]] = []
        if self._nvml:
            for index in range(pynvml.nvmlDeviceGetCount()) if gpus is None else gpus:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                self._gpus.append((index, handle, _text(pynvml.nvmlDeviceGetName(handle))))
        self._cores = usable_cores()
        psutil.cpu_percent(None)

    def read(self) -> Load:
        memory = psutil.virtual_memory()
        return Load(
            cores=self._cores,
            cpu=psutil.cpu_percent(None) / 100,
            memory_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            gpus=tuple(_read_gpu(*gpu) for gpu in self._gpus),
        )

    def close(self) -> None:
        """Safe to call twice."""
        if self._nvml:
            self._nvml = False
            self._gpus = []
            pynvml.nvmlShutdown()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def default_loaders() -> int:
    """Loader processes of a run that is not given how many: one per core, within reason."""
    return min(MOST_LOADERS, usable_cores())


def describe_machine() -> dict[str, Any]:
    """What the machine has, for summary.json: CPU, cores, memory in bytes, GPUs and their driver."""
    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": usable_cores(),
        "cores_of_machine": psutil.cpu_count(logical=True),
        "physical_cores_of_machine": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [],
    }
    if not _start_nvml():
        return machine
    try:
        machine["nvidia_driver"] = _text(pynvml.nvmlSystemGetDriverVersion())
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            load = _read_gpu(index, handle, _text(pynvml.nvmlDeviceGetName(handle)))
            machine["gpus"].append(
                {
                    "index": index,
                    "name": load.name,
                    "memory_bytes": load.memory_total_bytes,
                    "power_limit_w": load.power_limit_w,
                    "clock_limit_mhz": _ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
                    "memory_clock_mhz": _ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM),
                }
            )
    finally:
        pynvml.nvmlShutdown()
    return machine


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _start_nvml() -> bool:
    """Whether there is an NVIDIA driver to ask."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def _read_gpu(index: int, handle: Any, name: str) -> GpuLoad:
    use = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    energy_mj = _ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return GpuLoad(
        index=index,
        name=name,
        busy=None if use is None else use.gpu / 100,
        memory_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        clock_mhz=_ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        energy_j=None if energy_mj is None else energy_mj / 1000,
    )


def _ask(question: Callable[..., Any], *args: Any) -> Any:
    """None for what this GPU or driver does not report (a MIG slice has no utilisation, say)."""
    try:
        return question(*args)
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

"""Images per joule and the clock under load: of made-up readings, and of an NVML that is none."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from pipeline.machine.hardware import GpuLoad, Load
from pipeline.report.dashboard import Dashboard
from pipeline.report.energy import EnergyMeter, GpuUse
from pipeline.telemetry.metrics import Snapshot
from tests.pipeline.conftest import PATIENCE_S


def snapshot(phase: str, completed: int) -> Snapshot:
    return Snapshot(phase, 0.0, completed, 1000, 0.0, 0.0, (), 0.0, 0.0)


def gpu(index: int = 0, **known: Any) -> GpuLoad:
    unknown = dict.fromkeys(("busy", "memory_bytes", "memory_total_bytes", "power_w", "power_limit_w", "clock_mhz"))
    return GpuLoad(index, "NVIDIA H200", **(unknown | {"temperature_c": None} | known))


def load(*gpus: GpuLoad) -> Load:
    return Load(4, 0.5, 1, 2, gpus)


def test_only_what_is_used_while_running_counts() -> None:
    meter = EnergyMeter()
    meter.add(10.0, snapshot("starting", 0), load(gpu(energy_j=100.0, clock_mhz=300, busy=0.0)))
    meter.add(20.0, snapshot("running", 0), load(gpu(energy_j=500.0, clock_mhz=1980, busy=0.5)))
    meter.add(21.0, snapshot("running", 60_000), load(gpu(energy_j=1000.0, clock_mhz=1800, busy=1.0)))
    meter.add(24.0, snapshot("done", 300_000), load(gpu(energy_j=2500.0, clock_mhz=1700, busy=0.9)))
    meter.add(30.0, snapshot("done", 300_000), load(gpu(energy_j=3000.0, clock_mhz=300, busy=0.0)))
    energy = meter.energy()
    assert energy is not None
    assert (energy.images, energy.seconds) == (300_000, 4.0)
    assert energy.gpus == (GpuUse(0, "NVIDIA H200", 2000.0, 500.0, (1800 + 3 * 1700) / 4),)
    assert energy.images_per_joule == 150.0
    assert str(energy) == "GPU 0: 500 W at 1,725 MHz; 150 images/J"
    assert energy.as_dict() == {
        "images_per_joule": 150.0,
        "images": 300_000,
        "seconds": 4.0,
        "gpus": ({"index": 0, "name": "NVIDIA H200", "energy_j": 2000.0, "power_w": 500.0, "clock_mhz": 1725.0},),
    }


def test_of_several_gpus_all_count_and_one_without_a_counter_has_its_power_added_up() -> None:
    meter = EnergyMeter()
    for second, joules in ((0.0, 0.0), (1.0, 300.0), (2.0, 600.0)):
        state = snapshot("running", int(1000 * second))
        meter.add(second, state, load(gpu(0, energy_j=joules, clock_mhz=1500), gpu(3, power_w=100.0, busy=0.0)))
    energy = meter.energy()
    assert energy is not None
    assert str(energy) == "GPU 0: 300 W at 1,500 MHz; GPU 3: 100 W; 2.5 images/J"


def test_what_is_not_reported_is_not_made_up() -> None:
    meter = EnergyMeter()
    for second, power in ((0.0, 200.0), (1.0, 200.0), (2.0, None)):
        meter.add(second, snapshot("running", int(second)), load(gpu(0, power_w=power), gpu(1)))
    energy = meter.energy()
    assert energy is not None
    assert energy.images_per_joule is None
    assert [use.energy_j for use in energy.gpus] == [None, None]
    assert str(energy) == "GPU 0: 200 W; GPU 1: power and clock not reported"


def test_nothing_is_said_without_a_gpu_or_an_answer() -> None:
    for gpus, answered in (((), 100), ((gpu(energy_j=1.0),), 0)):
        meter = EnergyMeter()
        meter.add(0.0, snapshot("running", 0), load(*gpus))
        meter.add(1.0, snapshot("done", answered), load(*gpus))
        assert meter.energy() is None


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver with one GPU, whose counter of energy, in millijoules, is set by the test."""
    driver = SimpleNamespace(energy_mj=1_000_000)

    def unknown(*_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: "NVIDIA H200",
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=98),
        "nvmlDeviceGetMemoryInfo": unknown,
        "nvmlDeviceGetPowerUsage": lambda _: 642_000,
        "nvmlDeviceGetEnforcedPowerLimit": unknown,
        "nvmlDeviceGetClockInfo": lambda *_: 1755,
        "nvmlDeviceGetTemperature": unknown,
        "nvmlDeviceGetTotalEnergyConsumption": lambda _: driver.energy_mj,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    return driver


def test_a_dashboard_reads_the_driver_where_running_begins_and_ends(nvml: SimpleNamespace) -> None:
    state = snapshot("starting", 0)
    seen = {phase: threading.Event() for phase in ("starting", "running", "done")}

    def observe(_now: float, shown: Snapshot, _load: Load | None) -> None:
        seen[shown.phase].set()

    with Dashboard(lambda: state, "t", mode="plain", interval=0.01, stream=io.StringIO(), observe=observe) as dashboard:
        assert seen["starting"].wait(PATIENCE_S)
        nvml.energy_mj, state = 2_000_000, snapshot("running", 0)
        assert seen["running"].wait(PATIENCE_S)
        nvml.energy_mj, state = 12_000_000, snapshot("done", 5000)
        assert seen["done"].wait(PATIENCE_S)
        nvml.energy_mj = 99_000_000
    energy = dashboard.energy.energy()
    assert dashboard.error is None
    assert energy is not None
    assert (energy.images, energy.gpus[0].energy_j, energy.gpus[0].clock_mhz) == (5000, 10_000.0, 1755.0)
    assert energy.images_per_joule == 0.5


def test_a_run_on_the_cpu_reads_no_gpu(nvml: SimpleNamespace) -> None:
    with Dashboard(lambda: snapshot("running", 9), "t", mode="plain", stream=io.StringIO(), gpus=()) as dashboard:
        pass
    assert dashboard.energy.energy() is None

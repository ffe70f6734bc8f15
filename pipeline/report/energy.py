"""What a run's images cost its GPUs: energy, and the clock that they ran at."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.machine.hardware import GpuLoad, Load
from pipeline.telemetry.metrics import Snapshot


@dataclass(frozen=True)
class GpuUse:
    """A GPU while the run answered; a field is None where the driver does not report it.

    Attributes:
        index: the driver's.
        energy_j: by the driver's counter of energy, or by its power over time where it has none.
        power_w: the mean.
        clock_mhz: of the multiprocessors, the mean while the GPU was at work.
    """

    index: int
    name: str
    energy_j: float | None
    power_w: float | None
    clock_mhz: float | None


@dataclass(frozen=True)
class Energy:
    """What was used in the `seconds` in which `images` were answered; loading and warming up are not among them."""

    images: int
    seconds: float
    gpus: tuple[GpuUse, ...]

    @property
    def images_per_joule(self) -> float | None:
        """Of all GPUs of the run together; None where one of them does not report what it uses."""
        used = [gpu.energy_j for gpu in self.gpus if gpu.energy_j is not None]
        total = sum(used)
        return self.images / total if len(used) == len(self.gpus) and total > 0 else None

    @property
    def states(self) -> str:
        """`GPU 0: 512 W at 1,755 MHz`, of each."""
        return "; ".join(f"GPU {gpu.index}: {_state(gpu)}" for gpu in self.gpus)

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return {"images_per_joule": self.images_per_joule, **asdict(self)}

    def __str__(self) -> str:
        """`GPU 0: 512 W at 1,755 MHz; 251 images/J`."""
        ratio = self.images_per_joule
        return self.states if ratio is None else f"{self.states}; {ratio:.3g} images/J"


def _state(gpu: GpuUse) -> str:
    power = None if gpu.power_w is None else f"{gpu.power_w:,.0f} W"
    clock = None if gpu.clock_mhz is None else f"{gpu.clock_mhz:,.0f} MHz"
    return " at ".join(part for part in (power, clock) if part) or "power and clock not reported"


@dataclass
class _Account:
    """One GPU's sums. `counter_j`: the driver's counter at the reading before."""

    name: str
    counter_j: float | None
    energy_j: float = 0.0
    known_s: float = 0.0
    clock_mhz_s: float = 0.0
    at_work_s: float = 0.0

    def add(self, gpu: GpuLoad, span_s: float) -> None:
        before, self.counter_j = self.counter_j, gpu.energy_j
        if before is not None and gpu.energy_j is not None:
            self.energy_j += gpu.energy_j - before
            self.known_s += span_s
        elif gpu.power_w is not None:
            self.energy_j += gpu.power_w * span_s
            self.known_s += span_s
        if gpu.clock_mhz is not None and gpu.busy != 0:
            self.clock_mhz_s += gpu.clock_mhz * span_s
            self.at_work_s += span_s

    def use(self, index: int, seconds: float) -> GpuUse:
        known = self.known_s > 0
        return GpuUse(
            index=index,
            name=self.name,
            energy_j=self.energy_j if known and self.known_s >= seconds else None,
            power_w=self.energy_j / self.known_s if known else None,
            clock_mhz=self.clock_mhz_s / self.at_work_s if self.at_work_s > 0 else None,
        )


@dataclass
class EnergyMeter:
    """Fed with every reading of the machine's load, by one thread; what counts lies between readings while running."""

    _gpus: dict[int, _Account] = field(default_factory=dict)
    _before: tuple[float, int] | None = None
    _seconds: float = 0.0
    _images: int = 0

    def add(self, now_s: float, snapshot: Snapshot, load: Load) -> None:
        """Take the reading of monotonic time `now_s`, and the run's state at it."""
        if self._before is not None:
            time_s, completed = self._before
            self._seconds += now_s - time_s
            self._images += snapshot.completed - completed
        for gpu in load.gpus:
            account = self._gpus.setdefault(gpu.index, _Account(gpu.name, gpu.energy_j))
            if self._before is None:
                account.counter_j = gpu.energy_j
            else:
                account.add(gpu, now_s - self._before[0])
        self._before = (now_s, snapshot.completed) if snapshot.phase == "running" else None

    def energy(self) -> Energy | None:
        """What has been used so far; None without a GPU, or before anything was answered."""
        if not self._gpus or not self._images:
            return None
        gpus = tuple(account.use(index, self._seconds) for index, account in sorted(self._gpus.items()))
        return Energy(self._images, self._seconds, gpus)

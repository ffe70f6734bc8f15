"""What a run of one of our commands asks of its machine while it is `running`: cores, memory, PCIe.

The command is started with `--json`; its snapshots say when it is at work, and readings are taken from then to its end.

- Cores: the CPU seconds of all its processes, which the kernel counts.
- Memory: /proc counts no traffic of memory. Where the kernel's resctrl is mounted and the CPU monitors bandwidth, that
  is read: of the whole machine, whoever causes it. Elsewhere nothing is measured here.
- PCIe: what GPUs receive, by NVML, which samples it for 20 ms each time it is asked: a mean of samples.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import psutil
import pynvml

from pipeline.errors import PipelineError

RESCTRL = Path("/sys/fs/resctrl/mon_data")
EVERY_S = 0.5
LAST_WORDS = 3000


@dataclass(frozen=True)
class HostLoad:
    """Means over the seconds that a run was seen at work; None for what was not measured.

    Attributes:
        seconds: between the first and the last reading.
        cores: busy with all processes of the run.
        main_cores: of these, with the process that was started, whose Python is one thread at a time.
        busiest_cores: of these, with the busiest of the others.
        memory_bytes_s: to and from memory, of the whole machine.
        pcie_bytes_s: received by the GPUs together.
        answers_s: answers/s between the first and the last of its snapshots.
    """

    seconds: float = 0.0
    cores: float | None = None
    main_cores: float | None = None
    busiest_cores: float | None = None
    memory_bytes_s: float | None = None
    pcie_bytes_s: float | None = None
    answers_s: float | None = None


@dataclass(frozen=True)
class _Reading:
    """Counters at one moment; `main_s`, `all_s` and `others_s`, by process, are CPU seconds, `memory` is in bytes."""

    at_s: float
    main_s: float
    all_s: float
    memory: int | None
    others_s: Mapping[int, float]


@dataclass
class _Readings:
    """The first and the last while the run is at work, and NVML's samples in bytes/s."""

    first: _Reading | None = None
    last: _Reading | None = None
    pcie: list[float] = field(default_factory=list)

    def add(self, reading: _Reading | None, pcie: float | None) -> None:
        if reading is None:
            return
        self.first, self.last = self.first or reading, reading
        if pcie is not None:
            self.pcie.append(pcie)

    def load(self) -> HostLoad:
        first, last = self.first, self.last
        pcie = sum(self.pcie) / len(self.pcie) if self.pcie else None
        if first is None or last is None or last.at_s <= first.at_s:
            return HostLoad(pcie_bytes_s=pcie)
        seconds = last.at_s - first.at_s
        lived = first.others_s.keys() & last.others_s
        busiest_s = max((last.others_s[pid] - first.others_s[pid] for pid in lived), default=0.0)
        memory = None if first.memory is None or last.memory is None else (last.memory - first.memory) / seconds
        return HostLoad(
            seconds,
            # A process that ends in between takes its seconds along until its parent has waited for it.
            max(0.0, last.all_s - first.all_s) / seconds,
            max(0.0, last.main_s - first.main_s) / seconds,
            busiest_s / seconds,
            memory,
            pcie,
        )


class Snapshots:
    """What a run says of itself, a line of JSON a snapshot."""

    def __init__(self) -> None:
        self.at_work = threading.Event()
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def follow(self, lines: Iterable[str]) -> None:
        """Read all there is; `at_work` says whether the last snapshot was of a run at work."""
        for line in lines:
            try:
                said = json.loads(line)
                running, seen = said["phase"] == "running", (float(said["elapsed_s"]), int(said["completed"]))
            except (ValueError, KeyError, TypeError):
                continue  # no snapshot; it is read all the same, so that the run is not held up
            if running:
                self._first, self._last = self._first or seen, seen
                self.at_work.set()
            else:
                self.at_work.clear()

    @property
    def answers_s(self) -> float | None:
        """Answers/s between the first and the last snapshot of a run at work; None for fewer than two."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


class PcieCounters:
    """What the GPUs of these driver numbers receive, by NVML."""

    def __init__(self, gpus: Sequence[int]) -> None:
        self._held = ExitStack()
        self._handles = []
        if gpus:
            pynvml.nvmlInit()
            self._held.callback(pynvml.nvmlShutdown)
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in gpus]

    def read(self) -> float | None:
        """Bytes/s of all of them together at this moment; None without a GPU, or where one does not report it."""
        if not self._handles:
            return None
        try:
            # In KB, which are 1,000 bytes by NVML's own description of the counter.
            return 1e3 * sum(
                float(pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES))
                for handle in self._handles
            )
        except pynvml.NVMLError:
            return None

    def __enter__(self) -> PcieCounters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


def memory_traffic(resctrl: Path = RESCTRL) -> int | None:
    """Bytes to and from memory since some moment, by resctrl's counters; None where there are none."""
    try:
        counts = [int(file.read_text()) for file in resctrl.glob("mon_L3_*/mbm_total_bytes")]
    except (OSError, ValueError):
        return None  # not readable, or `Unavailable`
    return sum(counts) if counts else None


def watch(
    command: Sequence[object],
    folder: Path,
    gpus: Sequence[int],
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> HostLoad:
    """Run `python -m` one of our commands, which takes `--json`, in `folder`; what it asked of the machine.

    `environment` is added to this process's own.

    Raises PipelineError, with its last words, when it fails or does not end within `timeout_s`.
    """
    given = [sys.executable, "-m", *map(str, command), "--json"]
    with tempfile.TemporaryFile("w+") as said, PcieCounters(gpus) as pcie:
        process = subprocess.Popen(
            given, cwd=folder, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, **(environment or {})}
        )
        assert process.stdout is not None
        snapshots = Snapshots()
        follower = threading.Thread(target=snapshots.follow, args=(process.stdout,), daemon=True)
        follower.start()
        readings, until, why = _Readings(), time.monotonic() + timeout_s, ""
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(EVERY_S)
            if snapshots.at_work.is_set():
                readings.add(_read(process.pid), pcie.read())
            if time.monotonic() >= until:
                why = f"did not end within {timeout_s:g} s"
                process.terminate()
                process.wait()
        follower.join()
        process.stdout.close()
        said.seek(0)
        if process.returncode:
            why = why or f"ended with {process.returncode}"
            raise PipelineError(f"{' '.join(given[1:])} {why}: {said.read()[-LAST_WORDS:].strip()}")
    return replace(readings.load(), answers_s=snapshots.answers_s)


def _read(pid: int) -> _Reading | None:
    """None once the process is gone."""
    others_s: dict[int, float] = {}
    try:
        root = psutil.Process(pid)
        main_s, all_s = _cpu_s(root, own=True), _cpu_s(root, own=False)
        for process in root.children(recursive=True):
            with suppress(psutil.Error):
                others_s[process.pid] = _cpu_s(process, own=False)
    except psutil.Error:
        return None
    return _Reading(time.monotonic(), main_s, all_s + sum(others_s.values()), memory_traffic(), others_s)


def _cpu_s(process: psutil.Process, *, own: bool) -> float:
    """CPU seconds of a process; not `own` alone: and of those below it that it has seen the end of."""
    times = process.cpu_times()
    seconds = float(times.user + times.system)
    return seconds if own else seconds + float(times.children_user + times.children_system)

"""A GPU at work for seconds on end, where its power limit rules: time, and the energy by the board's own counter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pynvml

CHUNK_S = 0.05
"""Replays of about this long are handed to the GPU at a time."""


@dataclass(frozen=True)
class OnEnd:
    """Work done over and over: microseconds, millijoules and mean watts of one time."""

    us: float
    mj: float
    watts: float

    def __str__(self) -> str:
        return f"on end {self.us:9.1f} us {self.mj:9.2f} mJ {self.watts:6.1f} W"


class Board:
    """A GPU's own count of the energy it has used."""

    def __init__(self, bus_id: str) -> None:
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)

    def on_end(self, stream: Any, launch: Any, us: float, seconds: float) -> OnEnd:
        """Call `launch`, which takes about `us` microseconds on the stream, for `seconds` on end."""
        count = max(1, int(CHUNK_S * 1e6 / us))
        stream.synchronize()
        done, began, before = 0, time.perf_counter(), pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)
        while time.perf_counter() - began < seconds:
            for _ in range(count):
                launch()
            stream.synchronize()
            done += count
        took = time.perf_counter() - began
        used_mj = float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) - before)
        return OnEnd(took / done * 1e6, used_mj / done, used_mj / 1e3 / took)

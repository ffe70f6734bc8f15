"""Reading the raw page of Nsight Compute as CSV: one row a kernel, one column a metric, the units in the row below.

Metrics: https://docs.nvidia.com/nsight-compute/ProfilingGuide/index.html, "Metrics Structure" and "Metrics Reference".
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import PipelineError
from tools.passes import Launch, name_layers

_DURATION = "gpu__time_duration.sum"
_ISSUE = "sm__inst_issued.avg.pct_of_peak_sustained_active"
_OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
_L2 = "lts__throughput.avg.pct_of_peak_sustained_elapsed"
_REGISTERS = "launch__registers_per_thread"
_DRAM = (
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
)
_SHARED = ("launch__shared_mem_per_block_static", "launch__shared_mem_per_block_dynamic")
_TENSOR_CYCLES = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"

METRICS = (_DURATION, _TENSOR_CYCLES, _ISSUE, _OCCUPANCY, _L2, _DRAM[0], _REGISTERS, *_SHARED)
"""What the table needs, whatever the sections of an ncu version hold."""

_TENSOR_PIPES = re.compile(r"sm__(?:inst_executed_)?pipe_tensor\w*\.avg\.pct_of_peak_sustained_(?:active|elapsed)")
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(?!\w*not_issued)(\w+)_per_issue_active\.ratio")

_TO_US = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
_TO_BYTES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6}


@dataclass(frozen=True)
class KernelMetrics:
    """A kernel's figures; a share is in percent of the peak, and None is a metric that was not collected.

    Attributes:
        layer: of a kernel in a whole pass over the network, else ``.
        stream: on which it ran, with the process.
        us: duration of the launch, with cold caches.
        tensor: the tensor pipe's busy cycles, or its share of issue where cycles are not reported.
        issue: issue slots used.
        shared_bytes: a block, static and dynamic.
        stall: the reason that warps wait for longest, with the warps that wait so on average at an issue.
    """

    name: str
    stream: str
    us: float
    tensor: float | None
    issue: float | None
    dram: float | None
    l2: float | None
    registers: int | None
    shared_bytes: int | None
    occupancy: float | None
    stall: str
    layer: str = ""


def parse(text: str, one_pass: Sequence[Launch] = ()) -> tuple[KernelMetrics, ...]:
    """The kernels of ncu's output `--csv --page raw`, in launch order. Lines around the table are passed over.

    Raises PipelineError, with what ncu said, when there is no table or it is not of the raw page.
    """
    # A program's own output may stand in between; rows of the table are the lines that begin with a quote.
    rows = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if len(rows) < 3:
        raise PipelineError(explain(text) or "ncu wrote no table: its output is empty or not of --csv --page raw")
    names, units, *kernels = rows
    if "Kernel Name" not in names or _DURATION not in names:
        raise PipelineError(
            f"ncu's table has no columns `Kernel Name` and `{_DURATION}`; it has to be made with --csv --page raw"
        )
    unit_of = dict(zip(names, units, strict=False))
    parsed = [_kernel(dict(zip(names, row, strict=False)), unit_of) for row in kernels if len(row) == len(names)]
    return tuple(_with_layers(parsed, one_pass))


def _kernel(row: Mapping[str, str], units: Mapping[str, str]) -> KernelMetrics:
    duration = _number(row.get(_DURATION, ""))
    unit = units.get(_DURATION, "")
    if duration is None or unit not in _TO_US:
        raise PipelineError(f"{row['Kernel Name']}: no duration in `{row.get(_DURATION)}` {unit or 'without a unit'}")
    registers = _number(row.get(_REGISTERS, ""))
    return KernelMetrics(
        # With its parameters, and maybe its return type, when the name is not asked for alone.
        name=re.sub(r"[(<].*", "", row["Kernel Name"]).split(" ")[-1],
        stream=f"{row.get('Process ID', '')}.{row.get('Stream', '')}",
        us=duration * _TO_US[unit],
        tensor=_tensor(row),
        issue=_number(row.get(_ISSUE, "")),
        dram=next((v for v in (_number(row.get(name, "")) for name in _DRAM) if v is not None), None),
        l2=_number(row.get(_L2, "")),
        registers=None if registers is None else int(registers),
        shared_bytes=_shared(row, units),
        occupancy=_number(row.get(_OCCUPANCY, "")),
        stall=_stall(row),
    )


def _tensor(row: Mapping[str, str]) -> float | None:
    """Busy cycles of the whole pipe where they are reported, else the busiest of its reported parts."""
    whole = _number(row.get(_TENSOR_CYCLES, ""))
    if whole is not None:
        return whole
    parts = (_number(value) for name, value in row.items() if _TENSOR_PIPES.fullmatch(name))
    return max((part for part in parts if part is not None), default=None)


def _shared(row: Mapping[str, str], units: Mapping[str, str]) -> int | None:
    total = 0.0
    for name in _SHARED:
        value, unit = _number(row.get(name, "")), units.get(name, "").removesuffix("/block")
        if value is None or unit not in _TO_BYTES:
            return None
        total += value * _TO_BYTES[unit]
    return round(total)


def _stall(row: Mapping[str, str]) -> str:
    found = []
    for name, value in row.items():
        match, warps = _STALL.fullmatch(name), _number(value)
        if match and warps is not None and match[1] != "selected":
            found.append((warps, match[1]))
    return "{1} {0:.1f}".format(*max(found)) if found else ""


def _number(text: str) -> float | None:
    """`1,234.5`; None for an empty cell and for `n/a`, `(!) nan` and the like."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if value == value else None


def _with_layers(kernels: Sequence[KernelMetrics], one_pass: Sequence[Launch]) -> list[KernelMetrics]:
    streams: dict[str, list[int]] = defaultdict(list)
    for index, kernel in enumerate(kernels):
        streams[kernel.stream].append(index)
    named = list(kernels)
    for indices in streams.values():
        layers = name_layers([kernels[i].name for i in indices], one_pass)
        for index, layer in zip(indices, layers, strict=True):
            named[index] = replace(kernels[index], layer=layer)
    return named


def explain(text: str) -> str:
    """What went wrong by ncu's own words, with the remedy where it is known; `` when it does not complain."""
    if "ERR_NVGPUCTRPERM" in text:
        return (
            "the driver keeps the GPU's counters from this user (ERR_NVGPUCTRPERM): run as root (in a container: "
            "docker run --cap-add=SYS_ADMIN), or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
        )
    if "No kernels were profiled" in text:
        return "ncu saw no kernel: the names of --kernels, --skip or --count fit nothing that the command launched"
    return " | ".join(line for line in text.splitlines() if line.startswith("==ERROR=="))

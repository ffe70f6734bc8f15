"""The system description: what the machine reports of itself, and what only its owner knows."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.machine.hardware import describe_machine
from pipeline.report.versions import versions
from tools.submission.plan import Plan

FILL_IN = "FILL IN"

# What may be empty, and what may not; the official tools want all of them to be there.
MAY_BE_EMPTY = (
    "host_processor_frequency", "host_processor_caches", "host_processor_interconnect", "accelerator_frequency",
    "accelerator_interconnect_topology", "accelerator_on-chip_memories", "hw_notes", "sw_notes", "system_type_detail",
)  # fmt: skip
NOT_EMPTY = (
    "division", "submitter", "system_type", "status", "system_name", "number_of_nodes", "host_processor_model_name",
    "host_processors_per_node", "host_processor_core_count", "host_memory_capacity", "host_memory_configuration",
    "host_storage_capacity", "host_storage_type", "host_networking", "host_network_card_count",
    "host_networking_topology", "accelerators_per_node", "accelerator_model_name", "accelerator_memory_capacity",
    "accelerator_host_interconnect", "accelerator_memory_configuration", "accelerator_interconnect", "cooling",
    "framework", "operating_system", "other_software_stack",
)  # fmt: skip

# What a machine does not report, with a hint.
_OWNER_KNOWS = {
    "status": "available, preview or rdi",
    "host_memory_configuration": "such as 16x 64 GB DDR5-4800",
    "host_networking": "such as Ethernet",
    "host_networking_topology": "such as N/A for one node",
    "accelerator_host_interconnect": "such as PCIe Gen5 x16",
    "accelerator_memory_configuration": "such as HBM3e",
    "accelerator_interconnect": "such as NVLink or N/A",
    "cooling": "air or liquid",
}
NO_ACCELERATOR = "N/A"


def describe_system(plan: Plan) -> dict[str, str]:
    """All 35 fields; what only the owner knows begins with FILL IN."""
    machine = describe_machine()
    found = {name: f"{FILL_IN}: {hint}" for name, hint in _OWNER_KNOWS.items()} | dict.fromkeys(MAY_BE_EMPTY, "")
    found |= {
        "division": plan.division,
        "submitter": plan.submitter,
        "system_type": plan.suite,
        "system_name": plan.system,
        "number_of_nodes": "1",
        "operating_system": _operating_system(),
        "framework": f"int4-resnet50 {versions()['int4-resnet50']}",
        "other_software_stack": _software(machine),
    }
    return found | _host(machine) | accelerators(machine["gpus"])


def unfinished(description: Mapping[str, object]) -> list[str]:
    """Fields of a description that are missing, empty where they must not be, or still to be filled in."""
    missing = [name for name in (*NOT_EMPTY, *MAY_BE_EMPTY) if name not in description]
    empty = [name for name in NOT_EMPTY if name in description and not description[name]]
    return sorted({*missing, *empty, *to_fill_in(description)})


def to_fill_in(values: Mapping[str, object]) -> list[str]:
    return [name for name, value in values.items() if FILL_IN in str(value)]


def _host(machine: Mapping[str, Any]) -> dict[str, str]:
    return {
        "host_processor_model_name": str(machine["cpu"]),
        "host_processors_per_node": str(_sockets()),
        "host_processor_core_count": str(machine["physical_cores_of_machine"] or machine["cores_of_machine"]),
        "host_memory_capacity": _gib(machine["memory_bytes"]),
        "host_storage_capacity": _gib(shutil.disk_usage("/").total),
        "host_storage_type": _storage(),
        "host_network_card_count": str(len(list(Path("/sys/class/net").glob("*/device"))) or 1),
    }


def accelerators(gpus: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the driver says of `gpus`, the `gpus` of `describe_machine`; N/A without one."""
    if not gpus:
        nothing = ("accelerator_model_name", "accelerator_memory_capacity", *_about_accelerators())
        return {"accelerators_per_node": "0", **dict.fromkeys(nothing, NO_ACCELERATOR)}
    memory, clock = gpus[0]["memory_bytes"], gpus[0]["clock_limit_mhz"]
    return {
        "accelerators_per_node": str(len(gpus)),
        "accelerator_model_name": str(gpus[0]["name"]),
        "accelerator_memory_capacity": _gib(memory) if memory else f"{FILL_IN}: such as 141 GB",
        "accelerator_frequency": f"{clock} MHz" if clock else "",
    }


def _about_accelerators() -> list[str]:
    return [name for name in _OWNER_KNOWS if name.startswith("accelerator_")]


def _software(machine: Mapping[str, Any]) -> str:
    named = [f"{name} {version}" for name, version in versions().items() if version and name != "int4-resnet50"]
    driver = machine.get("nvidia_driver")
    return ", ".join([*named, *([f"NVIDIA driver {driver}"] if driver else [])])


def _sockets() -> int:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return 1
    return len(set(re.findall(r"^physical id\s*:\s*(\d+)", text, re.MULTILINE))) or 1


def _storage() -> str:
    disks = (path for path in Path("/sys/block").iterdir() if (path / "device").exists())
    kinds = {(path / "queue" / "rotational").read_text().strip() for path in disks}
    return {frozenset({"0"}): "SSD", frozenset({"1"}): "HDD"}.get(frozenset(kinds), f"{FILL_IN}: such as NVMe SSD")


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = platform.system()
    return f"{name}, kernel {platform.release()}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"

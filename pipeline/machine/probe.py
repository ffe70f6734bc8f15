"""What `pipeline.doctor` judges: the facts about this machine and this installation, gathered once."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pynvml

from int4core.backends.cuda.chips import CHIPS, name_of
from int4core.backends.cuda.jit import nvrtc
from int4core.backends.cuda.jit.cache import cache_folder, why_not_trusted
from int4core.backends.cuda.plan.planner import make_plan
from int4core.cores import cpu_quota, scheduled_cores
from int4core.errors import EngineError, Int4CoreError
from int4core.model import Model
from int4core.tuning.files import FOLDER, user_folder
from pipeline.defaults import default_model
from pipeline.errors import PipelineError
from pipeline.machine.cpu import TORCH_NEEDS, missing_of_torch
from pipeline.machine.gpus import bus_id_of
from pipeline.machine.numa import Node, Shares, memory_nodes, node_of_device, shares_of
from pipeline.machine.profilers import NCU, NSYS, find_profiler
from pipeline.memory.arena import Arena, segment_folder

BATCH = 1024
"""The batch size that the memory need is reported for."""

TRIAL_SAMPLES = 16
"""Of an arena that is made to see where it lies."""

Version = tuple[int, int]


@dataclass(frozen=True)
class GpuFacts:
    """A GPU as the driver reports it.

    `key` is our name of the chip, None without one. Bytes and the node of memory that it is near are None where they
    are not reported.
    """

    index: int
    name: str
    key: str | None
    free_bytes: int | None
    total_bytes: int | None
    node: int | None = None


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver, the newest CUDA it runs, and its GPUs."""

    version: str
    cuda: Version
    gpus: tuple[GpuFacts, ...]


@dataclass(frozen=True)
class Library:
    """Something that was looked for: its version, or why it cannot be used (`error`)."""

    version: str = ""
    place: str = ""
    error: str = ""


@dataclass(frozen=True)
class Cgroup:
    """What a container's limits leave: cores (a quota may be a part of one); None where there is no limit."""

    cores: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Facts:
    """All that is judged.

    Attributes:
        driver: or the driver library's own word for why there is none.
        wheels: CuPy distributions that are installed, name -> version.
        cupy: the cupy module.
        shm_folder, shm_free_bytes: where arenas live.
        memlock_bytes: the limit of locked memory of a process, None without one.
        cores_visible: cores this process may be scheduled on.
        nodes: of memory, none where the system does not report it.
        arena: where the memory of an arena that is made now lies.
        cpu_libraries: what the CPU's fast backend imports, name -> version, empty where it is not installed.
        plan_bytes: activations of a batch of BATCH images with the default model, or why none can be planned.
        cache_folder: of compiled kernels; `cache_error` says why none can be kept there, or ``.
    """

    driver: Driver | str
    wheels: dict[str, str]
    cupy: Library
    nvrtc: Library
    loadgen: Library
    shm_folder: Path
    shm_free_bytes: int
    memlock_bytes: int | None
    cores_visible: int
    cpu_libraries: dict[str, str]
    cgroup: Cgroup
    memory_available_bytes: int
    autoconfig_folders: tuple[Path, ...]
    plan_bytes: Callable[[str], int | str]
    cache_folder: Path
    cache_error: str
    nsys: Path | None
    ncu: Path | None
    nodes: tuple[Node, ...] = ()
    arena: Shares = field(default_factory=dict)


def gather(loadgen: Library) -> Facts:
    """The facts of this machine, beside what a front end found out of its LoadGen. Needs no GPU, and starts no CUDA
    context."""
    shm, cache = segment_folder(), cache_folder()
    return Facts(
        driver=read_driver(),
        wheels=cupy_wheels((d.metadata["Name"], d.version) for d in metadata.distributions()),
        cupy=read_cupy(),
        nvrtc=read_nvrtc(),
        loadgen=loadgen,
        shm_folder=shm,
        shm_free_bytes=psutil.disk_usage(str(shm)).free,
        memlock_bytes=read_memlock(),
        cores_visible=scheduled_cores(),
        cpu_libraries=read_cpu_libraries(),
        cgroup=read_cgroup(),
        memory_available_bytes=psutil.virtual_memory().available,
        autoconfig_folders=(user_folder(), FOLDER),
        plan_bytes=plan_bytes,
        cache_folder=cache,
        cache_error=why_no_cache(cache),
        nsys=find_profiler(NSYS),
        ncu=find_profiler(NCU),
        nodes=memory_nodes(),
        arena=arena_shares(),
    )


def arena_shares() -> Shares:
    """Where an arena lies that is made now: empty where none can be, which is a check of its own."""
    try:
        with Arena.create(TRIAL_SAMPLES, (3, 224, 224)) as arena:
            return shares_of(arena.spec.path)
    except PipelineError:
        return {}


def read_driver() -> Driver | str:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return str(error)
    try:
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
        gpus = tuple(_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
        return Driver(_text(pynvml.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10), gpus)
    except pynvml.NVMLError as error:
        return str(error)
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(index: int) -> GpuFacts:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = _text(pynvml.nvmlDeviceGetName(handle))
    bus_id = bus_id_of(handle)
    node = node_of_device(bus_id) if bus_id else None
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError:
        return GpuFacts(index, name, name_of(name), None, None, node)
    return GpuFacts(index, name, name_of(name), int(memory.free), int(memory.total), node)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def cupy_wheels(installed: Any) -> dict[str, str]:
    """Of (name, version) pairs, those that bring a module `cupy`: cupy, cupy-cuda12x, cupy-rocm-6-1."""
    pattern = re.compile(r"cupy(-(cuda|rocm)[\w-]*)?", re.IGNORECASE)
    named = ((str(name).replace("_", "-").lower(), str(version)) for name, version in installed)
    return dict(sorted((name, version) for name, version in named if pattern.fullmatch(name)))


def read_cupy() -> Library:
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # a broken wheel fails with whatever its libraries raise
        return Library(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
    return Library(str(cupy.__version__), str(cupy.__file__))


def read_cpu_libraries() -> dict[str, str]:
    """Without importing them, which takes seconds."""
    missing = missing_of_torch()
    return {name: "" if name in missing else _version(name) for name in TORCH_NEEDS}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of a version it does not report"


def read_nvrtc() -> Library:
    try:
        library = nvrtc.require_nvrtc()
        return Library(nvrtc.version(library), str(library))
    except EngineError as error:
        return Library(error=str(error))


def read_memlock() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def read_cgroup(root: Path = Path("/sys/fs/cgroup")) -> Cgroup:
    """The limits of this container, by version 2 of the interface, else version 1."""
    memory = _read(root / "memory.max") or _read(root / "memory/memory.limit_in_bytes")
    # Version 1 writes "no limit" as the largest number of whole pages.
    limit = int(memory) if memory.isdecimal() and int(memory) < 1 << 60 else None
    return Cgroup(cpu_quota(root), limit)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def plan_bytes(gpu: str) -> int | str:
    """Device bytes of one batch of BATCH images on a chip of the table, or why there is no plan."""
    if gpu not in CHIPS:
        return f"{gpu} is not in the table of chips: {', '.join(CHIPS)}"
    try:
        return make_plan(Model.load(default_model()).network, CHIPS[gpu], BATCH).arena.bytes
    except (Int4CoreError, PipelineError) as error:
        return str(error)


def why_not_writable(folder: Path) -> str:
    """Why files cannot be made in `folder`, which need not exist yet; `` when they can."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} is not writable"
    return ""


def why_no_cache(folder: Path) -> str:
    """Why kernels cannot be kept in `folder`, or would not be loaded from it; `` when all is well."""
    return why_not_writable(folder) or (f"it {why}" if folder.exists() and (why := why_not_trusted(folder)) else "")

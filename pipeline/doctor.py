"""`python -m pipeline.doctor [--gpu h200] [--json]`: is everything here that a run needs?

A line a check: `ok`, `warning` (a run works, with a drawback) or `fail` (it does not), and below a line that is not
ok the command that fixes it, with other ways after a `#`. Ends with 1 if any check fails, else with 0.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from int4core.backends.cuda.jit.cache import CACHE_DIR
from int4core.cores import whole_cores
from int4core.errors import printable, printed
from int4core.install import install_argument
from int4core.streams import run_command
from int4core.tuning import autoconfig
from int4core.tuning.autoconfig import AutoconfigError
from int4core.tuning.files import check_numbers, find_files
from pipeline.errors import PipelineError
from pipeline.loadgen.installed import find_loadgen
from pipeline.machine.gpus import GPU_CHOICES
from pipeline.machine.hardware import default_loaders
from pipeline.machine.numa import shown
from pipeline.machine.probe import BATCH, Driver, Facts, GpuFacts, gather
from pipeline.machine.profilers import NCU, NSYS, Profiler
from pipeline.memory.arena import ArenaSpec

SMALL_RUN, IMAGENET = 1024, 50_000
"""Samples that a valid Offline run holds at least, and those of ImageNet's validation set."""

IN_FLIGHT = 3
"""Batches that a run keeps on the device at a time."""

Status = Literal["ok", "warning", "fail"]


@dataclass(frozen=True)
class Finding:
    """A check's result; `remedy` is a command line, empty when there is nothing to fix."""

    check: str
    status: Status
    said: str
    remedy: str = ""

    def lines(self) -> Iterator[str]:
        yield f"{self.status:8s}{self.check:16s}{self.said}"
        if self.remedy:
            yield f"{'':8s}{'':16s}fix: {self.remedy}"


def examine(facts: Facts, gpu: str = "auto") -> tuple[Finding, ...]:
    """Every check that concerns runs with `--gpu gpu`."""
    findings = []
    if gpu != "cpu":
        chosen = gpu_of(facts, gpu)
        findings += [check_driver(facts, gpu), check_gpu(facts, gpu)]
        if chosen is not None:
            findings += [check_kernels(facts, chosen), check_memory(facts, chosen), check_tuning(facts, chosen)]
        # Without a GPU and without being asked for one, a run takes the CPU and needs nothing of CUDA's.
        needed = chosen is not None or gpu != "auto"
        for finding in (check_wheels(facts), check_cupy(facts), check_nvrtc(facts), check_cache(facts)):
            findings.append(finding if needed else _only_a_warning(finding))
        findings += [check_memlock(facts), check_profiler(facts, NSYS), check_profiler(facts, NCU)]
    if gpu == "cpu" or (gpu == "auto" and gpu_of(facts, gpu) is None):
        findings.append(check_cpu_backend(facts))
    return (*findings, check_loadgen(facts), check_shared_memory(facts), check_cores(facts), check_nodes(facts, gpu))


def gpu_of(facts: Facts, gpu: str) -> GpuFacts | None:
    """The GPU that a run would take."""
    gpus = facts.driver.gpus if isinstance(facts.driver, Driver) else ()
    return next((g for g in gpus if gpu in ("auto", g.key)), None)


def _only_a_warning(finding: Finding) -> Finding:
    return finding if finding.status != "fail" else Finding(finding.check, "warning", finding.said, finding.remedy)


def check_driver(facts: Facts, gpu: str) -> Finding:
    if isinstance(facts.driver, Driver):
        return Finding("driver", "ok", f"{facts.driver.version}, for CUDA up to {_dotted(facts.driver.cuda)}")
    status: Status = "warning" if gpu == "auto" else "fail"
    said = f"no NVIDIA driver ({facts.driver})" + (": runs compute on the CPU" if gpu == "auto" else "")
    return Finding("driver", status, said, "sudo apt-get install nvidia-open  # in a container: docker run --gpus all")


def check_gpu(facts: Facts, gpu: str) -> Finding:
    gpus = facts.driver.gpus if isinstance(facts.driver, Driver) else ()
    here = ", ".join(f"{g.index}: {g.name}" for g in gpus) or "none"
    chosen = gpu_of(facts, gpu)
    if chosen is not None and chosen.key is not None:
        return Finding("GPU", "ok", here)
    if chosen is not None:
        said = f"{here}; {chosen.name} has no record here: its kernels are chosen by rule, and nobody has measured them"
        return Finding("GPU", "warning", said, "python -m int4core.tune")
    if gpu == "auto":
        remedy = "nvidia-smi  # in a container: docker run --gpus all"
        return Finding("GPU", "warning", "none: runs compute on the CPU", remedy)
    return Finding("GPU", "fail", f"--gpu {gpu}: not here ({here})", "python -m pipeline.doctor --gpu auto")


def check_kernels(facts: Facts, gpu: GpuFacts) -> Finding:
    if gpu.key is None:
        said = f"{gpu.name} has no record here: whether every operation has a kernel is found out when a run starts"
        return Finding("kernels", "warning", said, "python -m pipeline.offline --gpu auto")
    planned = facts.plan_bytes(gpu.key)
    if isinstance(planned, int):
        return Finding("kernels", "ok", f"every operation of the default model has a kernel for {gpu.key}")
    return Finding("kernels", "fail", planned, "python -m pipeline.offline --gpu cpu")


def check_memory(facts: Facts, gpu: GpuFacts) -> Finding:
    planned = facts.plan_bytes(gpu.key or gpu.name)
    if gpu.free_bytes is None or gpu.total_bytes is None or not isinstance(planned, int):
        return Finding("device memory", "warning", "not known", "nvidia-smi")
    needed, free = IN_FLIGHT * planned, f"{_gib(gpu.free_bytes)} free of {_gib(gpu.total_bytes)}"
    if gpu.free_bytes >= needed:
        return Finding("device memory", "ok", f"{free}; {IN_FLIGHT} batches of {BATCH} take {_gib(needed)}")
    fitting = BATCH
    while fitting > 1 and needed * fitting / BATCH > gpu.free_bytes:
        fitting //= 2
    if needed * fitting / BATCH > gpu.free_bytes:
        said = f"{free}: not enough for {IN_FLIGHT} batches of 1; another program holds it"
        return Finding("device memory", "fail", said, _WHO_USES_IT)
    said = f"{free}; {IN_FLIGHT} batches of {BATCH} would take {_gib(needed)}"
    return Finding("device memory", "warning", said, f"python -m pipeline.offline --batch_size {fitting}")


def check_tuning(facts: Facts, gpu: GpuFacts) -> Finding:
    key = gpu.key or "unknown"
    files, remedy = find_files(key, facts.autoconfig_folders), f"python -m int4core.tune --gpu {key}"
    files += find_files(key, facts.autoconfig_folders, basic=True)
    if not files:
        return Finding("tuned file", "warning", f"none for {key}: kernels are chosen by rule", remedy)
    said = []
    for file in files:
        try:
            config = autoconfig.read(file)
            check_numbers(config)
        except AutoconfigError as error:
            return Finding("tuned file", "fail", str(error), remedy)
        made_for = config.metadata.get("gpu")
        if config.notice is not None:
            return Finding("tuned file", "fail", f"{file}: {config.notice}", remedy)
        if made_for is None:
            return Finding("tuned file", "warning", f"{file}: does not say which GPU it was made for", remedy)
        if made_for != key:
            return Finding("tuned file", "fail", f"{file}: was made for {made_for}, and this GPU is {key}", remedy)
        said.append(f"{file} ({config.metadata.get('origin', 'origin unknown')})")
    return Finding("tuned file", "ok", ", ".join(said))


def check_wheels(facts: Facts) -> Finding:
    """One distribution with a module `cupy`, for a CUDA that the driver runs (a newer driver runs older CUDA)."""
    named = ", ".join(f"{name} {version}" for name, version in facts.wheels.items())
    cuda = facts.driver.cuda if isinstance(facts.driver, Driver) else None
    install = f"{_PIP} install {_extra(facts)}"
    if not facts.wheels:
        return Finding("CuPy wheel", "fail", "none is installed", install)
    swap = f"{_PIP} uninstall -y {' '.join(facts.wheels)} && {install}"
    if len(facts.wheels) > 1:
        return Finding("CuPy wheel", "fail", f"several overwrite each other: {named}", swap)
    (name,) = facts.wheels
    if "rocm" in name:
        return Finding("CuPy wheel", "fail", f"{named} is for AMD's GPUs", swap)
    match = re.fullmatch(r"cupy-cuda(\d\d)[\dx]+", name)
    if match is None:
        return Finding("CuPy wheel", "ok", f"{named}, built for the CUDA toolkit here")
    major = int(match[1])
    if cuda is not None and major > cuda[0]:
        said = f"{named} needs CUDA {major}, the driver runs up to {_dotted(cuda)}"
        return Finding("CuPy wheel", "fail", said, swap)
    if major < 12:
        return Finding("CuPy wheel", "fail", f"{named} is for CUDA {major}; 12 is the oldest that is supported", swap)
    return Finding("CuPy wheel", "ok", f"{named}, for CUDA {major}")


def check_cupy(facts: Facts) -> Finding:
    if not facts.cupy.error:
        return Finding("CuPy", "ok", f"{facts.cupy.version} is importable")
    again = " ".join(facts.wheels) or _extra(facts)
    remedy = f"{_PIP} install --force-reinstall --no-cache-dir {again}"
    return Finding("CuPy", "fail", f"cannot be imported: {facts.cupy.error}", remedy)


def check_nvrtc(facts: Facts) -> Finding:
    """Binaries of a newer CUDA's compiler do not load with a driver of an older major version."""
    library = facts.nvrtc
    if library.error:
        return Finding("NVRTC", "fail", library.error, f"{_PIP} install nvidia-cuda-nvrtc")
    said = f"{library.version}, {library.place}"
    cuda = facts.driver.cuda if isinstance(facts.driver, Driver) else None
    if cuda is not None and int(library.version.split(".")[0]) > cuda[0]:
        remedy = f"{_PIP} uninstall -y nvidia-cuda-nvrtc && {_PIP} install nvidia-cuda-nvrtc-cu{cuda[0]}"
        return Finding("NVRTC", "fail", f"{said}: the driver runs CUDA up to {_dotted(cuda)}", remedy)
    return Finding("NVRTC", "ok", said)


def check_cache(facts: Facts) -> Finding:
    if facts.cache_error:
        said = f"{facts.cache_folder}: kernels cannot be kept: {facts.cache_error}"
        return Finding("kernel cache", "fail", said, f"export {CACHE_DIR}=$(mktemp -d)")
    return Finding("kernel cache", "ok", f"{facts.cache_folder} can be written")


def check_memlock(facts: Facts) -> Finding:
    """The driver of most systems pins memory past this limit; where it does not, registering the arena fails."""
    needed = _arena_bytes(SMALL_RUN)
    if facts.memlock_bytes is None:
        return Finding("locked memory", "ok", "no limit")
    limit = f"limited to {_gib(facts.memlock_bytes)}"
    if facts.memlock_bytes >= needed:
        return Finding("locked memory", "ok", f"{limit}; {SMALL_RUN:,} samples take {_gib(needed)}")
    said = f"{limit}; registering {SMALL_RUN:,} samples with CUDA takes {_gib(needed)} where the driver counts them"
    remedy = "ulimit -l unlimited  # in a container: docker run --ulimit memlock=-1"
    return Finding("locked memory", "warning", said, remedy)


def check_profiler(facts: Facts, profiler: Profiler) -> Finding:
    found = facts.nsys if profiler is NSYS else facts.ncu
    if found is not None:
        return Finding(profiler.command, "ok", str(found))
    return Finding(
        profiler.command, "warning", f"{profiler.title} is not here; only profiling needs it", profiler.remedy
    )


def check_cpu_backend(facts: Facts) -> Finding:
    missing = [name for name, version in facts.cpu_libraries.items() if not version]
    if not missing:
        found = ", ".join(f"{name} {version}" for name, version in facts.cpu_libraries.items())
        return Finding("CPU backend", "ok", f"torch ({found})")
    said = f"numpy: {' and '.join(missing)} not installed; backend torch gives the same answers several times as fast"
    return Finding("CPU backend", "warning", said, f"{_PIP} install {install_argument('torch')}")


def check_loadgen(facts: Facts) -> Finding:
    if facts.loadgen.error:
        return Finding("LoadGen", "fail", facts.loadgen.error, f"{_PIP} install mlcommons-loadgen")
    if not facts.loadgen.version:
        return Finding("LoadGen", "ok", f"{facts.loadgen.place}, of a version it does not report")
    if int(facts.loadgen.version.split(".")[0]) < 5:
        said = f"{facts.loadgen.version} is older than 5.0"
        return Finding("LoadGen", "fail", said, f"{_PIP} install --upgrade 'mlcommons-loadgen>=5.0'")
    return Finding("LoadGen", "ok", facts.loadgen.version)


def check_shared_memory(facts: Facts) -> Finding:
    """Room for the arena, which counts against a container's memory as well."""
    small, full = _arena_bytes(SMALL_RUN), _arena_bytes(IMAGENET)
    limit = math.inf if facts.cgroup.memory_bytes is None else facts.cgroup.memory_bytes
    room = int(min(facts.shm_free_bytes, facts.memory_available_bytes, limit))
    need = f"{SMALL_RUN:,} samples take {_gib(small)}, {IMAGENET:,} {_gib(full)}"
    said = f"{facts.shm_folder}: {_gib(room)} to be had; {need}"
    if room >= full:
        return Finding("shared memory", "ok", said)
    size = math.ceil(full / 2**30) + 1
    remedy = f"sudo mount -o remount,size={size}G {facts.shm_folder}  # in a container: docker run --shm-size={size}g"
    if facts.shm_free_bytes >= full:
        said += "; memory is what is short"
        remedy = f"free -g  # end what holds it; in a container: docker run --memory={size + 8}g"
    return Finding("shared memory", "fail" if room < small else "warning", said, remedy)


def check_cores(facts: Facts) -> Finding:
    visible, quota = facts.cores_visible, facts.cgroup.cores
    usable = whole_cores(visible, quota)
    of = f", of {visible} under a quota of {quota:g}" if quota is not None and quota < visible else ""
    if usable < 2:
        remedy = "taskset -p -c 0-3 $$  # in a container: docker run --cpus=4"
        return Finding("cores", "warning", f"1{of}: loaders and LoadGen share it", remedy)
    return Finding("cores", "ok", f"{usable}{of}")


def check_nodes(facts: Facts, gpu: str) -> Finding:
    """Where loaders, the arena and the processes of a run on all GPUs are, on a machine of several nodes of memory."""
    check = "memory nodes"
    if len(facts.nodes) < 2:
        return Finding(check, "ok", "1: nothing is far" if facts.nodes else "not known to this system")
    gpus = facts.driver.gpus if isinstance(facts.driver, Driver) and gpu != "cpu" else ()
    lost = [str(g.index) for g in gpus if g.node is None]
    loaders = Counter(gpus[i % len(gpus)].node for i in range(default_loaders() if gpus and not lost else 0))
    said = []
    for node in facts.nodes:
        parts = [f"{len(node.cores)} cores"]
        parts += [] if node.memory_bytes is None else [_gib(node.memory_bytes)]
        near = [str(g.index) for g in gpus if g.node == node.number]
        parts += [f"GPU processes {', '.join(near)}"] if near else []
        parts += [f"{loaders[node.number]} loaders"] if loaders[node.number] else []
        parts += [f"{100 * facts.arena[node.number]:.0f} % of an arena"] if node.number in facts.arena else []
        said.append(f"node {node.number}: {', '.join(parts)}")
    whole = f"{len(facts.nodes)}: {'; '.join(said)}"
    if lost:
        whole += f"; GPU {', '.join(lost)} does not report its node: no process is placed"
        return Finding(
            check, "warning", whole, "cat /sys/bus/pci/devices/*/numa_node  # -1: the machine does not report it"
        )
    if not loaders:
        return Finding(check, "ok", f"{whole}; without a GPU no process is placed")
    if len({g.node for g in gpus}) > 1 and len(facts.arena) == 1:
        whole += f"; GPUs of the others read an arena {shown(facts.arena)} from afar"
        return Finding(check, "warning", whole, "numactl --interleave=all python -m pipeline.offline")
    return Finding(check, "ok", whole)


def _extra(facts: Facts) -> str:
    """What pip is given for the extra of this package that fits the driver."""
    older = isinstance(facts.driver, Driver) and facts.driver.cuda < (13, 0)
    return install_argument(f"cuda{12 if older else 13}")


def _arena_bytes(samples: int) -> int:
    return ArenaSpec("", samples, (3, 224, 224)).total_bytes


def _gib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 1 << 30 else f"{size / 2**30:,.1f} GiB"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


_PIP = "python -m pip"
_WHO_USES_IT = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m pipeline.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", choices=GPU_CHOICES, default="auto", help="what runs are to compute on")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    options = parser.parse_args(argv)
    try:
        facts = gather(find_loadgen())
    except PipelineError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    findings = examine(facts, options.gpu)
    failed = any(finding.status == "fail" for finding in findings)
    if options.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 1 if failed else 0
    for finding in findings:
        print("\n".join(map(printable, finding.lines())))
    counts = {status: sum(f.status == status for f in findings) for status in ("ok", "warning", "fail")}
    print(f"{counts['ok']} ok, {counts['warning']} with a drawback, {counts['fail']} failing")
    return 1 if failed else 0


def run() -> int:
    """The command. Returns its exit status."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())

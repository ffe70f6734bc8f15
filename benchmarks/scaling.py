"""How one host's rates grow with its GPUs: LoadGen Offline, LoadGen Server and files to Parquet, in one run.

    python -m benchmarks.scaling --gpus 1,2,4,8 [--sections offline,server,files] [--loadgen-path DIR]
    python -m benchmarks.scaling --gpus 1,2 --gpu cpu --model DIR ...        # on engines of the CPU

- offline: LoadGen's Offline scenario, samples in host memory.
- server: the most queries per second of which 99 % are answered within 15 ms, by halving, below Offline's rate.
- files: JPEGs that lie in the page cache to a Parquet table, `--decode gpu` (`cpu` on the CPU).
- ray, where it is asked for: the same files by a Ray of this machine (`--ray`), an actor and its processes for each
  GPU; answers/s while it is at work, without the start of the actors.

A line each: the rate, its share of so many times the least number of GPUs, and what was seen of the host meanwhile:

    cores    busy with all processes of the run; `main`: of these, with the process that issues, batches and writes
    memory   GB/s: `seen` is resctrl's count, of the whole machine; else `moved`, by arithmetic: the bytes that the
             way of a sample or a file reads and writes, of which caches may serve some. /proc counts no traffic
    PCIe     GB/s that the GPUs receive: `sent`, by arithmetic, and `NVML`, its samples of 20 ms
    bound    the verdict of the run: the part whose ceiling it reached; of Server, what failed above that rate

Numbers of GPUs that are not here are left out by name; if they were asked for, the status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.host_load import HostLoad, watch
from benchmarks.pipeline import SERVER_BATCHES, make_tensors
from benchmarks.sections import add_sections
from int4core.cores import usable_cores
from int4core.errors import Int4CoreError, printable, printed
from int4core.model import Model
from int4core.network import default_input_size
from int4core.streams import run_command
from pipeline.commands import values
from pipeline.defaults import DEMO_IMAGES, default_model
from pipeline.errors import PipelineError
from pipeline.jpeg.parse import HEADER
from pipeline.loadgen.scenarios import SERVER_LATENCY_NS
from pipeline.machine.cpu import CPU_BACKENDS
from pipeline.machine.gpus import GPU_CHOICES, choose_target, list_gpus
from pipeline.machine.hardware import default_loaders
from pipeline.samples.library import IMAGE_SUFFIXES

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (1, 2, 4, 8)
SECTIONS = ("offline", "server", "files", "ray")
DEFAULT_SECTIONS = SECTIONS[:3]
RUN_TIMEOUT_S = 600

# Server is tried at these shares of Offline's rate, halving between the best that held, or what is so far below the
# least that failed, and that.
FIRST_SHARE = 0.85
STEP_DOWN = 0.2
# A run that is answered at less of what it was asked than this has fallen behind.
KEPT_UP = 0.97

# How often a byte in host memory is read or written. A sample in its slot is read once, by the GPU. A file goes from
# the page cache into its slot, and from there to the GPU: a copy and a read. On the CPU an engine gathers a batch, a
# copy and a read; what a decoder does with its pixels is not counted.
GPU_SAMPLE, GPU_FILE, CPU_SAMPLE, CPU_FILE = 1, 3, 3, 1

Summary: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Sizes:
    """Bytes of a sample, and of a file, on average."""

    sample: int
    file: float


@dataclass(frozen=True)
class Moved:
    """Bytes for an image: `memory` read and written in host memory, `pcie` sent to a GPU, None without one."""

    memory: float
    pcie: float | None


@dataclass(frozen=True)
class Measured:
    """A part with so many GPUs; the rate in images/s, None where Server held at none; `moved` None: not known."""

    part: str
    gpus: int
    rate: float | None
    load: HostLoad
    moved: Moved | None
    bound: str
    sentences: tuple[str, ...] = ()


class Host:
    """The machine's GPUs, or engines of the CPU, and what the parts classify."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        target = choose_target(options.gpu)
        if not target.gpus and options.gpu != "cpu":
            raise PipelineError(f"{target.notice}: this benchmark measures GPUs; `--gpu cpu` tries it on the CPU")
        self._options = options
        self.on_gpus = bool(target.gpus)
        # The first one names the chip: of several kinds, those like it are measured.
        self.gpus = tuple(gpu.index for gpu in list_gpus() if target.gpu and gpu.name == target.gpu.name)
        self.notice = f"{len(self.gpus)} x {target.gpu.name}" if target.gpu else target.notice
        self._folder = folder
        shape = (3, *default_input_size(Model.load(options.model).network))
        self._tensors = make_tensors(folder, shape)
        self.sample_bytes = shape[0] * shape[1] * shape[2]
        self._runs = 0

    def has(self, gpus: int) -> bool:
        return gpus <= len(self.gpus) or not self.on_gpus

    def chosen(self, gpus: int) -> tuple[int, ...]:
        """The driver's numbers of the first so many GPUs; none on the CPU."""
        return self.gpus[:gpus]

    def offline(self, gpus: int, *arguments: object) -> tuple[Summary, HostLoad]:
        """A run of LoadGen on samples in host memory; its summary."""
        out = self._next()
        given = [*self._common(gpus), "-p", self._tensors, "--output-dir", out, *arguments]
        if self._options.loadgen_path is not None:
            given += ["--loadgen-path", self._options.loadgen_path]
        load = watch(["pipeline.offline", *given], ROOT, self.chosen(gpus), RUN_TIMEOUT_S)
        return _read(out / "summary.json"), load

    def classify(self, gpus: int, files: Path) -> tuple[Summary, HostLoad]:
        """Files to a table, which is thrown away; the run's summary."""
        out = self._next()
        out.mkdir()
        given = [files, *self._common(gpus), "--decode", "gpu" if self.on_gpus else "cpu", "--out", out / "a.parquet"]
        given += ["--summary", out / "summary.json"]
        load = watch(["pipeline.classify", *given], ROOT, self.chosen(gpus), RUN_TIMEOUT_S)
        (out / "a.parquet").unlink()
        return _read(out / "summary.json"), load

    def classify_on_ray(self, gpus: int, folders: Sequence[Path]) -> tuple[Summary, HostLoad]:
        """Files below `folders`, each of which is listed by itself, to a table in parts; the run's summary."""
        if not self.on_gpus and gpus > 1:
            raise PipelineError("Ray makes one actor for each machine without GPUs")
        out = self._next()
        given: list[object] = [*folders, "--ray", *self._engine(self._options.loaders // gpus), "--out", f"{out}/"]
        given += ["--summary", out.with_suffix(".json")]
        # Ray has the GPUs that the driver of CUDA would show it.
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.chosen(gpus)))}
        load = watch(["pipeline.classify", *given], ROOT, self.chosen(gpus), RUN_TIMEOUT_S, seen)
        return _read(out.with_suffix(".json")), load

    def _common(self, gpus: int) -> list[object]:
        which = ["--gpus", ",".join(map(str, self.chosen(gpus)))] if self.on_gpus else ["--engines", gpus]
        return [*self._engine(self._options.loaders), *which]

    def _engine(self, loaders: int) -> list[object]:
        options = self._options
        given: list[object] = ["--model", options.model, "--gpu", options.gpu, "--loaders", max(1, loaders)]
        given += ["--cpu-backend", options.cpu_backend, "--inflight", options.inflight]
        return given if options.batch is None else [*given, "-b", options.batch]

    def _next(self) -> Path:
        self._runs += 1
        return self._folder / f"run-{self._runs}"


class Files:
    """Images under as many names as are asked for: copies in one folder, and links to that folder."""

    def __init__(self, folder: Path, images: Path, copies: int) -> None:
        found = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise PipelineError(f"{images}: no image in it")
        self._folder = folder
        self._copies = folder / "copies"
        self._copies.mkdir()
        size = 0
        for number, image in enumerate(islice(cycle(found), copies)):
            # Written here, so that it lies in the page cache; each its own, so that caches of the CPU do not have it.
            size += Path(shutil.copyfile(image, self._copies / f"{number:06}{image.suffix.lower()}")).stat().st_size
        self.mean_bytes = size / copies
        self._count = copies

    def folder_of(self, least: int) -> tuple[Path, int]:
        """A folder with no fewer names than that below it, and how many they are."""
        links = -(-least // self._count)
        folder = self._folder / f"{links}"
        if not folder.exists():
            folder.mkdir()
            for number in range(links):
                (folder / f"{number:06}").symlink_to(self._copies)
        return folder, links * self._count


class Scaling:
    """Every part with every number of GPUs."""

    def __init__(self, host: Host, options: argparse.Namespace, files: Files) -> None:
        self._host = host
        self._options = options
        self._files = files
        self._sample = Moved(
            host.sample_bytes * (GPU_SAMPLE if host.on_gpus else CPU_SAMPLE),
            host.sample_bytes if host.on_gpus else None,
        )
        self._offline: dict[int, float] = {}

    def offline(self, gpus: int) -> Measured:
        summary, load = self._host.offline(gpus, "--lgts_min_duration_ms", round(1e3 * self._options.seconds))
        rate = self._offline[gpus] = float(summary["loadgen"]["samples_per_second"])
        verdict, valid = summary["verdict"], "" if summary["loadgen"]["valid"] else "; INVALID"
        return Measured(
            "offline", gpus, rate, load, self._sample, f"{bound_of(verdict)}{valid}", tuple(verdict["sentences"])
        )

    def server(self, gpus: int) -> Measured:
        if gpus not in self._offline:
            raise PipelineError("server: it begins with the rate of the offline section; run that too")
        held, failed = 0.0, 1.0
        best: tuple[float, HostLoad] | None = None
        why = "none failed"
        for step in range(self._options.server_steps):
            share = FIRST_SHARE if step == 0 else (max(held, failed - STEP_DOWN) + failed) / 2
            asked = share * self._offline[gpus]
            summary, load = self._host.offline(
                gpus, "--scenario", "Server", *(SERVER_BATCHES if self._host.on_gpus else ()),
                "--lgts_server_target_qps", asked,
                "--lgts_min_duration_ms", round(1e3 * self._options.server_seconds),
            )  # fmt: skip
            found = summary["loadgen"]
            p99_ns, rate = float(found["latency_ns"]["99.00"]), float(found["samples_per_second"])
            if p99_ns <= SERVER_LATENCY_NS and rate > KEPT_UP * asked:
                held, best = share, (rate, load)
            else:
                failed, why = share, f"asked {asked:,.0f}/s: p99 {p99_ns / 1e6:.1f} ms, answered {rate:,.0f}/s"
        rate_held, load_held = (None, HostLoad()) if best is None else best
        return Measured("server", gpus, rate_held, load_held, self._sample, why)

    def files(self, gpus: int) -> Measured:
        folder, count = self._files.folder_of(self._options.files * gpus)
        summary, load = self._host.classify(gpus, folder)
        if (summary["rows"], summary["errors"]) != (count, 0):
            raise PipelineError(f"files: {summary['rows']} rows, {summary['errors']} of them errors, of {count} files")
        rate = float(summary["throughput"]["samples_per_second_mean"])
        sizes = Sizes(self._host.sample_bytes, self._files.mean_bytes)
        moved = moved_by_file(sizes, summary["decoded"], on_gpus=self._host.on_gpus)
        verdict = summary["verdict"]
        return Measured("files", gpus, rate, load, moved, bound_of(verdict), tuple(verdict["sentences"]))

    def ray(self, gpus: int) -> Measured:
        folder, count = self._files.folder_of(self._options.files * gpus)
        summary, load = self._host.classify_on_ray(gpus, sorted(folder.iterdir()))
        if (summary["rows"], summary["errors"]) != (count, 0):
            raise PipelineError(f"ray: {summary['rows']} rows, {summary['errors']} of them errors, of {count} files")
        return Measured("ray", gpus, load.answers_s, load, None, "not said by a run on Ray")


def moved_by_file(sizes: Sizes, decoded: Summary | None, *, on_gpus: bool) -> Moved:
    """What a file takes along, on average; `decoded` is the summary's count of who decoded, None: loaders did."""
    # Of a loader's work, its reading of the file and its writing of the sample are counted.
    by_loader = CPU_FILE * sizes.file + sizes.sample * (1 + (GPU_SAMPLE if on_gpus else CPU_SAMPLE))
    if not on_gpus or decoded is None:
        return Moved(by_loader, sizes.sample if on_gpus else None)
    files, loaders = int(decoded["gpu"]), sum(decoded["loaders"].values())
    share, sent = files / max(1, files + loaders), sizes.file + HEADER.itemsize
    return Moved(
        share * GPU_FILE * sent + (1 - share) * by_loader,
        share * sent + (1 - share) * sizes.sample,
    )


def bound_of(verdict: Summary) -> str:
    """`engine, 98% of its ceiling`; `nothing: 71% of engine's ceiling` where no part's ceiling was reached."""
    if verdict["share_of_ceiling"] is None:
        return "unknown"
    bound, share = verdict["bound"], verdict["share_of_ceiling"]
    if bound in verdict["ceilings"]:
        return f"{bound}, {share:.0%} of its ceiling"
    lowest = min(verdict["ceilings"], key=lambda part: float(verdict["ceilings"][part]["samples_per_s"]))
    return f"nothing: {share:.0%} of {lowest}'s ceiling" if bound == "overheads" else f"{bound}: above {lowest}'s"


TITLES = (
    f"{'':8}{'GPUs':>5}{'images/s':>12}{'of n x':>8}{'cores':>8}{'main':>6}{'memory GB/s':>15}"
    f"{'PCIe sent':>11}{'NVML':>7}  bound"
)


def line_of(measured: Measured, base: Measured) -> str:
    """A line below TITLES; `base` is the same part with the least number of GPUs."""
    load, moved, rate = measured.load, measured.moved, measured.rate
    share = None
    if rate is not None and base.rate:
        share = rate * base.gpus / (base.rate * measured.gpus)
    memory, how = (None, "") if rate is None or moved is None else (rate * moved.memory, " moved")
    if load.memory_bytes_s is not None:
        memory, how = load.memory_bytes_s, " seen"
    pcie = None if rate is None or moved is None or moved.pcie is None else rate * moved.pcie
    return (
        f"{measured.part:8}{measured.gpus:5}{shown(rate, ',.0f'):>12}{shown(share, '.1%'):>8}"
        f"{shown(load.cores, '.1f'):>8}{shown(load.main_cores, '.1f'):>6}"
        f"{shown(memory, ',.1f', 1e9) + how:>15}{shown(pcie, ',.1f', 1e9):>11}"
        f"{shown(load.pcie_bytes_s, ',.1f', 1e9):>7}  {measured.bound}"
    )


def shown(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else format(value / unit, form)


def measure(
    scaling: Scaling, sections: Sequence[str], counts: Sequence[int], *, verbose: bool
) -> Iterator[tuple[str, bool]]:
    """A line for each part and number of GPUs, as soon as it is known, and whether it was measured.

    `verbose` adds the sentences of its verdict.
    """
    parts: dict[str, Callable[[int], Measured]] = {
        "offline": scaling.offline, "server": scaling.server, "files": scaling.files, "ray": scaling.ray,
    }  # fmt: skip
    base: dict[str, Measured] = {}
    for gpus in counts:
        for part in sections:
            try:
                measured = parts[part](gpus)
            except (PipelineError, Int4CoreError) as error:
                # The other parts say something all the same.
                yield f"{part:8}{gpus:5}  FAILED: {printed(error)}", False
                continue
            said = (line_of(measured, base.setdefault(part, measured)), *(measured.sentences if verbose else ()))
            yield "\n    ".join(said), True


def run(options: argparse.Namespace, sections: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        host = Host(options, Path(name))
        asked = sorted(set(options.gpus or COUNTS))
        counts = [count for count in asked if host.has(count)]
        print(
            f"{printable(options.model)} on {host.notice}, {usable_cores()} cores, {options.loaders} loaders, "
            f"load average {os.getloadavg()[0]:.1f} before"
        )
        left = [str(count) for count in asked if count not in counts]
        if left:
            print(f"left out: {', '.join(left)} GPUs, of which {len(host.gpus)} are here")
        # Made only where they are wanted: gigabytes.
        files = Files(Path(name), options.images, options.copies if {"files", "ray"} & set(sections) else 1)
        print(TITLES, flush=True)
        good = True
        for line, measured in measure(Scaling(host, options, files), sections, counts, verbose=options.verbose):
            print(line, flush=True)
            good = good and measured
    return 0 if good and not (left and options.gpus) else 1


def _read(path: Path) -> Summary:
    summary: Summary = json.loads(path.read_text())
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpus", type=values.whole_numbers, metavar="N,N",
        help=f"how many, each a measurement (default: those of {','.join(map(str, COUNTS))} that are here)",
    )  # fmt: skip
    parser.add_argument("--gpu", choices=GPU_CHOICES, default="auto", help="as the commands'; cpu: engines of the CPU")
    parser.add_argument(
        "--cpu-backend", choices=CPU_BACKENDS, default="auto", help="as the commands' (default: %(default)s)"
    )
    parser.add_argument("--model", type=Path, default=default_model(), help="model folder (default: %(default)s)")
    parser.add_argument("--images", type=Path, default=DEMO_IMAGES, help="JPEGs to copy (default: %(default)s)")
    add_sections(parser, SECTIONS, default=DEFAULT_SECTIONS)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each Offline run (default: %(default)g)")
    parser.add_argument("--server-seconds", type=float, default=5.0, help="of each try (default: %(default)g)")
    parser.add_argument("--server-steps", type=int, default=4, help="tries (default: %(default)s)")
    parser.add_argument("--files", type=int, default=400_000, help="for each GPU, at least (default: %(default)s)")
    parser.add_argument("--copies", type=int, default=10_000, help="of images, others link (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where tensors and copies are made (default: the temporary folder)")
    parser.add_argument("--batch", type=int, help="as the commands' (default: their own)")
    parser.add_argument("--inflight", type=int, default=3, help="as the commands' (default: %(default)s)")
    parser.add_argument("--loaders", type=int, default=default_loaders(), help="processes (default: %(default)s)")
    parser.add_argument("--loadgen-path", type=Path, metavar="DIR", help="a LoadGen that was built there")
    parser.add_argument("--verbose", action="store_true", help="add what each verdict says")
    options = parser.parse_args(argv)
    if options.gpus and 0 in options.gpus:
        parser.error("--gpus: how many, not which: 0 measures nothing")
    try:
        return run(options, options.sections)
    except (PipelineError, Int4CoreError) as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run_command(main))

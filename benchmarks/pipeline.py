"""The pipeline on the GPU at hand: how much of the engine's rate is left when samples start in host memory?

    python -m benchmarks.pipeline [--model DIR] [--batch 1024] [--sections device,offline,jpeg,latency,server,accuracy]

- device: the engine alone, copies alone, both at once, without LoadGen.
- offline: LoadGen's Offline scenario, by the command a user runs, samples in host memory.
- jpeg: from JPEG files to predictions, every core decoding while the engine computes.
- latency: SingleStream, one query after another.
- server: the most queries per second of which 99 % are answered within 15 ms, by halving an interval.
- accuracy: the golden predictions of real images through the whole path, where the shared data is there.

Ends with 1 when a part fails, when a prediction differs, and where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline_device import DeviceRates, DeviceSpec, measure
from benchmarks.sections import add_sections
from int4core.cores import usable_cores
from int4core.errors import Int4CoreError, printable, printed
from int4core.model import Model
from int4core.network import default_input_size
from int4core.streams import run_command
from pipeline.commands.setup import options_of
from pipeline.defaults import DEMO_IMAGES, default_model
from pipeline.device.scheduler import Sizes
from pipeline.errors import PipelineError
from pipeline.loadgen.results import read_accuracy_log
from pipeline.loadgen.scenarios import SERVER_LATENCY_NS
from pipeline.machine.gpus import Target, choose_target
from pipeline.report.verdict import Verdict, judge
from pipeline.samples.library import SampleLibrary
from pipeline.session.session import Session
from pipeline.session.spec import SessionSpec
from pipeline.stages.load import Preparation

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("device", "offline", "jpeg", "latency", "server", "accuracy")
SAMPLES = 1024
JPEG_CHUNK = 1024
SERVER_STEPS = 5
RUN_TIMEOUT_S = 600
SERVER_BATCHES = ("--max-batch", 640, "--batch-step", 32, "--busy-at", 2, "--batch-timeout-us", 8000)
"""Of Server on a GPU: whatever waits is launched when the GPU frees, one batch behind the one that runs."""


class Figures:
    """What has been measured so far, for the shares of later lines."""

    def __init__(self) -> None:
        self.device: DeviceRates | None = None
        self.offline = 0.0
        self.failed: list[str] = []

    def share(self, rate: float) -> str:
        if self.device is None:
            return ""
        return f"{rate / self.device.engine:6.1%} of the engine"


def line(what: str, value: str, note: str = "") -> None:
    print(f"  {what:52s} {value:>22s}   {note}".rstrip(), flush=True)


def images_s(rate: float) -> str:
    return f"{rate:,.0f} images/s"


def device_part(options: argparse.Namespace, target: Target, figures: Figures) -> None:
    bus_id = target.bus_ids[0] if target.bus_ids else ""
    spec = DeviceSpec(options.model, options.batch, options.inflight, SAMPLES, options.seconds, bus_id)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        rates = pool.submit(measure, spec).result()
    figures.device = rates
    print(f"  {rates.notice}")
    line("engine, inputs on the device, median", images_s(rates.engine_median))
    line(f"engine, inputs on the device, {options.seconds:g} s on end", images_s(rates.engine), "the engine below")
    line("  clock and power meanwhile", f"{rates.clock_mhz:,.0f} MHz, {rates.power_w:,.0f} W")
    plain = next(iter(rates.copies.values()))
    for name, gbs in rates.copies.items():
        line(f"H2D alone: {name}", f"{gbs:.1f} GB/s", f"{gbs / plain:6.1%} of a plain copy")
    for (name, ordered), rate in rates.together.items():
        how = "networks in turns" if ordered else "networks side by side"
        line(f"engine + copies by {name}, {how}", images_s(rate), figures.share(rate))


def command(options: argparse.Namespace, folder: Path, *arguments: object) -> dict[str, Any]:
    """Run the user's command; its summary.json. Raises PipelineError with its last words when it fails."""
    out = Path(tempfile.mkdtemp(dir=folder))
    given = [sys.executable, "-m", "pipeline.offline", "--no-dashboard", "--output-dir", out, *arguments]
    done = subprocess.run(
        list(map(str, given)), cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise PipelineError(f"{' '.join(map(str, given[1:]))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    if options.verbose:
        print(done.stdout, done.stderr)
    for said in done.stdout.splitlines():
        if said.startswith(("stage infer", "LoadGen")):
            print(f"    {said}")
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    summary["folder"] = str(out)
    return summary


def make_tensors(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Random samples, as files of prepared tensors: what they show does not matter to the rate."""
    tensors = folder / "tensors"
    tensors.mkdir()
    rng = np.random.default_rng(0)
    for number in range(SAMPLES):
        np.save(tensors / f"{number:05}.npy", rng.integers(-128, 128, shape, dtype=np.int8))
    return tensors


def offline_part(options: argparse.Namespace, folder: Path, common: list[object], figures: Figures) -> None:
    arguments = [*common, "-b", options.batch, "--lgts_min_duration_ms", round(options.min_duration * 1000)]
    if figures.device is not None:
        # A run that ends before its minimum duration is INVALID; what is issued beyond it is only more of the same.
        arguments += ["--lgts_offline_expected_qps", figures.device.engine]
    summary = command(options, folder, *arguments)
    figures.offline = float(summary["loadgen"]["samples_per_second"])
    valid = "VALID" if summary["loadgen"]["valid"] else "INVALID"
    line(f"LoadGen Offline, {valid}", images_s(figures.offline), figures.share(figures.offline))
    for sentence in summary["verdict"]["sentences"]:
        print(f"    {sentence}")
    for stage in summary["stages"]:
        if stage["busy"] is not None:
            line(f"  stage {stage['name']}", f"{stage['busy']:.1%} busy")
    if figures.device is not None:
        best = max(figures.device.together.values())
        line("  lost to copies", f"{1 - best / figures.device.engine:.1%}")
        line("  lost to LoadGen, queues and processes", f"{1 - figures.offline / best:.1%}")


def latency_part(options: argparse.Namespace, folder: Path, common: list[object], _figures: Figures) -> None:
    duration = ["--lgts_min_duration_ms", 5000]
    for scenario, percentile in (("SingleStream", "90.00"), ("MultiStream", "99.00")):
        summary = command(options, folder, *common, "--scenario", scenario, *duration)
        latency = summary["loadgen"]["latency_ns"]
        shown = ", ".join(f"p{p:g} {latency[f'{p:.2f}'] / 1e6:.3f} ms" for p in (50, 90, 99))
        line(f"{scenario}, p{float(percentile):g}", f"{latency[percentile] / 1e6:.3f} ms", shown)


def server_part(options: argparse.Namespace, folder: Path, common: list[object], figures: Figures) -> None:
    top = figures.offline or (figures.device.engine if figures.device else 0.0)
    if not top:
        raise PipelineError("server: it begins with the rate of the offline or the device section; run one of them too")
    low, high, best = 0.0, 1.0, None
    batches = () if options.gpu == "cpu" else SERVER_BATCHES
    for _ in range(SERVER_STEPS):
        share = (low + high) / 2
        found = command(
            options, folder, *common, "--scenario", "Server", *batches, "--lgts_server_target_qps", share * top,
            "--lgts_min_duration_ms", 5000,
        )["loadgen"]  # fmt: skip
        p99, rate = found["latency_ns"]["99.00"], float(found["samples_per_second"])
        good = p99 <= SERVER_LATENCY_NS and rate > 0.97 * share * top
        line(f"Server, asked {share * top:,.0f}/s", f"p99 {p99 / 1e6:.2f} ms", f"answered {rate:,.0f}/s")
        if good:
            low, best = share, (rate, p99)
        else:
            high = share
    if best is None:
        raise PipelineError(f"server: not even {high * top:,.0f} queries/s are answered within 15 ms at p99")
    line("Server, 99 % within 15 ms", images_s(best[0]), f"p99 {best[1] / 1e6:.2f} ms; {figures.share(best[0])}")


def jpeg_part(options: argparse.Namespace, target: Target, figures: Figures) -> None:
    """Files to classes through a session, every core decoding while the engine computes."""
    images = SampleLibrary.from_images(options.images)
    size = sum(path.stat().st_size for path in images.paths) / len(images)
    height, width = default_input_size(Model.load(options.model).network)
    spec = SessionSpec(
        model=options.model,
        backend=target.backend,
        backend_options=options_of(target),
        sizes=Sizes.full(min(options.batch, JPEG_CHUNK) if target.gpus else 16),
        input_shape=(3, height, width),
        preparation=Preparation("images", height, round(height * 256 / 224)),
        loaders=usable_cores(),
        stage_timeout_s=120.0,
        image_timeout_s=60.0,
        inflight=options.inflight,
        bus_ids=target.bus_ids[:1],
    )
    rate, verdict = jpeg_rate(spec, [str(path) for path in images.paths], options.jpeg_chunks)
    line(
        f"JPEG to prediction, {spec.loaders} loaders", images_s(rate),
        f"{rate / spec.loaders:,.0f} a loader; files of {size / 1024:,.0f} KiB; {figures.share(rate)}",
    )  # fmt: skip
    for sentence in verdict.sentences:
        print(f"    {sentence}")


def jpeg_rate(spec: SessionSpec, paths: Sequence[str], chunks: int) -> tuple[float, Verdict]:
    """Images/s from the first file read to the last answer, and what bounds it.

    The first chunk is a warm-up and not counted.
    """
    with Session(spec) as session:
        session.start()
        for answer in session.classify(islice(cycle(paths), JPEG_CHUNK)):
            if answer.error is not None:
                raise PipelineError(f"{answer.source.key}: {answer.error}")
        began, count = time.perf_counter(), (chunks - 1) * JPEG_CHUNK
        answered = sum(1 for _ in session.classify(islice(cycle(paths), count), ordered=False))
        rate = answered / (time.perf_counter() - began)
        return rate, judge(session.ceilings(rate, decode_timed=True))


def accuracy_part(options: argparse.Namespace, folder: Path, figures: Figures) -> None:
    """The published model on real images: every prediction as the golden logits have it."""
    golden, images = options.shared / "golden", options.shared / "imagenet" / "sample200"
    published = options.shared / "model-v0.5" / "model"
    if not (golden.is_dir() and images.is_dir()):
        line("accuracy", "left out", f"{options.shared} is not there")
        return
    summary = command(
        options, folder, "--gpu", options.gpu, "--model", published, "--images", images, "-m", images / "map.txt",
        "-b", options.batch, "--test-mode", "AccuracyOnly",
    )  # fmt: skip
    logits = np.load(golden / "sample200_logits.npz")["logits"].astype(np.float32)
    wanted = (logits / Model.load(published).network.scale.out_scale).argmax(axis=1)
    log = read_accuracy_log(Path(summary["folder"]) / "mlperf_log_accuracy.json")
    if log.samples is None or len(log.samples.names) != len(wanted):
        raise PipelineError(f"{log.path}: the list of its {len(wanted)} samples is not beside it")
    different = int((log.predictions(len(wanted))[0] != wanted).sum())
    top1 = summary["accuracy"]
    line("golden predictions through the whole path", f"{len(wanted) - different} of {len(wanted)} equal")
    line("top-1", f"{top1['correct']}/{top1['total']}")
    if different:
        raise PipelineError(f"accuracy: {different} of {len(wanted)} predictions differ from the golden ones")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--images", type=Path, default=DEMO_IMAGES, help="JPEGs of the jpeg section")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the golden tensors")
    parser.add_argument("--gpu", default="auto", help="as the command's; `cpu` only to try this program out")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--inflight", type=int, default=3)
    parser.add_argument("--h2d", default="auto", help="as the command's")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each rate of the device section")
    parser.add_argument("--min-duration", type=float, default=60.0, help="seconds of LoadGen Offline")
    parser.add_argument("--jpeg-chunks", type=int, default=10, help=f"chunks of {JPEG_CHUNK} files")
    add_sections(parser, SECTIONS)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    try:
        target = choose_target(options.gpu)
        if not target.gpus and options.gpu != "cpu":
            raise PipelineError(f"{target.notice}: this benchmark measures a GPU")
        return run(options, target)
    except (PipelineError, Int4CoreError) as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace, target: Target) -> int:
    figures = Figures()
    print(f"{printable(options.model)} on {target.notice}, {usable_cores()} cores, batch {options.batch}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = make_tensors(folder, (3, *default_input_size(Model.load(options.model).network)))
        common: list[object] = ["--gpu", options.gpu, "--model", options.model, "-p", tensors]
        common += ["--inflight", options.inflight, "--h2d", options.h2d]
        parts: dict[str, Callable[[], None]] = {
            "device": lambda: device_part(options, target, figures),
            "offline": lambda: offline_part(options, folder, common, figures),
            "jpeg": lambda: jpeg_part(options, target, figures),
            "latency": lambda: latency_part(options, folder, common, figures),
            "server": lambda: server_part(options, folder, common, figures),
            "accuracy": lambda: accuracy_part(options, folder, figures),
        }
        for part, work in parts.items():
            if part in options.sections:
                began = time.perf_counter()
                print(f"\n{part}", flush=True)
                try:
                    work()
                except (PipelineError, Int4CoreError) as error:
                    # The other parts say something all the same.
                    print(f"  FAILED: {printed(error)}", flush=True)
                    figures.failed.append(part)
                print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
    if figures.failed:
        print(f"error: failed: {', '.join(figures.failed)}", file=sys.stderr)
    return 1 if figures.failed else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(run_command(main))

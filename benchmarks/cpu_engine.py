"""The CPU's backends against the machine's own matrix product, and each other: `python -m benchmarks.cpu_engine`.

Each round times one batch through each engine and then one large float32 matrix product with all of BLAS's threads.
All see the same load of the machine, so that the ratios of their multiply-adds per second are steady even where the
rates are not; medians over the rounds are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from int4core.cores import usable_cores
from int4core.engine import Engine
from int4core.errors import Int4CoreError, printed
from int4core.model import Model
from int4core.network import trace_shapes
from int4core.random_model import random_model
from int4core.streams import run_command


@dataclass(frozen=True)
class Result:
    """A backend's row of the table, and its object in the JSON file.

    Attributes:
        images_per_s: median over the rounds.
        cpu_ms: CPU time of all threads for an image, in the round that took the least: other programs hardly change it.
        engine_gmacs, sgemm_gmacs: 10^9 multiply-adds per second, medians.
        ratio: median over the rounds of the engine's rate over the matrix product's; ratio_low and
            ratio_high are the smallest and largest round.
        over_first: median over the rounds of the engine's rate over that of the first backend.
        peak_rss_mb: of this process after the engine ran, with those before it, and before the next took its memory.
    """

    backend: str
    model: str
    batch: int
    cpus: int
    rounds: int
    sgemm_size: int
    images_per_s: float
    cpu_ms: float
    engine_gmacs: float
    sgemm_gmacs: float
    ratio: float
    ratio_low: float
    ratio_high: float
    over_first: float
    peak_rss_mb: float
    machine: str
    numpy: str


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """How long it takes, and the CPU time of all threads."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(
    model: Model, label: str, backends: Sequence[str], batch: int, rounds: int, sgemm_size: int
) -> list[Result]:
    """Run the benchmark: a result a backend. Raises EngineError as `Engine` does."""
    rng = np.random.default_rng(0)
    multiply_adds = batch * sum(layer.multiply_adds for layer in trace_shapes(model.network))
    with ExitStack() as stack:
        engines, rss = [], []
        for backend in backends:
            engine = stack.enter_context(Engine(model, backend, batch_size=batch))
            x = rng.integers(-127, 128, (batch, *engine.input_shape), dtype=np.int8)
            engine.accumulators(x)
            engines.append(engine)
            rss.append(peak_rss_mb())
        a = rng.standard_normal((sgemm_size, sgemm_size), dtype=np.float32)
        product = np.matmul(a, a)
        works = [*(partial(engine.accumulators, x) for engine in engines), partial(np.matmul, a, a, product)]
        clocks = np.array([[seconds(work) for work in works] for _ in range(rounds)])
    timed, busy = clocks[..., 0], clocks[..., 1]
    sgemm = sgemm_size**3 / timed[:, -1] / 1e9
    results = []
    for i, backend in enumerate(backends):
        rates = multiply_adds / timed[:, i] / 1e9
        results.append(Result(
            backend=backend, model=label, batch=batch, cpus=usable_cores(), rounds=rounds, sgemm_size=sgemm_size,
            images_per_s=float(np.median(batch / timed[:, i])),
            cpu_ms=float(busy[:, i].min()) / batch * 1e3,
            engine_gmacs=float(np.median(rates)), sgemm_gmacs=float(np.median(sgemm)),
            ratio=float(np.median(rates / sgemm)), ratio_low=float(min(rates / sgemm)),
            ratio_high=float(max(rates / sgemm)), over_first=float(np.median(timed[:, 0] / timed[:, i])),
            peak_rss_mb=rss[i], machine=cpu_name(), numpy=np.__version__,
        ))  # fmt: skip
    return results


def cpu_name() -> str:
    """As the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def table(results: Sequence[Result]) -> Table:
    first = results[0]
    shown = Table(title=f"{first.model}, {first.cpus} CPUs ({first.machine}), {first.rounds} rounds")
    shown.add_column("backend")
    headings = (
        "batch",
        "images/s",
        "CPU ms",
        f"over {first.backend}",
        "engine GMAC/s",
        "sgemm GMAC/s",
        "ratio",
        "low..high",
        "RSS MB",
    )
    for heading in headings:
        shown.add_column(heading, justify="right")
    for result in results:
        shown.add_row(
            result.backend,
            str(result.batch),
            f"{result.images_per_s:.2f}",
            f"{result.cpu_ms:.1f}",
            f"{result.over_first:.2f}",
            f"{result.engine_gmacs:.1f}",
            f"{result.sgemm_gmacs:.1f}",
            f"{result.ratio:.3f}",
            f"{result.ratio_low:.2f}..{result.ratio_high:.2f}",
            f"{result.peak_rss_mb:.0f}",
        )
    return shown


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="images/s of the CPU's backends against sgemm")
    parser.add_argument(
        "--backends", nargs="+", choices=("numpy", "torch"), default=["numpy"], help="which (default: numpy)"
    )
    parser.add_argument("--model", type=Path, help="model directory (default: random ResNet-50)")
    parser.add_argument("--batch", type=positive, default=16, help="images per batch (default: 16)")
    parser.add_argument("--rounds", type=positive, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--sgemm", type=positive, default=4096, help="side of the matrices (default: 4096)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    try:
        if options.model:
            model, label = Model.load(options.model), str(options.model)
        else:
            model = random_model(blocks=(3, 4, 6, 3), width=64, classes=1000)
            label = "ResNet-50 with random weights"
        results = measure(model, label, options.backends, options.batch, options.rounds, options.sgemm)
    except Int4CoreError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    Console().print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

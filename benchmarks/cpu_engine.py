"""The NumPy backend against the machine's own matrix product: `python -m benchmarks.cpu_engine`.

Each round times one batch through the engine and then one large float32 matrix product with all of BLAS's
threads. Both see the same load of the machine, so the ratio of their multiply-adds a second is steady
even where the rates are not; medians over the rounds are reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
class Round:
    """One batch through the engine, and one matrix product right after it (seconds)."""

    engine_s: float
    sgemm_s: float


@dataclass(frozen=True)
class Result:
    """What the table and the JSON file say.

    Attributes:
        images_per_s: median over the rounds.
        engine_gmacs, sgemm_gmacs: 10^9 multiply-adds a second, medians.
        ratio: median over the rounds of the engine's rate over the matrix product's; ratio_low and
            ratio_high are the smallest and largest round.
        peak_rss_mb: of this process after the engine ran and before the matrix product took its memory.
    """

    model: str
    batch: int
    cpus: int
    rounds: int
    sgemm_size: int
    images_per_s: float
    engine_gmacs: float
    sgemm_gmacs: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak_rss_mb: float
    machine: str
    numpy: str


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(model: Model, label: str, batch: int, rounds: int, sgemm_size: int) -> Result:
    """Run the benchmark. Raises EngineError as `Engine` does."""
    rng = np.random.default_rng(0)
    multiply_adds = batch * sum(layer.multiply_adds for layer in trace_shapes(model.network))
    with Engine(model, backend="numpy", batch_size=batch) as engine:
        x = rng.integers(-127, 128, (batch, *engine.input_shape), dtype=np.int8)
        engine.accumulators(x)
        rss = peak_rss_mb()
        a = rng.standard_normal((sgemm_size, sgemm_size), dtype=np.float32)
        product = np.matmul(a, a)
        timed = [
            Round(
                seconds(lambda: engine.accumulators(x)),
                seconds(lambda: np.matmul(a, a, out=product)),
            )
            for _ in range(rounds)
        ]
    engine_rates = [multiply_adds / r.engine_s / 1e9 for r in timed]
    sgemm_rates = [sgemm_size**3 / r.sgemm_s / 1e9 for r in timed]
    ratios = [e / s for e, s in zip(engine_rates, sgemm_rates, strict=True)]
    return Result(
        model=label, batch=batch, cpus=usable_cores(), rounds=rounds, sgemm_size=sgemm_size,
        images_per_s=statistics.median(batch / r.engine_s for r in timed),
        engine_gmacs=statistics.median(engine_rates), sgemm_gmacs=statistics.median(sgemm_rates),
        ratio=statistics.median(ratios), ratio_low=min(ratios), ratio_high=max(ratios),
        peak_rss_mb=rss, machine=platform.processor() or platform.machine(), numpy=np.__version__,
    )  # fmt: skip


def table(result: Result) -> Table:
    shown = Table(title=f"NumPy backend, {result.model}, {result.cpus} CPUs, {result.rounds} rounds")
    for heading in ("batch", "images/s", "engine GMAC/s", "sgemm GMAC/s", "ratio", "low..high", "RSS MB"):
        shown.add_column(heading, justify="right")
    shown.add_row(
        str(result.batch),
        f"{result.images_per_s:.2f}",
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
    parser = argparse.ArgumentParser(description="images/s of the NumPy backend against sgemm")
    parser.add_argument("--model", type=Path, help="model directory (default: random ResNet-50)")
    parser.add_argument("--batch", type=positive, default=16, help="images a batch (default: 16)")
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
        result = measure(model, label, options.batch, options.rounds, options.sgemm)
    except Int4CoreError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    Console().print(table(result))
    if options.json:
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

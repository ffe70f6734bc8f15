"""What a query of LoadGen's Server scenario costs the main process, by thread, beside engines that only sleep. No GPU.

    python -m benchmarks.server_cost [--rates 60000,120000,240000] [--loadgen-path DIR]

The command's own way from LoadGen's query to its answer. An engine takes --engine-us for each sample of a batch;
there are as many as a rate needs. CPU time of each thread over the samples, and LoadGen's latencies: what
the threads take that need Python's interpreter together bounds the rate, and the thread `job` is LoadGen's own.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.main_process import Threads, idle_engine
from int4core.streams import run_command
from pipeline.defaults import DEMO_IMAGES
from pipeline.loadgen import command
from pipeline.loadgen.binding import LoadGenSession
from pipeline.loadgen.results import read_result
from pipeline.session import batches
from pipeline.session.supervisor import Supervisor

BATCH = 640
HOLD_US = 8000
# Of what the engines could: at their whole rate queries would queue up without end.
SHARE = 0.8


def measure(rate: int, options: argparse.Namespace) -> int:
    """One run, and what it took; the command's exit status."""
    engines = max(1, math.ceil(rate * options.engine_us / 1e6 / SHARE))
    with tempfile.TemporaryDirectory() as folder:
        arguments: list[object] = [
            "--scenario", "Server", "--gpu", "cpu", "--cpu-backend", "numpy", "--engines", engines, "--loaders", 1,
            "--images", DEMO_IMAGES, "--max-batch", BATCH, "--busy-at", 2 * engines, "--batch-timeout-us", HOLD_US,
            "--lgts_server_target_qps", rate, "--lgts_min_duration_ms", round(1e3 * options.seconds),
            "--output-dir", folder, "--json",
        ]  # fmt: skip
        if options.loadgen_path is not None:
            arguments += ["--loadgen-path", options.loadgen_path]
        run = LoadGenSession.run
        with Threads() as threads:

            def watched(session: LoadGenSession, *settings: Any) -> None:
                threads.begin()
                run(session, *settings)

            with (
                mock.patch.object(batches, "infer_stage", partial(idle_engine, options.engine_us)),
                mock.patch.object(LoadGenSession, "run", watched),
                Path(folder, "lines.json").open("w") as lines,
                mock.patch.object(sys, "stdout", lines),
            ):
                status = command.command([str(argument) for argument in arguments], Supervisor())
        if status:
            return status
        result = read_result(Path(folder))
    taken = {name: us / (rate * options.seconds) for name, us in threads.us().items()}
    late = ", ".join(
        f"p{name.removesuffix('.00')} {result.latency_ns[name] / 1e6:.1f} ms" for name in ("50.00", "99.00")
    )
    print(f"\n{rate:,} asked for, {engines} engines: {result.samples_per_second:,.0f} samples/s, {late}")
    for name, us in taken.items():
        if us >= 0.05:
            print(f"  {name:20}{us:6.2f} us of CPU per sample")
    print(f"  {'together':20}{sum(taken.values()):6.2f}", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.server_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="60000,120000,240000", help="samples/s, each a run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each (default: %(default)g)")
    parser.add_argument("--engine-us", type=float, default=6.0, help="of sleep per sample (default: %(default)g)")
    parser.add_argument("--loadgen-path", type=Path, metavar="DIR", help="a LoadGen that was built there")
    options = parser.parse_args(argv)
    for rate in options.rates.split(","):
        if status := measure(int(rate), options):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

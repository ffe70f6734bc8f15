"""Profile kernels with Nsight Compute; end in a table: time, tensor pipe, issue slots, DRAM, L2, occupancy, stalls.

    python -m tools.ncu_kernels --out kernels.csv
    python -m tools.ncu_kernels --kernels conv_wgmma --skip 60 --count 10 -- python -m benchmarks.engine --profile
    python -m tools.ncu_kernels --read kernels.csv

Without a command it profiles one pass of the engine over every layer: the second pass, since the first one warms up.
Every launch is run several times, its caches flushed before each, so that times say what bounds a kernel and not how
fast it is in a run. The GPU's clocks are left as they are; `--clock-control base` lets ncu hold them at their base.
Layers are named by the order of the plan for `--model`, `--gpu` and `--batch`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from int4core.errors import Int4CoreError, printed
from int4core.streams import run_command
from pipeline.commands.values import whole
from pipeline.defaults import DEFAULT_MODEL
from pipeline.errors import PipelineError
from pipeline.machine.profilers import NCU, require_profiler
from tools.ncu_read import METRICS, KernelMetrics, explain, parse
from tools.nsys_profile import default_command
from tools.passes import Launch, planned_pass

SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "LaunchStats",
    "Occupancy",
    "SchedulerStats",
    "WarpStateStats",
)


def ncu_command(
    ncu: Path,
    out: Path,
    command: Sequence[str],
    *,
    kernels: str,
    skip: int = 0,
    count: int | None = None,
    metrics: Sequence[str] = (),
    clock_control: str = "none",
) -> list[str]:
    """The command line of `ncu` that writes the raw page to `out`.

    `kernels` is a regular expression for whole function names; only kernels that fit it count for `skip` and `count`.
    """
    flags = ["--csv", "--page=raw", "--print-units=base", f"--log-file={out}", "--target-processes=all"]
    flags += [f"--kernel-name=regex:^({kernels})$", f"--launch-skip={skip}", f"--clock-control={clock_control}"]
    if count is not None:
        flags.append(f"--launch-count={count}")
    flags += [f"--section={section}" for section in SECTIONS]
    flags.append(f"--metrics={','.join((*METRICS, *metrics))}")
    return [str(ncu), *flags, *command]


def report(kernels: Sequence[KernelMetrics]) -> Iterator[str]:
    """The table, line by line; shares in percent."""
    yield (
        f"{'layer':24s} {'kernel':24s} {'us':>9s} {'tensor':>7s} {'issue':>6s} {'DRAM':>6s} {'L2':>6s} {'regs':>5s} "
        f"{'shared':>8s} {'warps':>6s}  stall"
    )
    for kernel in kernels:
        shares = (
            f"{_or_dash(kernel.tensor, 7)} {_or_dash(kernel.issue, 6)} {_or_dash(kernel.dram, 6)} "
            f"{_or_dash(kernel.l2, 6)}"
        )
        yield (
            f"{kernel.layer:24s} {kernel.name:24s} {kernel.us:9.1f} {shares} {_or_dash(kernel.registers, 5, 0)} "
            f"{_or_dash(kernel.shared_bytes, 8, 0)} {_or_dash(kernel.occupancy, 6)}  {kernel.stall}"
        )
    total = sum(kernel.us for kernel in kernels)
    told = [(kernel.us, kernel.tensor) for kernel in kernels if kernel.tensor is not None]
    timed = sum(us for us, _ in told)
    mean = f", tensor pipe {sum(us * share for us, share in told) / timed:.1f} % of it on average" if timed else ""
    yield f"{len(kernels)} kernels, {total:,.1f} us{mean}"


def _or_dash(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'-':>{width}s}" if value is None else f"{value:{width}.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tools.ncu_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("kernels.csv"), help="the CSV file that ncu writes")
    parser.add_argument("--read", type=Path, metavar="CSV", help="a file to report on; nothing is run")
    parser.add_argument("--kernels", metavar="REGEX", help="functions to profile (default: those of the plan)")
    parser.add_argument("--skip", type=whole(0), metavar="N", help="launches to pass over (default: one pass)")
    parser.add_argument("--count", type=whole(1), metavar="N", help="launches to profile (default: one pass)")
    parser.add_argument("--metrics", default="", help="more metrics, separated by commas; they are in the CSV file")
    parser.add_argument("--clock-control", choices=("none", "base"), default="none")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--gpu", default="h200", help="the chip that the plan is for")
    parser.add_argument("--batch", type=whole(1), default=1024)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: what to profile")
    options = parser.parse_args(argv)
    try:
        return run(options)
    except (PipelineError, Int4CoreError) as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Raises PipelineError or Int4CoreError."""
    one_pass = planned_pass(options.model, options.gpu, options.batch)
    if options.read is None:
        profile(options, one_pass)
    print("\n".join(report(parse(_text(options.read or options.out), one_pass))))
    return 0


def profile(options: argparse.Namespace, one_pass: Sequence[Launch]) -> None:
    """Run ncu; its table goes to `options.out`. Raises PipelineError."""
    command = [word for i, word in enumerate(options.command) if (i, word) != (0, "--")]
    everything = options.kernels is None
    functions = sorted({re.escape(launch.function) for launch in one_pass})
    line = ncu_command(
        require_profiler(NCU),
        options.out,
        command or default_command(options.batch),
        kernels="|".join(functions) if everything else options.kernels,
        skip=options.skip if options.skip is not None else len(one_pass) if everything else 0,
        count=options.count if options.count is not None else len(one_pass) if everything else None,
        metrics=[name for name in options.metrics.split(",") if name],
        clock_control=options.clock_control,
    )
    # A table of an earlier run is not to be read as this one's.
    options.out.unlink(missing_ok=True)
    print("$", *line, flush=True)
    status = subprocess.run(line, check=False, env={**os.environ, "LC_ALL": "C"}).returncode
    if status:
        why = explain(_text(options.out)) if os.path.isfile(options.out) else ""
        raise PipelineError(f"ncu ended with {status}; {why or 'what it and the command said is above'}")


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError as error:
        raise PipelineError(f"{file}: cannot be read: {error.strerror}; ncu writes it with --out") from error


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Profile a command with Nsight Systems; end in a table a layer, the copies, and a picture of the streams.

    python -m tools.nsys_profile --out profile
    python -m tools.nsys_profile --out profile --delay 20 --duration 2 -- python -m pipeline.offline --gpu h200
    python -m tools.nsys_profile --read profile.sqlite

Without a command it profiles one pass of the engine over every layer, without a graph. For the pipeline, let the
capture begin after the warm-up: after `--delay` seconds, or with `--capture-api` when the program calls
cudaProfilerStart. Child processes are followed, and graphs are shown kernel by kernel. Layers are named by the order of
the plan for `--model`, `--gpu` and `--batch`; where that is not what ran, by NVTX range and function alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from int4core.errors import Int4CoreError, printed
from int4core.streams import run_command
from pipeline.commands.values import whole
from pipeline.defaults import DEFAULT_MODEL
from pipeline.errors import PipelineError
from pipeline.machine.profilers import NSYS, require_profiler
from tools.nsys_read import Profile, by_copy, by_layer, kernels_busy, read
from tools.passes import Launch, planned_pass
from tools.timeline import draw


def default_command(batch: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.engine", "--profile", "--batch", str(batch)]


def nsys_command(
    nsys: Path,
    out: Path,
    command: Sequence[str],
    *,
    delay_s: float | None = None,
    duration_s: float | None = None,
    capture_api: bool = False,
) -> list[str]:
    """The command line of `nsys profile` that writes `out`.nsys-rep and `out`.sqlite.

    A capture of limited length leaves the program running to its end, so that a LoadGen run is whole.
    """
    flags = [
        "--trace=cuda,nvtx,osrt",
        "--cuda-graph-trace=node",
        "--trace-fork-before-exec=true",
        "--sample=none",
        "--cpuctxsw=none",
        "--export=sqlite",
        "--force-overwrite=true",
        f"--output={out}",
    ]
    if delay_s is not None:
        flags.append(f"--delay={delay_s:g}")
    if duration_s is not None:
        flags.append(f"--duration={duration_s:g}")
    if capture_api:
        flags += ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
    if duration_s is not None or capture_api:
        flags.append("--kill=none")
    return [str(nsys), "profile", *flags, *command]


def report(profile: Profile) -> Iterator[str]:
    """The tables, line by line."""
    yield f"{'layer':24s} {'kernel':32s} {'count':>7s} {'total us':>12s} {'mean us':>10s} {'share':>7s}"
    for line in by_layer(profile):
        yield (
            f"{line.layer:24s} {line.name:32s} {line.count:7d} {line.total_us:12,.1f} {line.mean_us:10,.1f} "
            f"{line.share:7.1%}"
        )
    begin, end = profile.span
    yield f"kernels ran in {kernels_busy(profile):.1%} of {(end - begin) / 1e6:,.1f} ms on the device"
    copies = by_copy(profile)
    if not copies:
        yield "no copies"
        return
    yield f"\n{'copies':24s} {'count':>7s} {'total us':>12s} {'MB':>10s} {'GB/s':>7s} {'under kernels':>14s}"
    for copy in copies:
        yield (
            f"{copy.kind:24s} {copy.count:7d} {copy.total_us:12,.1f} {copy.bytes / 1e6:10,.1f} {copy.gbs:7.1f} "
            f"{copy.hidden:14.1%}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tools.nsys_profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("profile"), help="names the files: OUT.sqlite, OUT.png, ...")
    parser.add_argument("--read", type=Path, metavar="SQLITE", help="an export to report on; nothing is run")
    parser.add_argument("--delay", type=float, metavar="S", help="begin the capture S seconds after the start")
    parser.add_argument("--duration", type=float, metavar="S", help="end it S seconds later")
    parser.add_argument("--capture-api", action="store_true", help="capture between cudaProfilerStart and ...Stop")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--gpu", default="h200", help="the chip that the plan is for")
    parser.add_argument("--batch", type=whole(1), default=1024)
    parser.add_argument("--copy-kernels", default="", metavar="REGEX", help="kernels that are host-to-device copies")
    parser.add_argument("--window", type=float, default=40.0, metavar="MS", help="length of the picture")
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: what to profile")
    options = parser.parse_args(argv)
    try:
        return run(options)
    except (PipelineError, Int4CoreError) as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Raises PipelineError or Int4CoreError."""
    export = options.read or Path(f"{options.out}.sqlite")
    if options.read is None:
        command = [word for i, word in enumerate(options.command) if (i, word) != (0, "--")]
        line = nsys_command(
            require_profiler(NSYS),
            options.out,
            command or default_command(options.batch),
            delay_s=options.delay,
            duration_s=options.duration,
            capture_api=options.capture_api,
        )
        print("$", *line, flush=True)
        status = subprocess.run(line, check=False).returncode
        if status:
            raise PipelineError(f"nsys ended with {status}; its own words are above")
    profile = read(export, _named(options), options.copy_kernels)
    print("\n".join(report(profile)))
    if not options.no_picture:
        picture = export.with_suffix(".png")
        draw(profile, picture, options.window)
        print(f"\npicture: {picture}")
    return 0


def _named(options: argparse.Namespace) -> tuple[Launch, ...]:
    """The planned pass; none, with a line that says so, where there is no plan."""
    try:
        return planned_pass(options.model, options.gpu, options.batch)
    except Int4CoreError as error:
        print(f"layers are not named: {printed(error)}")
        return ()


if __name__ == "__main__":
    sys.exit(run_command(main))

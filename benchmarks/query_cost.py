"""What a long Offline query costs before and while it is answered: LoadGen's lists, and making arrays of them.

    python -m benchmarks.query_cost [--samples 1000000,5000000,20000000] [--loadgen-path DIR]

LoadGen's binding builds two Python lists of the whole query before it calls anyone; that is timed, and nothing here can
start before. What is ours is turning them into arrays, piece by piece. A LoadGen that tools.build_loadgen has built
hands over an array of its own memory instead. Every size runs in a process of its own, with a system under test that
answers each piece at once and computes nothing.

Beside the rate, which other work on the machine lowers, stands what the answering thread takes of a CPU; beside the
peak of memory, what it was when the first sample came: LoadGen's own for the query, and the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from int4core.errors import printable
from int4core.streams import run_command
from pipeline.commands.values import whole
from pipeline.loadgen.binding import Completions, LoadGenSession, SettingsSpec, load_module, make_settings
from pipeline.loadgen.results import read_result

MIN_DURATION_MS = 10
LIBRARY = 1024


def measure(samples: int, loadgen: Path | None) -> dict[str, float]:
    """One query of about `samples` samples in this process; times in seconds from LoadGen's own start of the query."""
    lg = load_module(loadgen)
    work: SimpleQueue[Any] = SimpleQueue()
    seen = {"first": 0.0, "last": 0.0, "count": 0.0, "answered": 0.0, "cpu": 0.0, "first_bytes": 0.0}

    def issue(ids: Any, indices: Any) -> None:
        if not seen["first"]:
            seen["first"], seen["first_bytes"] = time.perf_counter(), peak_bytes()
        seen["last"] = time.perf_counter()
        seen["count"] += len(ids)
        work.put((ids, indices))

    def fail(error: BaseException) -> None:
        # LoadGen cannot be made to give up: it would wait for the answers for ever.
        print(f"LoadGen's callback failed: {type(error).__name__}: {printable(error)}", file=sys.stderr, flush=True)
        os._exit(1)

    loaded = []
    completions = Completions(lg)
    session = LoadGenSession(
        lg, completions=completions, count=LIBRARY, performance_count=LIBRARY,
        load=lambda _i: loaded.append(time.perf_counter()), unload=lambda _i: None, issue=issue,
        flush=lambda: None, on_error=fail,
    )  # fmt: skip

    def answer() -> None:
        while True:
            ids, _indices = work.get()
            completions.complete(ids, np.zeros(len(ids), dtype=np.int32))
            seen["answered"], seen["cpu"] = time.perf_counter(), time.thread_time()

    threading.Thread(target=answer, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        # LoadGen issues 1.1 x the expected rate x the duration.
        settings = {
            "offline_expected_qps": samples / 1.1 / MIN_DURATION_MS * 1000,
            "min_duration_ms": MIN_DURATION_MS,
            "min_query_count": 1,
        }
        test, log = make_settings(lg, SettingsSpec(None, None, settings, {}, "PerformanceOnly", Path(folder)))
        with session:
            session.run(test, log)
        result = read_result(Path(folder))
    # LoadGen's time of the whole query, less what we saw of it, is what passed before we were called.
    whole = result.latency_ns["max"] / 1e9
    return {
        "samples": seen["count"],
        "before": whole - (seen["answered"] - seen["first"]),
        "arrays": seen["last"] - seen["first"],
        "whole": whole,
        "cpu": seen["cpu"],
        "first_bytes": seen["first_bytes"],
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(whole(1), text.split(",")))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=_sizes, default="1000000,5000000,20000000", metavar="N,...")
    parser.add_argument("--loadgen-path", type=Path, metavar="DIR", help="a LoadGen that was built there")
    parser.add_argument("--one", type=whole(1), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(measure(options.one, options.loadgen_path)))
        return 0
    titles = {
        "samples": 12,
        "LoadGen lists": 14,
        "ns/sample": 10,
        "to arrays": 10,
        "answered": 10,
        "samples/s": 12,
        "CPU ns/sample": 14,
        "at first": 11,
        "peak": 11,
    }
    print(" ".join(title.rjust(width) for title, width in titles.items()))
    for samples in options.samples:
        command = [sys.executable, "-m", "benchmarks.query_cost", "--one", str(samples)]
        if options.loadgen_path is not None:
            command += ["--loadgen-path", str(options.loadgen_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"error: {samples} samples: {done.stderr.strip()[-500:]}", file=sys.stderr)
            return 1
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{found['samples']:12,.0f} {found['before']:12.2f} s {found['before'] / found['samples'] * 1e9:10.0f} "
            f"{found['arrays']:8.2f} s {found['whole']:8.2f} s {found['samples'] / found['whole']:12,.0f} "
            f"{found['cpu'] / found['samples'] * 1e9:14.0f} {found['first_bytes'] / 2**30:7.2f} GiB "
            f"{found['peak_bytes'] / 2**30:7.2f} GiB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

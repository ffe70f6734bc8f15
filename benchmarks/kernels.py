"""Kernels of the table beside those that run today, each alone and in the network, with the energy that they take.

    python -m benchmarks.kernels [--numbers 160-199,240-269] [--batch 1024] [--seconds 3]

- alone: every shape of the network that one of the numbers computes. Today's kernel, or today's two where a number is
  for two layers (those chosen by rule where today's is for other two), and each of the numbers': us of a few launches
  with pauses, whether it writes the same bytes, and us, watts and mJ of a launch over `--seconds` on end, by the
  board's own counter. Buffers rotate over several times the L2.
- network: today's plan, then with the fastest of each family where it takes less alone than today's, then with all of
  them: us and images/s of replays with pauses and on end, joules of a batch, and whether the sums are equal.

A difference ends the program with 1. The numbers are those of `python -m int4core.plan --table`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.board import Board, OnEnd
from benchmarks.engine import REPLAYS, replays_us
from int4core.backends.cuda.families.kernel import Kernel
from int4core.backends.cuda.families.table import FAMILIES, candidates, default_kernel
from int4core.backends.cuda.network import DeviceBatch, DeviceNetwork
from int4core.backends.cuda.plan.ops import Op, joined, parts
from int4core.backends.cuda.plan.planner import make_plan
from int4core.errors import EngineError, Int4CoreError, printed
from int4core.model import Model
from int4core.options import CudaOptions
from int4core.streams import run_command
from int4core.tune import parse_numbers
from int4core.tuning.choices import groups
from int4core.tuning.measure import Site, microseconds, results, tensor_bytes

ROOT = Path(__file__).resolve().parents[1]
LATER = "160-199,240-269"
"""Pairs, Winograd's, whole lines, the stem with weights as A, the pool in conv3, fc."""


@dataclass(frozen=True)
class Measured:
    """An operation and those of its shape: today's microseconds, and those of other numbers."""

    ops: tuple[Op, ...]
    today_us: float
    by_number: Mapping[int, float]


def replacements(measured: Iterable[Measured], numbers: Iterable[int]) -> dict[str, int]:
    """Layer -> the fastest of `numbers` for it, where that takes less than what runs today."""
    wanted = frozenset(numbers)
    gains: list[tuple[float, int, Op]] = []
    for one in measured:
        found = {number: us for number, us in one.by_number.items() if number in wanted}
        if found and (best := min(found, key=lambda number: found[number])) and found[best] < one.today_us:
            gains += [(one.today_us - found[best], best, op) for op in one.ops]
    chosen: dict[str, int] = {}
    # What gains the most comes first: a layer may be one of a pair, and have a kernel of its own.
    for _, number, op in sorted(gains, key=lambda gain: -gain[0]):
        names = [part.name for part in parts(op)]
        if not chosen.keys() & set(names):
            chosen |= dict.fromkeys(names, number)
    return chosen


class Bench:
    """A network with today's kernels, and what measures others beside them."""

    def __init__(self, network: DeviceNetwork, n: int, seconds: float) -> None:
        self.network, self.n, self.seconds = network, n, seconds
        self.board = Board(network.device.pci_bus_id)
        self.stream = network.cupy.cuda.Stream(non_blocking=True)
        plan = network.plan(n)
        self.sizes = tensor_bytes(plan)
        self.today = {step.op.name: step.kernel for step in plan.steps}
        self.single = [part for step in plan.steps for part in parts(step.op)]
        self.different = 0

    def current(self, op: Op) -> list[Kernel]:
        """The kernels that compute an operation today; of an operation that is one with another, those by rule."""
        if op.name in self.today:
            return [self.today[op.name]]
        return [self.today.get(part.name) or default_kernel(part, self.network.chip) for part in parts(op)]

    def alone(self, numbers: frozenset[int]) -> list[Measured]:
        found = []
        for group in groups([*self.single, *joined(self.single)]):
            op = group[0]
            kernels = [kernel for kernel in candidates(op, self.network.chip) if kernel.number in numbers]
            if not kernels:
                continue
            print(f"{op.name} and {len(group) - 1} like it: {op}")
            site, current = Site.make(self.network, op, self.sizes), self.current(op)
            wanted = results(self.network, current, site)
            today_us = sum(microseconds(self.network, kernel, site) for kernel in current)
            names = " and ".join(map(str, current))
            print(f"   today  {today_us:9.1f} us | {self._sustained(current, site, today_us)} | {names}", flush=True)
            timed: dict[int, float] = {}
            for kernel in kernels:
                assert kernel.number is not None
                equal = all((a == b).all() for a, b in zip(results(self.network, [kernel], site), wanted, strict=True))
                self.different += not equal
                us = timed[kernel.number] = microseconds(self.network, kernel, site)
                print(
                    f"    {kernel.number:4d}  {us:9.1f} us | {self._sustained([kernel], site, us)} | "
                    f"{'equal' if equal else 'DIFFERS'} | {kernel}",
                    flush=True,
                )
            found.append(Measured(tuple(group), today_us, timed))
        return found

    def _sustained(self, kernels: Sequence[Kernel], site: Site, us: float) -> OnEnd:
        """`kernels` one after the other, on sets of buffers in turn."""
        launches = [self.network.launches(tuple(kernels), site.addresses(i)) for i in range(len(site.sets))]
        with self.stream:
            self.stream.begin_capture()
            for launch in (launch for of_set in launches for launch in of_set):
                launch()
            graph = self.stream.end_capture()
        count = len(launches)
        found = self.board.on_end(self.stream, lambda: graph.launch(self.stream), us * count, self.seconds)
        return OnEnd(found.us / count, found.mj / count, found.watts)

    def whole(self, what: str, changes: Mapping[str, int], wanted: Any = None) -> Any:
        """Measure the network with other numbers for some layers; gives its sums, which should equal `wanted`."""
        network, cupy = self.network, self.network.cupy
        today = {name: kernel.number for name, kernel in self.today.items() if kernel.number is not None}
        numbers = {**network.tuning.numbers_for(self.n), **today, **changes}
        plan = make_plan(network.model.network, network.chip, self.n, size=network.size, numbers=numbers)
        unused = [str(misfit) for misfit in plan.misfits if misfit.layer in changes]
        if unused:
            raise EngineError(f"{what}: {unused[0]}")
        batch = DeviceBatch(network, plan)
        short = statistics.median(replays_us(network, batch, self.stream, REPLAYS))
        cupy.random.seed(1)
        with self.stream:
            batch.input[...] = cupy.random.randint(-128, 128, batch.input.shape, cupy.int8)
        batch.run(self.stream)
        sums = batch.sums.get(stream=self.stream)
        equal = wanted is None or bool((sums == wanted).all())
        self.different += not equal
        long = self.board.on_end(self.stream, lambda: batch.run(self.stream), short, self.seconds)
        print(
            f"  {what:24s} {short:9.1f} us {self.n / short * 1e6:9,.0f} images/s | {long} "
            f"{self.n / long.us * 1e6:9,.0f} images/s | {'sums equal' if equal else 'SUMS DIFFER'} | "
            f"{len(changes)} layers",
            flush=True,
        )
        return sums


def measure(options: argparse.Namespace) -> int:
    network = DeviceNetwork(Model.load(options.model), CudaOptions(device=options.device))
    with network.device:
        bench = Bench(network, options.batch, options.seconds)
        print(f"{network.notice}\nbatch {options.batch}, {options.seconds:g} s on end")
        measured = bench.alone(options.numbers)
        print("network")
        wanted = bench.whole("today", {})
        families = {family.name: options.numbers & frozenset(family.numbers) for family in FAMILIES}
        for name, numbers in (*families.items(), ("all of them", options.numbers)):
            changes = replacements(measured, numbers)
            if changes:
                bench.whole(name, changes, wanted)
            elif numbers:
                print(f"  {name:24s} nothing takes less alone than what runs today")
        bench.whole("today, once more", {}, wanted)
    return 1 if bench.different else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "model")
    parser.add_argument("--device", type=int, help="which GPU, counted from 0")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--numbers", type=parse_numbers, default=parse_numbers(LATER), help=f"as {LATER}")
    parser.add_argument("--seconds", type=float, default=3.0, help="of what is measured on end (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        return measure(options)
    except Int4CoreError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run_command(main))

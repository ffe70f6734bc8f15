"""`python -m int4core.plan --model DIR --gpu h200`: what runs on a chip, with what, and the least it can take.

A line per operation: shape, kernel, bytes, multiply-adds, and two floors in microseconds: multiply-adds over the
chip's int8 tensor rate, and bytes that must cross device memory over its bandwidth (both the vendor's). No GPU
is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.families.table import describe
from int4core.backends.cuda.plan.ops import Op
from int4core.backends.cuda.plan.planner import NetworkPlan, check_batch, make_plan
from int4core.errors import Int4CoreError, printed
from int4core.model import Model
from int4core.streams import run_command
from int4core.tuning import autoconfig
from int4core.tuning.files import load_tuning


def floors_us(op: Op, chip: Chip) -> tuple[float, float]:
    """(tensor, bandwidth): the least microseconds an operation takes on a chip of known rates."""
    tensor = 2 * op.multiply_adds / chip.tops / 1e6
    memory = (op.activation_bytes + op.weight_bytes) / chip.bandwidth / 1e3
    return tensor, memory


def table(plan: NetworkPlan) -> Iterator[str]:
    """The plan as text, a line per operation, and their sums."""
    chip, total, macs = plan.chip, 0.0, 0
    width = max(len(str(step.kernel)) for step in plan.steps)
    yield (
        f"{'operation':24s} {'shape':44s} {'kernel':>6s} {'':{width}s} {'M-MAC/img':>9s} {'KB/img':>8s} "
        f"{'tensor us':>9s} {'memory us':>9s}"
    )
    for step in plan.steps:
        op, kernel = step.op, step.kernel
        tensor, memory = floors_us(op, chip)
        total, macs = total + max(tensor, memory), macs + op.multiply_adds
        number = "" if kernel.number is None else str(kernel.number)
        yield (
            f"{op.name:24s} {op!s:44s} {number:>6s} {kernel!s:{width}s} {op.multiply_adds / plan.n / 1e6:9.1f} "
            f"{op.activation_bytes / plan.n / 1e3:8.1f} {tensor:9.1f} {memory:9.1f}"
        )
    yield (
        f"{len(plan.steps)} operations, {macs / plan.n / 1e9:.3f} G multiply-adds per image, activations "
        f"{plan.arena.bytes / 2**20:.0f} MiB; floors sum to {total:.0f} us: {plan.n / total * 1e6:,.0f} images/s"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m int4core.plan", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parents[1] / "model")
    parser.add_argument("--gpu", choices=sorted(CHIPS), default="h200")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images; the network's own")
    parser.add_argument("--autoconfig", type=Path, help="kernels to use instead of the tuned file's")
    parser.add_argument("--table", action="store_true", help="print the kernel table and stop")
    options = parser.parse_args(argv)
    if options.table:
        print("\n".join(describe()))
        return 0
    try:
        check_batch(options.batch)
        net = Model.load(options.model).network
        chosen = autoconfig.read(options.autoconfig) if options.autoconfig else None
        tuning = load_tuning(options.gpu, net, chosen)
        chip = CHIPS[options.gpu]
        size = tuple(options.size) if options.size else None
        plan = make_plan(net, chip, options.batch, size=size, numbers=tuning.numbers_for(options.batch))
    except Int4CoreError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    print(f"{chip.name} ({chip.arch}), batch {plan.n}: {tuning.notice}")
    if chip.warning:
        print(f"{chip.name}: {chip.warning}")
    for line in (*table(plan), *tuning.notices(plan)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

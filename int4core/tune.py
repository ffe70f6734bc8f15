"""`python -m int4core.tune --gpu h200 --batch 1024`: time every kernel on every layer, keep the fastest.

The choice is written to the user's folder, ~/.config/int4core/autoconfig, where it takes the place of the one that
comes with the package.

Each candidate must write the same bytes as the first one; that those are right is the tests' business. Layers of
one shape are timed once. Buffers rotate over several times the L2, unless the whole batch's tensors fit it: then
they stay, as they do when the network runs. The fastest few of each shape are then tried in the whole network
(`int4core.tuning.finalists`), which decides.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from int4core.atomic import expect_writable
from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.families.table import KNOWN_NUMBERS, candidates, default_kernel, digest
from int4core.backends.cuda.network import DeviceNetwork
from int4core.backends.cuda.plan.ops import ConvOp, JointOp, Op, SingleOp, joined, parts
from int4core.backends.cuda.plan.planner import check_batch
from int4core.errors import EngineError, Int4CoreError, printable, printed, shown
from int4core.model import Model
from int4core.options import CudaOptions
from int4core.streams import run_command
from int4core.tuning import autoconfig
from int4core.tuning.autoconfig import Autoconfig
from int4core.tuning.choices import Choice, Timed, fastest, groups
from int4core.tuning.files import TABLE, file_of, has_basic_blocks, user_folder
from int4core.tuning.finalists import InNetwork, Numbers, Tried, best_together
from int4core.tuning.measure import Site, microseconds, results, tensor_bytes

MAIN_BATCH = 1024
"""The batch size of `autoconfig/GPU`; other sizes have files of their own."""


def tune(network: DeviceNetwork, n: int, numbers: Collection[int] = KNOWN_NUMBERS) -> Iterator[Choice]:
    """Time the candidates among `numbers` on every shape of the network, for batches of `n`; what joins two comes last.

    Raises:
        EngineError: no candidate is left for a layer, or two of them write different results.
    """
    plan = network.plan(n)
    sizes = tensor_bytes(plan)
    rotate = plan.arena.bytes > network.device.attributes["L2CacheSize"] // 2
    single = single_ops(network, n)
    found = {
        tuple(group): [kernel for kernel in candidates(group[0], network.chip) if kernel.number in {*numbers, None}]
        for group in groups([*single, *joined(single)])
    }
    network.load([kernel.source for kernels in found.values() for kernel in kernels])
    for group, kernels in found.items():
        op = group[0]
        if not kernels:
            if isinstance(op, JointOp):
                continue
            raise EngineError(f"{op.name}: no kernel among those that may be chosen computes it")
        site = Site.make(network, op, sizes, rotate)
        wanted = [default_kernel(part, network.chip) for part in parts(op)] if isinstance(op, JointOp) else kernels[:1]
        first = results(network, wanted, site)
        timed = [
            Timed(kernel, microseconds(network, kernel, site), _equal(results(network, [kernel], site), first))
            for kernel in kernels
        ]
        different = [str(t.kernel.number) for t in timed if not t.equal]
        if different:
            others = ", ".join(str(kernel.number) for kernel in wanted)
            raise EngineError(f"{op.name}: kernels {', '.join(different)} differ from {others}; report this")
        yield Choice(group, tuple(sorted(timed, key=lambda t: t.us)))


def _equal(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(bool((one == other).all()) for one, other in zip(found, wanted, strict=True))


def to_autoconfig(chip: Chip, n: int, ops: Iterable[Op], numbers: Numbers) -> Autoconfig:
    """The numbers of `ops` as a file; a downsample convolution has the number of the one that computes it."""
    lines: dict[str, int] = {}
    for op in ops:
        number = numbers.get(op.name)
        if number is None:  # what every chip has needs no line
            continue
        names = [op.name] + ([op.branch.name] if isinstance(op, ConvOp) and op.branch else [])
        lines |= {key: number for name in names if (key := autoconfig.key_of(name)) is not None}
    metadata = {
        "engine": "int4core", "gpu": chip.name, "origin": "measured", "batch": str(n), TABLE: digest(lines.values())
    }  # fmt: skip
    return Autoconfig(dict(sorted(lines.items())), metadata)


def single_ops(network: DeviceNetwork, n: int) -> list[SingleOp]:
    """The network's operations, none joined to another."""
    return [part for step in network.plan(n).steps for part in parts(step.op)]


def parse_numbers(text: str) -> frozenset[int]:
    """`0-15,100` -> those of them that the kernel table has. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ValueError(f"{shown(part)} is no number and no range")
        first, last = int(match[1]), int(match[2] or match[1])
        found |= {number for number in KNOWN_NUMBERS if first <= number <= last}
    return frozenset(found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m int4core.tune", description=__doc__)
    parser.add_argument("--gpu", choices=sorted(CHIPS), help="the chip this must be; whatever is here by default")
    parser.add_argument("--device", type=int, help="which GPU, counted from 0")
    parser.add_argument("--batch", type=int, nargs="+", default=[MAIN_BATCH])
    parser.add_argument("--model", type=Path, default=Path(__file__).resolve().parents[1] / "model")
    parser.add_argument("--numbers", type=parse_numbers, default=KNOWN_NUMBERS, help="try only these, as 100-113,200")
    parser.add_argument("--out", type=Path, default=user_folder(), help="folder of the file; %(default)s")
    parser.add_argument(
        "--finalists", type=int, default=3, metavar="N",
        help="how many kernels of a shape are tried in the network; 1: the fastest alone (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="print every candidate, not only the three fastest")
    options = parser.parse_args(argv)
    try:
        model = Model.load(options.model)
        for n in options.batch:
            check_batch(n)
        expect_folder(options.out)
        network = DeviceNetwork(model, CudaOptions(gpu=options.gpu, device=options.device))
        with network.device:
            for n in options.batch:
                _tune_batch(network, n, options)
    except Int4CoreError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    return 0


def expect_folder(folder: Path) -> None:
    """Raises EngineError when no file can be written to `folder`: tuning takes minutes, and its result is a file."""
    try:
        expect_writable(folder / "any")
    except OSError as error:
        raise EngineError(f"{printable(folder)}: no file can be written there: {error.strerror}") from error


def _tune_batch(network: DeviceNetwork, n: int, options: argparse.Namespace) -> None:
    choices: list[Choice] = []
    for choice in tune(network, n, options.numbers):
        if not choices:
            print(f"{network.chip.name}, batch {n}: {network.compiled}", flush=True)
        choices.append(choice)
        op = choice.ops[0]
        print(f"{op.name} and {len(choice.ops) - 1} like it: {op}")
        for timed in choice.timed[: None if options.verbose else 3]:
            tops = 2 * op.multiply_adds / timed.us / 1e6
            gbs = (op.activation_bytes + op.weight_bytes) / timed.us / 1e3
            number = "-" if timed.kernel.number is None else timed.kernel.number
            print(
                f"    {number:>4}  {timed.us:9.1f} us | {tops:7.1f} TOPS | {gbs:7.1f} GB/s | {timed.kernel}",
                flush=True,
            )
    best = fastest(choices)
    numbers: Numbers = {name: timed.kernel.number for name, timed in best.items()}
    if options.finalists > 1:
        print("in the network")
        for change, best_so_far in _in_network(network, n, choices, numbers, options.finalists):
            numbers = best_so_far
            if change.kept or options.verbose:
                print(f"    {change}", flush=True)
    basic = has_basic_blocks(network.model.network)
    total = sum(timed.us / len(parts(timed.kernel.op)) for timed in best.values())
    file = file_of(network.chip.name, None if n == MAIN_BATCH else n, options.out, basic=basic)
    ops = [op for choice in choices for op in choice.ops]
    autoconfig.write(file, to_autoconfig(network.chip, n, ops, numbers))
    print(f"{printable(file)}: {total:,.0f} us for the fastest of all but the top-1 of {n} images, each timed alone")


def _in_network(
    network: DeviceNetwork, n: int, choices: Sequence[Choice], numbers: Numbers, finalists: int
) -> Iterator[tuple[Tried, Numbers]]:
    """What `best_together` gives, of this network."""
    order = [op.name for op in single_ops(network, n) if op.name in numbers]
    alone = {op.name: choice.best.kernel.number for choice in choices for op in choice.ops}
    begin, single = {name: numbers[name] for name in order}, {name: alone[name] for name in order}
    return best_together(choices, begin, single, finalists, InNetwork(network, n).compare)


if __name__ == "__main__":
    sys.exit(run_command(main))

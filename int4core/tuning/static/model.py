"""What the 4-bit kernels should do on chips that are not at hand: `python -m int4core.tuning.static --gpu t4`.

Each kernel is compiled for its chip and its machine code counted: instructions of each class in a pass of the main loop
(a block of K), before and after it. With the chip's published rates (rates.py) this gives the clocks that a block
of threads asks of each resource. Blocks that run side by side hide one another's phases: with R of them, the time is
that of the busiest resource, plus an R-th of what one block by itself would take longer. A layer takes this, or the
time of its bytes from device memory or L2 if that is more. Constants that no vendor publishes are marked as assumed
there; none is fitted to a measurement.

`--check` applies the same model to the Hopper kernels, and compares with what docs/performance.md measured on an H200.
`--write autoconfig` writes autoconfig/GPU: the fastest configuration of each layer by the model (of a network of basic
blocks autoconfig/GPU.basic).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from int4core.backends.cuda.chips import CHIPS, Chip
from int4core.backends.cuda.families import conv_mma4, stem_mma
from int4core.backends.cuda.families.conv_mma4 import Mma4Conv
from int4core.backends.cuda.families.conv_wgmma import FIRST_NUMBER as FIRST_WGMMA
from int4core.backends.cuda.families.conv_wgmma import WgmmaConv
from int4core.backends.cuda.families.stem_mma import StemConv
from int4core.backends.cuda.families.table import digest
from int4core.backends.cuda.plan.fuse import fuse
from int4core.backends.cuda.plan.ops import ConvOp, LinearOp, Op, StemOp
from int4core.backends.cuda.plan.planner import check_batch
from int4core.errors import EngineError, Int4CoreError, printed
from int4core.layers import ResNet
from int4core.model import Model
from int4core.tuning import autoconfig
from int4core.tuning.autoconfig import Autoconfig
from int4core.tuning.files import TABLE, file_of, has_basic_blocks
from int4core.tuning.static.kernels import Estimate, compiled, estimate
from int4core.tuning.static.rates import LAUNCH_US, clock
from int4core.tuning.static.work import Counts, cut

MODEL = Path(__file__).resolve().parents[3] / "model"

BATCH = 256

GPUS = tuple(name for name, chip in CHIPS.items() if chip.rates and chip.rates.int4)

MEASURED: dict[str, tuple[int, float]] = {
    "layer1_0_conv1": (1, 78), "layer1_1_conv1": (1, 133), "layer1_1_conv3": (2, 314), "layer1_0_conv3": (5, 529),
    "layer2_0_conv1": (5, 202), "layer2_1_conv1": (5, 84), "layer2_1_conv2": (2, 151), "layer2_1_conv3": (5, 200),
    "layer2_0_conv3": (2, 374), "layer3_0_conv1": (2, 159), "layer3_1_conv1": (2, 71), "layer3_1_conv2": (5, 140),
    "layer3_1_conv3": (5, 135), "layer3_0_conv3": (5, 284), "layer4_0_conv1": (2, 137), "layer4_1_conv1": (5, 65),
    "layer4_1_conv2": (5, 134), "layer4_1_conv3": (2, 100), "layer4_2_conv3": (5, 105), "layer4_0_conv3": (5, 233),
}  # fmt: skip
"""Configuration and microseconds of 1,024 images on an H200: docs/performance.md, without the rows kernel."""


@dataclass(frozen=True)
class Layer:
    """Operations of one shape, and the estimates of the kernels that take them, fastest first."""

    ops: tuple[Op, ...]
    estimates: tuple[Estimate, ...]

    @property
    def best(self) -> Estimate:
        return self.estimates[0]


def groups(ops: Sequence[Op]) -> list[tuple[Op, ...]]:
    """Convolutions of the same shape together; the stem by itself."""
    found: dict[Hashable, list[Op]] = {}
    for op in ops:
        if isinstance(op, (ConvOp, StemOp)):
            found.setdefault(op.shape if isinstance(op, ConvOp) else op.name, []).append(op)
    return [tuple(group) for group in found.values()]


def candidates(op: Op, chip: Chip) -> Iterator[Mma4Conv | StemConv]:
    """The kernels for which the chip has the tensor cores."""
    if isinstance(op, ConvOp):
        for number in range(conv_mma4.FIRST_NUMBER, conv_mma4.FIRST_NUMBER + len(conv_mma4.CONFIGS)):
            if conv_mma4.is_native(number, chip):
                try:
                    yield Mma4Conv(op, number, chip)
                except EngineError:
                    continue
    elif isinstance(op, StemOp):
        for number in range(stem_mma.FIRST_NUMBER, stem_mma.FIRST_NUMBER + len(stem_mma.CONFIGS)):
            try:
                yield StemConv(op, number, chip)
            except EngineError:
                continue


def model_layers(net: ResNet, chip: Chip, batch: int) -> Iterator[Layer]:
    """Every shape of the network. Raises EngineError when no kernel takes one."""
    for group in groups(fuse(net, batch)):
        estimates = (estimate(kernel, chip) for kernel in candidates(group[0], chip))
        found = sorted(estimates, key=lambda e: (e.us, e.compute_us))
        if not found:
            raise EngineError(f"{group[0].name}: no 4-bit kernel takes it on {chip.name}")
        yield Layer(group, tuple(found))


def head_us(net: ResNet, chip: Chip, batch: int) -> float:
    """The operations after the last convolution, by their bytes and the products at the tensor cores' 8-bit rate."""
    total = 0.0
    for op in fuse(net, batch):
        if not isinstance(op, (ConvOp, StemOp)):
            memory = (op.activation_bytes + op.weight_bytes) / chip.bandwidth / 1e3
            products = 2 * op.multiply_adds / chip.tops / 1e6 if isinstance(op, LinearOp) else 0.0
            total += max(memory, products) + LAUNCH_US
    return total


def report(net: ResNet, chip: Chip, batch: int) -> tuple[list[Layer], float]:
    """Prints the table of a chip; the layers, and images per second."""
    print(f"## {chip.name}: batch {batch}, {clock(chip) / 1e9:.2f} GHz, {chip.multiprocessors} multiprocessors\n")
    print("| layer | times | number | us | multiprocessors | memory | L2 | bound by | tensor cores busy |")
    print("|---|---|---|---|---|---|---|---|---|")
    layers, total = [], head_us(net, chip, batch)
    head = total
    for layer in model_layers(net, chip, batch):
        best = layer.best
        layers.append(layer)
        total += best.us * len(layer.ops)
        print(
            f"| {best.op.name} | {len(layer.ops)} | {best.number} | {best.us:.0f} | {best.compute_us:.0f} "
            f"| {best.memory_us:.0f} | {best.l2_us:.0f} | {best.bound} | {best.busy:.0%} |"
        )
    images = batch / total * 1e6
    print(f"\nPooling, last layer and top-1: {head:.0f} us by their bytes. Predicted: {images:,.0f} images/s.\n")
    return layers, images


def print_counts(layers: Sequence[Layer], chip: Chip) -> None:
    """Instructions per warp of each chosen convolution: a pass of the main loop, and the rest by output."""
    print("| layer | number | pass of the main loop | once and after, an output |\n|---|---|---|---|")
    for layer in layers:
        op = layer.ops[0]
        if not isinstance(op, ConvOp):
            continue
        kernel = Mma4Conv(op, layer.best.number, chip)
        parts = cut(compiled(kernel.source, chip.arch)[1], "IMMA")
        outputs = kernel.config.warp_m * kernel.config.warp_n / 32
        print(f"| {op.name} | {kernel.number} | {_text(parts.loop, 1)} | {_text(parts.once + parts.after, outputs)} |")
    print()


def _text(counts: Counts, over: float) -> str:
    shown: Counter[str] = Counter(counts.groups)
    digits = 0 if over == 1 else 2
    return ", ".join(f"{name} {count / over:.{digits}f}" for name, count in shown.most_common() if count)


def check(net: ResNet) -> None:
    """The model on the Hopper kernels beside what was measured."""
    chip, batch = CHIPS["h200"], 1024
    ops = {op.name: op for op in fuse(net, batch)}
    print(f"## Check: {chip.name}, batch {batch}, {clock(chip) / 1e9:.2f} GHz\n")
    print("| layer | number | predicted us | measured us | error | bound by |\n|---|---|---|---|---|---|")
    errors, sums = [], [0.0, 0.0]
    for name, (configuration, measured) in MEASURED.items():
        op = ops[name]
        assert isinstance(op, ConvOp)
        guess = estimate(WgmmaConv(op, FIRST_WGMMA + configuration, chip), chip)
        us = guess.us - LAUNCH_US  # kernels were timed by themselves
        errors.append(us / measured - 1)
        sums[0] += us
        sums[1] += measured
        print(f"| {name} | {guess.number} | {us:.0f} | {measured:.0f} | {errors[-1]:+.0%} | {guess.bound} |")
    mean = sum(map(abs, errors)) / len(errors)
    print(
        f"\nSum over these {len(errors)} shapes: {sums[0]:.0f} us predicted, {sums[1]:.0f} measured "
        f"({sums[0] / sums[1] - 1:+.0%}); layers {min(errors):+.0%} to {max(errors):+.0%}, {mean:.0%} on average.\n"
    )


def choice(layers: Sequence[Layer], chip: Chip, batch: int, images: float) -> Autoconfig:
    """The fastest kernel of each layer, in the network's order."""
    numbers = {op.name: layer.best.number for layer in layers for op in layer.ops}
    numbers |= {
        op.branch.name: numbers[op.name] for layer in layers for op in layer.ops if isinstance(op, ConvOp) and op.branch
    }
    keys = {autoconfig.key_of(name): number for name, number in numbers.items()}
    kernels = {key: keys[key] for key in sorted(filter(None, keys))}
    header = {
        "engine": "int4core", "gpu": chip.name, "origin": "static model", "batch": str(batch),
        TABLE: digest(kernels.values()),
    }  # fmt: skip
    note = f"not measured: python -m int4core.tuning.static predicts {images:,.0f} images/s at the boost clock"
    return Autoconfig(kernels, header, (note,))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m int4core.tuning.static",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", choices=GPUS, action="append", help="chips to model; all of them without this")
    parser.add_argument("--model", type=Path, default=MODEL, help="model folder (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="images per batch (default: %(default)s)")
    parser.add_argument("--counts", action="store_true", help="print instructions of the chosen kernels as well")
    parser.add_argument("--check", action="store_true", help="compare the model with the H200 measurements instead")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the choice to FOLDER/GPU, or GPU.basic")
    options = parser.parse_args(arguments)
    try:
        check_batch(options.batch)
        net = Model.load(options.model).network
        if options.check:
            check(net)
            return 0
        for name in options.gpu or GPUS:
            chip = CHIPS[name]
            layers, images = report(net, chip, options.batch)
            if options.counts:
                print_counts(layers, chip)
            if options.write:
                path = file_of(name, None, options.write, basic=has_basic_blocks(net))
                autoconfig.write(path, choice(layers, chip, options.batch, images))
                print(f"wrote {path}\n")
    except Int4CoreError as error:
        print(f"error: {printed(error)}", file=sys.stderr)
        return 1
    return 0

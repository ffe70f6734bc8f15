"""The command line: one sub-command a step, with the options that several of them share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from pipeline.commands.values import MOST_PROCESSES, shown, whole

ARCHITECTURE_NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "tiny")

MOST_PIXELS = 1 << 14
"""Of a side of an image."""


def above_zero(text: str) -> float:
    """Reads a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number above 0")
    return value


def _common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default=None, help="cuda, cuda:1, cpu (default: cuda where there is one)")
    sub.add_argument("--seed", type=whole(0), default=0)


def _data(sub: argparse.ArgumentParser, images: int) -> None:
    sub.add_argument(
        "--data",
        default="shapes",
        help="`shapes`, the procedural set, or a folder: an ImageFolder tree, or images with map.txt",
    )
    sub.add_argument("--images", type=whole(1), default=images, help=f"how many images (default {images})")
    sub.add_argument("--size", type=whole(1, MOST_PIXELS), default=224, help="image side in pixels (default 224)")
    sub.add_argument("--batch", type=whole(1), default=64, help="images per batch, in each process (default 64)")
    sub.add_argument(
        "--workers", type=whole(0, MOST_PROCESSES), default=8, help="processes that decode files (default 8)"
    )


def _arch(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--arch", choices=ARCHITECTURE_NAMES, default="resnet50")
    sub.add_argument("--classes", type=whole(1), default=None, help="(default 1000)")


def _training(sub: argparse.ArgumentParser, lr: float, epochs: float) -> None:
    sub.add_argument("--epochs", type=above_zero, default=epochs, help=f"passes over --images (default {epochs:g})")
    sub.add_argument("--minutes", type=above_zero, default=None, help="stop the schedule here instead")
    sub.add_argument("--lr", type=above_zero, default=lr, help=f"peak learning rate (default {lr:g})")
    sub.add_argument("--smoothing", type=float, default=0.1, help="label smoothing (default 0.1)")
    sub.add_argument("--compile", action="store_true", help="torch.compile the network")
    sub.add_argument("--resume", action="store_true", help="go on from --out where an earlier run stopped")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.finetune",
        description="Turn an FP32 ResNet into an INT4 model.",
        epilog="order: prepare (or pretrain), calibrate, train, export, verify",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        _common(sub)
        return sub

    prepare = command("prepare", "check an FP32 network and list where the format quantises it")
    _arch(prepare)
    prepare.add_argument("--weights", default="torchvision", help="`torchvision`, or a state_dict file")
    prepare.add_argument("--out", type=Path, required=True, help="parent checkpoint to write")

    pretrain = command("pretrain", "train an FP32 parent from scratch")
    _arch(pretrain)
    _data(pretrain, 1_000_000)
    _training(pretrain, 0.5, 3)
    pretrain.add_argument("--marginals", type=float, default=0.3, help="procedural set: weight of shape, "
                          "texture and hue alone in the loss (default 0.3)")  # fmt: skip
    pretrain.add_argument("--out", type=Path, required=True, help="parent checkpoint to write")

    calibrate = command("calibrate", "histograms, ranges, folding: a parent becomes a quantised network")
    calibrate.add_argument("parent", type=Path, help="checkpoint of prepare or pretrain, or a state_dict")
    _arch(calibrate)
    _data(calibrate, 2048)
    calibrate.add_argument("--percentile", type=float, default=99.999, help="(default 99.999)")
    calibrate.add_argument(
        "--range",
        choices=("mse", "percentile"),
        default="mse",
        help="clip where the squared error is least, never above the percentile (mse, default), or at it",
    )
    calibrate.add_argument("--out", type=Path, required=True, help="quantised checkpoint to write")

    train = command("train", "fine-tune a quantised network with straight-through estimators")
    train.add_argument("quantised", type=Path, help="checkpoint of calibrate")
    _data(train, 100_000)
    _training(train, 1e-4, 3)
    train.add_argument("--parent", type=Path, default=None, help="FP32 parent to distil from")
    train.add_argument("--distill", type=float, default=0.5, help="weight of its answers (default 0.5)")
    train.add_argument("--out", type=Path, required=True, help="quantised checkpoint to write")

    export = command("export", "write a quantised network as an INT4 model folder")
    export.add_argument("quantised", type=Path)
    export.add_argument("--size", type=whole(1, MOST_PIXELS), default=224, help="image side it is for (default 224)")
    export.add_argument("--out", type=Path, required=True, help="model folder to write")

    verify = command("verify", "compare a quantised network with the integer engine, layer by layer")
    verify.add_argument("quantised", type=Path)
    verify.add_argument("model", type=Path, help="the INT4 model folder")
    verify.add_argument("--backend", default="numpy", help="engine backend: numpy (default), torch or cuda")
    verify.add_argument("--least", type=float, default=0.995, help="agreement below which it fails (0.995)")
    _data(verify, 64)

    evaluate = command("evaluate", "top-1 of a parent or a quantised checkpoint")
    evaluate.add_argument("checkpoint", type=Path)
    _arch(evaluate)
    _data(evaluate, 10_000)
    evaluate.add_argument("--exact", action="store_true", help="quantised: the engine's very integers (slow)")

    recipe = command("recipe", "make the default model: everything, in a time budget")
    _arch(recipe)
    recipe.add_argument("--out", type=Path, required=True, help="folder for results and model.tar.gz")
    recipe.add_argument("--work", type=Path, default=None, help="folder for large files (default OUT/work)")
    recipe.add_argument("--minutes", type=above_zero, default=8.0)
    recipe.add_argument("--miniature", action="store_true", help="tiny sizes: the same path on a CPU")
    recipe.add_argument("--parent-lr", type=above_zero, default=None)
    recipe.add_argument("--quantised-lr", type=above_zero, default=None)
    recipe.add_argument("--compile-parent", action="store_true")
    recipe.add_argument("--no-compile", action="store_true", help="run the quantised network uncompiled too")
    return parser

"""What each sub-command does."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from int4core.engine import Engine
from int4core.model import Model
from tools.finetune import checkpoint
from tools.finetune.convert import build, make_room, reestimate
from tools.finetune.data import Batch, Folder, Procedural, Source, evaluation_files
from tools.finetune.errors import FinetuneError
from tools.finetune.export import to_model
from tools.finetune.qresnet import QuantResNet, exact
from tools.finetune.ranges import choose_step, collect, plot_histograms, save_histograms
from tools.finetune.recipe import Recipe
from tools.finetune.recipe import run as run_recipe
from tools.finetune.report import reporting
from tools.finetune.resnet import Architecture, ResNet
from tools.finetune.train import Forward, Schedule, Trainer, accuracy, expect_writable, forward_of
from tools.finetune.verify import compare, table


def device_of(args: argparse.Namespace) -> torch.device:
    """--device, or this process's GPU under torchrun, or the first GPU, or the CPU."""
    if args.device is not None:
        return torch.device(args.device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def training_source(args: argparse.Namespace, arch: Architecture, device: torch.device, seed: int) -> Source:
    rank, world = _rank_and_world()
    if args.data == "shapes":
        return Procedural(
            device, args.batch, args.size, seed,
            classes=arch.classes, rank=rank, world=world, fused=device.type == "cuda",
        )  # fmt: skip
    return Folder(
        Path(args.data), device, args.batch, args.size, seed,
        classes=arch.classes, rank=rank, world=world, workers=args.workers,
    )  # fmt: skip


def evaluation_batches(args: argparse.Namespace, arch: Architecture, device: torch.device) -> Iterator[Batch]:
    """The first --images images that training has not seen; fewer where the folder has fewer."""
    batch = min(args.batch, args.images)
    if args.data == "shapes":
        source = Procedural(device, batch, args.size, args.seed, classes=arch.classes, held_out=True)
        found: Iterator[Batch] = (source.batch(step) for step in range(-(-args.images // batch)))
    else:
        found = evaluation_files(Path(args.data), device, batch, args.size, args.workers, arch.classes)
    left = args.images
    for images, labels in found:
        yield images[:left], labels[:left]
        left -= len(labels)
        if left <= 0:
            return


def _rank_and_world() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def prepare(args: argparse.Namespace) -> None:
    expect_writable(args.out)
    if args.weights == "torchvision":
        parent = checkpoint.torchvision_parent(args.arch)
    else:
        parent = checkpoint.load_fp32(Path(args.weights), checkpoint.architecture(args.arch, args.classes))
    model = QuantResNet(parent)
    for name, conv in model.convolutions():
        k, c, r, s = conv.weight.shape
        print(f"{name:24} s{conv.bits} weights, {c} -> {k}, {r}x{s}, stride {conv.stride[0]}")
    for name, tensor_range in model.ranges():
        kind = {15: "u4", 127: "s8" if "downsample" in name else "u7"}[tensor_range.hi]
        print(f"{name:24} {kind}, one range")
    print(f"{'fc':24} s8 weights, {model.fc.weight.shape[1]} -> {model.fc.weight.shape[0]}")
    checkpoint.save(args.out, parent)


def calibrate(args: argparse.Namespace) -> None:
    expect_writable(args.out)
    if not 0 < args.percentile <= 100:
        raise FinetuneError(f"--percentile {args.percentile}: give a percentage, over 0 and up to 100")
    device = device_of(args)
    parent = checkpoint.load_fp32(args.parent, checkpoint.architecture(args.arch, args.classes))
    parent.to(device).eval()
    source = training_source(args, parent.arch, device, args.seed)
    count = max(1, args.images // args.batch)

    def batches() -> Iterator[torch.Tensor]:
        return (source.batch(step)[0] for step in range(count))

    with reporting("calibrate") as bar:
        histograms = collect(parent, batches, lambda: bar.count(1, 2 * count))
    hi = {name: tensor_range.hi for name, tensor_range in QuantResNet(parent).ranges()}
    steps = {n: choose_step(h, hi[n], args.range, args.percentile) for n, h in histograms.items()}
    stem = args.out.with_suffix("")
    save_histograms(histograms, stem.with_name(stem.name + "_histograms.npz"))
    plot_histograms(histograms, steps, hi, stem.with_name(stem.name + "_histograms.png"))
    model = build(parent, steps)
    reestimate(model, parent, batches())
    checkpoint.save(args.out, model)
    print(f"{len(steps)} ranges from {count * args.batch} images: {args.out}")


def _fit(args: argparse.Namespace, model: ResNet | QuantResNet, schedule: Schedule, teacher: ResNet | None) -> None:
    """Train `model` and write --out, as one process or as torchrun's."""
    rank, world = _rank_and_world()
    if rank == 0:
        expect_writable(args.out)
    device = device_of(args)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        layout: Any = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model.to(device=device, memory_format=layout)
        wrapped: nn.Module = model
        if world > 1:
            wrapped = nn.parallel.DistributedDataParallel(model)
        guide: Forward | None = None
        if teacher is not None:
            teacher.to(device=device, memory_format=layout).eval()
            guide = forward_of(teacher, device, compiled=False)
        forward = forward_of(wrapped, device, compiled=args.compile)
        trainer = Trainer(wrapped, schedule, forward, guide)
        if args.resume and args.out.exists():
            begun = checkpoint.load_extra(args.out).get("run")
            if begun is None:
                raise FinetuneError(f"{args.out}: holds no run to go on with: without --resume a new one begins")
            trainer.load_state(begun)

        def save(t: Trainer) -> None:
            if isinstance(model, QuantResNet):
                with torch.no_grad():
                    make_room(model)
            if rank == 0:
                checkpoint.save(args.out, model, {"run": t.state()})

        source = training_source(args, model.arch, device, args.seed)
        with reporting(args.command, quiet=rank > 0) as bar:
            trainer.run(lambda done: source, bar.training, save)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


def _schedule(args: argparse.Namespace, **more: float) -> Schedule:
    _, world = _rank_and_world()
    steps = max(1, round(args.epochs * args.images / (args.batch * world)))
    return Schedule(
        steps=None if args.minutes is not None else steps,
        seconds=None if args.minutes is None else args.minutes * 60,
        lr=args.lr,
        smoothing=args.smoothing,
        **more,
    )


def pretrain(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    arch = checkpoint.architecture(args.arch, args.classes)
    parent = checkpoint.load_fp32(args.out, arch) if args.resume and args.out.exists() else ResNet(arch)
    marginals = args.marginals if args.data == "shapes" and arch.classes == 1000 else 0.0
    _fit(args, parent, _schedule(args, marginals=marginals), None)


def train(args: argparse.Namespace) -> None:
    model, _ = checkpoint.load_quantised(args.out if args.resume and args.out.exists() else args.quantised)
    teacher = checkpoint.load_fp32(args.parent, model.arch) if args.parent is not None else None
    _fit(args, model, _schedule(args, distill=args.distill if teacher is not None else 0.0), teacher)


def export(args: argparse.Namespace) -> None:
    model, _ = checkpoint.load_quantised(args.quantised)
    to_model(model, args.size).save(args.out)
    print(f"INT4 model: {args.out}")


def verify(args: argparse.Namespace) -> None:
    device = torch.device("cpu") if args.device is None else device_of(args)
    model, _ = checkpoint.load_quantised(args.quantised)
    model.to(device).eval()
    batches = evaluation_batches(args, model.arch, device)
    engine = Engine(Model.load(args.model), backend=args.backend, batch_size=args.batch)
    with engine, reporting("verify") as bar:
        found = compare(model, engine, batches, seen=lambda n: bar.count(n, args.images))
    Console().print(table(found))
    if found.agreement < args.least:
        raise FinetuneError(f"top-1 agreement is {found.agreement:.2%}, less than {args.least:.2%}")


def evaluate(args: argparse.Namespace) -> None:
    device = device_of(args)
    model: ResNet | QuantResNet
    if checkpoint.kind(args.checkpoint) == "quantised":
        model, _ = checkpoint.load_quantised(args.checkpoint)
    else:
        model = checkpoint.load_fp32(args.checkpoint, checkpoint.architecture(args.arch, args.classes))
    model.to(device).eval()
    forward: Forward = forward_of(model, device, compiled=False)
    if args.exact:
        if not isinstance(model, QuantResNet):
            raise FinetuneError(f"{args.checkpoint}: --exact is for quantised checkpoints, this is a parent")
        quantised = model
        forward = lambda images: exact(quantised, images)  # noqa: E731
    with reporting("evaluate") as bar:
        batches = evaluation_batches(args, model.arch, device)
        top1 = accuracy(forward, batches, lambda n: bar.count(n, args.images))
    print(f"top-1 {top1:.4f}")


def recipe(args: argparse.Namespace) -> None:
    arch = checkpoint.architecture("tiny" if args.miniature else args.arch, args.classes)
    plan = Recipe(arch, minutes=args.minutes, seed=args.seed, compile_parent=args.compile_parent)
    if args.miniature:
        plan = replace(
            plan, sizes=((0.0, 48), (0.7, 64)), final_size=64, parent_batch=32, quantised_batch=16,
            parent_lr=0.3, calibration_batches=2, reserve_seconds=5.0, test_images=100, exact_images=50,
            jpegs=32, engine_images=16,
        )  # fmt: skip
    if args.parent_lr is not None:
        plan = replace(plan, parent_lr=args.parent_lr)
    if args.quantised_lr is not None:
        plan = replace(plan, quantised_lr=args.quantised_lr)
    device = device_of(args)
    if args.no_compile or (args.miniature and device.type == "cpu"):
        plan = replace(plan, compile_quantised=False)
    results = run_recipe(plan, args.out, args.work or args.out / "work", device)
    print(json.dumps({k: v for k, v in results.items() if k != "recipe"}, indent=2))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "prepare": prepare,
    "pretrain": pretrain,
    "calibrate": calibrate,
    "train": train,
    "export": export,
    "verify": verify,
    "evaluate": evaluate,
    "recipe": recipe,
}

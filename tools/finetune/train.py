"""One training loop for the FP32 parent and for the fake-quantised network."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from int4core import atomic
from tools.finetune.data import Batch, Source
from tools.finetune.errors import FinetuneError
from tools.finetune.qresnet import QuantResNet, run_block

Forward: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast.

    Attributes:
        steps: optimiser steps; None: as many as fit in `seconds`.
        seconds: wall time; None: no limit. With both, whichever ends first.
        lr: the peak learning rate, after `warmup` (a share of the whole), before a cosine to zero.
        smoothing: label smoothing.
        distill: weight of the parent's soft labels, 0..1; the rest is the labels' cross entropy.
        marginals: weight of the cross entropies of shape, texture and hue (procedural set only).
    """

    steps: int | None
    seconds: float | None
    lr: float
    warmup: float = 0.05
    weight_decay: float = 5e-5
    smoothing: float = 0.1
    distill: float = 0.0
    marginals: float = 0.0

    def __post_init__(self) -> None:
        if self.steps is None and self.seconds is None:
            raise FinetuneError("training needs a number of steps, epochs or minutes")

    def progress(self, step: int, elapsed: float) -> float:
        """Share done, 0..1."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = elapsed / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate(self, progress: float) -> float:
        if progress < self.warmup:
            return self.lr * (progress / self.warmup * 0.95 + 0.05)
        done = (progress - self.warmup) / (1.0 - self.warmup)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Progress:
    """What a run reports after a step: share done, step, mean loss and images/s since the last report."""

    done: float
    step: int
    loss: float
    images_per_second: float
    lr: float


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float, marginals: float) -> torch.Tensor:
    """Cross entropy; with `marginals` also those of the 10 shapes, 10 textures and 10 hues.

    class = shape * 100 + texture * 10 + hue, so the probability of a shape is a sum over the other two.
    The first thing to be learnt is then one of ten, not one of a thousand, which shortens the start.
    """
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if marginals:
        cube = logits.reshape(-1, 10, 10, 10)
        parts = (labels // 100, labels // 10 % 10, labels % 10)
        for axis, part in zip((1, 2, 3), parts, strict=True):
            others = tuple(a for a in (1, 2, 3) if a != axis)
            loss = loss + marginals * F.cross_entropy(torch.logsumexp(cube, others), part)
    return loss


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross entropy against the parent's probabilities (Hinton et al. 2015, temperature 1)."""
    return F.cross_entropy(logits.float(), F.softmax(teacher.float(), dim=1))


def forward_of(model: nn.Module, device: torch.device, *, compiled: bool) -> Forward:
    """How a network is run for training: bf16 on a GPU, float32 on a CPU; compiled where asked.

    The parent runs under autocast; the fake-quantised network is given the type of its convolutions'
    integers, which bf16 holds exactly.
    """
    on_gpu = device.type == "cuda"
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    quantised = isinstance(inner, QuantResNet)
    runner: Any = torch.compile(model, dynamic=False) if compiled and not quantised else model
    run: Any = run_block
    if compiled and quantised:
        # One function for all blocks: a graph for each shape of block, more than the default limit of 8.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        run = torch.compile(run_block, dynamic=False)

    def forward(images: torch.Tensor) -> torch.Tensor:
        if quantised:
            logits: torch.Tensor = runner(images, torch.bfloat16 if on_gpu else torch.float32, run=run)
            return logits
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            parent_logits: torch.Tensor = runner(images)
        return parent_logits

    return forward


def optimiser_of(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum for the parent, Adam for the fake-quantised network.

    Folding leaves weights of very different sizes from channel to channel, which Adam does not mind.
    Only weights of convolutions and of the last layer decay.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    if isinstance(inner, QuantResNet):
        # Biases and steps are few and large beside the weights: they may move faster.
        groups = [{"params": decayed}, {"params": others, "lr_scale": 5.0}]
        return torch.optim.Adam(groups, schedule.lr, betas=(0.9, 0.99))
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, schedule.lr, momentum=0.9, nesterov=True)


class Trainer:
    """A network, its optimiser and where the run stands; `run` goes on until its schedule ends."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        forward: Forward,
        teacher: Forward | None = None,
    ) -> None:
        if schedule.distill and teacher is None:
            raise FinetuneError("distillation needs the FP32 parent")
        self.model, self.schedule, self.forward, self.teacher = model, schedule, forward, teacher
        self.optimiser = optimiser_of(model, schedule)
        self.step = 0
        self.elapsed = 0.0

    def state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "step": self.step, "elapsed": self.elapsed}

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.elapsed = int(state["step"]), float(state["elapsed"])

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        s = self.schedule
        logits = self.forward(images)
        loss = classification_loss(logits, labels, s.smoothing, s.marginals)
        if s.distill and self.teacher is not None:
            with torch.no_grad():
                soft = self.teacher(images)
            loss = (1.0 - s.distill) * loss + s.distill * distillation_loss(logits, soft)
        return loss

    def run(
        self,
        source: Callable[[float], Source],
        report: Callable[[Progress], None],
        save: Callable[[Trainer], None] | None = None,
        *,
        every: int = 20,
        save_seconds: float = 60.0,
    ) -> None:
        """Train until the schedule's end.

        source: share done -> where batches come from, so that a schedule can change the image size.
        report: called every `every` steps (the only points at which the GPU is waited for).
        save: called about every `save_seconds` and at the end.

        Raises FinetuneError when the loss is no longer finite.
        """
        self.model.train()
        last_time = start = saved = time.perf_counter()
        before, last_step, seen = self.elapsed, self.step, 0
        total: torch.Tensor | None = None
        progress = self.schedule.progress(self.step, self.elapsed)
        while progress < 1.0:
            images, labels = source(progress).batch(self.step)
            for group in self.optimiser.param_groups:
                group["lr"] = self.schedule.rate(progress) * group.get("lr_scale", 1.0)
            loss = self.loss(images, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.step += 1
            seen += len(labels)
            total = loss.detach() if total is None else total + loss.detach()
            self.elapsed = before + time.perf_counter() - start
            progress = self._agreed(self.schedule.progress(self.step, self.elapsed), images.device)
            if self.step - last_step >= every or progress >= 1.0:
                mean = float(total) / (self.step - last_step)
                now = time.perf_counter()
                if not math.isfinite(mean):
                    raise FinetuneError(f"the loss is {mean} at step {self.step}: try a lower --lr")
                rate = self.schedule.rate(progress)
                report(Progress(progress, self.step, mean, seen / (now - last_time), rate))
                last_time, last_step, seen, total = now, self.step, 0, None
                if save is not None and now - saved > save_seconds:
                    save(self)
                    saved = time.perf_counter()
        if save is not None:
            save(self)

    @staticmethod
    def _agreed(progress: float, device: torch.device) -> float:
        """The same share in every process, so that all of them stop after the same step."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return progress
        shared = torch.tensor([progress], device=device, dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return float(shared)


def accuracy(forward: Forward, batches: Iterable[Batch], seen: Callable[[int], None] = lambda n: None) -> float:
    """Top-1 over `batches`, 0..1. The network has to be in evaluation mode."""
    right = torch.zeros(())
    count = 0
    for images, labels in batches:
        with torch.no_grad():
            right = right + (forward(images).argmax(1) == labels).sum().cpu()
        count += len(labels)
        seen(len(labels))
    return float(right) / max(1, count)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """A checkpoint that is either the old one or the new one, whenever the process ends.

    Raises FinetuneError when it cannot be written, and leaves the old one then.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        torch.save(state, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # of a full disk torch says only that a position is unexpected
        with contextlib.suppress(OSError):
            temporary.unlink()
        why = str(error).partition("\n")[0]
        raise FinetuneError(f"{path}: cannot be written: no room on the disk, or no right to ({why})") from error


def expect_writable(path: Path) -> None:
    """Make the folder of a checkpoint that will be written when all work is done; FinetuneError where that fails."""
    try:
        atomic.expect_writable(path)
    except OSError as error:
        raise FinetuneError(f"{error.filename or path}: cannot be written: {error.strerror}") from error

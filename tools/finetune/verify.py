"""The fake-quantised network against the integer engine: agreement of top-1, difference of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from int4core.engine import Engine
from tools.finetune.data import Batch
from tools.finetune.errors import FinetuneError
from tools.finetune.qresnet import QuantResNet, Trace, exact, quantize_input


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        images: how many were compared.
        same_top1: on how many of them both predict the same class.
        engine_right, torch_right: on how many each is right.
        largest: layer name -> the largest difference, in integer steps, on the traced images.
        differing: layer name -> the share of values that differ at all.
    """

    images: int
    same_top1: int
    engine_right: int
    torch_right: int
    largest: dict[str, int]
    differing: dict[str, float]

    @property
    def agreement(self) -> float:
        return self.same_top1 / self.images


def compare(
    model: QuantResNet,
    engine: Engine,
    batches: Iterable[Batch],
    *,
    traced_images: int = 2,
    seen: Callable[[int], None] = lambda n: None,
) -> Agreement:
    """Run every batch through both; layer by layer on the first `traced_images`.

    Raises FinetuneError when there is no image, or the engine's trace lacks a layer.
    """
    largest: dict[str, int] = {}
    differing: dict[str, float] = {}
    images_done = same = engine_right = torch_right = 0
    for images, labels in batches:
        ints = quantize_input(images).to(torch.int8).cpu().contiguous().numpy()
        if not largest and traced_images:
            trace: Trace = {}
            exact(model, images[:traced_images], trace)
            theirs = engine.trace(ints[:traced_images])
            for name, value in trace.items():
                if name not in theirs:
                    raise FinetuneError(f"{name}: the engine's trace has no such layer")
                found = theirs[name].reshape(value.shape).astype(np.int64)
                off = np.abs(found - value.cpu().numpy().astype(np.int64))
                largest[name], differing[name] = int(off.max()), float((off > 0).mean())
        predicted = exact(model, images).argmax(1).cpu().numpy()
        answered = engine.top1(ints)
        truth = labels.cpu().numpy()
        same += int((predicted == answered).sum())
        torch_right += int((predicted == truth).sum())
        engine_right += int((answered == truth).sum())
        images_done += len(truth)
        seen(len(truth))
    if not images_done:
        raise FinetuneError("verify needs at least one image")
    return Agreement(images_done, same, engine_right, torch_right, largest, differing)


def table(result: Agreement) -> Table:
    """A row for each layer, and the totals as the caption."""
    drawn = Table(
        title="fake-quantised network against the integer engine",
        caption=(
            f"top-1 agreement {result.agreement:.2%} on {result.images} images; right: "
            f"torch {result.torch_right}, engine {result.engine_right}"
        ),
    )
    drawn.add_column("layer")
    drawn.add_column("largest difference", justify="right")
    drawn.add_column("values that differ", justify="right")
    for name, largest in result.largest.items():
        drawn.add_row(name, str(largest), f"{result.differing[name]:.3%}")
    return drawn

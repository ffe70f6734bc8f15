"""Which layer a profiled kernel belongs to: the plan says in what order a pass over the network launches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from int4core.backends.cuda.chips import chip
from int4core.backends.cuda.plan.planner import make_plan
from int4core.model import Model
from int4core.tuning.files import load_tuning


@dataclass(frozen=True)
class Launch:
    """One kernel of a pass: the layer it computes, and its function's name."""

    layer: str
    function: str


def planned_pass(model: Path, gpu: str, batch: int) -> tuple[Launch, ...]:
    """The launches of one pass over `model` with the kernels that a run on `gpu` takes. Raises Int4CoreError."""
    network = Model.load(model).network
    numbers = load_tuning(gpu, network).numbers_for(batch)
    plan = make_plan(network, chip(gpu), batch, numbers=numbers)
    return tuple(Launch(step.op.name, step.kernel.source.function) for step in plan.steps)


def name_layers(functions: Sequence[str], one_pass: Sequence[Launch]) -> list[str]:
    """The layer of each kernel of one stream, in launch order; `` where no whole pass is.

    Only a run of kernels that equals the pass from its first to its last function is named, so that a plan of another
    model, chip or tuned file names nothing instead of something wrong.
    """
    layers = [""] * len(functions)
    wanted = [launch.function for launch in one_pass]
    at = 0
    while wanted and at + len(wanted) <= len(functions):
        if list(functions[at : at + len(wanted)]) == wanted:
            layers[at : at + len(wanted)] = [launch.layer for launch in one_pass]
            at += len(wanted)
        else:
            at += 1
    return layers

"""What a cluster has, and how classification is laid out on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError

# Calls that an actor takes side by side, so that none of its parts waits for the end of a call.
CALLS = 4

# Of each node, left to those who list, part and write: Ray takes a whole CPU to part blocks, and without it would wait
# for ever, a listing that nobody takes blocks from in its place.
OTHERS_CPUS = 1.5
LEAST_CPUS = 2


@dataclass(frozen=True)
class Layout:
    """Actors and what each has.

    Attributes:
        actors: how many.
        cpus: each has; the rest of a node is left to what lists, reads and writes.
        gpus: each has, 0 or 1.
        loaders: processes of each that decode.
    """

    actors: int
    cpus: float
    gpus: int
    loaders: int

    def __str__(self) -> str:
        what = f"{'a GPU and ' if self.gpus else ''}{self.cpus:g} CPU{'s' if self.cpus > 1 else ''}"
        return f"{self.actors} actor{'s' if self.actors > 1 else ''} with {what}{' each' if self.actors > 1 else ''}"


def nodes(ray: Any) -> list[Mapping[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def lay_out(resources: Iterable[Mapping[str, float]], gpu: str = "auto", actors: int | None = None) -> Layout:
    """An actor for each GPU; without GPUs, or for `gpu` "cpu", one for each node; or `actors` of them, spread evenly.

    Raises PipelineError when the cluster cannot hold them.
    """
    there = [node for node in resources if node.get("CPU", 0) >= LEAST_CPUS]
    with_gpus = [] if gpu == "cpu" else [node for node in there if node.get("GPU", 0) >= 1]
    if not there or (gpu not in ("auto", "cpu") and not with_gpus):
        lacks = f"{LEAST_CPUS} CPUs" if not there else f"a GPU, and --gpu {gpu} was asked for"
        raise PipelineError(f"the Ray cluster has no node with {lacks}; see `ray status`")
    if with_gpus:
        gpus = sum(int(node["GPU"]) for node in with_gpus)
        if actors is not None and actors > gpus:
            raise PipelineError(f"{actors} actors: the Ray cluster has {gpus} GPUs, and an actor takes one")
        cpus = min(_share(node["CPU"], int(node["GPU"])) for node in with_gpus)
        return Layout(actors or gpus, cpus, 1, max(1, int(cpus)))
    count = actors or len(there)
    cpus = min(_share(node["CPU"], math.ceil(count / len(there))) for node in there)
    return Layout(count, cpus, 0, max(1, int(cpus)))


def _share(cpus: float, actors: int) -> float:
    """CPUs of each of a node's `actors`, in the whole numbers or hundredths of one that Ray takes."""
    share = (cpus - OTHERS_CPUS) / actors
    return float(int(share)) if share >= 1 else math.floor(100 * share) / 100

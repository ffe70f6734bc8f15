"""What Ray has given to the actor that this runs in."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from pipeline.commands.options import EngineOptions
from pipeline.errors import PipelineError


def engine_here(options: EngineOptions) -> EngineOptions:
    """`options` for the GPUs of this actor: it computes on those that are its own, or on the CPU.

    Outside of Ray they are as given. Raises PipelineError when a chip is asked for and the actor has no GPU.
    """
    ray = _ray()
    if ray is None or options.gpu == "cpu":
        return options
    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not ids:
        if options.gpu != "auto":
            raise PipelineError(f"gpu {options.gpu}: the actor has no GPU; give map_batches num_gpus=1")
        return replace(options, gpu="cpu")
    if not all(name.isdecimal() for name in ids):
        raise PipelineError(
            f"Ray calls this actor's GPUs {', '.join(ids)}; name them by number in the node's CUDA_VISIBLE_DEVICES"
        )
    return replace(options, gpus=tuple(map(int, ids)))


def forget_main() -> None:
    """Have the processes that this one spawns not import its main module: in an actor that is Ray's, and all of Ray.

    What they run is imported by its name. Outside of Ray nothing is changed.
    """
    if _ray() is not None:
        vars(sys.modules["__main__"]).pop("__file__", None)


def _ray() -> Any:
    """The library, in a process that Ray started for an actor or a task; None elsewhere."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return None
    return ray

"""From a command's options to the session that does what they say."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from pipeline.commands.options import EngineOptions, LoaderOptions
from pipeline.commands.setup import Setup
from pipeline.device.scheduler import Sizes
from pipeline.errors import PipelineError
from pipeline.machine.hardware import default_loaders
from pipeline.session.spec import SessionSpec
from pipeline.stages.load import Decode
from pipeline.stages.spec import CPU_IN_FLIGHT

CPU_BATCH = 16
GPU_BATCH = 1024


def batch_size(engine: EngineOptions, *, gpu: bool) -> int:
    """Images of a full batch."""
    return engine.batch_size or (GPU_BATCH if gpu else CPU_BATCH)


def session_spec(
    setup: Setup, engine: EngineOptions, loaders: LoaderOptions, *, top: int, traced: bool = False
) -> SessionSpec:
    """The session of a run that streams images, whose answers have the best `top` classes.

    Raises PipelineError when the GPU is to decode and there is none.
    """
    gpus = setup.target.gpus
    if loaders.decode == "gpu" and not gpus:
        raise PipelineError(f"--decode gpu: this run computes on {setup.target.notice}; choose --decode cpu")
    decode: Decode = "gpu" if gpus and loaders.decode != "cpu" else "cpu"
    return SessionSpec(
        model=setup.model,
        backend=setup.target.backend,
        backend_options=setup.backend_options,
        sizes=Sizes.full(batch_size(engine, gpu=bool(gpus))),
        input_shape=(3, setup.side, setup.side),
        preparation=setup.preparation("images", loaders.resize, loaders.rules, decode),
        loaders=loaders.processes or default_loaders(),
        stage_timeout_s=engine.timeout_s,
        image_timeout_s=loaders.image_timeout_s,
        engines=len(gpus) or engine.engines,
        inflight=engine.inflight if gpus else CPU_IN_FLIGHT,
        h2d=engine.h2d,
        ordered=True,
        bus_ids=setup.target.bus_ids,
        top=top,
        traced=traced,
        digest=setup.digest,
    )


def identity(
    setup: Setup, loaders: LoaderOptions, *, top: int, class_names: Sequence[str] | None, shard: tuple[int, int]
) -> dict[str, str]:
    """What makes rows comparable: an output that was begun with another identity is not gone on with."""
    return {
        "model": setup.digest,
        "input": f"{setup.side} x {setup.side}, short side {setup.short_side(loaders.resize) or 'as it is'}",
        "sixteen_bit": loaders.rules.sixteen_bit,
        "top": str(top),
        "classes": "none" if class_names is None else sha256("\n".join(class_names).encode()).hexdigest(),
        "shard": "{}/{}".format(*shard),
    }

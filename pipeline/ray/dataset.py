"""A dataset of images to a dataset of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.commands.session import CPU_BATCH, GPU_BATCH
from pipeline.extras import require
from pipeline.ray.classifier import Classifier
from pipeline.ray.cluster import CALLS, Layout, lay_out, nodes


def classify(
    dataset: Any,
    model: str | Path | None = None,
    *,
    actors: int | None = None,
    gpu: str = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> Any:
    """`dataset` (a ray.data.Dataset with a column of images' bytes or paths) with the answers; nothing runs yet.

    An actor is made for each GPU of the cluster, without GPUs for each node, or `actors` of them; the CPUs of a node
    are shared among its actors. `options` are those of `Classifier`, which says what comes out. Raises PipelineError
    without Ray, or when the cluster cannot hold the actors.
    """
    ray = require("ray", "ray", "classification on Ray")
    require("ray.data", "ray", "classification on Ray")
    if not ray.is_initialized():
        ray.init()
    layout = lay_out(nodes(ray), gpu, actors)
    options = {"model": model, "gpu": gpu, "batch_size": batch_size, "loaders": layout.loaders, **options}
    batch = batch_size or (GPU_BATCH if layout.gpus else CPU_BATCH)
    # Else what one task has read is one actor's, while the others wait.
    blocks = dataset.repartition(target_num_rows_per_block=batch)
    return map_images(blocks, Classifier, options, layout, batch=batch)


def map_images(dataset: Any, classifier: type, options: dict[str, Any], layout: Layout, *, batch: int) -> Any:
    """`dataset` mapped by actors of `classifier`, made with `options`, that take tables of `batch` rows.

    An actor that dies is made again, and what it had is given out again: a row is answered once.
    """
    data = require("ray.data", "ray", "classification on Ray")
    return dataset.map_batches(
        classifier,
        batch_size=batch,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(
            size=layout.actors, max_concurrent_calls_per_actor=CALLS, enable_true_multi_threading=True
        ),
        fn_constructor_kwargs=options,
        num_cpus=layout.cpus,
        num_gpus=layout.gpus,
    )

"""`python -m tools.import_published DIR`: check a published INT4 model folder, or say where to get one.

Exit status: 0 when DIR is a sound model, 1 when it is not, 2 when it is not there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from int4core.errors import Int4CoreError, printable, printed
from int4core.model import Model
from int4core.network import LayerShape, trace_shapes
from int4core.streams import run_command
from pipeline.commands.values import path

WHERE = """\
The INT4 ResNet-50 of NVIDIA's open-division submission to MLPerf Inference v0.5 (Apache-2.0) is in
    https://github.com/mlcommons/inference_results_v0.5, folder open/NVIDIA/code/resnet/int4/model
Get that folder alone (about 14 MB) and check it:
    git clone --depth 1 --filter=blob:none --sparse https://github.com/mlcommons/inference_results_v0.5
    git -C inference_results_v0.5 sparse-checkout set open/NVIDIA/code/resnet/int4/model
    python -m tools.import_published inference_results_v0.5/open/NVIDIA/code/resnet/int4/model"""


def find_model(folder: Path) -> Path:
    """`folder`, or the one model folder below it, at most four levels down, that holds `model` and `npdata`.

    Raises FileNotFoundError when there is none, or several.
    """
    if os.path.isfile(folder / "model"):
        return folder
    levels = ("*", "*/*", "*/*/*", "*/*/*/*")
    below = [data.parent for level in levels for data in sorted(folder.glob(f"{level}/npdata"))]
    found = [candidate for candidate in below if os.path.isfile(candidate / "model")]
    if not found:
        raise FileNotFoundError(f"{folder}: no model is in it: a file named `model` beside a folder `npdata`")
    if len(found) > 1:
        raise FileNotFoundError(f"{folder}: holds {len(found)} models: name one, such as {found[0]}")
    return found[0]


def summary(shapes: Sequence[LayerShape]) -> Table:
    """Layers, weights, their bytes and multiply-adds, by the weights' width."""
    table = Table(title="the model")
    for heading in ("weights", "layers", "bytes", "multiply-adds per image"):
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    products = [s for s in shapes if s.weight_bits]
    for kind in dict.fromkeys(s.layer.compute_mode for s in products):
        some = [s for s in products if s.layer.compute_mode == kind]
        size, work = sum(s.weight_bits for s in some) // 8, sum(s.multiply_adds for s in some)
        table.add_row(kind, str(len(some)), f"{size:,}", f"{work:,}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.import_published", description=__doc__)
    parser.add_argument("folder", type=path, help="the model folder, or one above it")
    folder = parser.parse_args(argv).folder
    try:
        folder = find_model(folder)
    except FileNotFoundError as error:
        print(f"{printed(error)}\n\n{WHERE}", file=sys.stderr)
        return 2
    try:
        model = Model.load(folder)
        shapes = trace_shapes(model.network)
    except Int4CoreError as error:
        print(f"{printed(error)}\n\n{WHERE}", file=sys.stderr)
        return 1
    Console().print(summary(shapes))
    blocks, size = len(model.network.blocks), shapes[0].input
    print(f"{printable(folder)}: sound; {blocks} blocks, {model.network.classes} classes, images of {size}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

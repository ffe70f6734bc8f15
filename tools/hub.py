"""`python -m tools.hub pack MODEL OUT`: a model folder as hubs of models take it.

OUT gets config.json (architecture, quantisation, preprocessing, labels), model.safetensors (packed nibbles, factors,
biases), README.md (a model card) and the classes.txt that MODEL has. `int4core.Model.load` takes OUT, and `save` of it
gives MODEL again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from int4core.atomic import write_atomically
from int4core.errors import FileError, Int4CoreError, printable, printed
from int4core.format.packed import CONFIG, packed_files
from int4core.layers import BasicBlock, ResNet
from int4core.model import Model
from int4core.network import default_input_size
from int4core.regular import read_regular
from int4core.streams import run_command
from pipeline.commands.values import path
from pipeline.errors import PipelineError
from pipeline.samples.classes import CLASSES_NAME, read_classes
from tools.input_contract import as_values

README = "README.md"
README_LIMIT = 1 << 20


def about(net: ResNet, names: tuple[str, ...] | None) -> dict[str, Any]:
    """What config.json says besides layers and tensors."""
    stages = (net.layer1, net.layer2, net.layer3, net.layer4)
    said: dict[str, Any] = {
        "architectures": ["ResNetQuantized"],
        "architecture": {
            "blocks": [len(stage.children) for stage in stages], "block": _kind(net),
            "stem_channels": net.conv1.out_channels, "features": net.fc.in_features, "classes": net.classes,
            "image_size": list(default_input_size(net)),
        },
        "quantization_config": {
            "quant_method": "int4core", "weights": "s4, s8 in conv1 and fc", "accumulators": "s32",
            "activations": "u4, s8 images, u7 features",
            "requantise": "(sum * factor[c] + half) >> shift, u16 factors, halves away from zero",
        },
        "preprocessing": as_values(),
    }  # fmt: skip
    if names is not None:
        said["id2label"] = {str(i): name for i, name in enumerate(names)}
    return said


def _kind(net: ResNet) -> str:
    kinds = {"basic" if isinstance(block, BasicBlock) else "bottleneck" for block in net.blocks}
    return " and ".join(sorted(kinds))


def card(model: Model, title: str, accuracy: str | None, source: str | None) -> str:
    """The model card: what it is, how it is used, what it reaches and how that was measured."""
    net = model.network
    height, width = default_input_size(net)
    measured = accuracy or ("See below." if source else "Not measured by who packed it.")
    return "\n".join([
        "---", "library_name: int4core", "pipeline_tag: image-classification",
        "tags: [int4, resnet, quantized, image-classification]", "---", "",
        f"# {title}", "",
        f"An INT4 ResNet of {len(net.blocks)} {_kind(net)} blocks and {net.classes:,} classes, for images of {height} "
        f"x {width}: weights and activations of 4 bits, 8 at both ends, all sums exact in 32 bits.", "",
        "```python", "from int4core import Engine, Model", "", 'with Engine(Model.load("FOLDER")) as engine:',
        "    engine.top1(images)  # int8 (N, 3, H, W), prepared as `preprocessing` of config.json says", "```", "",
        "## Accuracy", "", measured, "",
        f"SHA-256 of the network (`Model.digest`): `{model.digest}`", "",
        *(["## From the model's own page", "", source.strip(), ""] if source else []),
    ])  # fmt: skip


def pack(folder: Path, out: Path, accuracy: str | None) -> int:
    """Write the packed folder; returns how many bytes it has. Raises Int4CoreError and PipelineError."""
    model = Model.load(folder)
    names = read_classes(None, folder, model.network.classes)
    files = packed_files(model.network, about(model.network, names))
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / CONFIG).is_file())):
        raise FileError(out, 0, "holds something that is not a packed model: name another folder")
    files[README] = card(model, folder.resolve().name, accuracy, _page(folder)).encode("utf-8")
    if names is not None:
        files[CLASSES_NAME] = "".join(f"{name}\n" for name in names).encode("utf-8")
    for name, data in files.items():
        try:
            write_atomically(out / name, data)
        except OSError as error:
            raise FileError(out / name, 0, f"cannot be written: {error.strerror}") from error
    if names is None:
        # An older model's names would be taken for this one's.
        try:
            (out / CLASSES_NAME).unlink(missing_ok=True)
        except OSError as error:
            raise FileError(out / CLASSES_NAME, 0, f"cannot be removed: {error.strerror}") from error
    return sum(map(len, files.values()))


def _page(folder: Path) -> str | None:
    """The folder's own README.md, without a card's head that it may have."""
    file = folder / README
    if not file.exists():
        return None
    try:
        text = read_regular(file, README_LIMIT).decode("utf-8")
    except UnicodeDecodeError:
        raise FileError(file, 0, "is not text in UTF-8") from None
    except OSError as error:
        raise FileError(file, 0, f"cannot be read: {error.strerror}") from None
    return text.split("---\n", 2)[2] if text.startswith("---\n") and text.count("---\n") > 1 else text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.hub", description="Model folders for hubs of models.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pack", help="write a model folder as config.json, model.safetensors and README.md")
    command.add_argument("model", type=path, help="model folder")
    command.add_argument("out", type=path, help="folder to write")
    command.add_argument("--accuracy", metavar="TEXT", help="what the card says was measured, and how")
    args = parser.parse_args(argv)
    try:
        size = pack(args.model, args.out, args.accuracy)
    except (Int4CoreError, PipelineError) as error:
        print(f"{args.command}: {printed(error)}", file=sys.stderr)
        return 1
    print(f"{printable(args.out)}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

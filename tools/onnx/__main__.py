"""`python -m tools.onnx export MODEL OUT.onnx` and `import FILE.onnx OUT`: model folders to ONNX, and ONNX to them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from int4core.atomic import write_atomically
from int4core.errors import Int4CoreError, printable, printed
from int4core.model import Model
from int4core.streams import run_command
from pipeline.commands.values import path, whole
from pipeline.errors import PipelineError
from pipeline.samples.classes import CLASSES_NAME
from tools.onnx.errors import OnnxFileError, need

FORM_NAMES = ("integer", "float32", "qcdq")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.onnx", description="Model folders to ONNX, and ONNX to them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a model folder as an ONNX file")
    export.add_argument("model", type=path, help="model folder")
    export.add_argument("out", type=path, help="ONNX file to write")
    export.add_argument(
        "--form", choices=FORM_NAMES, default="integer",
        help="integer: ConvInteger and MatMulInteger (default); float32: float operators on integers; "
        "qcdq: QuantizeLinear, Clip and DequantizeLinear on 8-bit carriers",
    )  # fmt: skip
    export.add_argument(
        "--verify", type=whole(0), default=0, metavar="N",
        help="run N random images through ONNX Runtime and the engine, and compare every value",
    )  # fmt: skip
    back = commands.add_parser("import", help="make a model folder of an ONNX file")
    back.add_argument("file", type=path, help="a file that export wrote, or a QCDQ or QONNX graph of a ResNet")
    back.add_argument("out", type=path, help="model folder to write")
    back.add_argument(
        "--input-step", choices=("pipeline", "graph"), default="pipeline",
        help="QCDQ and QONNX: what one step of an int8 image will be: 2.64 / 127 of a normalised value, as this "
        "project's pipeline prepares images (default), or the graph's own step",
    )  # fmt: skip
    return parser


def export(args: argparse.Namespace) -> None:
    need(("onnx", "onnxruntime") if args.verify else ("onnx",))
    from tools.onnx.export import class_names, to_onnx

    model = Model.load(args.model)
    data = to_onnx(model.network, args.form, class_names(model)).SerializeToString(deterministic=True)
    try:
        write_atomically(args.out, data)
    except OSError as error:
        raise OnnxFileError(args.out, 0, f"cannot be written: {error.strerror}") from error
    print(f"{printable(args.out)}: {args.form}, {len(data):,} bytes")
    if args.verify:
        from tools.onnx.verify import verify

        print(f"ONNX Runtime against the engine: {verify(args.out, model, args.verify)}")


def import_(args: argparse.Namespace) -> None:
    need(("onnx",))
    from tools.onnx.files import load
    from tools.onnx.foreign import INPUT_STEP, import_foreign
    from tools.onnx.own import import_own, is_own

    model = load(args.file)
    names, said = None, ["written by export: the same network, byte for byte"]
    if is_own(model):
        net, names = import_own(args.file, model)
    else:
        net, found = import_foreign(args.file, model, INPUT_STEP if args.input_step == "pipeline" else None)
        said = found.lines()
    Model(net).save(args.out)
    if names is not None:
        try:
            write_atomically(args.out / CLASSES_NAME, "".join(f"{name}\n" for name in names).encode("utf-8"))
        except OSError as error:
            raise OnnxFileError(args.out / CLASSES_NAME, 0, f"cannot be written: {error.strerror}") from error
    elif (args.out / CLASSES_NAME).exists():
        said.append(f"{CLASSES_NAME} was there before and stays, as the file names no classes: is it this model's?")
    print(f"{printable(args.out)}: {len(net.blocks)} blocks, {net.classes} classes")
    for line in said:
        print(f"  {printable(line)}")


COMMANDS = {"export": export, "import": import_}


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        COMMANDS[args.command](args)
    except (Int4CoreError, PipelineError) as error:
        print(f"{args.command}: {printed(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

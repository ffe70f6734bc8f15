"""`python -m tools.onnx export MODEL OUT.onnx --form integer|float32|qcdq [--verify N]`: a model folder as ONNX."""

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
from tools.onnx.errors import OnnxFileError, need

FORM_NAMES = ("integer", "float32", "qcdq")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.onnx", description="Models to ONNX.")
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


COMMANDS = {"export": export}


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

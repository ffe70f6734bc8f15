"""`python -m tools.shapes make|demo|sheet|classes`: image files of the procedural set, and its classes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from int4core.errors import printable
from int4core.streams import run_command
from pipeline.commands.values import MOST_PROCESSES, whole
from tools.shapes.files import ShapesError, contact_sheet, demo_specs, draw_specs, make
from tools.shapes.names import CLASSES, names_text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.shapes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "--out", type=Path, required=True, help="folder (sheet: PNG file, classes: text file) to write"
        )
        return sub

    for name, text in (
        ("make", "render random images as JPEGs, with map.txt"),
        ("sheet", "draw the images that `make` would render on one PNG"),
    ):
        sub = command(name, text)
        sub.add_argument("--count", type=whole(1), default=200, help="how many images (default 200)")
        sub.add_argument("--seed", type=whole(0), default=0, help="another seed is another set (default 0)")
    demo = command("demo", "render the 48 bundled images")
    command("classes", "write the names of the classes, one per line")
    for sub in (commands.choices["make"], demo):
        sub.add_argument(
            "--jobs", type=whole(1, MOST_PROCESSES), default=None, help="processes (default: one per core)"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.command == "classes":
        return _write_classes(args.out)
    specs = demo_specs() if args.command == "demo" else draw_specs(args.count, args.seed)
    try:
        if args.command == "sheet":
            contact_sheet(specs, columns=10, cell=160).save(args.out)
        else:
            with Progress(transient=True) as progress:
                bar = progress.add_task("rendering", total=len(specs))
                for done in make(specs, args.out, args.jobs):
                    progress.update(bar, completed=done)
    except (ShapesError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(specs)} images of {len({s.label for s in specs})} of {CLASSES} classes: {args.out}")
    return 0


def _write_classes(path: Path) -> int:
    try:
        path.write_text(names_text())
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{CLASSES} names: {printable(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

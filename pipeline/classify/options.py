"""The command line of classify."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline.commands import values
from pipeline.commands.options import (
    EngineOptions,
    LoaderOptions,
    Parser,
    ShowOptions,
    add_engine,
    add_loaders,
    add_showing,
    contradiction,
    engine_options,
    loader_options,
    show_options,
)
from pipeline.errors import PipelineError
from pipeline.samples.expand import parse_shard
from pipeline.samples.labels import BY_FOLDER, BY_SHARD
from pipeline.samples.remote import is_url
from pipeline.sinks.opening import NOWHERE, STDOUT

PROG = "python -m pipeline.classify"
MOST_TOP = 16
DEFAULT_TOP = 5

DESCRIPTION = """\
Classifies images with an INT4 network and writes a table: key, class_id, class_name, score, top_ids, top_scores, error.

A SOURCE is a file, a folder with all below it, a pattern, @FILE or - with a path on each line, a tar shard
(shards/{000..127}.tar), a Parquet table with a column of bytes or of paths, or the URL of any of these.
A run that was ended goes on where it was when the same command is given again."""


@dataclass(frozen=True)
class Options:
    """A parsed command line.

    Attributes:
        sources: as they were typed.
        out: the table's file or folder, `-` for JSONL on standard output, `none` to throw the rows away.
        column: of Parquet tables, None: the one that fits.
        top: classes of each answer.
        classes: a file with the name of a class on each line, instead of the model's.
        labels: a map file, `folders`, `cls`, or None: those that sources bring, if they do.
        shard: (index, count).
        ordered: whether rows come in the order of the sources.
        strict: whether a row with an error makes the exit status 4.
        dry_run: say what would be done and do nothing.
        summary: the file for the summary, None: beside the table.
        ray: the Ray cluster to run on, by its address or `local`; None: this machine alone.
        report: the file for a report in HTML, None: none.
    """

    sources: tuple[str, ...]
    out: str
    column: str | None
    top: int
    classes: Path | None
    labels: str | None
    shard: tuple[int, int]
    ordered: bool
    strict: bool
    dry_run: bool
    ray: str | None
    summary: Path | None
    report: Path | None
    engine: EngineOptions
    loaders: LoaderOptions
    show: ShowOptions

    def as_dict(self) -> dict[str, Any]:
        """For the summary: paths as text."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


# What a run on a cluster cannot do, by attribute: each of its actors has a run of its own.
OF_ONE_MACHINE = {
    "gpus": "--gpus: Ray gives each actor its GPU",
    "trace": "--trace: a timeline is of one machine",
    "report": "--report: the page is of one machine's run",
}
RAY_LOCAL = "local"
RAY_ADDRESS = re.compile(rf"{RAY_LOCAL}|auto|[^/\s]+:[0-9]{{1,5}}")


def parse(argv: Sequence[str]) -> Options:
    """Parse a command line without its program name. Exits as argparse does: 0 for help, 2 for a mistake."""
    parser = build_parser()
    args = parser.parse_args(list(argv))
    wrong = contradiction(args)
    if wrong is None and args.json and args.out == STDOUT:
        wrong = "--json and --out -: both write to standard output; give one of them"
    if wrong is None:
        wrong = _one_file(args)
    if wrong is None:
        wrong = _no_place(args.out)
    if wrong is None and args.ray is not None:
        wrong = _wrong_with_ray(args)
    if wrong is not None:
        parser.error(wrong)
    try:
        shard = (0, 1) if args.shard is None else parse_shard(args.shard)
    except PipelineError as error:
        parser.error(str(error))
    return Options(
        sources=tuple(args.sources),
        out=args.out,
        column=args.column,
        top=args.top,
        classes=args.classes,
        labels=args.labels,
        shard=shard,
        ordered=not args.unordered,
        strict=args.strict,
        dry_run=args.dry_run,
        ray=args.ray,
        summary=args.summary,
        report=args.report,
        engine=engine_options(args),
        loaders=loader_options(args),
        show=show_options(args),
    )


def _one_file(args: argparse.Namespace) -> str | None:
    """Which two of the files that are to be written are one, where there are such."""
    table = None if args.out in (STDOUT, NOWHERE) else args.out
    files = {"--out": table, "--report": args.report, "--summary": args.summary, "--trace": args.trace}
    given = [(option, file, os.path.realpath(file)) for option, file in files.items() if file is not None]
    for (option, file, place), (other, its_file, its_place) in combinations(given, 2):
        if place == its_place:
            return f"{option} {file} and {other} {its_file} are one file; give one of them another name"
    return None


def _no_place(out: str) -> str | None:
    """Why no table can be written to `out`, whatever is there."""
    if not out:
        return "--out: an empty name"
    return f"--out {values.shown(out)}: is a URL; write a file here and copy it there" if is_url(out) else None


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        PROG,
        usage=f"{PROG} SOURCE... --out FILE [options]",
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to classify, and where to")
    what.add_argument("sources", nargs="+", metavar="SOURCE", help="see above; as many as you like, of any kind")
    what.add_argument(
        "-o", "--out", required=True, metavar="FILE",
        help="the table: .parquet, .csv, .jsonl, a folder of parts (a name that ends in /), - for JSONL on standard "
        "output, none to throw the rows away and measure",
    )  # fmt: skip
    what.add_argument("--column", metavar="NAME", help="of Parquet tables, the one with the images")
    what.add_argument(
        "--top", type=values.whole(1, MOST_TOP), default=DEFAULT_TOP, metavar="K",
        help="classes of each answer, best first (default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--classes", type=values.path, metavar="FILE", help="names of the classes, one per line (default: the model's)"
    )
    what.add_argument(
        "--labels", metavar="FILE",
        help=f"lines of `file label`, `{BY_FOLDER}` for a folder a class, or `{BY_SHARD}` for those that shards bring "
        f"(default: these, where there are some): top-1 and top-5 at the end",
    )  # fmt: skip
    what.add_argument("--shard", metavar="I/N", help="only every Nth of the sources: part I of 0..N-1, by their keys")
    what.add_argument("--unordered", action="store_true", help="rows as they come, not in the order of the sources")
    what.add_argument("--dry-run", action="store_true", help="list what would be classified, and do nothing")
    what.add_argument("--strict", action="store_true", help="exit status 4 when a source could not be classified")
    what.add_argument(
        "--ray", nargs="?", const=RAY_LOCAL, metavar="ADDRESS",
        help="classify on a Ray cluster: at HOST:PORT, `auto` for the one this machine is of, or a new one on this "
        "machine alone",
    )  # fmt: skip
    add_engine(parser.add_argument_group("what computes"), strict="--strict-kernels")
    add_loaders(parser.add_argument_group("what loads"), decode=True)
    show = parser.add_argument_group("what to show and keep")
    show.add_argument("--summary", type=values.path, metavar="FILE", help="summary in JSON (default: beside the table)")
    add_showing(show)
    return parser


def _wrong_with_ray(args: argparse.Namespace) -> str | None:
    if not RAY_ADDRESS.fullmatch(args.ray):
        return f"--ray {args.ray}: an address is HOST:PORT, auto or {RAY_LOCAL}; sources go before --ray"
    if args.labels == BY_SHARD:
        return f"--labels {BY_SHARD}: a map or {BY_FOLDER} will do; leave it out with --ray"
    given = [sentence for name, sentence in OF_ONE_MACHINE.items() if getattr(args, name) is not None]
    return f"{given[0]}; leave it out with --ray" if given else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return str(value) if isinstance(value, Path) else value

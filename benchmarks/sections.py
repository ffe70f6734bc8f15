"""Which parts of a benchmark run: an option that takes some of their names, by commas."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def add_sections(parser: argparse.ArgumentParser, names: Sequence[str], option: str = "--sections") -> None:
    """`option` takes names as a tuple of them, and without it all; any other name is an error of the command line."""
    parser.add_argument(option, type=_chosen(names), default=",".join(names), help="which (default: %(default)s)")


def _chosen(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def chosen(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := set(found) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(names)}")
        return found

    return chosen

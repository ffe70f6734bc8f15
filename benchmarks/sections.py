"""Which parts of a benchmark run: an option that takes some of their names, by commas."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def add_sections(
    parser: argparse.ArgumentParser,
    names: Sequence[str],
    option: str = "--sections",
    *,
    default: Sequence[str] | None = None,
) -> None:
    """`option` takes names as a tuple of them; any other name is an error of the command line.

    Without it they are those of `default`, or all.
    """
    some = ",".join(names if default is None else default)
    also = "" if default is None else f" of {','.join(names)}"
    parser.add_argument(option, type=_chosen(names), default=some, help=f"which{also} (default: %(default)s)")


def _chosen(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def chosen(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := set(found) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(names)}")
        return found

    return chosen

"""python -m pipeline.classify SOURCE... --out FILE: classify images, as many as there are, into a table.

Sources are files, folders, lists, tar shards, Parquet tables; the table is Parquet, CSV or JSONL. A run that was ended
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.commands.entry import enter

if TYPE_CHECKING:
    from pipeline.session.supervisor import Supervisor


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0, 1 failed, 2 wrong command line, 4 --strict and errors, 128 + signal."""
    return enter(_command, argv)


def _command() -> Callable[[Sequence[str], Supervisor], int]:
    from pipeline.classify.command import command

    return command


if __name__ == "__main__":
    sys.exit(main())

"""python -m pipeline.classify SOURCE... --out FILE: classify images, as many as there are, into a table.

Sources are files, folders, lists, tar shards, Parquet tables; the table is Parquet, CSV or JSONL. A run that was ended
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.session.supervisor import Supervisor


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0, 1 failed, 2 wrong command line, 4 --strict and errors, 128 + signal."""
    supervisor = Supervisor()
    with supervisor.signals():
        # Imported here, signals already in hand: a Ctrl-C in the middle of an import would be a traceback.
        from int4core.streams import run_command
        from pipeline.classify.command import command

        return run_command(lambda: command(sys.argv[1:] if argv is None else argv, supervisor))


if __name__ == "__main__":
    sys.exit(main())

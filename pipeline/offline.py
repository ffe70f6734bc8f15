"""python -m pipeline.offline: classify a folder of images under LoadGen's Offline scenario.

Reads the model, decodes the images in loader processes into shared memory, runs the engine in a process
of its own, lets LoadGen drive and judge it, and leaves LoadGen's logs and a summary.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.errors import shortage
from pipeline.session.supervisor import Supervisor


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0, 1 failed, 2 wrong command line, 128 + signal."""
    supervisor = Supervisor()
    with supervisor.signals():
        # Imported here, signals already in hand: a Ctrl-C in the middle of an import would be a traceback.
        try:
            from int4core.streams import run_command
            from pipeline.loadgen.command import command
        except (ImportError, MemoryError) as error:
            print(f"error: this installation cannot be loaded: {error or shortage(error)}", file=sys.stderr)
            return 1

        return run_command(lambda: command(sys.argv[1:] if argv is None else argv, supervisor))


if __name__ == "__main__":
    sys.exit(main())

"""python -m pipeline.offline: classify a folder of images under LoadGen's Offline scenario.

Reads the model, decodes the images in loader processes into shared memory, runs the engine in a process
of its own, lets LoadGen drive and judge it, and leaves LoadGen's logs and a summary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.commands.entry import enter

if TYPE_CHECKING:
    from pipeline.session.supervisor import Supervisor


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0, 1 failed, 2 wrong command line, 128 + signal."""
    return enter(_command, argv)


def _command() -> Callable[[Sequence[str], Supervisor], int]:
    from pipeline.loadgen.command import command

    return command


if __name__ == "__main__":
    sys.exit(main())

"""How a command begins: signals in hand before anything is imported that may be missing, or takes its time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from pipeline.errors import shortage
from pipeline.session.supervisor import Supervisor


def enter(load: Callable[[], Callable[[Sequence[str], Supervisor], int]], argv: Sequence[str] | None) -> int:
    """The exit status of the command that `load` imports, with `argv` or this process's own arguments.

    1, with a sentence, where it cannot be imported.
    """
    supervisor = Supervisor()
    with supervisor.signals():
        # A Ctrl-C in the middle of an import would be a traceback.
        try:
            from int4core.streams import run_command

            command = load()
        except (ImportError, MemoryError) as error:
            print(f"error: this installation cannot be loaded: {error or shortage(error)}", file=sys.stderr)
            return 1
        return run_command(lambda: command(sys.argv[1:] if argv is None else argv, supervisor))

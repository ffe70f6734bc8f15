"""What a command is to its user: lines on the console, one sentence for an error, an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from rich.console import Console

from int4core.errors import Int4CoreError, printable, printed
from pipeline.errors import PipelineError, shortage
from pipeline.session.supervisor import Interrupted, Supervisor
from pipeline.stages.base import StageFailure

FAILED = 1


class Shell:
    """Where a command speaks.

    Args:
        stderr: whether its lines go to standard error because standard output is for machines.
    """

    def __init__(self, *, stderr: bool) -> None:
        self._console = _console(stderr=stderr)

    @property
    def console(self) -> Console:
        return self._console

    def say(self, line: str) -> None:
        """Print a line; what a file's name hides in it does not reach the terminal."""
        self._console.print(printable(line))


def run(body: Callable[[], int], supervisor: Supervisor) -> int:
    """The exit status of `body`, or of what it raised, which is said on standard error."""
    errors = _console(stderr=True)
    status = FAILED
    try:
        status = body()
    except Interrupted as error:
        status = 128 + error.number
        errors.print(printable(f"stopped: {error}"), style="bold yellow")
    except BaseException as error:
        _explain(error, errors)
    finally:
        if supervisor.job_is_stuck:
            # The job cannot be made to give up: in a read that never ends, or inside LoadGen, which crashes where the
            # interpreter ends under it. All that has to be given back has been.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return status


def _explain(error: BaseException, errors: Console) -> None:
    """Say why the run has failed: in a sentence where it was to be expected, else with where it was raised."""
    short = shortage(error)
    if short is not None:
        errors.print(f"error: {short}", style="bold red")
    elif isinstance(error, (PipelineError, Int4CoreError)):
        if isinstance(error, StageFailure) and error.traceback:
            errors.print("\n".join(map(printable, error.traceback.rstrip().split("\n"))))
        errors.print(f"error: {printed(error)}", style="bold red")
    else:
        story = "".join(traceback.format_exception(error)).rstrip()
        errors.print("\n".join(map(printable, story.split("\n"))))
        errors.print(printable(f"error: {type(error).__name__}: {error}"), style="bold red")


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)

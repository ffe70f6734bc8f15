"""Writing the report of a run that is over, under the eyes of its supervisor."""

from __future__ import annotations

from pipeline.report.page import Ending, Reporter
from pipeline.session.supervisor import Supervisor


def write_report(reporter: Reporter, ending: Ending, supervisor: Supervisor) -> None:
    """Write the page in the job's thread. Raises PipelineError; after a signal, Interrupted, and no process is left."""
    try:
        supervisor.watch(lambda: reporter.write(ending))
    except BaseException:
        reporter.give_up()
        supervisor.settle()
        raise

"""The classify command on a cluster: the driver holds the output, and does neither list, classify nor write.

arguments -> parts -> listing tasks -> actors -> writing tasks -> the output's parts
                         |  keys that are done, in the object store of each node
                         +-> a tally of what was listed, for the summary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from int4core.errors import printable
from pipeline.classify.begin import Beginning, begin
from pipeline.classify.evaluation import TOP_5, Evaluation, scores_of
from pipeline.classify.options import Options
from pipeline.classify.summary import summarise, summary_path
from pipeline.commands.session import identity
from pipeline.commands.shell import Shell
from pipeline.errors import PipelineError
from pipeline.machine.gpus import Target
from pipeline.ray.cluster import lay_out, nodes
from pipeline.ray.delivery import Count, Receiver, ToDriver, ToNowhere, ToParts, Totals
from pipeline.ray.earlier import read_earlier
from pipeline.ray.run import Connection, Run, Wanted, connect
from pipeline.ray.units import parted
from pipeline.report.dashboard import Dashboard, choose_mode
from pipeline.report.json_file import write_json
from pipeline.report.versions import installed, versions
from pipeline.samples.labels import Labels
from pipeline.session.supervisor import Supervisor
from pipeline.sinks.base import Sink, SinkError
from pipeline.sinks.opening import NOWHERE, STDOUT, belongs_to, open_sink
from pipeline.sinks.parts import PartsSink
from pipeline.sinks.rows import Rows
from pipeline.sinks.stream import StreamSink
from pipeline.words import counted


class RayCommand:
    """One run of the command with `--ray`."""

    def __init__(self, options: Options, supervisor: Supervisor, shell: Shell) -> None:
        self._options = options
        self._supervisor = supervisor
        self._shell = shell
        self._say = shell.say
        self._totals = Totals()

    def run(self) -> Sink:
        """The output, finished. Raises PipelineError or Int4CoreError."""
        options = self._options
        assert options.ray is not None
        # The driver computes nothing, and may be a machine without what the actors compute on.
        here = replace(options.engine, gpu="cpu", cpu_backend="numpy")
        beginning = begin(options, here, lambda line: None)
        apart = belongs_to(options.out, summary_path(options))
        parts = parted(options.sources, options.column, apart)
        count = None if beginning.labels is None else partial(_right, beginning.labels)
        with open_sink(
            options.out,
            identity=identity(
                beginning.setup, options.loaders, top=options.top, class_names=beginning.names, shard=options.shard
            ),
            notes={k: v for k, v in (versions() | {"ray": installed("ray")}).items() if v is not None},
            class_names=beginning.names,
            read_keys=False,
        ) as sink:
            if sink.complete:
                self._say(f"{options.out} is complete: {counted(sink.rows, 'row')}, {sink.errors:,} of them errors")
                return sink
            self._supervisor.check()
            # Here and not in a job's thread: what it starts ends with the thread that started it.
            ray = connect(options.ray)
            try:
                self._run(ray, beginning, sink, parts, apart, count)
            finally:
                ray.close()
        where = "" if options.out in (STDOUT, NOWHERE) else f" in {options.out}"
        self._say(counted(sink.rows, "row") + where)
        return sink

    def _run(
        self,
        ray: Connection,
        beginning: Beginning,
        sink: Sink,
        parts: list[tuple[str, ...]],
        apart: Callable[[str], bool],
        count: Count | None,
    ) -> None:
        options = self._options
        done = self._supervisor.watch(lambda: self._earlier(ray.library, sink, count))
        layout = lay_out(nodes(ray.library), options.engine.gpu)
        notice = f"Ray {ray.library.__version__}, {layout}"
        sink.note({"gpu": notice})
        run = Run(
            ray.library,
            Wanted(
                parts=parts,
                column=options.column,
                shard=options.shard,
                done=done,
                apart=apart,
                engine=replace(options.engine, model=beginning.setup.model, digest=beginning.setup.digest),
                loaders=options.loaders,
                top=options.top,
                classes=options.classes,
                ordered=options.ordered and options.out == STDOUT,
                receiver=_receiver(sink),
                count=count,
            ),
            layout,
        )
        setup = replace(beginning.setup, target=Target(beginning.setup.target.backend, (), notice))
        self._say(f"running on {notice}, model {setup.model}")
        dashboard = Dashboard(
            run.progress.snapshot,
            title=f"{setup.model.name} on {notice}",
            mode=choose_mode(json_lines=options.show.json, dashboard=options.show.dashboard),
            gpus=(),
        )
        try:
            with dashboard:
                self._say = lambda line: dashboard.say(printable(line), self._shell.console)
                self._supervisor.watch(lambda: self._take(run, sink))
            self._say = self._shell.say
        finally:
            run.stop()
            self._supervisor.settle()
        listed = self._supervisor.watch(run.listed)
        left_out = listed.left_out
        if not listed.seen and options.shard == (0, 1):
            ignored = f": {left_out.line()}" if left_out else ""
            raise PipelineError(f"there is no image in what was named{ignored}")
        if left_out:
            self._say(left_out.line())
        if listed.skipped:
            self._say(f"{counted(listed.skipped, 'source')} answered before or named twice")
        if sink.errors:
            self._say(f"{counted(sink.errors, 'row')} {'has' if sink.errors == 1 else 'have'} an error")
        scores = scores_of(self._totals.counts, top5=options.top >= TOP_5)
        for line in () if scores is None else scores.lines():
            self._say(line)
        path = summary_path(options)
        if path is not None:
            summary = summarise(
                options,
                setup=setup,
                snapshot=run.progress.snapshot(),
                stages=dashboard.history.stages(),
                engines=self._supervisor.watch(run.engines),
                rows=sink.rows,
                errors=sink.errors,
                skipped=listed.skipped,
                left_out=left_out,
                scores=scores,
                verdict=None,
                energy=None,  # the GPUs are other machines'
            )
            write_json(path, summary)
            self._say(f"summary: {path}")

    def _earlier(self, ray: Any, sink: Sink, count: Count | None) -> Any:
        """A reference to the keys of the rows that are there, None without any."""
        if not isinstance(sink, PartsSink) or not sink.earlier_parts:
            return None
        done, totals = read_earlier(ray, sink.earlier_parts, sink.file_format, count)
        self._count(sink, totals)
        self._say(f"{self._options.out}: going on after {counted(sink.rows, 'row')}")
        return done

    def _take(self, run: Run, sink: Sink) -> None:
        """What is delivered, until there is no more."""
        with closing(run.__iter__()) as deliveries:
            for delivered in deliveries:
                missing = [file for file in delivered.files if not file.exists()]
                if missing:
                    raise SinkError(
                        f"{missing[0]}: is not here, but on the node that wrote it; give --out a shared folder"
                    )
                if isinstance(sink, StreamSink):
                    sink.write_text(delivered.text)
                self._count(sink, delivered.totals, delivered.files)
        run.progress.enter("done")

    def _count(self, sink: Sink, totals: Totals, files: Iterable[Path] = ()) -> None:
        self._totals += totals
        sink.count(totals.rows, totals.errors, files)


def _receiver(sink: Sink) -> Receiver:
    if isinstance(sink, PartsSink):
        return ToParts(sink.writer())
    return ToDriver(sink.file_format) if isinstance(sink, StreamSink) else ToNowhere()


def _right(labels: Labels, rows: Rows) -> tuple[int, ...]:
    evaluation = Evaluation()
    evaluation.add(rows, [labels.of(key) for key in rows.keys])
    return evaluation.counts

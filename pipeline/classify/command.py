"""The classify command from its options to its table; `pipeline.classify.__main__` is its entry."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import chain, islice

from int4core.errors import printable
from pipeline.classify.begin import begin
from pipeline.classify.evaluation import Evaluation
from pipeline.classify.intake import Intake
from pipeline.classify.listing import Listing
from pipeline.classify.on_ray import RayCommand
from pipeline.classify.options import Options, parse
from pipeline.classify.summary import summarise, summary_path
from pipeline.classify.writing import ROWS_WAIT_S, Writing
from pipeline.collector import spared
from pipeline.commands.files import check_file
from pipeline.commands.report import write_report
from pipeline.commands.session import identity, session_spec
from pipeline.commands.setup import Setup
from pipeline.commands.shell import Shell, run
from pipeline.errors import PipelineError
from pipeline.memory.segment import sweep_stale
from pipeline.report.dashboard import Dashboard, choose_mode
from pipeline.report.decoded import decoded_line
from pipeline.report.json_file import write_json
from pipeline.report.page import Ending, Reporter
from pipeline.report.verdict import judge
from pipeline.report.versions import versions
from pipeline.samples.labels import Labels
from pipeline.samples.sources import Sources
from pipeline.session.abandon import abandon
from pipeline.session.answers import Answers
from pipeline.session.introduction import introductions
from pipeline.session.progress import Progress
from pipeline.session.session import Session
from pipeline.session.supervisor import Supervisor
from pipeline.sinks.answers import rows_of
from pipeline.sinks.base import Sink
from pipeline.sinks.opening import NOWHERE, STDOUT, belongs_to, open_sink
from pipeline.sinks.rows import Rows
from pipeline.stages.infer import engine_notes
from pipeline.telemetry.trace import write_trace
from pipeline.words import counted

STRICT_STATUS = 4

NAMED_IN_DRY_RUN = 10


def command(argv: Sequence[str], supervisor: Supervisor) -> int:
    """Run the command line `argv`; returns the exit status, and says on stderr why it is not 0."""
    options = parse(argv)
    # Standard output is for machines when JSON goes there.
    shell = Shell(stderr=options.show.json or options.out == STDOUT)
    supervisor.abandon = abandon
    return run(lambda: ClassifyCommand(options, supervisor, shell).run(), supervisor)


class ClassifyCommand:
    """One run of the command."""

    def __init__(self, options: Options, supervisor: Supervisor, shell: Shell) -> None:
        self._options = options
        self._supervisor = supervisor
        self._shell = shell
        self._say = shell.say
        self._reporter: Reporter | None = None
        self._ending: Ending | None = None
        self._evaluation = Evaluation()
        self._labels: Labels | None = None

    def run(self) -> int:
        """The exit status. Raises PipelineError or Int4CoreError; nothing is left behind on any way out."""
        options = self._options
        written = {"--report": options.report, "--summary": options.summary, "--trace": options.show.trace}
        for option, file in written.items():
            if file is not None:
                check_file(option, file)
        if options.ray is not None and not options.dry_run:
            return self._status(RayCommand(options, self._supervisor, self._shell).run())
        for path in sweep_stale():
            self._say(f"removed {path}, left behind by a run that was killed")
        beginning = begin(options, options.engine, self._say)
        setup, names, self._labels = beginning.setup, beginning.names, beginning.labels
        if options.report is not None and not options.dry_run:
            label_of = None if self._labels is None else self._labels.of
            self._reporter = Reporter(options.report, setup.network.classes, label_of)
        # What may take long, a table of 100 million rows or a folder as large, is done where a signal ends it.
        with self._supervisor.watch(lambda: self._open(setup, names)) as sink:
            if sink.complete:
                self._say(
                    f"{options.out} is complete: {counted(sink.rows, 'row')}, {sink.errors:,} of them errors; "
                    "for other sources give --out another name"
                )
                if self._reporter is not None:
                    self._say(f"no page is written to {self._reporter.path}: there was nothing to do")
                return self._status(sink)
            if sink.rows:
                self._say(f"{options.out}: going on after {counted(sink.rows, 'row')}")
            if options.dry_run:
                sink.leave()
            with self._supervisor.watch(lambda: self._intake(sink, setup.network.classes)) as intake:
                if options.dry_run:
                    return self._supervisor.watch(lambda: self._dry_run(intake))
                self._run(setup, sink, intake, names)
        self._write_page()
        where = "" if options.out in (STDOUT, NOWHERE) else f" in {options.out}"
        self._say(counted(sink.rows, "row") + where)
        return self._status(sink)

    def _open(self, setup: Setup, names: Sequence[str] | None) -> Sink:
        options = self._options
        return open_sink(
            options.out,
            identity=identity(setup, options.loaders, top=options.top, class_names=names, shard=options.shard),
            notes={"gpu": setup.target.notice} | {k: v for k, v in versions().items() if v is not None},
            class_names=names,
        )

    def _intake(self, sink: Sink, classes: int) -> Intake:
        options = self._options
        listing = Listing(
            options.sources,
            column=options.column,
            part=options.shard,
            labels=self._labels is None,
            apart=belongs_to(options.out, summary_path(options), options.report, options.show.trace),
        )
        return Intake(listing, done=sink.done, labels_below=classes if self._labels is None else None)

    def _dry_run(self, intake: Intake) -> int:
        """Say what would be classified; the table is left as it is."""
        keys = chain.from_iterable(some.keys for some in intake.sources())
        for key in islice(keys, NAMED_IN_DRY_RUN):
            self._say(f"  {key}")
        left = sum(1 for _ in keys)
        if left:
            self._say(f"  and {left:,} more")
        to_do = intake.seen - intake.skipped
        self._say(f"{counted(to_do, 'source')} to classify; {intake.skipped:,} done before or named twice")
        self._say_left_out(intake)
        return 0

    def _write_page(self) -> None:
        """The table is complete by then: whatever becomes of the page, it stays so."""
        reporter, ending = self._reporter, self._ending
        if reporter is not None and ending is not None:
            write_report(reporter, ending, self._supervisor)
            self._say(f"report: {reporter.path}")

    def _run(self, setup: Setup, sink: Sink, intake: Intake, names: Sequence[str] | None) -> None:
        options = self._options
        spec = session_spec(
            setup, options.engine, options.loaders, top=options.top, traced=options.show.trace is not None
        )
        if self._labels is not None or self._reporter is not None:
            self._supervisor.watch(lambda: self._count_earlier(sink))
        self._say(f"batch {spec.sizes.largest}, {counted(spec.loaders, 'loader')}, model {setup.model}")
        try:
            with Session(spec, on_failure=self._supervisor.fail) as session:
                progress = Progress(session)
                dashboard = Dashboard(
                    progress.snapshot,
                    title=f"{setup.model.name} on {setup.target.notice}",
                    mode=choose_mode(json_lines=options.show.json, dashboard=options.show.dashboard),
                    gpus=tuple(sorted({gpu.index for gpu in setup.target.gpus})),
                    observe=None if self._reporter is None else self._reporter.observe,
                    awaited="the first answer",
                )
                with dashboard:
                    self._say = lambda line: dashboard.say(printable(line), self._shell.console)
                    self._supervisor.watch(lambda: self._job(session, sink, intake, progress))
                self._say = self._shell.say
                self._report(setup, session, sink, intake, progress, dashboard, names)
        finally:
            self._supervisor.settle()

    def _job(self, session: Session, sink: Sink, intake: Intake, progress: Progress) -> None:
        """All that takes time, in the job's thread."""
        session.start()
        for line in introductions(session):
            self._say(line)
        progress.enter("running")
        intake.count(self._say)
        with (
            spared(),
            Writing(lambda answers: self._write(sink, answers), self._options.top) as writing,
            closing(
                session.classify_in_batches(intake.sources(), ordered=self._options.ordered, wait_s=ROWS_WAIT_S)
            ) as batches,
        ):
            for answers in batches:
                writing.put(answers)
                progress.add(len(answers))
                _follow(progress, intake)
        _follow(progress, intake)
        if not intake.seen and self._options.shard == (0, 1):
            ignored = f": {intake.left_out.line()}" if intake.left_out else ""
            raise PipelineError(f"there is no image in what was named{ignored}")
        if self._labels is None and len(intake.kept_labels):
            for table in sink.earlier():
                self._evaluation.add(table, intake.kept_labels.of(table.keys))
        progress.enter("done")

    def _write(self, sink: Sink, answers: Answers) -> None:
        if not len(answers):
            sink.tick()
            return
        rows = rows_of(answers)
        sink.write(rows)
        self._count(rows, answers.sources)

    def _count_earlier(self, sink: Sink) -> None:
        for rows in sink.earlier():
            self._count(rows, None)

    def _count(self, rows: Rows, sources: Sources | None) -> None:
        """Take rows into what is said of all of them at the end; `sources` are None for those of an earlier run.

        The labels that sources of an earlier run bring are known when they have been listed again, and counted then.
        """
        if self._labels is not None:
            self._evaluation.add(rows, [self._labels.of(key) for key in rows.keys])
        elif sources is not None and sources.labels is not None:
            self._evaluation.add(rows, sources.labels)
        if self._reporter is not None:
            self._reporter.answers.add(rows, sources)

    def _report(
        self,
        setup: Setup,
        session: Session,
        sink: Sink,
        intake: Intake,
        progress: Progress,
        dashboard: Dashboard,
        names: Sequence[str] | None,
    ) -> None:
        options = self._options
        self._say_left_out(intake)
        if intake.skipped:
            self._say(f"{counted(intake.skipped, 'source')} answered before or named twice")
        decoded = progress.decoded()
        if decoded:
            self._say(decoded_line(decoded))
        if session.loading.stage.replaced:
            self._say(f"{counted(session.loading.stage.replaced, 'loader')} lost, and replaced")
        if sink.errors:
            self._say(f"{counted(sink.errors, 'row')} {'has' if sink.errors == 1 else 'have'} an error")
        scores = self._evaluation.scores()
        for line in () if scores is None else scores.lines():
            self._say(line)
        if scores is None and options.labels is not None:
            self._say(f"--labels {options.labels}: no source has a label")
        if intake.odd_labels:
            self._say(
                f"{counted(intake.odd_labels, 'label')} left out: the model has {setup.network.classes:,} classes"
            )
        ceilings = session.ceilings(progress.rate, decode_timed=True, main=progress.main_rate)
        verdict = judge(ceilings) if progress.answered else None
        for sentence in () if verdict is None else verdict.sentences:
            self._say(sentence)
        energy = dashboard.energy.energy()
        if energy is not None:
            self._say(str(energy))
        summary = summarise(
            options,
            setup=setup,
            snapshot=progress.snapshot(),
            stages=dashboard.history.stages(),
            engines=engine_notes(session.batches.infer),
            rows=sink.rows,
            errors=sink.errors,
            skipped=intake.skipped,
            left_out=intake.left_out,
            scores=scores,
            verdict=verdict,
            energy=energy,
        )
        path = summary_path(options)
        if path is not None:
            write_json(path, summary)
            self._say(f"summary: {path}")
        earlier = sink.rows - progress.answered
        self._ending = Ending(
            title=f"{setup.model.name} on {setup.target.notice}",
            rate=progress.rate,
            peak=dashboard.history.peak or None,
            stages=dashboard.history.stages(),
            preparation=session.spec.preparation,
            verdict=verdict,
            energy=energy,
            accuracy=() if scores is None else scores.named(),
            class_names=names,
            facts={name.capitalize(): summary[name] for name in ("settings", "versions", "hardware")},
            notes=(f"{counted(earlier, 'row')} of earlier runs included",) if earlier else (),
        )
        if options.show.trace is not None:
            write_trace(options.show.trace, session.traces())
            self._say(f"timeline: {options.show.trace}, for https://ui.perfetto.dev")

    def _say_left_out(self, intake: Intake) -> None:
        if intake.left_out:
            self._say(intake.left_out.line())

    def _status(self, sink: Sink) -> int:
        return STRICT_STATUS if self._options.strict and sink.errors else 0


def _follow(progress: Progress, intake: Intake) -> None:
    """Take what is known of the sources into what is shown."""
    progress.completed = progress.answered + intake.skipped
    if total := intake.total:
        progress.expected, progress.estimated = total

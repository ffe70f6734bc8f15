"""The offline command from its options to its summary; `pipeline.offline` is its entry."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from int4core.errors import printable
from int4core.streams import Stream
from pipeline.arrays import Indices
from pipeline.collector import spared
from pipeline.commands.report import write_report
from pipeline.commands.setup import set_up
from pipeline.commands.shell import Shell, run
from pipeline.defaults import DEMO_IMAGES
from pipeline.errors import PipelineError
from pipeline.loadgen.binding import (
    AUDIT_CONFIG,
    Completions,
    LoadGenSession,
    assign,
    load_module,
    make_settings,
    plain_fields,
    samples_at_a_time,
    takes_arrays,
)
from pipeline.loadgen.clock import clock_warning
from pipeline.loadgen.hand_over import hand_over
from pipeline.loadgen.limits import check_settings
from pipeline.loadgen.options import Options, parse
from pipeline.loadgen.outputs import Outputs
from pipeline.loadgen.page import finish
from pipeline.loadgen.results import NOT_PREDICTED, LoadGenResult, check_accuracy_log, read_result
from pipeline.loadgen.rounds import PERFORMANCE_SAMPLES, check_official, round_of
from pipeline.loadgen.run import LoadGenRun, Prepared
from pipeline.loadgen.sample_list import write_sample_list
from pipeline.loadgen.samples import BadFile, BadFiles
from pipeline.loadgen.scenarios import batch_plan, expectations, samples_per_query
from pipeline.loadgen.summary import summarise, write_summary
from pipeline.loadgen.user_conf import read_user_conf, user_conf_of, write_user_conf
from pipeline.machine.hardware import default_loaders
from pipeline.machine.room import slots_that_fit
from pipeline.memory.arena import ArenaSpec, sweep_stale
from pipeline.report.accuracy import Accuracy, accuracy
from pipeline.report.commit import commit
from pipeline.report.dashboard import Dashboard, choose_mode
from pipeline.report.page import Reporter
from pipeline.report.verdict import Verdict, judge
from pipeline.samples.library import SampleLibrary
from pipeline.session.abandon import abandon
from pipeline.session.introduction import introductions
from pipeline.session.spec import SessionSpec
from pipeline.session.supervisor import Supervisor
from pipeline.stages.infer import engine_notes
from pipeline.stages.spec import CPU_IN_FLIGHT
from pipeline.telemetry.trace import write_trace
from pipeline.words import counted


class BadImages(PipelineError):
    """Files that cannot become samples, of `total` that were read; the run was not allowed to leave them out."""

    def __init__(self, bad: Sequence[BadFile], total: int) -> None:
        self._lines = (
            f"{len(bad)} of {total} files cannot be read:",
            *(f"  {b.path}: {b.why}" for b in bad),
            "fix or remove them, or leave them out with --skip-bad-images",
        )
        super().__init__("\n".join(self._lines))

    @property
    def lines(self) -> tuple[str, ...]:
        return self._lines


def command(argv: Sequence[str], supervisor: Supervisor) -> int:
    """Run the command line `argv`; returns the exit status, and says on stderr why it is not 0."""
    options = parse(argv)
    # With --json, standard output is for machines.
    shell = Shell(stderr=options.json)
    supervisor.abandon = abandon
    return run(lambda: OfflineCommand(options, supervisor, shell).run(), supervisor)


class OfflineCommand:
    """One run of the command, from options to summary."""

    def __init__(self, options: Options, supervisor: Supervisor, shell: Shell) -> None:
        self._options = options
        self._supervisor = supervisor
        self._shell = shell
        self._stdout = sys.stdout
        self._bad: tuple[BadFile, ...] = ()
        self._kept: Any = None
        self._user_conf: bytes | None = None
        self._loaded_s: float | None = None
        self._decoded_before = 0
        self._dashboard: Dashboard | None = None
        self._reporter: Reporter | None = None

    def run(self) -> int:
        """Returns the exit status, 0. Raises PipelineError or Int4CoreError; nothing is left behind on any way out."""
        options = self._options
        lg = load_module(options.loadgen_path)
        # In the job's thread, as all that reads what a user names: a network mount that is dead never answers.
        with self._supervisor.watch(lambda: Outputs(options)) as self._outputs:
            self._options = replace(options, output_dir=self._outputs.folder)
            spec = options.settings_spec(self._outputs.folder)
            self._test_settings, self._log_settings = self._supervisor.watch(lambda: make_settings(lg, spec))
            if (given := options.user_conf) is not None:
                self._user_conf = self._supervisor.watch(lambda: read_user_conf(given))
            if options.round is not None:
                check_official(options.round, plain_fields(self._test_settings), trial=options.trial)
            self._run(lg)
        return 0

    def _run(self, lg: Any) -> None:
        if os.path.exists(AUDIT_CONFIG):
            self._say(f"{Path.cwd() / AUDIT_CONFIG} is there: LoadGen reads it, over every option")
        for path in sweep_stale():
            self._say(f"removed {path}, left behind by a run that was killed")
        prepared = self._supervisor.watch(self._prepare)
        self._check_stdout()
        self._supervisor.check()
        title = printable(f"{prepared.setup.model.name} on {prepared.setup.target.notice}")
        if self._options.report is not None:
            self._reporter = Reporter(self._options.report, prepared.setup.network.classes)
        completions = Completions(lg)
        with LoadGenRun(prepared, completions.complete, self._supervisor.fail) as run:
            dashboard = self._dashboard = Dashboard(
                run.progress.snapshot,
                title=title,
                mode=choose_mode(json_lines=self._options.json, dashboard=self._options.dashboard),
                gpus=tuple(sorted({gpu.index for gpu in prepared.setup.target.gpus})),
                observe=None if self._reporter is None else self._reporter.observe,
                awaited="LoadGen's first query",
            )
            with dashboard:
                self._supervisor.watch(lambda: self._job(lg, completions, run, prepared))
            self._report(run, prepared, title, dashboard, arrays=takes_arrays(lg))

    def _prepare(self) -> Prepared:
        options = self._options
        setup = set_up(options.engine, self._say)
        library = self._library(setup.network.classes)
        plan = batch_plan(
            options.scenario,
            gpu=bool(setup.target.gpus),
            batch_size=options.batch_size,
            max_batch=options.max_batch,
            batch_step=options.batch_step,
            batch_timeout_us=options.batch_timeout_us,
            busy_at=options.busy_at,
            inflight=options.inflight if setup.target.gpus else CPU_IN_FLIGHT,
            samples_per_query=samples_per_query(options.scenario, self._test_settings),
        )
        batch = plan.sizes.largest
        at_a_time = self._performance_count(len(library), batch)
        loaders = options.loaders or default_loaders()
        shape = (3, setup.side, setup.side)
        spec = SessionSpec(
            model=setup.model,
            backend=setup.target.backend,
            backend_options=setup.backend_options,
            sizes=plan.sizes,
            input_shape=shape,
            preparation=setup.preparation(library.kind, options.resize, options.rules),
            loaders=min(loaders, len(library)),
            slots=self._slots(len(library), at_a_time, shape),
            stage_timeout_s=options.stage_timeout_s,
            image_timeout_s=options.image_timeout_s,
            engines=len(setup.target.gpus) or options.engines,
            inflight=plan.inflight,
            h2d=options.h2d,
            ordered=options.ordered,
            bus_ids=setup.target.bus_ids,
            hold_s=plan.hold_s,
            busy_at=plan.busy_at,
            traced=options.trace is not None,
            digest=setup.digest,
            memory_remedy="load fewer samples at a time (--lgts_performance_sample_count_override)",
        )
        self._say(
            f"{len(library)} {library.kind}, batch {batch}, {counted(spec.loaders, 'loader')}, model {setup.model}"
        )
        return Prepared(setup, library, spec, at_a_time, ahead=self._needs_all)

    def _library(self, classes: int) -> SampleLibrary:
        options = self._options
        if options.tensors is not None:
            folder, listed = options.tensors, SampleLibrary.from_tensors
        else:
            folder, listed = options.images or DEMO_IMAGES, SampleLibrary.from_images
        library = listed(folder, options.map_path, options.count, recursive=options.recursive, classes=classes)
        for notice in library.notices:
            self._say(notice)
        return library

    def _performance_count(self, samples: int, batch: int) -> int:
        """How many samples LoadGen may ask to have loaded at a time."""
        ours = min(samples, max(PERFORMANCE_SAMPLES, batch))
        return samples_at_a_time(self._test_settings, samples, ours)

    @property
    def _needs_all(self) -> bool:
        """Whether LoadGen asks for every sample, set by set; otherwise it chooses one set."""
        return self._options.test_mode in ("AccuracyOnly", "SubmissionRun")

    def _slots(self, samples: int, at_a_time: int, shape: tuple[int, int, int]) -> int:
        """How many decoded samples the run keeps: those that are needed, as far as there is memory for them."""
        if not (self._needs_all or self._options.skip_bad_images):
            return at_a_time
        slots = min(samples, max(at_a_time, slots_that_fit(ArenaSpec("", 1, shape).slot_bytes)))
        if slots < samples:
            self._say(f"there is memory for {slots:,} of {samples:,} decoded samples")
        return slots

    def _job(self, lg: Any, completions: Completions, run: LoadGenRun, prepared: Prepared) -> None:
        """All that takes time, in the job's thread."""
        run.session.start()
        for line in introductions(run.session):
            self._say(line)
        run.progress.enter("loading")
        # LoadGen has to know how many samples there are, so that bad ones are left out before. Otherwise what it
        # will not ask for is not decoded, and a bad one ends the run when it is.
        if self._options.skip_bad_images or len(prepared.library) <= prepared.at_a_time:
            self._bad = run.samples.check()
        self._kept = run.samples.drop(self._bad)
        if len(self._kept) == 0 or (self._bad and not self._options.skip_bad_images):
            raise BadImages(self._bad, run.samples.known)
        self._expect_rate(run, arrays=takes_arrays(lg))
        with LoadGenSession(
            lg,
            completions=completions,
            count=len(self._kept),
            performance_count=self._performance_count(len(self._kept), prepared.spec.sizes.largest),
            load=lambda samples: self._load(run, samples),
            unload=run.samples.unload,
            issue=run.queue.put,
            due=run.session.batches.pump,
            flush=lambda: self._flush(run),
            on_error=self._supervisor.fail,
        ) as session:
            run.queue.gathering = session.gathering
            self._check_stdout()
            self._outputs.clear()
            write_sample_list(self._outputs.sample_list, prepared.library.subset(self._kept))
            if self._options.round is not None and self._user_conf is None:
                self._user_conf = user_conf_of(plain_fields(self._test_settings))
            if self._user_conf is not None:
                write_user_conf(self._outputs.user_conf, self._user_conf)
            with spared():
                session.run(self._test_settings, self._log_settings)
        run.session.batches.complete.drain()  # LoadGen has the last answer a moment before it is counted
        run.progress.enter("done")

    def _load(self, run: LoadGenRun, samples: Indices) -> None:
        try:
            run.samples.load(samples)
        except BadFiles as error:
            # Where the others are needed too, the list is made whole.
            bad = run.samples.check() if self._needs_all else error.bad
            raise BadImages(bad, run.samples.known) from None
        if self._loaded_s is None:
            self._decoded_before = run.session.loading.stage.snapshot().done
            run.progress.enter("running")
        self._loaded_s = time.monotonic()

    def _flush(self, run: LoadGenRun) -> None:
        """LoadGen has asked for all of what it had loaded: in an accuracy run, for a set of the samples."""
        if self._options.test_mode in ("PerformanceOnly", "AccuracyOnly"):
            run.progress.flushed(len(self._kept) if self._needs_all else 1)

    def _expect_rate(self, run: LoadGenRun, *, arrays: bool) -> None:
        """Where the user does not say what rate to expect, LoadGen is given one that fits the engine's own."""
        options = self._options
        if options.user_conf is not None:
            return
        scenario = options.scenario
        fields, said = expectations(
            scenario,
            dict(options.test_settings),
            run.session.batches.infer.expected_rate,
            samples_per_query(scenario, self._test_settings),
        )
        for name, value in fields.items():
            assign(self._test_settings, name, value)
            self._say(f"LoadGen is given {said}")
        check_settings(plain_fields(self._test_settings), arrays=arrays)

    def _report(self, run: LoadGenRun, prepared: Prepared, title: str, dashboard: Dashboard, *, arrays: bool) -> None:
        log = self._log_settings.log_output
        result = read_result(Path(log.outdir), log.prefix, log.suffix)
        if self._needs_all:
            check_accuracy_log(Path(log.outdir), log.prefix, log.suffix)
        for line in result.verdict(self._options.official).splitlines():
            self._say(line)
        top1 = self._accuracy(run, prepared.library)
        if top1 is not None:
            self._say(f"top-1: {top1}")
        if run.session.loading.stage.replaced:
            self._say(f"{counted(run.session.loading.stage.replaced, 'loader')} lost, and replaced")
        if self._bad:
            self._say(f"left out {counted(len(self._bad), 'file')} that cannot be read:")
            for bad in self._bad:
                self._say(f"  {bad.path}: {bad.why}")
        snapshot, answering = run.progress.snapshot(), run.queue.answering
        warning = None
        if answering is not None and self._loaded_s is not None:
            warning = clock_warning(result, answering, self._loaded_s)
        if warning is not None:
            self._say(warning)
        verdict = self._verdict(run, result)
        history, energy = dashboard.history, dashboard.energy.energy()
        if energy is not None:
            self._say(str(energy))
        handed = hand_over(result, answering, arrays=arrays)
        if handed is not None and handed.sentence is not None:
            self._say(handed.sentence)
        summary = summarise(
            self._options,
            test_settings=self._test_settings,
            log_settings=self._log_settings,
            target=prepared.setup.target.notice,
            model=prepared.setup.model,
            samples=len(self._kept),
            batch_size=prepared.spec.sizes.largest,
            snapshot=snapshot,
            stages=history.stages(),
            bad_images=self._bad,
            result=result,
            accuracy=top1,
            extra={
                "engines": engine_notes(run.session.batches.infer),
                "notices": run.session.batches.infer.notices,
                "verdict": None if verdict is None else verdict.as_dict(),
                "energy": None if energy is None else energy.as_dict(),
                "clock_warning": warning,
                "hand_over": None if handed is None else handed.as_dict(),
                "identity": {
                    "model": prepared.setup.digest,
                    "commit": commit(),
                    "round_of_seeds": round_of(result.settings),
                },
            },
        )
        write_summary(self._outputs.folder, summary)
        self._say(f"logs and summary: {self._outputs.folder}")
        if self._options.trace is not None:
            write_trace(self._options.trace, run.session.traces())
            self._say(f"timeline: {self._options.trace}, for https://ui.perfetto.dev")
        if (reporter := self._reporter) is not None:
            ending = finish(
                reporter,
                prepared.spec,
                title=title,
                classes=prepared.setup.network.classes,
                predictions=run.queries.predictions[: len(self._kept)],
                bad=self._bad,
                history=history,
                accuracy=top1,
                verdict=verdict,
                energy=energy,
                summary=summary,
            )
            write_report(reporter, ending, self._supervisor)
            self._say(f"report: {reporter.path}")

    def _verdict(self, run: LoadGenRun, result: LoadGenResult) -> Verdict | None:
        """What bounds the run; None in scenarios whose rate is LoadGen's to choose."""
        if self._options.scenario != "Offline":
            return None
        rate, snapshot = result.samples_per_second, run.progress.snapshot()
        # LoadGen's own rate is of samples that were all loaded before.
        decoded = snapshot.stages[0].done - self._decoded_before if rate is None else 0
        ceilings = run.session.ceilings(
            snapshot.rate_mean if rate is None else rate,
            decode_timed=decoded > 0,
            decodes_per_sample=decoded / max(1, snapshot.completed) if decoded else 1.0,
            queue=run.queue,
        )
        verdict = judge(ceilings)
        for sentence in verdict.sentences:
            self._say(sentence)
        return verdict

    def _accuracy(self, run: LoadGenRun, library: SampleLibrary) -> Accuracy | None:
        """Top-1 over the samples that LoadGen asked for; None without labels."""
        if library.labels is None:
            return None
        predictions = run.queries.predictions[: len(self._kept)]
        asked = predictions != NOT_PREDICTED
        return accuracy(predictions[asked], library.labels[self._kept][asked]) if asked.any() else None

    def _check_stdout(self) -> None:
        """A run whose output is lost from the start ends; one that loses it later goes on, for its logs."""
        if isinstance(self._stdout, Stream) and self._stdout.error:
            raise PipelineError(f"standard output cannot be written: {self._stdout.error}")

    def _say(self, line: str) -> None:
        if self._dashboard is None:
            self._shell.say(line)
        else:
            self._dashboard.say(printable(line), self._shell.console)

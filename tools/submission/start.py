"""One scenario's four runs, each a process of pipeline.offline in a folder of its own, which alone holds its audit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from int4core.atomic import write_atomically
from pipeline.errors import PipelineError
from pipeline.loadgen.binding import AUDIT_CONFIG, SettingsSpec, load_module, make_settings, plain_fields
from pipeline.loadgen.options import Options, parse
from pipeline.loadgen.outputs import locked
from pipeline.loadgen.rounds import SAMPLES, check_official
from pipeline.samples.library import read_map
from pipeline.session.supervisor import Interrupted, Supervisor
from tools.submission.accuracy import accuracy_line
from tools.submission.plan import Plan, read_plan
from tools.submission.work import ACCURACY_TXT, COMMAND, KINDS, read_run, run_folder

ROOT = Path(__file__).resolve().parents[2]

# Options whose value is a file that is read: the runs have other working folders.
_PATHS = (
    "--model", "--images", "-p", "--tensorPath", "-m", "--mapPath", "--user_conf_path", "-a", "--autoconfig",
    "--loadgen-path",
)  # fmt: skip
_OURS = ("--test-mode", "--output-dir", "--scenario", "--round", "--trial", "--overwrite", "--lgls_", "--lgts_mode")

# MLPerf's audits, as LoadGen reads them: TEST01 logs some of a timed run's answers, TEST04 asks for one sample always.
_AUDITS: Mapping[str, Mapping[str, int]] = {
    "TEST01": {"mode": 2, "accuracy_log_rng_seed": 720381539243781796, "accuracy_log_sampling_target": 4096},
    "TEST04": {
        "mode": 2, "performance_issue_unique": 0, "performance_issue_same": 1, "performance_issue_same_index": 3,
    },
}  # fmt: skip

_WAIT = "wait until it has ended"
_TRIAL_MS = 2000
# Enough for early stopping, where one answer in a hundred may be late.
_TRIAL_QUERIES = {"Offline": 2048, "SingleStream": 1024, "MultiStream": 662, "Server": 2048}


def run_scenario(
    folder: Path, scenario: str, given: Sequence[str], say: Callable[[str], None], supervisor: Supervisor
) -> None:
    """Accuracy, performance, TEST01 and TEST04, in this order, as far as they are VALID.

    Raises PipelineError, before the first where it can; after a signal, Interrupted, and no run goes on.
    """
    plan = read_plan(folder)
    arguments = _from_anywhere(given)
    _refuse(folder, plan, scenario, arguments)
    # For all scenarios: beside one another, they would not be timed for what the system can do.
    with locked(folder, _WAIT):
        _run_all(folder, plan, scenario, arguments, say, supervisor)


def _run_all(
    folder: Path,
    plan: Plan,
    scenario: str,
    arguments: Sequence[str],
    say: Callable[[str], None],
    supervisor: Supervisor,
) -> None:
    _remove_earlier(folder, scenario)
    for kind in KINDS:
        place = run_folder(folder, scenario, kind)
        command = _command(plan, scenario, kind, arguments)
        place.mkdir(parents=True, exist_ok=True)
        _write(place / COMMAND, shlex.join(["python", *command[1:]]) + "\n")
        if kind in _AUDITS:
            _write(place / AUDIT_CONFIG, "".join(f"*.*.{key} = {value}\n" for key, value in _AUDITS[kind].items()))
        say(f"{scenario}, {kind}")
        status = _status(command, place, supervisor)
        if status:
            raise PipelineError(f"{place}: the run ended with {status}, and says why above; start the scenario again")
        run = read_run(folder, scenario, kind)
        if run.invalid is not None:
            raise PipelineError(f"{run.invalid}; `check` would refuse it, so start the scenario again")
        if kind == "accuracy":
            _write(place / ACCURACY_TXT, accuracy_line(*run.correct()) + "\n")
    if plan.trial:
        _write(folder / "TRIAL", "These runs are too short and too few for a submission.\n")


def _status(command: Sequence[str], place: Path, supervisor: Supervisor) -> int:
    """The exit status of `command`. Raises Interrupted once it has ended by the signal that came."""
    supervisor.check()
    # In a session of its own: what a terminal sends to all comes here alone, and to the run once. Twice would end it
    # in the middle of giving back what it has.
    with subprocess.Popen(command, cwd=place, env=_environment(), start_new_session=True) as process:
        supervisor.abandon = process.terminate
        try:
            return supervisor.watch(process.wait)
        except Interrupted as error:
            process.send_signal(error.number)
            process.wait()
            raise


def _refuse(folder: Path, plan: Plan, scenario: str, arguments: Sequence[str]) -> None:
    """What would make four runs worthless, before the first. Raises PipelineError; exits as argparse does."""
    for argument in arguments:
        if any(argument == ours or argument.startswith((f"{ours}=", "--lgls_")) for ours in _OURS):
            raise PipelineError(f"{argument.partition('=')[0]}: that is given by the folder; leave it out")
    # `--count` and `--skip-bad-images` contradict the round.
    options = parse(_options(plan, scenario, "accuracy", arguments))
    if options.map_path is None:
        raise PipelineError("-m/--mapPath: name the map, with the label of each image")
    entries = read_map(options.map_path)
    if any(entry.label is None for entry in entries):
        raise PipelineError(f"{options.map_path}: the map has to have the label of each image")
    if len(entries) != SAMPLES and not plan.trial:
        raise PipelineError(f"{options.map_path}: {len(entries):,} lines; the validation set has {SAMPLES:,} images")
    _check_loadgen(plan, scenario, options)
    for place in (Path.cwd(), folder, *(run_folder(folder, scenario, kind) for kind in ("accuracy", "performance"))):
        if (place / AUDIT_CONFIG).exists():
            raise PipelineError(f"{place / AUDIT_CONFIG}: LoadGen would read it over every option; remove it")


def _remove_earlier(folder: Path, scenario: str) -> None:
    """A scenario's four runs belong together: those of an earlier start go. Raises PipelineError."""
    for kind in KINDS:
        place = run_folder(folder, scenario, kind)
        if not place.exists():
            continue
        try:
            with locked(place, _WAIT):  # which a run holds whose start was killed
                shutil.rmtree(place)
        except OSError as error:
            raise PipelineError(f"{error.filename}: an earlier run's, cannot be removed: {error.strerror}") from error


def _check_loadgen(plan: Plan, scenario: str, options: Options) -> None:
    """Raises PipelineError where the rules built into the LoadGen at hand are not the round's."""
    rules = SettingsSpec(None, None, {}, {}, "PerformanceOnly", Path(), scenario, rules=True)
    check_official(plan.round, plain_fields(make_settings(load_module(options.loadgen_path), rules)[0]))


def _command(plan: Plan, scenario: str, kind: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pipeline.offline", *_options(plan, scenario, kind, arguments)]


def _options(plan: Plan, scenario: str, kind: str, arguments: Sequence[str]) -> list[str]:
    mode = "AccuracyOnly" if kind == "accuracy" else "PerformanceOnly"
    sizes = ["--trial", *_small(scenario, arguments)] if plan.trial else []
    fixed = ["--scenario", scenario, "--round", plan.round, "--test-mode", mode, "--output-dir", ".", "--overwrite"]
    return [*fixed, *sizes, *arguments]


def _small(scenario: str, arguments: Sequence[str]) -> list[str]:
    """A trial's counts and durations, where none are given."""
    small = {"--lgts_min_duration_ms": _TRIAL_MS, "--lgts_min_query_count": _TRIAL_QUERIES[scenario]}
    given = {argument.partition("=")[0] for argument in arguments}
    return [text for name, value in small.items() if name not in given for text in (name, str(value))]


def _from_anywhere(given: Sequence[str]) -> list[str]:
    """The arguments with paths that hold in every working folder."""
    arguments = []
    is_path = False
    for argument in given:
        name, equals, value = argument.partition("=")
        if is_path:
            arguments.append(os.path.abspath(argument))
        elif equals and name in _PATHS:
            arguments.append(f"{name}={os.path.abspath(value)}")
        elif argument[:2] in _PATHS and len(argument) > 2:  # -mFILE
            arguments.append(argument[:2] + os.path.abspath(argument[2:]))
        else:
            arguments.append(argument)
        is_path = not is_path and argument in _PATHS
    return arguments


def _environment() -> dict[str, str]:
    """This process's, with this source tree first: a run's working folder is another."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written: {error.strerror}") from error

"""A checked folder of runs as the round's tree."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.report.commit import ROOT
from pipeline.report.json_file import write_json
from tools.submission.accuracy import accuracy_line
from tools.submission.check import FAULTY, ON_TRIAL, report
from tools.submission.layout import Tree
from tools.submission.official import check_checkout, check_officially, verify_officially
from tools.submission.plan import CALIBRATION, TRIAL
from tools.submission.truncate import truncate
from tools.submission.verify import ACCURACY_LOG, LOGS, verify
from tools.submission.work import ACCURACY_TXT, COMMAND, KINDS, Run, Work

MODEL = "resnet"
"""The network's name in MLPerf's tools."""

_USER_CONF = "mlperf_log_user.conf"


def pack(work: Work, out: Path, checkout: Path | None, say: Callable[[str], None]) -> int:
    """Check `work`, write its tree into `out`, and have it checked by the tools of `checkout`.

    Returns READY, FAULTY or ON_TRIAL. Raises PipelineError.
    """
    if checkout is not None:
        check_checkout(checkout)
    _check_empty(out)
    status = report(work, say)
    if status == FAULTY:
        return FAULTY
    try:
        _write(work, Tree(out, work.plan), checkout)
    except OSError as error:
        raise PipelineError(f"{error.filename or out}: cannot be packed: {error.strerror}") from error
    say(f"packed: {out}")
    if checkout is None:
        say("not checked officially: name a checkout of github.com/mlcommons/inference with --inference")
        return status
    return _checked(work, out, checkout, status, say)


def _check_empty(out: Path) -> None:
    """Raises PipelineError for what is no folder to write into, before `check` takes its time."""
    try:
        taken = any(out.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise PipelineError(f"{out}: {error.strerror}; name a new folder") from error
    if taken:
        raise PipelineError(f"{out}: is not empty; name a new folder")


def _checked(work: Work, out: Path, checkout: Path, status: int, say: Callable[[str], None]) -> int:
    good, findings = check_officially(checkout, out, work.plan)
    for finding in findings:
        say(finding.error)
        say(f"  {'as in every trial: ' if finding.of_a_trial and work.plan.trial else ''}{finding.remedy}")
    if good:
        say("their checker: submission looks OK")
        return status
    if work.plan.trial and all(finding.of_a_trial for finding in findings):
        say("their checker: submission looks OK, but for what a trial cannot have")
        return ON_TRIAL
    say("their checker: submission has errors")
    return FAULTY


def _write(work: Work, tree: Tree, checkout: Path | None) -> None:
    tree.submitter.mkdir(parents=True, exist_ok=True)
    write_json(tree.system, work.description)
    shutil.copy2(work.folder / CALIBRATION, tree.submitter)
    mapping = {work.plan.benchmark: MODEL}
    write_json(tree.submitter / "model_mapping.json", mapping)
    if work.plan.trial:
        (tree.root / TRIAL).write_text("These runs are too short and too few for a submission.\n")
    _write_code(work, tree)
    for scenario, runs in work.scenarios.items():
        _write_results(tree, scenario, runs)
        _write_measurements(work, tree, scenario, runs)
        for audit in ("TEST01", "TEST04"):
            _write_audit(tree, scenario, runs, audit, checkout)
        # TEST01 is verified by now, for which the accuracy logs have to be whole.
        for place in (tree.results(scenario) / "accuracy", tree.compliance(scenario) / "TEST01" / "accuracy"):
            truncate(place / ACCURACY_LOG, place / ACCURACY_TXT)
    if tree.layout.is_one_tree:
        system = tree.submitter / "results" / work.plan.system
        write_json(system / "system_meta.json", work.description)
        write_json(system / "model_mapping.json", mapping)


def _write_results(tree: Tree, scenario: str, runs: Mapping[str, Run]) -> None:
    performance, accuracy = tree.results(scenario) / "performance" / "run_1", tree.results(scenario) / "accuracy"
    performance.mkdir(parents=True)
    accuracy.mkdir()
    for name in LOGS:
        shutil.copy2(runs["performance"].folder / name, performance)
        shutil.copy2(runs["accuracy"].folder / name, accuracy)
    for name in (ACCURACY_LOG, ACCURACY_TXT):
        shutil.copy2(runs["accuracy"].folder / name, accuracy)


def _write_measurements(work: Work, tree: Tree, scenario: str, runs: Mapping[str, Run]) -> None:
    place = tree.measurements(scenario)
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy2(runs["performance"].folder / _USER_CONF, place / "user.conf")
    write_json(tree.description(scenario), work.measurements)
    commands = {kind: (runs[kind].folder / COMMAND).read_text().strip() for kind in KINDS}
    identity = runs["performance"].summary["identity"]
    text = [f"# {work.plan.benchmark}, {scenario}, {work.plan.system}\n"]
    text.append(f"int4-resnet50 at commit {identity['commit']}, model {identity['model']}.\n")
    text.append("Each run in a folder of its own; those of TEST01 and TEST04 hold their audit.config.\n")
    text += [f"{kind}:\n\n    {command}\n" for kind, command in commands.items()]
    (place / "README.md").write_text("\n".join(text))


def _write_audit(tree: Tree, scenario: str, runs: Mapping[str, Run], audit: str, checkout: Path | None) -> None:
    run, compliance = runs[audit], tree.compliance(scenario)
    compliance.mkdir(parents=True, exist_ok=True)
    if checkout is None:
        verify(run, runs["performance"], runs["accuracy"], compliance / audit)
    else:
        verify_officially(checkout, audit, tree.results(scenario), run.folder, compliance)
    if audit == "TEST01":
        (compliance / audit / "accuracy" / ACCURACY_TXT).write_text(accuracy_line(*run.correct()) + "\n")
    else:
        # TEST04 logs no answers; what its verification leaves for them stays out.
        shutil.rmtree(compliance / audit / "accuracy", ignore_errors=True)


def _write_code(work: Work, tree: Tree) -> None:
    """The source at the runs' commit, where this is a checkout that has it."""
    tree.code.mkdir(parents=True, exist_ok=True)
    commit = str(next(work.runs()).summary["identity"]["commit"]).removesuffix("-dirty")
    (tree.code / "README.md").write_text(
        f"int4-resnet50, commit {commit}. The scenarios' README.md have the commands.\n"
    )
    archive = tree.code / f"int4-resnet50-{commit[:12]}.tar.gz"
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=tar.gz", "-1", "-o", str(archive.resolve()), commit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        archive.unlink(missing_ok=True)
        raise PipelineError(f"{ROOT}: has no commit {commit}: pack from the checkout that ran ({done.stderr.strip()})")

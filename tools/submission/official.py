"""MLCommons' own tools, from a checkout of mlcommons/inference: their audits and their checker, with our remedies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from tools.submission.plan import Plan

CHECKER = Path("tools/submission/submission_checker/main.py")
AUDIT = "compliance/{}/run_verification.py"
PATIENCE_S = 600

# What the checker says, in this order, and what to do.
_REMEDIES = (
    (r"No module named '?yaml", "their checker needs it: pip install pyyaml"),
    (r"No module named", "their checker needs this module: install it"),
    (r"'NoneType' object has no attribute 'get'", "there is no system description: make the folder again with init"),
    (r"invalid choice", "this checkout does not know the round: update it"),
    (r"field .* (is missing|requires)", "fill the field in, in system.json or measurements.json, and pack again"),
    (r"_rng_seed is wrong", "run again with the LoadGen of the round: `run` names the wheel"),
    (r"Test duration less than 600s", "run again with a min_duration of 600 s"),
    (r"does not cover all dataset", "run accuracy again on all 50,000 images"),
    (r"[Ee]arly stopping", "run again with more queries: `check` says how many"),
    (r"samples per query not met", "run again with 24,576 samples at least in the Offline query"),
    (r"Latency constraint", "run Server again with the target of 15 ms, at a lower rate"),
    (r"performance_sample_count", "run again with 1,024 performance samples at least"),
    (
        r"does not have all required scenarios",
        "closed wants more scenarios: run those that it names",
    ),
    (r"unknown scenarios", "leave out the scenario, or hand in as open"),
    (r"contains errors|loadgen errors|Multiple conf", "see the errors in the run's detail log, and run again"),
    (r"accuracy not met", "the closed division has a least accuracy: hand in as open"),
    (r"(Missing|missing|mismatch|not truncated|not hash|not exist|not found)", "pack again into an empty folder"),
)
_CONSEQUENCE = re.compile(r"NoResults |SUMMARY: |Checks failed for: ")
# What a trial cannot have.
_OF_A_TRIAL = re.compile(r"Test duration less than 600s|does not cover all dataset")


@dataclass(frozen=True)
class Finding:
    """An error of theirs; `of_a_trial` where every trial has it."""

    error: str
    remedy: str
    of_a_trial: bool


def check_checkout(checkout: Path) -> None:
    """Raises PipelineError for a folder that is no checkout of mlcommons/inference."""
    for file in (CHECKER, Path(AUDIT.format("TEST01")), Path(AUDIT.format("TEST04"))):
        if not (checkout / file).is_file():
            raise PipelineError(f"--inference {checkout}: no {file}; name a checkout of mlcommons/inference")


def check_officially(checkout: Path, root: Path, plan: Plan) -> tuple[bool, list[Finding]]:
    """Whether their checker takes the tree under `root`, and its errors. Raises PipelineError."""
    with tempfile.TemporaryDirectory() as folder:
        done = _python(
            ["-m", "submission_checker.main", "--input", str(root.resolve()), "--version", plan.round, "--submitter",
             plan.submitter, "--csv", str(Path(folder) / "summary.csv")],
            checkout.resolve() / CHECKER.parents[1],
        )  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if re.search(r"\bERROR\b", line)]
    findings = [_finding(line) for line in dict.fromkeys(errors) if not _CONSEQUENCE.search(line)]
    if done.returncode and not findings:
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        findings = [_finding(last)]
    return done.returncode == 0, findings


def verify_officially(checkout: Path, audit: str, results: Path, runs: Path, out: Path) -> None:
    """Their verification of `audit` (TEST01, TEST04): run logs in `runs`, what is handed in goes to `out`/`audit`.

    `results` is the packed scenario, its accuracy log whole. Raises PipelineError.
    """
    dtype = ["--dtype", "int32"] if audit == "TEST01" else []
    paths = [str(path.resolve()) for path in (results, runs, out)]
    if any(re.search(r"[\s'\"$;&|]", path) for path in paths):
        raise PipelineError(f"{out}: their scripts take no path with blanks or quotes; pack elsewhere")
    with tempfile.TemporaryDirectory() as folder:
        script = str(checkout.resolve() / AUDIT.format(audit))
        done = _python([script, "-r", paths[0], "-c", paths[1], "-o", paths[2], *dtype], Path(folder))
    verdict = out / audit / "verify_performance.txt"
    if done.returncode or not verdict.is_file():
        raise PipelineError(f"{audit}: their verification failed: {done.stdout.strip()[-300:]}")


def _finding(line: str) -> Finding:
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, line)), "see their checker's source")
    return Finding(line.strip(), remedy, _OF_A_TRIAL.search(line) is not None)


def _python(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        return subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise PipelineError(f"{arguments[0]}: their tool did not end within {PATIENCE_S} s") from error

"""All runs are of one model, commit, GPU and LoadGen."""

from collections.abc import Iterator
from typing import Any

from tools.submission.work import Run, Work


def find(work: Work) -> Iterator[str]:
    runs = list(work.runs())
    for what in _identity(runs[0]) if runs else ():
        found: dict[Any, str] = {}
        for run in runs:
            found.setdefault(_identity(run)[what], run.name)
        if len(found) > 1:
            yield f"not the same {what}: " + ", ".join(f"{value} in {name}" for value, name in found.items())
        value = next(iter(found))
        if not value:
            yield f"{found[value]}: its summary.json does not say the {what}"
        elif what == "commit" and str(value).endswith("-dirty") and not work.plan.trial:
            yield f"{found[value]}: the source differed from its commit; commit it and run again"


def _identity(run: Run) -> dict[str, Any]:
    identity = run.summary.get("identity") or {}
    gpus = (run.summary.get("hardware") or {}).get("gpus") or []
    target = (run.summary.get("settings") or {}).get("target")
    return {
        "model": identity.get("model"),
        "commit": identity.get("commit"),
        "GPU": f"{target}: {', '.join(str(gpu.get('name')) for gpu in gpus)}" if target else None,
        "LoadGen": run.result.version,
    }

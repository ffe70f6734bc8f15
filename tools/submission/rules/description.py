"""Nothing is left to fill in, and the description is that of this submission."""

from collections.abc import Iterator

from tools.submission.measurements import FIELDS
from tools.submission.plan import CALIBRATION, MEASUREMENTS, SYSTEM
from tools.submission.system import FILL_IN, to_fill_in, unfinished
from tools.submission.work import Work

STATUSES = ("available", "preview", "rdi")


def find(work: Work) -> Iterator[str]:
    for name in unfinished(work.description):
        yield f"{work.folder / SYSTEM}: fill in {name}"
    for name in sorted({*to_fill_in(work.measurements), *(f for f in FIELDS if not work.measurements.get(f))}):
        yield f"{work.folder / MEASUREMENTS}: fill in {name}"
    status = str(work.description.get("status", ""))
    if FILL_IN not in status and status not in STATUSES:
        yield f"{work.folder / SYSTEM}: status is {status!r}, and has to be one of {', '.join(STATUSES)}"
    plan = work.plan
    same = {"division": plan.division, "submitter": plan.submitter, "system_type": plan.suite}
    for name, value in same.items():
        if work.description.get(name) != value:
            yield f"{work.folder / SYSTEM}: {name} is {work.description.get(name)!r}, here it is {value!r}"
    path = work.folder / CALIBRATION
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.strip() or FILL_IN in text:
        yield f"{path}: say how the weights and scales were found"

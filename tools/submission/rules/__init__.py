"""The rules of `check`, one idea a file: each yields what breaks it in a folder of runs."""

from collections.abc import Callable, Iterator, Mapping

from tools.submission.rules import (
    accuracy,
    audit_rates,
    audits_on,
    closed,
    dataset,
    description,
    duration,
    early_stopping,
    errors,
    identity,
    offline_samples,
    performance_samples,
    scenarios,
    seeds,
    server_target,
    test01,
    valid,
)
from tools.submission.work import Work

RULES: Mapping[str, Callable[[Work], Iterator[str]]] = {
    "description": description.find,
    "scenarios": scenarios.find,
    "closed": closed.find,
    "valid": valid.find,
    "errors": errors.find,
    "seeds": seeds.find,
    "duration": duration.find,
    "offline_samples": offline_samples.find,
    "early_stopping": early_stopping.find,
    "server_target": server_target.find,
    "performance_samples": performance_samples.find,
    "dataset": dataset.find,
    "accuracy": accuracy.find,
    "identity": identity.find,
    "audits_on": audits_on.find,
    "test01": test01.find,
    "audit_rates": audit_rates.find,
}

"""The user.conf of a run, kept beside its logs: the one that was given, or one that gives LoadGen the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from int4core.atomic import write_atomically
from int4core.regular import read_regular
from pipeline.errors import PipelineError
from pipeline.loadgen.binding import MODEL

MAX_BYTES = 2**20

# What a run expects, by scenario: the settings' field, the key in a user.conf, and what one of the key is in the field.
_EXPECTED: Mapping[str, tuple[str, str, float]] = {
    "Offline": ("offline_expected_qps", "target_qps", 1),
    "Server": ("server_target_qps", "target_qps", 1),
    "SingleStream": ("single_stream_expected_latency_ns", "target_latency", 1e6),
    "MultiStream": ("multi_stream_expected_latency_ns", "target_latency", 1e6),
}


def read_user_conf(path: Path) -> bytes:
    """The file's bytes. Raises PipelineError."""
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error


def user_conf_of(settings: Mapping[str, Any]) -> bytes:
    """A user.conf that says what plain TestSettings expect, which is all that a user.conf has to say."""
    scenario = settings["scenario"]
    field, key, unit = _EXPECTED[scenario]
    return f"{MODEL}.{scenario}.{key} = {settings[field] / unit:.10g}\n".encode()


def write_user_conf(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises PipelineError."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written: {error.strerror}") from error

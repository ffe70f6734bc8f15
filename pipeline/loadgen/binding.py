"""MLPerf LoadGen: loading the binding, its settings, and one test with a fast SUT and a sample library.

LoadGen keeps global state: one test a process. An exception that leaves one of its callbacks unwinds
LoadGen's own threads and crashes the process, so none ever does (see `LoadGenSession`).
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.arrays import Classes, Ids, Indices
from pipeline.errors import PipelineError
from pipeline.loadgen.gathered import CALL_AT, TAKE, Gathered
from pipeline.loadgen.limits import check_settings
from pipeline.session.waiting import SHORT

Scalar: TypeAlias = bool | int | float | str

MODULE = "mlperf_loadgen"
MODEL = "resnet50"  # the model's name in mlperf.conf and user.conf

# LoadGen reads this file of the current folder, if it is there, over all other settings.
AUDIT_CONFIG = "audit.config"

# A trace of every sample costs time and gigabytes at this rate.
LOG_DEFAULTS: Mapping[str, bool] = {"enable_trace": False}

# FromConfig's conf_type: the embedded rules alone; the embedded rules, then a file; a file alone.
_EMBEDDED, _EMBEDDED_THEN_FILE, _FILE = 0, 1, 2

# One call to LoadGen completes at most this many samples: the size of the pool of response objects.
RESPONSES = 4096

# The functions of a build that takes arrays (tools.build_loadgen), and what a response is there.
ARRAY_SUT, COMPLETE_ARRAY = "ConstructGatheringSUT", "QuerySamplesCompleteArray"
_RESPONSE = np.dtype([("id", "<u8"), ("data", "<u8"), ("size", "<u8"), ("n_tokens", "<i8")])

# A query is converted and passed on by so many samples at a time.
PIECE = 1 << 16


def load_module(path: Path | None = None) -> ModuleType:
    """The LoadGen binding: the installed one, or the one built or unpacked under `path`.

    Raises PipelineError when there is none, when it does not fit this Python, or when another one is
    already loaded (its types are global to the process).
    """
    if path is None:
        try:
            return importlib.import_module(MODULE)
        except ImportError as error:
            raise PipelineError(
                f"MLPerf LoadGen cannot be imported ({error}); install it with: "
                f"{sys.executable} -m pip install mlcommons-loadgen"
            ) from error
    file = _find_build(path)
    loaded = sys.modules.get(MODULE)
    if loaded is not None:
        if Path(str(loaded.__file__)).resolve() == file.resolve():
            return loaded
        raise PipelineError(f"--loadgen-path {path}: {loaded.__file__} is already loaded in this process")
    spec = importlib.util.spec_from_file_location(MODULE, file)
    if spec is None or spec.loader is None:
        raise PipelineError(f"--loadgen-path {path}: {file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[MODULE]
        raise PipelineError(f"--loadgen-path {path}: {file} cannot be loaded: {error}") from error
    if hasattr(module, COMPLETE_ARRAY) and not takes_arrays(module):
        del sys.modules[MODULE]
        raise PipelineError(
            f"--loadgen-path {path}: {file.name} is of an earlier tools.build_loadgen; build it again: "
            f"{sys.executable} -m tools.build_loadgen {path}"
        )
    return module


def _find_build(path: Path) -> Path:
    if not os.path.isdir(path):
        raise PipelineError(f"--loadgen-path {path}: no such folder")
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    built = sorted(path.rglob(f"{MODULE}*.so"), key=lambda p: (len(p.parts), p.name))
    for file in built:
        if file.name in {MODULE + suffix for suffix in suffixes}:
            return file
    if built:
        raise PipelineError(
            f"--loadgen-path {path}: {built[0].name} was built for another Python; this one loads {MODULE}{suffixes[0]}"
        )
    raise PipelineError(
        f"--loadgen-path {path}: no {MODULE}*.so in it; name the folder that a LoadGen build left it in, "
        f"or unpack a wheel with: pip install --target {path} mlcommons-loadgen"
    )


def fields(settings: Any) -> dict[str, Any]:
    """Name and value of every setting in one of the binding's settings objects, by reflection."""
    found = ((name, getattr(settings, name)) for name in dir(settings) if not name.startswith("_"))
    return {name: value for name, value in found if is_scalar(value)}


def is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or is_enum(value)


def is_enum(value: Any) -> bool:
    return hasattr(type(value), "__members__")


def plain(value: Any) -> Scalar:
    """A setting as a plain value: an enum by its name."""
    scalar: Scalar = value.name if is_enum(value) else value
    return scalar


def plain_fields(settings: Any) -> dict[str, Scalar]:
    """The same as `fields`, as plain values."""
    return {name: plain(value) for name, value in fields(settings).items()}


def assign(settings: Any, name: str, value: Scalar) -> None:
    """Set one field, an enum by its name. Raises ValueError when the binding refuses the value."""
    current = getattr(settings, name)
    try:
        setattr(settings, name, type(current).__members__[str(value)] if is_enum(current) else value)
    except KeyError:
        names = ", ".join(type(current).__members__)
        raise ValueError(f"{value!r:.60} is none of {names}") from None
    except (TypeError, ValueError, OverflowError):
        # Integers are unsigned in most fields, and the binding's own message is about C++ overloads.
        raise ValueError(f"{value!r:.60} does not fit this field") from None


@dataclass(frozen=True)
class SettingsSpec:
    """What the user asked of LoadGen; later entries override earlier ones.

    Attributes:
        mlperf_conf: a file that replaces LoadGen's embedded rules.
        user_conf: a file on top of the rules.
        test_settings, log_settings: fields by name; an enum by the name of its member.
        test_mode: SubmissionRun, AccuracyOnly, PerformanceOnly or FindPeakPerformance.
        output_dir: where the logs go, unless `log_settings` has an `outdir`.
        scenario: a name of LoadGen's TestScenario.
        defaults: fields by name, below the files and `test_settings`.
        rules: whether the embedded rules apply where neither file is given.
    """

    mlperf_conf: Path | None
    user_conf: Path | None
    test_settings: Mapping[str, Scalar]
    log_settings: Mapping[str, Scalar]
    test_mode: str
    output_dir: Path
    scenario: str = "Offline"
    defaults: Mapping[str, Scalar] = field(default_factory=dict)
    rules: bool = False


def make_settings(lg: Any, spec: SettingsSpec) -> tuple[Any, Any]:
    """(TestSettings, LogSettings) for a test of `spec.scenario`.

    LoadGen's embedded MLPerf rules apply as soon as a user.conf is given without an mlperf.conf; with
    neither, its own defaults do (10 s), unless `spec.rules`. Raises PipelineError for a file it cannot use, a
    value that does not fit, and one that no test can run with.
    """
    test = lg.TestSettings()
    test.scenario = lg.TestScenario.__members__[spec.scenario]
    for name, value in spec.defaults.items():
        assign(test, name, value)
    if spec.mlperf_conf is not None:
        _apply_config(test, spec.mlperf_conf, spec.scenario, _FILE)
    if spec.user_conf is not None:
        kind = _EMBEDDED_THEN_FILE if spec.mlperf_conf is None else _FILE
        _apply_config(test, spec.user_conf, spec.scenario, kind)
    elif spec.rules and spec.mlperf_conf is None and test.FromConfig("", MODEL, spec.scenario, _EMBEDDED):
        raise PipelineError("this LoadGen cannot read the rules built into it: install another mlcommons-loadgen")
    log = lg.LogSettings()
    output = log.log_output
    output.outdir = str(spec.output_dir)
    for name, value in spec.test_settings.items():
        _assign_option(test, name, value, f"--lgts_{name}")
    for name, value in {**LOG_DEFAULTS, **spec.log_settings}.items():
        _assign_option(log if hasattr(log, name) else output, name, value, f"--lgls_{name}")
    _assign_option(test, "mode", spec.test_mode, "--test-mode")
    check_settings(plain_fields(test), arrays=takes_arrays(lg))
    log.log_output = output
    return test, log


def samples_at_a_time(test_settings: Any, count: int, performance_count: int) -> int:
    """The most of `count` samples that LoadGen loads at once: what has to fit into memory.

    The settings' performance_sample_count_override (1,024 in the embedded rules) goes over what the
    sample library says of itself, in either direction.
    """
    return min(count, int(test_settings.performance_sample_count_override) or performance_count)


def _assign_option(settings: Any, name: str, value: Scalar, option: str) -> None:
    try:
        assign(settings, name, value)
    except (AttributeError, ValueError) as error:
        raise PipelineError(f"{option}: {error}") from error


def _apply_config(test: Any, path: Path, scenario: str, conf_type: int) -> None:
    if not os.path.isfile(path):
        raise PipelineError(f"{path}: {'is not a regular file' if os.path.exists(path) else 'no such file'}")
    try:
        status = test.FromConfig(str(path), MODEL, scenario, conf_type)
    except TypeError:
        # Builds from before the rules were embedded read the file and nothing else.
        status = test.FromConfig(str(path), MODEL, scenario)
    if status:
        line = _first_bad_line(path)
        where = f"{path}:{line}" if line else f"{path}"
        raise PipelineError(
            f"{where}: LoadGen cannot read this; a line is `model.scenario.key = number`, with spaces around the `=`"
        )


def _first_bad_line(path: Path) -> int:
    good = re.compile(r"\s*(#.*|\S+\s+=\s+\S+(\s+#.*)?)?\s*")
    lines = path.read_text(errors="replace").splitlines()
    return next((number for number, line in enumerate(lines, 1) if not good.fullmatch(line)), 0)


def takes_arrays(lg: Any) -> bool:
    """Whether this LoadGen hands over queries and takes answers as arrays; otherwise they are lists."""
    return all(hasattr(lg, name) for name in (ARRAY_SUT, TAKE, CALL_AT, COMPLETE_ARRAY))


class Completions:
    """The way back: classes become LoadGen's responses.

    Attributes:
        closed: whether the test can no longer end well: nothing is passed on any more.
    """

    def __init__(self, lg: Any) -> None:
        self.closed = False
        self._lg = lg
        self._lock = threading.Lock()
        # LoadGen copies a sample's data during the call that completes it, so one buffer serves all.
        self._data = np.zeros(RESPONSES, dtype="<i4")
        step, base = self._data.itemsize, self._data.ctypes.data
        self._array: npt.NDArray[np.void] | None = None
        if takes_arrays(lg):
            self._array = np.zeros(RESPONSES, dtype=_RESPONSE)
            self._array["data"] = base + step * np.arange(RESPONSES)
            self._array["size"] = step
        else:
            self._pool = [lg.QuerySampleResponse(0, base + step * i, step) for i in range(RESPONSES)]

    def complete(self, ids: Ids, classes: Classes) -> None:
        """Answer samples: ids uint64 (n,), classes int32 (n,), each sent as 4 little-endian bytes.

        Thread-safe. A thread that has called it must live until the test is over: LoadGen keeps a log buffer per thread
        and crashes when one with entries to write is gone.
        """
        if len(ids) != len(classes):
            raise ValueError(f"{len(ids)} ids and {len(classes)} classes")
        with self._lock:
            for begin in range(0, len(ids), RESPONSES):
                if self.closed:
                    return
                some = ids[begin : begin + RESPONSES]
                self._data[: len(some)] = classes[begin : begin + RESPONSES]
                if self._array is not None:
                    self._array["id"][: len(some)] = some
                    self._lg.QuerySamplesCompleteArray(self._array[: len(some)])
                    continue
                # A full loop in C: this is the one piece of Python that runs for every sample.
                deque(map(setattr, self._pool, repeat("id"), some.tolist()), maxlen=0)
                self._lg.QuerySamplesComplete(self._pool[: len(some)])


class LoadGenSession:
    """One LoadGen test over a sample library of `count` samples.

    LoadGen calls `load` and `unload` (sample indices, int64 (n,)), `issue` (its ids, uint64 (n,), and
    the indices they ask for, int64 (n,)) and `flush` in the thread that runs `run`; the answers go back
    through `completions`. With a build that takes arrays, they are views of LoadGen's memory, which lives until their
    samples are answered. Otherwise lists become arrays piece by piece, the last piece first, each passed on by a call
    of `issue`: 99 million Python ints are 12 GB.

    With such a build and `due`, queries of fewer than SHORT samples do not come by `issue`: they gather in `gathering`,
    and `due` is called when there are as many as its `call_at` was given, at first 1.

    What a callback raises is kept: `on_error` is called with it from within the callback, nothing more
    is passed on, and `run` raises it if it ever returns. LoadGen itself cannot be made to give up: it
    waits for every sample it has issued. After `on_error` the owner cleans up and leaves the process
    (os._exit), the thread in `run` still waiting.

    Attributes:
        gathering: where short queries are; None where all come by `issue`.
    """

    def __init__(
        self,
        lg: Any,
        *,
        completions: Completions,
        count: int,
        performance_count: int,
        load: Callable[[Indices], None],
        unload: Callable[[Indices], None],
        issue: Callable[[Ids, Indices], None],
        flush: Callable[[], None],
        on_error: Callable[[BaseException], None],
        due: Callable[[], None] | None = None,
    ) -> None:
        if not 0 < performance_count <= count:
            raise ValueError(f"performance_count {performance_count} is not in 1..{count}")
        self._lg = lg
        self._completions = completions
        self._issue = issue
        self._on_error = on_error
        self._error: BaseException | None = None
        self._running = False
        self.gathering: Gathered | None = None
        if takes_arrays(lg):
            gather = due or (lambda: None)
            self._sut = lg.ConstructGatheringSUT(
                lambda samples: self._guard(self._issue_array, samples),
                lambda: self._guard(gather),
                lambda: self._guard(flush),
                0 if due is None else SHORT,
            )
            if due is not None:
                self.gathering = Gathered(lg, self._sut)
        else:
            self._sut = lg.ConstructFastSUT(
                lambda ids, indices: self._guard(self._issue_lists, ids, indices), lambda: self._guard(flush)
            )
        self._qsl = lg.ConstructQSL(
            count,
            performance_count,
            lambda indices: self._guard(lambda: load(_signed(indices))),
            lambda indices: self._guard(lambda: unload(_signed(indices))),
        )

    def run(self, test_settings: Any, log_settings: Any) -> None:
        """Run the test; returns when LoadGen has written its logs. Call it from any one thread, once.

        It blocks without the GIL and without handling signals: a program that has to react to Ctrl-C
        runs it in a thread of its own. Raises what a callback raised, and PipelineError when the logs cannot be
        written, of which LoadGen would make an end of the process.
        """
        _try_logs(log_settings.log_output)
        self._running = True
        try:
            self._lg.StartTestWithLogSettings(self._sut, self._qsl, test_settings, log_settings)
        finally:
            self._running = False
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Destroy LoadGen's objects. They stay while `run` is still in it. Safe to call twice."""
        if self._running or self._sut is None:
            return
        if self.gathering is not None:
            self.gathering.close()
        self._lg.DestroyQSL(self._qsl)
        self._lg.DestroyFastSUT(self._sut)
        self._sut = self._qsl = None

    def __enter__(self) -> LoadGenSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _issue_lists(self, ids: list[int], indices: list[int]) -> None:
        # From the end, where a list is cut off for nothing: memory shrinks as arrays grow, no step keeps the GIL
        # for long, and the first batch starts before the last sample is converted.
        while len(ids) > PIECE:
            self._issue(_unsigned(ids[-PIECE:]), _signed(indices[-PIECE:]))
            del ids[-PIECE:], indices[-PIECE:]
        self._issue(_unsigned(ids), _signed(indices))

    def _issue_array(self, samples: npt.NDArray[np.void]) -> None:
        """`samples` (n,) have the fields `id` and `index`, unsigned of 64 bits."""
        ids, indices = samples["id"], samples["index"].view(np.int64)
        for begin in range(0, len(samples), PIECE):
            self._issue(ids[begin : begin + PIECE], indices[begin : begin + PIECE])

    def _guard(self, call: Callable[..., None], *args: Any) -> None:
        if self._error is not None:
            return
        try:
            call(*args)
        except BaseException as error:
            self._error = error
            self._completions.closed = True
            try:
                self._on_error(error)
            except BaseException as second:
                self._error = second


def _try_logs(output: Any) -> None:
    """Open every file that LoadGen will; raises PipelineError for one that cannot be."""
    for name, kind in (("summary", "txt"), ("detail", "txt"), ("accuracy", "json"), ("trace", "json")):
        path = Path(output.outdir) / f"{output.prefix}{name}{output.suffix}.{kind}"
        there = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
            if not there:
                path.unlink()
        except OSError as error:
            raise PipelineError(f"{path}: LoadGen's log cannot be written: {error.strerror}") from error


def _unsigned(values: list[int]) -> Ids:
    # array() converts a list nearly twice as fast as numpy does, and this is timed.
    return np.frombuffer(array("Q", values), dtype=np.uint64) if values else np.empty(0, dtype=np.uint64)


def _signed(values: list[int]) -> Indices:
    return np.frombuffer(array("q", values), dtype=np.int64) if values else np.empty(0, dtype=np.int64)

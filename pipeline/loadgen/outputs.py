"""The folders and files that a run writes: one run's alone, made and tried before anything is decoded."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from types import TracebackType

from pipeline.commands.files import TRIED_BYTES, check_file
from pipeline.errors import PipelineError
from pipeline.loadgen.options import Options
from pipeline.loadgen.results import find_logs
from pipeline.loadgen.sample_list import sample_list_name
from pipeline.loadgen.summary import FILE_NAME

RESULTS = Path("results")
ANOTHER = "name another folder with --output-dir"

# An accuracy log without a prediction: LoadGen writes the brackets alone.
_EMPTY_LOG = re.compile(rb"[\[\]\s]*")


class Outputs:
    """What one run writes to; `with` keeps other runs out of it, and removes folders that stayed empty.

    Attributes:
        folder: of summary.json, and of LoadGen's logs unless --lgls_outdir says otherwise.
    """

    def __init__(self, options: Options, now: datetime | None = None) -> None:
        """Raises PipelineError when a folder holds or is taken by another run, or something cannot be written."""
        log = dict(options.log_settings)
        self._prefix, self._suffix = str(log.get("prefix", "mlperf_log_")), str(log.get("suffix", ""))
        self._held = ExitStack()
        try:
            if options.output_dir is None:
                self.folder = self._held.enter_context(_new_folder(now or datetime.now(timezone.utc)))
            else:
                self.folder = options.output_dir
                self._held.enter_context(_made(self.folder))
            self._logs = Path(str(log.get("outdir", self.folder)))
            self._held.enter_context(_made(self._logs))
            for folder in dict.fromkeys((self.folder.resolve(), self._logs.resolve())):
                self._held.enter_context(locked(folder, ANOTHER))
                _try_writing(folder)
            _try_name(self._logs / f"{self._prefix}accuracy{self._suffix}.json")
            self._refuse_a_run(options)
            for option, file in (("--trace", options.trace), ("--report", options.report)):
                if file is not None:
                    check_file(option, file)
        except BaseException:
            self._held.close()
            raise

    @property
    def sample_list(self) -> Path:
        """The list of samples that belongs to LoadGen's logs."""
        return self._logs / sample_list_name(self._prefix, self._suffix)

    @property
    def user_conf(self) -> Path:
        """The copy of the user.conf that LoadGen's logs come from."""
        return self._logs / f"{self._prefix}user{self._suffix}.conf"

    def clear(self) -> None:
        """Remove what an earlier run left, so that nothing of it is taken for this one's. Raises PipelineError."""
        for file in self._earlier():
            try:
                file.unlink()
            except OSError as error:
                raise PipelineError(f"{file}: an earlier run's, cannot be removed: {error.strerror}") from error

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _earlier(self) -> list[Path]:
        """The files of a run in these folders."""
        names = ("summary.txt", "detail.txt", "accuracy.json", "trace.json", "samples.tsv", "user.conf")
        logs = [file for name in names for file in find_logs(self._logs, name, self._prefix, self._suffix)]
        summary = self.folder / FILE_NAME
        return [*logs, summary] if os.path.lexists(summary) else logs

    def _refuse_a_run(self, options: Options) -> None:
        found = self._earlier()
        if found and not options.overwrite:
            names = ", ".join(file.name for file in found)
            raise PipelineError(f"{found[0].parent} holds a run ({names}): {ANOTHER}, or replace it with --overwrite")
        if options.test_mode in ("AccuracyOnly", "SubmissionRun"):
            return
        for log in find_logs(self._logs, "accuracy.json", self._prefix, self._suffix):
            if not _EMPTY_LOG.fullmatch(log.read_bytes()):
                raise PipelineError(
                    f"{log} holds predictions, and a {options.test_mode} run would empty it: {ANOTHER}, or remove it"
                )


@contextmanager
def _new_folder(now: datetime) -> Iterator[Path]:
    """A folder of results that nobody else has: named for the second, and numbered within it."""
    name = now.strftime("%Y%m%dT%H%M%SZ")
    with _made(RESULTS):
        for number in count(1):
            folder = RESULTS / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise PipelineError(f"{folder}: cannot be made: {error.strerror}; {ANOTHER}") from error
        try:
            yield folder
        finally:
            _remove_empty(folder)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """`folder` and those above it; what had to be made and is empty at the end is removed again."""
    missing: list[Path] = []
    for place in (folder, *folder.parents):
        if os.path.isdir(place):
            break
        missing.append(place)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PipelineError(f"{folder}: cannot be made: {error.strerror}; {ANOTHER}") from error
        yield
    finally:
        for place in missing:
            _remove_empty(place)


def _remove_empty(folder: Path) -> None:
    """Remove `folder` if it is empty, and no other run's by now."""
    with suppress(OSError, PipelineError), _lock(folder, ANOTHER):
        folder.rmdir()


@contextmanager
def locked(folder: Path, remedy: str) -> Iterator[None]:
    """Whoever else tries this while it lasts is refused, with the remedy; it ends with the process at the latest."""
    with _lock(folder, remedy) as handle:
        if _is_at(folder, handle):
            yield
            return
    # It was another run's, which has ended and removed it.
    with _made(folder), locked(folder, remedy):
        yield


@contextmanager
def _lock(folder: Path, remedy: str) -> Iterator[int]:
    """A descriptor of `folder`, locked where folders can be."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be opened: {error.strerror}; {remedy}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(f"{folder}: another run is writing there; {remedy}") from error
        except OSError as error:
            # NFS locks no folders: there, the files of a run are what shows that it is taken.
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise PipelineError(f"{folder}: cannot be locked: {error.strerror}; {remedy}") from error
        yield handle
    finally:
        os.close(handle)


def _is_at(folder: Path, handle: int) -> bool:
    """Whether the folder that `handle` is open on is still the one at this path."""
    try:
        return os.path.samestat(os.stat(folder), os.fstat(handle))
    except FileNotFoundError:
        return False


def _try_writing(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(TRIED_BYTES))
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be written to: {error.strerror}; {ANOTHER}") from error


def _try_name(file: Path) -> None:
    """Whether a file may have this name, which --lgls_prefix and --lgls_suffix lengthen."""
    try:
        file.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise PipelineError(f"{file}: cannot be written: {error.strerror}") from error

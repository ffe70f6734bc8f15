"""An output in parts that a killed run leaves whole: the parts are the manifest.

    a.parquet.parts/            out/                      while a run goes on
        _about.json                 _about.json           what the parts are of (identity, notes), and which run writes
        part-000000.parquet         part-000000.parquet   rows, there from its renaming on or not at all
        .part-000001.parquet.tmp    ...                   a part that is being written; of a dead run: removed
    a.parquet.lock              out/.lock                 held by the run (`lock`)

    a.parquet                   out/_SUCCESS              once it is finished; the parts of a.parquet are then removed

A file that cannot say what it is of (CSV, JSON lines) has `a.csv.about.json` beside it, written before it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.samples.keys import KeySet
from pipeline.sinks.base import About, Format, SinkError
from pipeline.sinks.durable import make_folder, plainly, readably, sync_folder, temporary_of, write_durably
from pipeline.sinks.lock import OutputLock
from pipeline.sinks.rows import Rows
from pipeline.words import counted

ROWS_PER_PART = 1 << 18
SECONDS_PER_PART = 30.0
ABOUT = "_about.json"
SUCCESS = "_SUCCESS"
LOCK = ".lock"
PART = re.compile(r"part-([0-9]{6,})")
# Numbers of the parts that a run's writers have; one process alone counts on from the last.
PARTS_OF_A_RUN = 10**18
# In ABOUT: what the run that writes is known by, so that tasks of one before it, which may outlive it, write no more.
RUN = "run"
# Notes of a finished output.
ROWS = "rows"
ERRORS = "errors"
LONGEST_SHOWN = 60


class PartsSink:
    """Writes rows to the file, or (`folder`) the folder of parts, at `out`; goes on where an earlier run stopped.

    A part is cut at `rows_per_part` rows and `seconds_per_part` after its first row, whichever is sooner: a run that
    is killed has to answer again what came in since. Until then rows are held in memory. `clock` is in seconds.

    Where others write parts of the output (`writer`), `read_keys` is false: the keys of earlier runs are then theirs
    to read (`earlier_parts`), and rows count from this run on (`count`).

    Left by an exception while another thread is writing, which a disk may hold up for as long as it likes, it stays
    locked until that thread is done, and takes nothing more.

    Raises SinkError when the output cannot be gone on with: another writer, another identity, a file of someone else.
    See `pipeline.sinks.base.Sink` for the attributes.
    """

    def __init__(
        self,
        out: str | Path,
        file_format: Format,
        about: About,
        *,
        folder: bool = False,
        rows_per_part: int = ROWS_PER_PART,
        seconds_per_part: float = SECONDS_PER_PART,
        clock: Callable[[], float] = time.monotonic,
        read_keys: bool = True,
    ) -> None:
        # What a link points to is written, not the link: the parts lie beside it, on its file system.
        self.out = Path(os.path.realpath(out))
        self.complete = False
        self.done = KeySet()
        self.rows = 0
        self.errors = 0
        self._format = file_format
        self._about = about
        self._folder = folder
        self._rows_per_part = rows_per_part
        self._seconds_per_part = seconds_per_part
        self._clock = clock
        self._read_keys = read_keys
        self._waiting: list[Rows] = []
        self._waiting_rows = 0
        self._since = 0.0
        self._broken: BaseException | None = None
        self._leaving = False
        self._used = threading.Condition()
        self._in_use = False
        self._left = threading.Event()
        self._parts_folder = self.out if folder else self._beside(".parts")
        with plainly(self.out):
            make_folder(self.out if folder else self.out.parent)
        self._run = secrets.token_hex(8)
        self._lock = OutputLock(self.out / LOCK if folder else self._beside(".lock"), self.out)
        try:
            with plainly(self.out):
                self._open()
            # Looked at once: what an earlier run's task, which was at its renaming, has there later is not of this run.
            parts = self._parts()
            self._read(parts)
        except BaseException:
            self._lock.release()
            raise
        self._earlier = [self.out] if self.complete and not folder else parts
        self._names = {path.name for path in parts}
        self._next_part = 1 + max((_number(path) for path in parts), default=-1)

    def __enter__(self) -> PartsSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._used:
            if self._in_use and kind is not None:
                self._left.set()  # whoever writes unlocks it
                return
        with self._using():
            self._left.set()
            if kind is None and not self._leaving:
                self._finish()
            else:
                # What came in is made safe, if that works; if not, the exception under way matters more.
                with suppress(SinkError):
                    self._cut()
                self._remove_if_nothing_came()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """One thread at a time, and none once the output has been left: the last one unlocks it."""
        with self._used:
            self._used.wait_for(lambda: not self._in_use)
            if self._left.is_set() and self._broken is None:
                raise SinkError(f"{self.out}: this run has left it, and writes no more")
            self._in_use = True
        try:
            yield
        finally:
            with self._used:
                self._in_use = False
                self._used.notify_all()
                if self._left.is_set():
                    self._lock.release()

    def leave(self) -> None:
        """The output is not to be finished when the context is left, but gone on with by a later run."""
        self._leaving = True

    def note(self, notes: Mapping[str, str]) -> None:
        """What is known of the run by now, for the parts and the file to come."""
        self._about = About(self._about.identity, {**self._about.notes, **notes})

    def write(self, rows: Rows) -> None:
        """Take `rows`; they are safe once their part is cut. Raises SinkError when the part cannot be written."""
        if self.complete:
            raise ValueError(f"{self.out} is complete")
        if not len(rows):
            return
        with self._using():
            if not self._waiting:
                self._since = self._clock()
            self._waiting.append(rows)
            self._waiting_rows += len(rows)
            self.rows += len(rows)
            self.errors += len(rows.errors)
            if self._waiting_rows >= self._rows_per_part or self._is_due():
                self._cut()

    def tick(self) -> None:
        """Cut the part if its time has come."""
        with self._using():
            if self._waiting and self._is_due():
                self._cut()

    def _is_due(self) -> bool:
        return self._clock() - self._since >= self._seconds_per_part

    def cut(self) -> None:
        """Make what came in safe, as a part.

        Raises SinkError; what came in is then given up, and nothing more can be written: the run is to end, and a
        later one to go on.
        """
        with self._using():
            self._cut()

    def _cut(self) -> None:
        if self._broken is not None:
            raise SinkError(f"{self.out}: nothing can be written any more: {self._broken}") from self._broken
        if not self._waiting:
            return
        rows, self._waiting, self._waiting_rows = Rows.concatenate(self._waiting), [], 0
        path = self._parts_folder / _part_name(self._next_part, self._format)
        try:
            with plainly(self._parts_folder, lambda: self.rows - len(rows)):
                write_durably(path, lambda file: self._format.write(file, rows, self._about))
        except BaseException as error:
            self.rows -= len(rows)
            self.errors -= len(rows.errors)
            self._broken = error
            raise
        self._names.add(path.name)
        self._next_part += 1

    def finish(self) -> None:
        """Cut the last part and make the output complete. Raises SinkError; what came in is then safe in the parts."""
        with self._using():
            self._finish()

    def _finish(self) -> None:
        if self.complete:
            return
        self._cut()
        self.note({ROWS: str(self.rows), ERRORS: str(self.errors)})
        with plainly(self.out, lambda: self.rows):
            self._remove_what_came_too_late()
            if self._folder:
                self._write_about(self.out / ABOUT)
                write_durably(self.out / SUCCESS, lambda file: None)
            else:
                write_durably(self.out, self._join)
                self._remove_parts()
        self.complete = True

    def earlier(self) -> Iterator[Rows]:
        """The rows that were there when this was made, some ten thousand at a time; to be read before it is left."""
        for path in self._earlier:
            with readably(path):
                yield from self._format.read(path)

    @property
    def file_format(self) -> Format:
        """Of the parts."""
        return self._format

    @property
    def earlier_parts(self) -> tuple[Path, ...]:
        """The parts that were there when this was made."""
        return tuple(self._earlier)

    def writer(self) -> PartWriter:
        """What other processes write parts of this output with, from now until this is left."""
        run = self._next_part // PARTS_OF_A_RUN + 1
        return PartWriter(self._parts_folder, self._format, self._about, run * PARTS_OF_A_RUN, self._run)

    def count(self, rows: int, errors: int, files: Iterable[Path] = ()) -> None:
        """So many rows, with so many errors among them, are in parts of earlier runs, or in `files` that others wrote.

        Those of this run that are not named here are removed when it is finished.
        """
        self.rows += rows
        self.errors += errors
        self._names.update(path.name for path in files)

    def _join(self, file: BinaryIO) -> None:
        self._format.join([path for path in self._parts() if path.name in self._names], file, self._about)
        if not self._format.tells:
            # Its size shows whether the file beside it is the one that this is about.
            self._write_about(self._beside(".about.json"), {"bytes": file.tell()})

    def _open(self) -> None:
        for path in (self.out, self._beside(".about.json")):
            temporary_of(path).unlink(missing_ok=True)
        if not self._folder and os.path.lexists(self.out):
            self._open_finished()
            return
        make_folder(self._parts_folder)
        about = self._read_about(self._parts_folder / ABOUT)
        if about is None:
            others = set(os.listdir(self._parts_folder)) - {LOCK, temporary_of(Path(ABOUT)).name}
            if others:
                raise SinkError(
                    f"{self._parts_folder}: {min(others)} is in it, and nothing says that it is an output of this "
                    "command; give --out another name"
                )
            self._write_about(self._parts_folder / ABOUT, {RUN: self._run})
            return
        self._check_identity(self._parts_folder, about)
        if self._folder and (self.out / SUCCESS).exists():
            self._take_as_complete(about)
        else:
            # Before the parts are looked at: what an earlier run's tasks write from now on would be in none of them.
            self._write_about(self._parts_folder / ABOUT, {RUN: self._run})
        # After that: what tasks had begun to write cannot become a part any more, unless it is one by now.
        for leftover in self._leftovers():
            leftover.unlink(missing_ok=True)

    def _read(self, parts: Iterable[Path]) -> None:
        """Take the keys of earlier runs, where they are this one's to read."""
        for path in parts if self._read_keys and not self.complete else ():
            for keys, errors in self._keys(path):
                for key in keys:
                    self.done.add_escaped(key)
                self.rows += len(keys)
                self.errors += errors

    def _open_finished(self) -> None:
        """There is a file at `out`: this output finished, or something that is not ours to overwrite."""
        mode = os.stat(self.out).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise SinkError(f"{self.out}: is {what}; give --out another name, or - for standard output")
        about = self._about_finished()
        if about is None:
            raise SinkError(
                f"{self.out}: is there already, and not as an output of this command; remove it or give --out another "
                "name"
            )
        self._check_identity(self.out, about)
        self._take_as_complete(about)
        # Of a run that died between renaming its file and removing the parts, or the last of them: an empty folder.
        if self._read_about(self._parts_folder / ABOUT) is not None:
            there = sum(len(keys) for path in self._parts() for keys, _ in self._keys(path))
            if there > self.rows:
                raise SinkError(
                    f"{self._parts_folder}: has {counted(there, 'row')}, and {self.out.name} has {self.rows:,}; remove "
                    "the one that is out of date"
                )
            self._remove_parts()
        else:
            self._remove_parts_folder()

    def _take_as_complete(self, about: About) -> None:
        try:
            self.rows, self.errors = int(about.notes[ROWS]), int(about.notes[ERRORS])
        except (KeyError, ValueError) as error:
            raise SinkError(
                f"{self.out}: does not say how many rows it has, as a part of an output does not; give --out another "
                "name"
            ) from error
        self.complete = True

    def _keys(self, path: Path) -> Iterator[tuple[list[str], int]]:
        with readably(path):
            yield from self._format.keys(path)

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(self.out.name + ending)

    def _parts(self) -> list[Path]:
        found = [p for p in self._parts_folder.glob(f"part-*{self._format.suffix}") if PART.fullmatch(p.stem)]
        return sorted(found, key=_number)

    def _leftovers(self) -> list[Path]:
        ours = (f"part-*{self._format.suffix}", ABOUT, SUCCESS)
        return [path for name in ours for path in self._parts_folder.glob(temporary_of(Path(name)).name)]

    def _remove_parts(self) -> None:
        """What the parts are of goes last: a run that dies in between leaves no parts without it."""
        for path in (*self._parts(), *self._leftovers(), self._parts_folder / ABOUT):
            path.unlink(missing_ok=True)
        self._remove_parts_folder()

    def _remove_what_came_too_late(self) -> None:
        """Parts of an earlier run whose task was at its renaming when this run began: this run has their rows too."""
        for path in self._parts():
            if path.name not in self._names:
                path.unlink()

    def _remove_if_nothing_came(self) -> None:
        if not self.complete and not self._parts():
            with suppress(OSError):
                if self._folder:
                    (self.out / ABOUT).unlink(missing_ok=True)
                else:
                    self._remove_parts()

    def _remove_parts_folder(self) -> None:
        with suppress(OSError):  # something of someone else is in it
            self._parts_folder.rmdir()
        sync_folder(self.out.parent)

    def _write_about(self, path: Path, more: Mapping[str, Any] | None = None) -> None:
        about = {"identity": dict(self._about.identity), "notes": dict(self._about.notes), **(more or {})}
        text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        write_durably(path, lambda file: file.write(text.encode()))

    def _about_finished(self) -> About | None:
        if self._format.tells:
            return self._format.about(self.out)
        return self._read_about(self._beside(".about.json"), self.out.stat().st_size)

    def _read_about(self, path: Path, size: int | None = None) -> About | None:
        """What is written at `path`, if anything is, and if it is about a file of `size` bytes."""
        try:
            found = json.loads(path.read_bytes())
            about = About(dict(found["identity"]), dict(found["notes"]))
            return about if found.get("bytes") == size else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SinkError(
                f"{path}: damaged ({error}); remove it with its output, or give --out another name"
            ) from error

    def _check_identity(self, place: Path, about: About) -> None:
        for name in {**self._about.identity, **about.identity}:
            theirs, mine = about.identity.get(name), self._about.identity.get(name)
            if theirs != mine:
                raise SinkError(
                    f"{place}: has rows of another {name} ({_shown(theirs)}, this run has {_shown(mine)}); give --out "
                    "another name, or remove it"
                )


@dataclass(frozen=True)
class PartWriter:
    """Writes parts of an output whose `PartsSink` another process holds, maybe on another machine; it is picklable.

    Attributes:
        folder: of the parts; the machines have to share it.
        first: what the numbers of this run's parts count from.
        run: what the run is known by; once another goes on with the output, nothing is written any more.
    """

    folder: Path
    file_format: Format
    about: About
    first: int
    run: str

    def write(self, number: int, rows: Rows) -> Path:
        """Write `rows` as the part `number` of this run, and return where it is.

        A number that is written twice, as by a task that was tried again, is one part. Raises SinkError.
        """
        if not 0 <= number < PARTS_OF_A_RUN:
            raise ValueError(f"part {number} of {PARTS_OF_A_RUN}")
        self._check_run()
        path = self.folder / _part_name(self.first + number, self.file_format)
        # Two may write it at a time: a task, and one in its place when it was given up too soon.
        temporary = temporary_of(path.with_stem(f"{path.stem}.{secrets.token_hex(4)}"))
        with plainly(self.folder):
            write_durably(path, lambda file: self._fill(file, rows), temporary)
        return path

    def _fill(self, file: BinaryIO, rows: Rows) -> None:
        self.file_format.write(file, rows, self.about)
        # Once more, as late as can be: writing may have taken long.
        self._check_run()

    def _check_run(self) -> None:
        try:
            about = json.loads((self.folder / ABOUT).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise SinkError(
                f"{self.folder}: is not the output's folder on {socket.gethostname()}; give --out a name in a folder "
                "that all nodes share"
            ) from None
        if about.get(RUN) != self.run:
            raise SinkError(f"{self.folder}: another run goes on with this output, or has finished it")


def _part_name(number: int, file_format: Format) -> str:
    return f"part-{number:06}{file_format.suffix}"


def _number(path: Path) -> int:
    match = PART.fullmatch(path.stem)
    return int(match[1]) if match else -1


def _shown(value: str | None) -> str:
    if value is None:
        return "none"
    return value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}..."

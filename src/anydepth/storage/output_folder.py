"""Output folders of jobs: exclusive access, ownership of files, and atomic replacement of an old result by a new one.

Every job writes to a folder in the same way. While it runs, a work folder inside (`.partial`) holds a lock, the state
from which the job can resume after an interrupt, and the files of its result as they are made. When all of them are
there, a plan is written, and they are moved to their places one by one, after old ones were moved aside. A process that
is killed between two of these moves leaves the plan, and the next process that writes or reads there carries it out:
the result is the old one or the new one, and never some of each.

A job owns the files that it wrote and nothing else: its JSON file (the mark) lists them with their checksums, and has
its own. Files that are not listed, or were changed since, are the user's: they are never deleted, overwritten or moved.
A job that would need their names is refused before it begins.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anydepth.errors import AnydepthError, OutputError
from anydepth.signals import Stopped, held_back
from anydepth.storage.checksums import imprint, read_sealed_object, with_checksum
from anydepth.storage.disk import flush_tree, leaves, open_to_all, remove_tree, write_errors
from anydepth.storage.locks import JOB, FolderLock, holder
from anydepth.storage.paths import local_path, real_path
from anydepth.storage.replacement import (
    NEW,
    OLD,
    PLAN,
    carry_out,
    plan_in,
    require_replaceable,
    undo,
    write_plan,
)

PARTIAL = ".partial"
"""The work folder inside an output folder, while a job runs and where it can resume."""
SETTINGS = "settings.yaml"
"""The settings of the job, in its output folder: see `anydepth.jobs.options.Settings.save`."""
_RESUMABLE = ("*/journal.json", "*/*.npz", "align.json")
"""Files in a work folder from which a later command resumes."""
_TRIES, _PATIENCE = 100, 10.0


@dataclass(frozen=True, kw_only=True)
class OutputKind:
    """The files a job writes to its output folder.

    Attributes:
        job: the name of the job, as on the command line.
        mark: the JSON file that lists what else the job wrote; None for a folder that is replaced as a whole.
        names: other files that it is known to write, as relative paths.
        alone: the message about a folder that holds other files, and no earlier result of this job; empty to allow it.
        beside: files that the job itself puts into the folder while it runs, and that are no such other files.
        error: the class of that error.
    """

    job: str
    mark: str | None = None
    names: tuple[str, ...] = ()
    alone: str = ""
    beside: tuple[str, ...] = ()
    error: type[AnydepthError] = OutputError


@dataclass(frozen=True)
class Output:
    """An output folder to which a job has exclusive access."""

    folder: Path
    kind: OutputKind
    _written: dict[str, Any] = field(default_factory=dict)

    @property
    def partial(self) -> Path:
        """The work folder: folders in it with a `journal.json` are kept after an interrupt."""
        return self.folder / PARTIAL

    @contextmanager
    def publish(self, *, adds: bool = False) -> Iterator[Path]:
        """Context manager: a new folder to fill, whose files take their places at once on success.

        Earlier files of this job that the new result lacks are removed, unless it `adds` to them.

        Raises:
            OutputError: a file of the result has the name of one that this job did not write.
            TraceFileError: the disk is full, or a file cannot be replaced. The old result is still there.
        """
        staged = self.partial / NEW
        with write_errors(self.folder):
            remove_tree(staged)
            staged.mkdir(parents=True)
        try:
            with write_errors(self.folder):
                yield staged
                self._put(staged, adds=adds)
        except BaseException:
            with suppress(OSError):
                if plan_in(self.partial) is None:
                    remove_tree(staged)
            raise

    def _put(self, staged: Path, *, adds: bool) -> None:
        files = leaves(staged)
        if self.kind.mark is None:
            self._written.update({name: None for name in leaves(self.folder) if Path(name).parts[0] != PARTIAL})
        self._require_free(files)
        open_to_all(staged, (self.partial / JOB).stat().st_mode & 0o666)
        before = [name for name in self._written if os.path.lexists(self.folder / name)]
        written = {name: self._written[name] for name in before} if adds else {}
        written |= {name: imprint(staged / name) for name in files if name != self.kind.mark}
        if self.kind.mark is not None:
            _seal(self.folder, staged, self.kind.mark, written)
        marks = [] if self.kind.mark is None else [self.kind.mark]
        files = [*(name for name in files if name not in marks), *marks]
        flush_tree(staged)
        gone = [] if adds else [name for name in before if name not in files]
        # the mark is dropped first and put last: without it, nobody takes a mixture of files for a result
        drop = [*(name for name in marks if os.path.lexists(self.folder / name)), *gone]
        with held_back():
            write_plan(self.partial, put=files, drop=drop)
            try:
                carry_out(self.folder, self.partial)
            except BaseException:
                undo(self.folder, self.partial)
                raise
        self._written.clear()
        self._written.update(written)

    def _require_free(self, names: list[str]) -> None:
        """Raise if a file of one of these names is not this job's."""
        for name in names:
            places = [self.folder / name, *(self.folder / parent for parent in Path(name).parents)][:-1]
            taken = os.path.lexists(places[0]) and name not in self._written and not self._marked(name)
            parents = (place for place in places[1:] if os.path.lexists(place))
            blocked = next((str(place) for place in parents if place.is_symlink() or not place.is_dir()), None)
            if taken or blocked:
                raise OutputError(
                    f"'{blocked or places[0]}' was not written by anydepth {self.kind.job}, or was changed since: move "
                    "it away, or give another folder (out)"
                )

    def _marked(self, name: str) -> bool:
        return name == self.kind.mark and _record(self.folder / name) is not None


def _seal(folder: Path, staged: Path, mark: str, written: Mapping[str, Any]) -> None:
    """Add the list of written files and the checksum to the mark."""
    source = staged / mark if (staged / mark).exists() else folder / mark
    content = json.loads(source.read_text(encoding="utf-8"))
    content.pop("checksum", None)
    text = json.dumps(with_checksum({**content, "written": written}), indent=1, allow_nan=False)
    (staged / mark).write_text(text, encoding="utf-8")


def _record(mark: Path) -> dict[str, Any] | None:
    """The list of written files in a mark; None where there is no mark, or it was changed."""
    content = None if mark.is_symlink() else read_sealed_object(mark)
    written = None if content is None else content.get("written")
    return written if isinstance(written, dict) else None


# --- Exclusive access to a folder -----------------------------------------------------------------------------------

_open: ContextVar[tuple[tuple[Path, int], ...]] = ContextVar("_open", default=())


@contextmanager
def output(
    folder: str | Path,
    kind: OutputKind,
    *,
    inputs: Mapping[str, str | Path | None] | None = None,
    rank: int = 0,
    ranks: int = 1,
    again: str = "the same command",
    resumable: bool = False,
) -> Iterator[Output]:
    """Context manager: exclusive access to an output folder, from before the work until the result is in place.

    Within the block, the same thread may open the same folder again, for the same job.

    Args:
        folder: made if missing; removed again if it stays empty.
        kind: the files the job writes.
        inputs: what the job reads, by what it is ("model", "data"): names that may be paths.
        rank: of this process; the first one locks the folder for all.
        ranks: number of processes that share the work.
        again: what to do after an interrupt, for the message.
        resumable: whether that resumes in any case, from parts outside the work folder.

    Raises:
        OutputError: another process writes there, a file there is not this job's, or it is what the job reads.
        TraceFileError: the folder cannot be written.
    """
    folder = Path(folder)
    if rank:
        yield Output(folder, kind)
        return
    _require_text(folder)
    _require_apart(folder, inputs or {})
    if (folder.absolute(), threading.get_ident()) in _open.get():
        yield _check_output(folder, kind, inputs or {})
        return
    with write_errors(folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        lock = _acquire_lock(folder, kind)
    except BaseException:
        _remove_empty(made)
        raise
    done = False
    token = _open.set((*_open.get(), (folder.absolute(), threading.get_ident())))
    try:
        yield _check_output(folder, kind, inputs or {})
        done = True
    except (KeyboardInterrupt, Stopped) as stop:
        goes_on = resumable or _resumable(folder / PARTIAL)
        stop.add_note(f"{again} goes on where this one stopped" if goes_on else f"{again} starts over")
        raise
    finally:
        _open.reset(token)
        with held_back():
            _release(folder, lock, made, keep=lambda: not done and (ranks > 1 or _resumable(folder / PARTIAL)))


def settle(folder: Path) -> None:
    """Before reading: complete the replacement of files that a killed process had begun.

    Raises:
        OutputError: another process is replacing files, and does not come to an end.
        TraceFileError: the replacement cannot be completed.
    """
    partial, deadline = folder / PARTIAL, time.monotonic() + _PATIENCE
    while os.path.lexists(partial / PLAN):
        if holder(partial / JOB) is None:
            return
        lock = FolderLock(partial, folder)
        try:
            with write_errors(folder, unless=FileNotFoundError):
                lock.acquire()
        except (OutputError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        try:
            with write_errors(folder), held_back():
                carry_out(folder, partial)
        finally:
            _release(folder, lock, [], keep=lambda: _resumable(partial))


def _acquire_lock(folder: Path, kind: OutputKind) -> FolderLock:
    """Lock a folder, and clear up what an earlier process left there."""
    partial = folder / PARTIAL
    for _ in range(_TRIES):
        with write_errors(folder):
            partial.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(partial, folder)
        try:
            with write_errors(folder, unless=FileNotFoundError):
                _require_work_folder(partial)
                earlier = holder(partial / JOB)
                lock.acquire()
        except FileNotFoundError:  # the last holder is just removing the folder
            continue
        except BaseException:
            with suppress(OSError):
                partial.rmdir()  # made here, if it is empty
            raise
        try:
            other = str((earlier or {}).get("job", kind.job))
            if other != kind.job and _resumable(partial):
                raise OutputError(
                    f"'{folder}' holds an interrupted anydepth {other}: go on with that, remove '{partial}', or give "
                    "another folder (out)"
                )
            lock.sign(kind.job)
            with write_errors(folder), held_back():
                carry_out(folder, partial)
        except BaseException:
            _release(folder, lock, [], keep=lambda: _resumable(partial))
            raise
        return lock
    raise OutputError(f"'{folder}' is in use by another process: wait for it to end, or give another folder")


def _require_work_folder(partial: Path) -> None:
    """Raise if a folder is no work folder of anydepth, and not empty."""
    names = {entry.name for entry in partial.iterdir()}
    fresh = names <= {JOB} and (not names or (partial / JOB).stat().st_size == 0)
    if partial.is_symlink() or os.path.ismount(partial) or not (fresh or holder(partial / JOB)):
        raise OutputError(f"'{partial}' is not anydepth's: move it away, or give another folder (out)")


def _check_output(folder: Path, kind: OutputKind, inputs: Mapping[str, str | Path | None]) -> Output:
    """The output folder, if this kind of result may be written there."""
    with write_errors(folder):
        if kind.mark is None:
            return Output(folder, kind)
        written = _record(folder / kind.mark)
        others = {entry.name for entry in folder.iterdir()} - {PARTIAL, *kind.beside}
        if written is None and kind.alone and others:
            raise kind.error(f"'{folder}' {kind.alone}: give another folder with --out")
        own = {name: record for name, record in (written or {}).items() if _is_unchanged(folder, name, record)}
        checked = Output(folder, kind, own)
        checked._require_free([kind.mark, *kind.names, *(written or {})])
        marks = [kind.mark] if written is not None else []
        require_replaceable(folder, [*marks, *own])
    _require_not_replaced(checked, inputs)
    return checked


def _is_unchanged(folder: Path, name: str, expected: Any) -> bool:
    path = folder / name
    if path.is_symlink() or not path.is_file() or not real_path(path).is_relative_to(real_path(folder)):
        return False
    return bool(imprint(path) == expected)


def _require_text(folder: Path) -> None:
    """Raise for a folder whose name is no text: safetensors could write there, and not read."""
    try:
        os.fsencode(folder.absolute()).decode()
    except UnicodeDecodeError:
        raise OutputError(
            f"the name of '{folder}' is no UTF-8, and safetensors writes to no other: give another folder (out)"
        ) from None


def _require_apart(folder: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Raise if the folder is an input, or lies in a folder of data."""
    with write_errors(folder):
        if folder.is_symlink() and not folder.exists():
            raise OutputError(f"cannot write {folder}: it is a link that leads nowhere")
    real = real_path(folder)
    for what, name in inputs.items():
        source = _existing(name)
        if source is None:
            continue
        inside = what == "data" and source.is_dir() and real.is_relative_to(source)
        if inside or real == source:
            raise OutputError(f"'{folder}' is the {what} to be read, or lies in it: give another folder (out)")


def _require_not_replaced(output: Output, inputs: Mapping[str, str | Path | None]) -> None:
    """Raise if an input is among the files to be replaced."""
    real = real_path(output.folder)
    replaced = [real / name for name in (*output._written, output.kind.mark) if name]
    for what, name in inputs.items():
        source = _existing(name)
        if source is not None and any(path == source or source in path.parents for path in replaced):
            if source in real.parents:
                continue  # above the folder: all of a model, say, of which this is a part
            raise OutputError(
                f"'{name}' is the {what} to be read, and would be replaced in '{output.folder}': give another folder "
                "(out)"
            )


def _existing(name: str | Path | None) -> Path | None:
    """The real path of a name that may be a path; None if nothing is there."""
    try:
        path = real_path(local_path(name)) if name else None
        return path if path is not None and path.exists() else None
    except (OSError, ValueError):  # too long, a loop of links, or no name at all
        return None


def _resumable(partial: Path) -> bool:
    return any(next(partial.glob(pattern), None) is not None for pattern in _RESUMABLE)


def _release(folder: Path, lock: FolderLock, made: list[Path], *, keep: Callable[[], bool]) -> None:
    """Release a folder, and remove its work folder unless `keep` says that it can be resumed from."""
    partial = folder / PARTIAL
    lock.free_a_handle()
    if plan_in(partial) is not None:  # for the next process to carry out
        lock.release(remove=False)
        return
    empty = False
    with suppress(OSError):  # what cannot be removed now is removed by the next process
        kept = keep()
        for entry in partial.iterdir():
            if entry.name in (NEW, OLD) or not (kept or entry.name == JOB):
                remove_tree(entry) if entry.is_dir() else entry.unlink()
        empty = all(entry.name == JOB for entry in partial.iterdir())
    with suppress(OSError):
        lock.release(remove=empty)
    _remove_empty([partial, *made])


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()

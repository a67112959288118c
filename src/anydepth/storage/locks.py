"""Exclusive locks on output folders, which end with the process and name their holder."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anydepth.errors import AnydepthWarning, OutputError
from anydepth.storage.checksums import read_object
from anydepth.storage.disk import remove_tree, write_errors

with suppress(ImportError):  # Windows has none, and goes without the lock
    import fcntl

JOB = "job.json"
"""The locked file, by which work folders of anydepth are recognised."""
_WHAT = "anydepth: what a job that is under way, or was interrupted, keeps here"
_SIZE = 1024  # written in one piece, so that a kill leaves no half of it
_BUSY = (errno.EAGAIN, errno.EACCES)
_HAS_LOCKS = os.name == "posix"
_held: set[int] = set()


class FolderLock:
    """An exclusive lock on an existing work folder, released when the process ends in any way.

    Messages name the output folder `output`, to which it belongs.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self._path, self._output = folder / JOB, output
        self._handle: int | None = None
        self._spare: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputError: another process, or another thread of this one, has it.
            FileNotFoundError: the last holder has just removed the folder.
        """
        self._spare = os.open(os.devnull, os.O_RDONLY)
        try:
            self._handle = self._open_locked()
        except BaseException:
            self.free_a_handle()
            raise
        _held.add(self._handle)

    def _open_locked(self) -> int:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if (problem := _lock(handle)) is not None:
                self._require_no_holder(problem)
            if not os.path.samestat(os.fstat(handle), self._path.stat()):  # the last holder removed the file
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        except BaseException:
            os.close(handle)
            raise
        return handle

    def free_a_handle(self) -> None:
        """Close a spare handle, so that clearing away can open one file even where too many are open."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def sign(self, job: str) -> None:
        """Write the holder of the lock and its job into the locked file."""
        assert self._handle is not None
        with write_errors(self._output):
            os.pwrite(self._handle, _description(job), 0)

    def _require_no_holder(self, problem: OSError) -> None:
        """Raise where a lock failed because another has it; warn where the file system has no locks."""
        if problem.errno in _BUSY:
            owner = _holder_in_words(self._path)
            raise OutputError(f"'{self._output}' is in use by {owner}: wait for it to end, or give another folder")
        warnings.warn(
            f"the file system of '{self._output}' has no locks ({problem.strerror}): see to it yourself that no "
            "other process writes there",
            AnydepthWarning,
            stacklevel=2,
        )

    def release(self, *, remove: bool) -> None:
        """Release the lock, and before that `remove` its file, while nobody else can hold it."""
        if self._handle is None:
            return
        self.free_a_handle()
        handle, self._handle = self._handle, None
        try:
            if remove:
                self._path.unlink(missing_ok=True)
        finally:
            _held.discard(handle)
            os.close(handle)


def holder(file: Path) -> dict[str, Any] | None:
    """The description of its holder in a lock file; None if it is no lock file of anydepth."""
    content = read_object(file)
    return content if content is not None and content.get("what") == _WHAT else None


def _holder_in_words(file: Path) -> str:
    owner = holder(file)
    if owner is None:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} ({owner.get('command')})"


@contextmanager
def scratch_folder(within: Path | None = None, prefix: str = "anydepth-") -> Iterator[Path]:
    """Context manager: a temporary folder `within` another (by default the system's), removed afterwards.

    Folders with the same prefix that killed processes left there are removed first.
    """
    place = within or Path(tempfile.gettempdir())
    for folder in place.glob(f"{prefix}*/"):
        if not folder.is_symlink() and holder(folder / JOB):
            with suppress(OSError), _locked_if_free(folder) as free:
                if free:
                    remove_tree(folder)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as name, _locked_if_free(Path(name)):
        # only now do others recognise it, and see that it is locked
        (Path(name) / JOB).write_bytes(_description("scratch"))
        yield Path(name)


@contextmanager
def _locked_if_free(folder: Path) -> Iterator[bool]:
    """Context manager: lock a folder, and give whether that succeeded; not where another has it, or without locks."""
    handle = os.open(folder / JOB, os.O_RDWR | os.O_CREAT, 0o600)
    _held.add(handle)
    try:
        yield _HAS_LOCKS and _lock(handle) is None
    finally:
        _held.discard(handle)
        os.close(handle)


def _lock(handle: int) -> OSError | None:
    """Lock a file where the system has locks; the error if that failed."""
    try:
        if _HAS_LOCKS:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return problem
    return None


def _description(job: str) -> bytes:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else ["python"]
    command = "".join(char if char.isascii() and char.isprintable() else "?" for char in " ".join(words))[:120]
    fields = {"what": _WHAT, "job": job, "pid": os.getpid(), "host": socket.gethostname(), "command": command}
    return json.dumps(fields).encode().ljust(_SIZE)


def _forget() -> None:
    """Close the handles in a forked process: the lock belongs to its parent alone, and ends with it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

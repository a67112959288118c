"""One process at a time in an output folder: a lock that ends with the process, and says who holds it."""

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
from anydepth.storage.disk import remove_tree, write_errors

with suppress(ImportError):  # Windows has none, and goes without the lock
    import fcntl

JOB = "job.json"
"""The file that is locked. It is also what tells a work folder of ours from somebody else's."""
_WHAT = "anydepth: what a job that is under way, or was interrupted, keeps here"
_SIZE = 1024  # written in one piece, so that a kill leaves no half of it
_BUSY = (errno.EAGAIN, errno.EACCES)
_HAS_LOCKS = os.name == "posix"
_held: set[int] = set()


class FolderLock:
    """An exclusive lock on a work folder. It goes with the process that holds it, however that ends.

    Args:
        folder: the work folder, which exists.
        output: the output folder it works for, for messages.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self._path, self._output = folder / JOB, output
        self._handle: int | None = None
        self._spare: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputError: another process, or another thread of this one, has it.
            FileNotFoundError: whoever had it has just removed the folder.
        """
        self._spare = os.open(os.devnull, os.O_RDONLY)
        try:
            self._handle = self._opened()
        except BaseException:
            self.free_a_handle()
            raise
        _held.add(self._handle)

    def _opened(self) -> int:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            self._lock(handle)
            if not _same(handle, self._path):  # whoever had it before removed the file when it was done
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        except BaseException:
            os.close(handle)
            raise
        return handle

    def free_a_handle(self) -> None:
        """See that one file can be opened, to clear away: what failed may be that too many are open."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def sign(self, job: str) -> None:
        """Write down who has the lock, and what for.

        Raises:
            TraceFileError: the disk is full.
        """
        assert self._handle is not None
        with write_errors(self._output):
            os.pwrite(self._handle, _about(job), 0)

    def _lock(self, handle: int) -> None:
        if not _HAS_LOCKS:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno in _BUSY:
                raise OutputError(
                    f"'{self._output}' is in use by {who_holds(self._path)}: wait for it to end, or give another folder"
                ) from None
            warnings.warn(
                f"the file system of '{self._output}' has no locks ({problem.strerror}): see to it yourself that no "
                "other process writes there",
                AnydepthWarning,
                stacklevel=2,
            )

    def release(self, *, remove: bool) -> None:
        """Let go.

        Args:
            remove: remove the file before, while nobody else can have it.
        """
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
    """What a lock file says of who wrote it; None if it is no lock file of ours."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("what") == _WHAT else None


def who_holds(file: Path) -> str:
    """Who wrote a lock file, in words."""
    about = holder(file)
    if about is None:
        return "another process"
    return f"process {about.get('pid')} on {about.get('host')} ({about.get('command')})"


@contextmanager
def scratch_folder(within: Path | None = None, prefix: str = "anydepth-") -> Iterator[Path]:
    """A folder for this call alone, removed afterwards; those that killed processes left there are removed first.

    Args:
        within: where it is made; None for the system's place for temporary files.
        prefix: what its name begins with, and that of those to be removed.
    """
    place = within or Path(tempfile.gettempdir())
    for folder in place.glob(f"{prefix}*/"):
        if not folder.is_symlink() and holder(folder / JOB):
            with suppress(OSError), _locked_if_free(folder) as free:
                if free:
                    remove_tree(folder)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as name, _locked_if_free(Path(name)):
        # only now is it known to others, who see that it is locked
        (Path(name) / JOB).write_bytes(_about("scratch"))
        yield Path(name)


@contextmanager
def _locked_if_free(folder: Path) -> Iterator[bool]:
    """Inside, the folder is locked: True; it is somebody else's, or there are no locks: False."""
    handle = os.open(folder / JOB, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    _held.add(handle)
    try:
        free = False
        with suppress(OSError):
            if _HAS_LOCKS:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
        yield free
    finally:
        _held.discard(handle)
        os.close(handle)


def _about(job: str) -> bytes:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else ["python"]
    command = "".join(one if one.isascii() and one.isprintable() else "?" for one in " ".join(words))
    about = {"what": _WHAT, "job": job, "pid": os.getpid(), "host": socket.gethostname(), "command": command[:120]}
    return json.dumps(about).encode().ljust(_SIZE)


def _same(handle: int, path: Path) -> bool:
    opened = os.fstat(handle)
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


def _forget() -> None:
    """In a forked process: the lock is its parent's alone, and ends with it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

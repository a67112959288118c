"""Atomic writes of files: written to a temporary file, flushed to disk, and put in place by one rename."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anydepth.errors import TraceFileError, one_line
from anydepth.signals import held_back

# How safetensors and torch word a failed write, which they do not raise as an OSError.
_FAILED_WRITE = re.compile(r"os error \d+|I/?O ?error|PytorchStreamWriter|unexpected pos|[Ff]ile write failed")
_FULL = re.compile(r"No space left|os error 28|PytorchStreamWriter|unexpected pos|[Ff]ile write failed")


@contextmanager
def write_errors(path: Path, *, unless: type[OSError] | None = None) -> Iterator[None]:
    """Context manager: turn a failed write of `path` by the system, safetensors or torch into a one-line error.

    Errors of the class `unless` pass through.
    """
    try:
        yield
    except OSError as problem:
        if unless is not None and isinstance(problem, unless):
            raise
        raise TraceFileError(f"cannot write {path}: {problem.strerror or one_line(problem)}") from None
    except Exception as problem:
        if not _is_failed_write(problem):
            raise
        why = "No space left on device, or the disk failed" if _FULL.search(str(problem)) else one_line(problem)
        raise TraceFileError(f"cannot write {path}: {why}") from None


def _is_failed_write(problem: Exception) -> bool:
    # by name: importing safetensors and torch here would keep the router from running without them
    named = type(problem).__name__ in ("SafetensorError", "RuntimeError")
    return named and _FAILED_WRITE.search(str(problem)) is not None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context manager: a path to write to, which replaces `path` at once on success and is removed on failure."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_temporary(path)
    beside = temporary(path)
    try:
        with write_errors(path):
            yield beside
            flush(beside)
            with held_back():
                beside.replace(path)
                flush(path.parent)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def temporary(path: Path) -> Path:
    """The temporary file in which this process writes `path`."""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")


def clear_temporary(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left."""
    form = re.compile(rf"\.{re.escape(path.name[:200])}\.(\d+)\.tmp")
    for entry in path.parent.iterdir():
        if (match := form.fullmatch(entry.name)) and not _is_running(int(match[1])) and entry.is_file():
            with suppress(OSError):
                entry.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as problem:  # any other than a missing process: it is another user's
        return not isinstance(problem, ProcessLookupError)
    return True


def flush(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if stat.S_ISREG(os.fstat(handle).st_mode):  # some file systems cannot flush folders; files they all can
            raise
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Flush a folder and everything below it to disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            flush(Path(place, name))
        flush(Path(place))


def leaves(folder: Path) -> list[str]:
    """The files below a folder, by their relative paths; links count as files."""

    def fail(problem: OSError) -> None:
        raise problem

    names = []
    for place, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if Path(place, name).is_symlink()]
        names += [Path(place, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(names)


def remove_tree(folder: Path) -> None:
    """Remove a folder and its content, or a link, if there is one."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def open_to_all(folder: Path, mode: int) -> None:
    """Set the mode of files below a folder; some libraries write them for their owner alone, whatever the umask."""
    for place, _, files in os.walk(folder):
        for name in files:
            path = Path(place, name)
            if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode and path.stat().st_nlink == 1:
                path.chmod(mode)

"""Messages of one line for failures outside anydepth: a full disk, a damaged file, too little memory.

All other exceptions that are no `AnydepthError` are bugs, and must look like bugs.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator

from anydepth.errors import one_line

# Errors of these packages are about a file to read, or about where to write it.
_LIBRARIES = {"PIL", "datasets", "httpx", "huggingface_hub", "pandas", "pyarrow", "requests", "safetensors", "urllib3"}
# torch raises a bare RuntimeError for every failed system call; these words distinguish such an error from a bug.
_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory", "bad_alloc")
_PROCESSES = (
    "DataLoader worker",
    "onnection closed by peer",
    "onnection reset by peer",
    "ProcessGroup",
    "gloo",
    "NCCL",
    "MASTER_ADDR",
    "rendezvous",
    "Timed out waiting",
)
_FILES = (
    "PytorchStreamWriter",
    "PytorchStreamReader",
    "inline_container",
    "unexpected pos",
    "failed to mmap",
    "os error",
)
_HINTS = {
    errno.ENOSPC: "make room, or write elsewhere",
    errno.EDQUOT: "make room, or write elsewhere",
    errno.EFBIG: "the limit on the size of a file is lower than this one",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise the system's limit on open files",
    errno.EROFS: "write elsewhere, with --out",
    errno.EACCES: "see who may read and write there",
    errno.EPERM: "see who may read and write there",
}


def described(error: BaseException) -> str | None:
    """One line on what failed outside and what to do; None if the error is a bug.

    Args:
        error: any exception; what it was raised from counts, too.

    Example:
        >>> described(OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"))
        "'out/model.safetensors': No space left on device; make room, or write elsewhere"
        >>> described(ZeroDivisionError("division by zero")) is None
        True
    """
    for link in _chain(error):
        if (line := _described_alone(link)) is not None:
            return line
    return None


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library written in Rust, which is no `Exception`."""
    return type(error).__module__ == "pyo3_runtime"


def _described_alone(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return _system_failure(error)
    words = str(error)
    if is_panic(error) and (code := re.search(r"\bOs \{ code: (\d+)", words)):
        return _system_failure(OSError(int(code[1]), os.strerror(int(code[1]))))
    if isinstance(error, MemoryError) or any(part in words for part in _MEMORY):
        return f"out of memory ({one_line(error)}): use a smaller --batch-size, or a machine with more"
    if isinstance(error, RuntimeError) and type(error).__module__.startswith("torch.distributed"):
        return _process_failure(error)
    if type(error) is RuntimeError and any(part in words for part in _FILES):
        return f"a file cannot be read or written: {one_line(error)}"
    if type(error) is RuntimeError and any(part in words for part in _PROCESSES):
        return _process_failure(error)
    if isinstance(error, UnicodeError | EOFError):
        return f"a file holds something else than it should: {one_line(error)}"
    if isinstance(error, RecursionError) and _raised_in(error, "json"):
        return "a file of JSON is nested too deeply to be read: it is damaged, or no file of ours"
    if type(error).__module__.partition(".")[0] in _LIBRARIES:
        return f"{type(error).__module__.partition('.')[0]} cannot read or write a file: {one_line(error)}"
    return None


def _system_failure(error: OSError) -> str:
    """The message of a failed system call, with the files it was about."""
    if error.errno is None:  # libraries raise OSError with a sentence in it
        return one_line(error, limit=400)
    files = " and ".join(f"'{os.fsdecode(file)}'" for file in (error.filename, error.filename2) if _is_path(file))
    what = error.strerror or os.strerror(error.errno)
    hint = _HINTS.get(error.errno)
    return f"{files or 'the system says'}: {what}" + (f"; {hint}" if hint else "")


def _is_path(file: object) -> bool:
    return isinstance(file, str | bytes | os.PathLike)


def _process_failure(error: BaseException) -> str:
    return f"another process of this job cannot be reached or has ended ({one_line(error)}): start all of them again"


def _raised_in(error: BaseException, package: str) -> bool:
    """Whether the innermost frames of an error lie in a package of the standard library."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == package for frame, _ in frames[-3:])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__

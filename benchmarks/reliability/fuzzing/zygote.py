"""Commands run in forks of this process, which has imported everything: a start takes no five seconds.

A fork is given what a new process has: a working folder, an environment, a standard output of some kind, limits, signal
handlers as they are at the start, and random states that nobody seeded. It ends as the interpreter ends.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import pty
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HANGS = 240.0
"""Seconds by the clock after which a command is taken to hang."""
_ALSO = [
    "datasets",
    "PIL.Image",
    "altair",
    "vl_convert",
    "jinja2",
    "sklearn.datasets",
    "sklearn.model_selection",
    "pandas",
]
_ALSO += ["transformers.models.bert.modeling_bert", "transformers.models.gpt2.modeling_gpt2", "transformers.trainer"]
_ALSO += ["transformers.models.vit.modeling_vit", "torch.distributed", "accelerate", "cyclopts.help"]


def preload() -> None:
    """Import what commands import, so that forks have it."""
    import anydepth

    for module in pkgutil.walk_packages(anydepth.__path__, "anydepth."):
        if not module.name.endswith("__main__") and not module.name.startswith("anydepth.reproduce"):
            importlib.import_module(module.name)
    for name in _ALSO:
        importlib.import_module(name)
    from anydepth.report import html

    html._bundle()  # the charts' scripts, a second to put together
    # charts are checked against their schema by the tests of reports, and take a second for each report
    importlib.import_module("altair.utils.schemapi").DEBUG_MODE = False


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a command finds around it.

    Attributes:
        environment: variables to set, or to remove where None.
        stdout: "file", "tty", "closed" (a pipe that nobody reads), "absent", "full" (a device without space).
        encoding: of the standard streams.
        limits: `resource` limits by name.
        seconds: after which a signal comes; None for never.
        signal: its number.
    """

    environment: Mapping[str, str | None] = field(default_factory=dict)
    stdout: str = "file"
    encoding: str = "utf-8"
    limits: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its status (minus the signal that killed it; None for a hang), and what it printed."""

    status: int | None
    out: str
    err: str
    seconds: float


class Running:
    """A command that has been started.

    Args:
        argv: its arguments.
        here: the working folder; what it prints goes into files in the folder above.
        around: what it finds there.
        name: of these files.
    """

    def __init__(self, argv: list[str], here: Path, around: Surroundings, name: str = "a") -> None:
        self._files = [here.parent / f"{name}.{stream}" for stream in ("out", "err")]
        self._around, self._start, self._master = around, time.monotonic(), -1
        slave = -1
        if around.stdout == "tty":
            self._master, slave = pty.openpty()
            os.set_blocking(self._master, False)
        self._sent = around.seconds is None
        self.pid = os.fork()
        if self.pid == 0:
            _become(argv, here, around, self._files, slave)
        if slave >= 0:
            os.close(slave)

    def wait(self) -> Ended:
        """Wait for its end, and send the signal when it is due."""
        status: int | None = None
        while True:
            self._drain()
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            passed = time.monotonic() - self._start
            if pid:
                status = os.waitstatus_to_exitcode(code)
                break
            if not self._sent and passed >= (self._around.seconds or 0):
                os.kill(self.pid, self._around.signal)
                self._sent = True
            if passed > HANGS:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.004)
        self._drain()
        if self._master >= 0:
            os.close(self._master)
        out, err = (path.read_text(errors="surrogateescape") if path.exists() else "" for path in self._files)
        return Ended(status=status, out=out, err=err, seconds=time.monotonic() - self._start)

    def _drain(self) -> None:
        if self._master < 0:
            return
        try:
            while piece := os.read(self._master, 65536):
                with self._files[1].open("ab") as file:
                    file.write(piece.replace(b"\r\n", b"\n"))
        except OSError:  # nothing there now, or the other side is closed
            return


def run(argv: list[str], here: Path, around: Surroundings | None = None) -> Ended:
    """Run a command to its end."""
    return Running(argv, here, around or Surroundings()).wait()


def _become(argv: list[str], here: Path, around: Surroundings, files: list[Path], slave: int) -> None:
    """The command, in the fork: never returns."""
    status = 70
    try:
        status = _as_interpreter(argv, here, around, files, slave)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _as_interpreter(argv: list[str], here: Path, around: Surroundings, files: list[Path], slave: int) -> int:
    _surround(here, around, files, slave)
    from anydepth.cli import app as cli

    try:
        cli.main(argv)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception as error:
            os.write(2, f"Exception ignored in: {stream}\n{type(error).__name__}: {error}\nTraceback\n".encode())
            status = 120
    return status


def _surround(here: Path, around: Surroundings, files: list[Path], slave: int) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    importlib.import_module("numpy").random.seed(None)
    os.chdir(here)
    out, err = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for path in files)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if slave >= 0:
        out = err = slave
    elif around.stdout == "closed":
        read, out = os.pipe()
        os.close(read)
    elif around.stdout == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ |= {"HOME": str(here.parent / "home"), "TMPDIR": str(here.parent / "tmp")}
    for name, value in around.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    importlib.import_module("tempfile").tempdir = None
    sys.stdout = _stream(1, around.encoding, "strict")
    sys.stderr = _stream(2, around.encoding, "backslashreplace")
    if around.stdout == "absent":
        os.close(1)
        sys.stdout = None
    for name, value in around.limits.items():
        number = getattr(resource, name)
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))


def _stream(number: int, encoding: str, errors: str) -> Any:
    return os.fdopen(number, "w", encoding=encoding, errors=errors, closefd=False, buffering=1 if number == 2 else -1)

"""The command line in this process, in an empty folder, for the tests of each command."""

from __future__ import annotations

import csv
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from anydepth.cli import console
from anydepth.cli.app import main, run


@dataclass
class Done:
    status: int
    out: str
    err: str


Command = Callable[..., Done]


def in_folder(assets: Path, here: Path, monkeypatch: pytest.MonkeyPatch, captured: Any) -> Command:
    """Runs the command line in a new folder.

    Args:
        assets: what `~name` in an argument stands for.
        here: the folder to make and to work in.
        monkeypatch: of the test.
        captured: pytest's capsys or capfd.
    """
    here.mkdir()
    monkeypatch.chdir(here)

    def call(*arguments: str) -> Done:
        # rich keeps the standard error it was made with
        monkeypatch.setattr(console, "stderr", console.SafeConsole(stderr=True, width=120))
        status = run([re.sub("^~", f"{assets}/", argument) for argument in arguments])
        return Done(status, *captured.readouterr())

    return call


def in_a_process(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command line as people run it: an interpreter that imports all it needs, which takes ten seconds."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    environment.pop("PYTEST_CURRENT_TEST", None)
    return _started(arguments, cwd, env=environment, preexec_fn=_as_in_a_terminal)


def in_a_fork(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command line in a process of its own, with signals, streams and an end of its own, but all imported."""
    # a broken pipe is an error for Python, a signal for what is started from it otherwise
    return _started(arguments, cwd, restore_signals=False, preexec_fn=lambda: _run_here(arguments))


def _started(arguments: Sequence[str], cwd: Path, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "anydepth", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def _as_in_a_terminal() -> None:
    """Heed Ctrl-C: a shell's background job ignores it, and what it starts would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run_here(arguments: Sequence[str]) -> NoReturn:
    """Run the command line in a forked process, where a program would be started, and end the process."""
    status: Any = 70
    try:
        os.closerange(3, 65536)  # among them what tells the process before that the program runs: it waits for that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        importlib.reload(warnings)  # without pytest's filters, and without its handlers below
        logging.getLogger().handlers.clear()
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        main(arguments)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])

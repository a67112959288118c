"""The command line in this process, in an empty folder, for the tests of each command."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from anydepth.cli import terminal
from anydepth.cli.app import run


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
        monkeypatch.setattr(terminal, "stderr", terminal.SafeConsole(stderr=True, width=120))
        status = run([re.sub("^~", f"{assets}/", argument) for argument in arguments])
        return Done(status, *captured.readouterr())

    return call


def in_a_process(*arguments: str, cwd: Path, **settings: Any) -> subprocess.Popen[str]:
    """The command line as people run it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    environment.pop("PYTEST_CURRENT_TEST", None)
    return subprocess.Popen(
        [sys.executable, "-m", "anydepth", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores Ctrl-C, and what it starts would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **settings,
    )


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])

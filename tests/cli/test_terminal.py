"""The command line at narrow terminals, in pipes, and where nobody reads: real processes, and a pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pseudo_terminal import read_screen

import anydepth as ad
from anydepth.cli import console, terminal
from anydepth.cli import render as show
from anydepth.cli.app import run
from anydepth.measures.similarity import MEASURES
from anydepth.training.objectives import OBJECTIVES

SOURCE = str(Path(__file__).parents[2] / "src")
HELP = [sys.executable, "-m", "anydepth", "trace", "--help"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": SOURCE, **more}


def test_nobody_reads_the_output() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(HELP, stdout=write, stderr=subprocess.PIPE, env=environment(), check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_output_is_larger_than_a_file_may_be(tmp_path: Path) -> None:
    command = f"ulimit -f 0; {' '.join(HELP)} > '{tmp_path}/help.txt'"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, env=environment(), check=False, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"anydepth: .*File too large.*\n", done.stderr), done.stderr


def test_a_pipe_that_takes_ascii_only_gets_our_signs_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stdout=stream, stderr=stream))
    terminal.prepare_streams()
    stream.write("1.00 × of 3–4, a name: コ \udcff")
    stream.flush()
    assert stream.buffer.getvalue() == b"1.00 x of 3-4, a name: \\u30b3 \\udcff"  # type: ignore[attr-defined]


def at_a_terminal(arguments: list[str], columns: int, cwd: Path) -> tuple[int, str]:
    """The command line at a pseudo-terminal; its status, and all that came to the screen."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "anydepth", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env=environment(COLUMNS=str(columns), TERM="xterm"),
    )
    os.close(slave)
    screen = read_screen(master)
    return process.wait(), screen


def test_an_error_at_a_terminal_is_one_line_without_escapes_of_the_users(tmp_path: Path) -> None:
    status, screen = at_a_terminal(["compare", "a\x1b[31mred\u202e[/]", "b", "--out", "o"], 20, tmp_path)
    assert status == 2
    # before it, what the bar did to the screen
    assert re.search(
        r"(^|\x1b\[\?25h)anydepth: a\\x1b\[31mred\\u202e\[/\]/trace.json does not exist", screen.splitlines()[-1]
    )
    assert "\x1b[31m" not in screen


@pytest.mark.parametrize("width", [20, 80])
def test_tables_fit_narrow_terminals_and_names_are_no_markup(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    trace = ad.trace_states({f"[/]{depth}": rng.normal(size=(9, 3)) for depth in range(3)})
    stream = io.StringIO()
    monkeypatch.setattr(
        show, "output", lambda: console.SafeConsole(file=stream, width=width, force_terminal=True, color_system=None)
    )
    show.show_trace(trace, Path("out [/] \x1b[31m"), as_json=False)
    printed = stream.getvalue()
    assert r"Report: out [/] \x1b[31m/report.html" in printed
    assert "\x1b[31m" not in printed
    (start,) = (number for number, line in enumerate(printed.splitlines()) if line.startswith("─"))
    table = printed.splitlines()[start - 1 : start + 1 + len(trace.names)]
    assert [line.split()[0] for line in table[2:]] == list(trace.names)
    assert max(map(len, table)) <= width


def test_without_a_terminal_work_says_how_far_it_is_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0, 22.0, 22.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(terminal, "QUIET", 10.0)
    with terminal.bars(enabled=True) as report:
        assert report is not None
        for done in (1, 2, 3, 4000):
            report(done, 5000, "tracing, 3 batches of news")
    assert capsys.readouterr().err.splitlines() == [
        "2/5,000 tracing, 3 batches of news",
        "4,000/5,000 tracing, 3 batches of news",
    ]


@pytest.mark.parametrize(("command", "head"), [("trace", "measure"), ("align", "objective")])
def test_lists_need_no_model(command: str, head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, f"--list-{head}s"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(head)
    for name in MEASURES if command == "trace" else OBJECTIVES:
        assert re.search(rf"^{name} ", out, re.MULTILINE), name


def test_json_of_odd_names_is_json_without_control_characters(capsys: Any) -> None:
    terminal.write_json({"out": "a\x1b\x7f\u202e\n"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"out": "a\x1b\x7f\u202e\n"}
    assert re.search("[^ -~\n]", out) is None

"""The fuzzer: it tries every option, a sample of its tries holds, and it sees what it is there to see."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

RELIABILITY = Path(__file__).parents[2] / "benchmarks" / "reliability"
sys.path.insert(0, str(RELIABILITY))
from fuzzing import commands, inputs, oracle  # noqa: E402
from fuzzing.zygote import Ended  # noqa: E402


def test_every_verb_and_every_option_is_tried() -> None:
    options = commands.options()
    assert set(commands.SHARES) == set(commands.shapes(1, 1)) == set(options)
    assert all(commands.SHARES.values())
    for verb, flags in options.items():
        rng, seen = random.Random(0), set()
        for _ in range(3000):
            seen |= {word for word in commands.more(rng, verb, flags) if word in flags}
        assert seen == set(flags) - commands.SILENT, f"options of {verb} that are never tried"


def test_a_sample_of_tries_holds(tmp_path: Path) -> None:
    arguments = ["--tries", "5", "--only", "predict", "--folder", str(tmp_path / "tries")]
    done = subprocess.run(
        [sys.executable, RELIABILITY / "fuzz.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(RELIABILITY.parents[1] / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tries      5" in done.stdout


ENDINGS: dict[str, tuple[Ended, str | None]] = {
    "well": (Ended(status=0, out="done\n", err="", seconds=1), None),
    "refused": (Ended(status=2, out="", err="anydepth: no folder 'x'\n", seconds=1), None),
    "a traceback": (Ended(status=1, out="", err="Traceback (most recent call last)\n", seconds=1), "traceback"),
    "a bug": (Ended(status=1, out="", err="anydepth: this is a bug\n", seconds=1), "status 1"),
    "a hang": (Ended(status=None, out="", err="", seconds=1), "hang"),
    "a library's line": (Ended(status=2, out="", err="oh!\nanydepth: x\n", seconds=1), "noise: 'oh!'"),
    "an escape": (Ended(status=0, out="\x1b[31m", err="", seconds=1), "escape"),
    "many lines": (Ended(status=2, out="", err="anydepth: x\n" * 5, seconds=1), "5 lines of error"),
    "a signal nobody sent": (Ended(status=130, out="", err="", seconds=1), "status 130"),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_endings_are_judged(kind: str) -> None:
    ended, fault = ENDINGS[kind]
    faults = list(oracle.ending(ended, number=0, tty=False, stdout="file"))
    assert (fault in faults) if fault else faults == []


def test_colours_that_were_asked_for_are_no_escapes() -> None:
    ours, theirs = (Ended(status=0, out=f"\x1b[31m{text}\x1b[0m", err="", seconds=1) for text in ("3 %", "red"))
    for ended, fault in ((ours, True), (oracle.without_colours(ours), False), (oracle.without_colours(theirs), True)):
        faults = oracle.ending(ended, number=0, tty=False, stdout="file")
        assert ("escape" in faults) == fault


def test_files_are_judged(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.txt"
    out.mkdir()
    mine.write_text("mine")
    before = oracle.hashes(tmp_path)
    (out / "trace.json").write_text("{}")
    after = oracle.hashes(tmp_path)
    assert list(oracle.changes(before, after, replaceable=set())) == []
    assert list(oracle.left_over(before, after, out=out, succeeded=True)) == []
    assert len(list(oracle.left_over(before, after, out=out, succeeded=False))) == 1
    (out / ".partial").mkdir()
    (tmp_path / "beside.tmp").write_text("")
    mine.write_text("theirs")
    after = oracle.hashes(tmp_path)
    assert list(oracle.changes(before, after, replaceable=set())) == [f"user's file changed: {str(mine)!r}"]
    assert len(list(oracle.left_over(before, after, out=out, succeeded=True))) == 2
    mine.unlink()
    after = oracle.hashes(tmp_path)
    assert list(oracle.changes(before, after, replaceable=set())) == [f"user's file lost: {str(mine)!r}"]


def test_answers_are_judged(tmp_path: Path) -> None:
    stated = {"provenance": {"model": {"name": "bert"}, "data": {"name": "d1.csv"}, "samples": 4}}
    (tmp_path / "trace.json").write_text(json.dumps(stated))
    assert list(oracle.wrong("trace", tmp_path, model="bert", data="d1.csv", rows=4)) == []
    faults = list(oracle.wrong("trace", tmp_path, model="bert", data="d[1].csv", rows=5))
    assert faults == ["wrong success: trace.json names 'd1.csv' for 'd[1].csv'", "wrong success: 4 samples of 5"]
    (tmp_path / "predictions.csv").write_text("id,prediction\n0,a\n")
    there = oracle.content(tmp_path)
    (tmp_path / "predictions.csv").write_text("id,prediction\n0,b\n")
    assert {name for name in there if there[name] != oracle.content(tmp_path)[name]} == {"predictions.csv"}


def test_damage_is_done_and_follows_from_the_seed(tmp_path: Path) -> None:
    raw = json.dumps({"format": 1, "policy": {"threshold": 0.5}, "samples": [1, 2]}).encode()
    kinds = set()
    for seed in range(60):
        results = []
        for _ in range(2):
            (tmp_path / "exit.json").write_bytes(raw)
            kinds.add(inputs.damage(random.Random(seed), tmp_path / "exit.json"))
            results.append((tmp_path / "exit.json").read_bytes())
        assert results[0] == results[1] != raw
    assert len(kinds) == 10

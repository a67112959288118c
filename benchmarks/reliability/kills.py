"""Kills commands at random moments, gives them again, and compares the results with those that nobody killed.

    python benchmarks/reliability/kills.py [--tries 100] [--signal KILL] [--jobs trace,align,exit] [--seed 0]

Each try is a process of its own, forked from one that has loaded all libraries, so that a try takes a second. A user's
own files lie beside; in every other try a result of other settings is there to be replaced. Afterwards:

- what is there is the old result or the new one (or none, where there was none), read as every reader reads it;
- the same command ends with status 0, and its result is to the bit the one that nobody killed, but for what differs
  between two commands that nobody killed (times, and checksums of files that hold some);
- no file is left over, in the folder or beside it, and the user's are as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

import checkpoints
import numpy as np
import torch
from fuzzing import zygote

import anydepth.passes.workspace
from anydepth import EarlyExit, Trace
from anydepth.cli.app import run
from anydepth.errors import AnydepthError
from anydepth.onnx.router import Router
from anydepth.storage.output_folder import settle

RESULTS = Path(__file__).parent / "results" / "kills.json"
MINE = "notes.txt"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command.

    Attributes:
        command: without `--out`.
        other: options of the earlier result that it replaces.
        again: options of the second command.
        load: reads the result.
    """

    command: tuple[str, ...]
    other: tuple[str, ...]
    load: Callable[[Path], Any]
    again: tuple[str, ...] = ()


def make_assets(root: Path) -> None:
    """A classifier, reviews, two traces and a calibrated model."""
    torch.manual_seed(0)
    names = {"id2label": {0: "dull", 1: "great"}, "label2id": {"dull": 0, "great": 1}}
    checkpoints.bert(root / "bert", num_hidden_layers=3, initializer_range=0.5, **names)
    rng = np.random.default_rng(0)
    rows = [
        f"{' '.join(rng.choice(checkpoints.WORDS, size=rng.integers(2, 9)))},{('dull', 'great')[index % 2]}"
        for index in range(240)
    ]
    (root / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    data = ("--data", str(root / "reviews.csv"))
    for name, tokens in (("t1", "first"), ("t2", "mean")):
        given = (
            "--limit",
            "40",
            "--measures",
            "cosine",
            "--tokens",
            tokens,
            "--keep-states",
            "--out",
            str(root / name),
        )
        require(run(("trace", str(root / "bert"), *data, *given)) == 0, "a trace to compare")
    calibrate = ("exit", str(root / "bert"), *data, "--tolerance", "0.3", "--no-tune", "--depths", "1,2")
    require(run((*calibrate, "--out", str(root / "ex"))) == 0, "a calibrated model to export")
    # here, so that no try has to load the exporter
    require(run(("export", str(root / "ex"), "--out", str(root / "onnx"))) == 0, "an export")


def jobs(root: Path) -> dict[str, Job]:
    """The commands, on the assets in a folder."""
    bert, data = str(root / "bert"), ("--data", str(root / "reviews.csv"))
    traces = (str(root / "t1"), str(root / "t2"), "--despite", "tokens")
    train = ("--use-cpu", "--max-steps", "12", "--save-steps", "2", "--eval-steps", "12", "--limit", "60")
    return {
        "trace": Job(
            command=("trace", bert, *data, "--limit", "120", "--batch-size", "4", "--keep-states"),
            other=("--tokens", "mean"),
            load=Trace.load,
        ),
        "align": Job(command=("align", bert, *data, *train), other=("--seed", "1"), load=trained, again=("--resume",)),
        "exit": Job(
            command=("exit", bert, *data, "--tolerance", "0.3", "--no-tune", "--depths", "1,2", "--batch-size", "8"),
            other=("--policy", "margin"),
            load=EarlyExit.load,
        ),
        "compare": Job(command=("compare", *traces), other=("--measures", "none"), load=compared),
        "export": Job(command=("export", str(root / "ex")), other=("--depth", "1"), load=Router),
    }


def trained(folder: Path) -> Any:
    """The result of a training, if it is finished."""
    settle(folder)
    return json.loads((folder / "align.json").read_text())["result"]


def compared(folder: Path) -> Any:
    """A comparison that is whole."""
    settle(folder)
    require((folder / "report.html").stat().st_size > 0, "a report beside")
    return json.loads((folder / "compare.json").read_text())


def require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def in_a_fork(command: tuple[str, ...] | Callable[[], None], here: Path, kill: tuple[float, int] | None = None) -> int:
    """Run a command in a process of its own; returns its status.

    Args:
        command: of the command line, or what to call.
        here: where its standard output and error and its temporary files go.
        kill: after how many seconds to send which signal.
    """
    child = os.fork()
    if not child:
        os.chdir(here)
        log = os.open(here / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        random.seed()
        try:
            os._exit((command() or 0) if callable(command) else run(command))
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    if kill is not None:
        time.sleep(kill[0])
        os.kill(child, kill[1])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- results as values that compare ---------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a result, by name: JSON flat, anything else as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            leaves = flat(json.loads(path.read_text()))
            # sizes and checksums of files that are compared themselves, or hold a time
            own = [leaf for leaf in leaves if not leaf[0].startswith(("/written/", "/checksum"))]
            found |= {f"{name}:{place}": value for place, value in own}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def flat(value: Any, place: str = "") -> list[tuple[str, Any]]:
    """The leaves of a JSON value with their places."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in flat(inner, f"{place}/{key}")]
    if isinstance(value, list):
        return [
            (f"{place}/#", len(value)),
            *(leaf for at, one in enumerate(value) for leaf in flat(one, f"{place}/{at}")),
        ]
    return [(place, value)]


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Where two results differ."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


# --- one try ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What nobody killed.

    Attributes:
        result: of the command.
        old: of the command with other options, which it replaces.
        volatile: where two results of the command differ.
        seconds: the command takes.
        template: a folder with the old result, and the user's file.
    """

    result: dict[str, Any]
    old: dict[str, Any]
    volatile: set[str]
    seconds: float
    template: Path

    @classmethod
    def of(cls, job: Job, root: Path) -> Expected:
        """Run it three times, and once with other options."""
        found, seconds = [], 0.0
        for index in range(3):
            start = time.perf_counter()
            require(in_a_fork((*job.command, "--out", str(root / f"whole{index}")), root) == 0, f"{job.command} works")
            seconds = time.perf_counter() - start
            found.append(contents(root / f"whole{index}"))
        template = root / "old"
        require(in_a_fork((*job.command, *job.other, "--out", str(template)), root) == 0, f"{job.other} works")
        old = contents(template)
        (template / MINE).write_text("mine")
        volatile = differing(found[0], found[1]) | differing(found[1], found[2])
        return cls(result=found[0], old=old, volatile=volatile, seconds=seconds, template=template)

    def same(self, found: dict[str, Any]) -> bool:
        """Whether a result is to the bit the one that nobody killed."""
        return differing(found, self.result) <= self.volatile


def attempt(job: Job, expected: Expected, moment: float, number: int, root: Path, *, replaces: bool) -> list[str]:
    """Kill a command at a moment, and give it again; returns what was wrong."""
    here = Path(mkdtemp(dir=root))
    out, wrong = here / "work" / "out", []
    out.parent.mkdir()
    if replaces:
        shutil.copytree(expected.template, out)
    restart = ("--restart",) if replaces and job.again else job.again
    killed = in_a_fork((*job.command, *restart, "--out", str(out)), here, (moment, number))
    if killed in (1, 2):
        wrong.append(f"ended by itself with status {killed}")
    try:
        job.load(out)
        state = contents(out)
        left = {
            name: value for name, value in state.items() if not name.startswith((".partial/", "checkpoints/", MINE))
        }
        if not expected.same(left) and left != expected.old:
            wrong.append("neither the old result nor the new one")
    except (AnydepthError, OSError, KeyError) as error:
        if replaces:
            wrong.append(f"nothing that can be read: {error}")
    again = job.again if (out / ".partial" / "align.json").exists() or not replaces else restart
    status = in_a_fork((*job.command, *again, "--out", str(out)), here)
    if status:
        wrong.append(f"the second command ended with status {status}: {(here / 'log.txt').read_text()[-300:]}")
    found = contents(out)
    if replaces and found.pop(MINE, None) != b"mine":
        wrong.append("the user's file was changed")
    if not expected.same(found):
        names = sorted(differing(found, expected.result) - expected.volatile)[:5]
        values = [(name, *(str(one.get(name))[:40] for one in (found, expected.result))) for name in names]
        wrong.append(f"another result, in place, value and expected value: {values}")
    if {path.name for path in out.parent.iterdir()} != {"out"} or {path.name for path in here.iterdir()} > {
        "work",
        "log.txt",
    }:
        wrong.append(f"left over: {sorted(path.name for path in out.parent.iterdir())}")
    shutil.rmtree(here)
    return wrong


def recorded(kind: str, seed: int) -> dict[str, Any]:
    """What campaigns with the same signal and seed have found about other jobs."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found["jobs"] if (found.get("signal"), found.get("seed")) == (kind, seed) else {}


def main() -> None:
    """Run the campaign, and write its figures as they come."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tries", type=int, default=100)
    options.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "INT", "HUP"])
    options.add_argument("--jobs", default="trace,align,exit,compare,export")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    zygote.preload()
    anydepth.passes.workspace._SECONDS_BETWEEN_COMMITS = 0.02  # so that there is something to go on from
    number = getattr(signal, f"SIG{asked.signal}")
    root = Path(mkdtemp(prefix="kills-"))
    # in a process of its own: threads that torch started here would be missing in forks
    require(in_a_fork(partial(make_assets, root), root) == 0, "the assets are made")
    table = recorded(asked.signal, asked.seed)
    for name in asked.jobs.split(","):
        job = jobs(root)[name]
        place = root / name
        place.mkdir()
        expected = Expected.of(job, place)
        row = table.get(name)
        if row is None or row["tries"] >= asked.tries:  # else that campaign was ended, and goes on
            row = table[name] = {"tries": 0, "wrong": []}
        row |= {"seconds": round(expected.seconds, 2), "volatile": sorted(expected.volatile)}
        for index in range(row["tries"], asked.tries):
            moment = random.Random(f"{asked.seed} {name} {index}").uniform(0, expected.seconds)
            wrong = attempt(job, expected, moment, number, place, replaces=bool(index % 2))
            row["tries"] += 1
            row["wrong"] += [f"at {moment:.3f} s: {one}" for one in wrong]
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps({"signal": asked.signal, "seed": asked.seed, "jobs": table}, indent=1) + "\n")
        print(f"{name:8} {row['tries']:4} tries, {len(row['wrong'])} wrong, {row['seconds']} s each", flush=True)
        for one in row["wrong"][:5]:
            print(f"    {one}", flush=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()

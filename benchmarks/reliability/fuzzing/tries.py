"""What is tried: command lines out of a seed, each in a folder of its own among files of the user's."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from fuzzing import commands, inputs, oracle, zygote
from fuzzing.commands import Shape
from fuzzing.zygote import Ended, Surroundings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
_THEIRS = ["notes.txt", "report.html", "model.safetensors", "predictions.csv", "config.json", "states", "README.md"]
_THEIRS += ["align.json", "trace.json", "standard", ".partial", "checkpoints", "compare.json", "exit.json", "a\nb"]


@dataclass(kw_only=True)
class Result:
    """What came of a try; `faults` is empty if all held."""

    number: int
    verb: str
    kind: str
    argv: list[str]
    about: list[str]
    status: int | None
    faults: list[str]
    said: str = ""


@dataclass(kw_only=True)
class Plan:
    """A try before it is run."""

    number: int
    kind: str
    shape: Shape
    extra: list[str]
    names: dict[str, str]
    out: str
    place: str = "new"
    around: Surroundings = field(default_factory=Surroundings)
    damaged: str | None = None
    nowhere: bool = False


class Campaign:
    """What all tries share: inputs, what earlier commands left, and results of undisturbed commands.

    Args:
        root: a folder of its own.
        verbs: those to try.
    """

    def __init__(self, root: Path, verbs: Collection[str] = tuple(commands.SHARES)) -> None:
        self.root, self.assets = root, root / "assets"
        every = commands.shapes(inputs.ROWS, inputs.PICTURES)
        self.shapes = {verb: every[verb] for verb in verbs}
        self.options = commands.options()
        self.seconds: dict[str, float] = {}
        self._twins: dict[str, tuple[dict[str, str], Ended, list[str]]] = {}

    def build(self) -> None:
        """Make the inputs, and see that every command line that is to work does."""
        inputs.build(self.assets)
        needed = {asset for shapes in self.shapes.values() for shape in shapes for asset in shape.inputs.values()}
        for name in sorted(needed & set(inputs.EARLIER)):
            argv = inputs.EARLIER[name]
            self._require(zygote.run(argv, self._inside(self.assets)), argv)
        for verb, shapes in self.shapes.items():
            for shape in shapes if verb not in ("demo", "reproduce") else ():
                _, ended, argv = self.twin(shape, [])
                self._require(ended, argv)
                self.seconds[verb] = max(self.seconds.get(verb, 0), ended.seconds)

    def _inside(self, folder: Path) -> Path:
        for name in ("home", "tmp"):
            (folder.parent / name).mkdir(parents=True, exist_ok=True)
        return folder

    def _require(self, ended: Ended, argv: list[str]) -> None:
        if ended.status != 0:
            raise SystemExit(f"a command that is to work does not: {argv}\n{ended.err}")

    def twin(self, shape: Shape, extra: list[str]) -> tuple[dict[str, str], Ended, list[str]]:
        """What the same command leaves when nothing is odd and nothing disturbs it."""
        key = f"{shape} {extra}"
        if key not in self._twins:
            sandbox = self.root / f"twin-{abs(hash(key)):x}-{id(self):x}"
            plan = Plan(number=-1, kind="twin", shape=shape, extra=extra, names=dict(shape.inputs), out="out")
            here, argv = lay_out(self, plan, sandbox)
            ended = zygote.run(argv, here)
            self._twins[key] = (oracle.content(here / "out"), ended, argv)
            shutil.rmtree(sandbox, ignore_errors=True)
        return self._twins[key]


# --- what is tried ---------------------------------------------------------------------------------------------------


def plan(campaign: Campaign, seed: int, number: int, only: str | None = None) -> Plan:
    """The try of that number."""
    rng = random.Random(f"{seed} {number}")
    verb = only or rng.choices(list(campaign.shapes), [commands.SHARES[name] for name in campaign.shapes])[0]
    kind = rng.choices(["odd", "signal", "pair", "ranks"], [66, 22, 10, 2])[0]
    if verb in ("demo", "reproduce", "generate") or (kind == "ranks" and verb != "trace"):
        kind = "odd"
    shape = rng.choice(campaign.shapes[verb])
    found = Plan(number=number, kind=kind, shape=shape, extra=[], names=dict(shape.inputs), out="out")
    if kind == "odd":
        _make_odd(rng, campaign, found)
    else:
        found.place = rng.choice(["new", "new", "again", "odd"])
        found.out = rng.choice(inputs.POSSIBLE_NAMES) if found.place == "odd" else "out"
        found.out = f"./{found.out}" if found.out.startswith("-") else found.out
    if kind == "signal":
        late = rng.uniform(0, 1.1) * campaign.seconds.get(verb, 1.0)
        found.around = Surroundings(seconds=late, signal=rng.choice(_SIGNALS))
    return found


def _make_odd(rng: random.Random, campaign: Campaign, found: Plan) -> None:
    found.extra = list(commands.more(rng, found.shape.verb, campaign.options[found.shape.verb]))
    for role, asset in found.shape.inputs.items():
        if asset == "digits":
            continue
        chance = rng.random()
        if chance < 0.14:
            odd = rng.choice(inputs.ODD_NAMES)
            found.names[role] = odd + Path(asset).suffix
        elif chance < 0.2:
            found.names[role], found.nowhere = rng.choice(inputs.NOWHERE), True
        elif chance < 0.36:
            found.damaged = role
    found.place = rng.choices(
        ["new", "odd", "deep", "theirs", "again", "file", "link", "dot", "input", "nowhere"],
        [50, 12, 4, 10, 10, 2, 3, 2, 3, 4],
    )[0]
    found.out = {"odd": rng.choice(inputs.ODD_NAMES), "deep": "a/b/out", "dot": "."}.get(found.place, "out")
    if found.place == "nowhere":
        found.out = rng.choice(inputs.NOWHERE)
    if found.place == "input" and found.names:
        found.out = rng.choice(list(found.names.values()))
    if rng.random() < 0.3:
        found.around = surroundings(rng)


def surroundings(rng: random.Random) -> Surroundings:
    """An environment that is not the usual one."""
    environment: list[dict[str, str | None]] = [
        {"RANK": "x"},
        {"WORLD_SIZE": "y"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "5", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "x"},
        {"WORLD_SIZE": "-1", "LOCAL_RANK": "x"},
        {"LOCAL_RANK": "x"},
        {"HOME": None},
        {"HOME": "/dev/null"},
        {"TMPDIR": "/nowhere"},
        {"TERM": "dumb"},
        {"TERM": None, "NO_COLOR": "1"},
        {"COLUMNS": "x"},
        {"LANG": "C", "LC_ALL": "C"},
        {"CUDA_VISIBLE_DEVICES": "99"},
        {"OMP_NUM_THREADS": "x"},
        {"ANYDEPTH_DEBUG": ""},
        {"FORCE_COLOR": "1"},
    ]
    chance = rng.random()
    if chance < 0.4:
        return Surroundings(environment=rng.choice(environment))
    if chance < 0.6:
        return Surroundings(stdout="tty", environment={"COLUMNS": rng.choice(["20", "80", "1"]), "TERM": "xterm"})
    if chance < 0.75:
        return Surroundings(stdout=rng.choice(["closed", "absent", "full"]))
    if chance < 0.85:
        return Surroundings(encoding=rng.choice(["ascii", "latin-1"]))
    limits = {"RLIMIT_FSIZE": rng.choice([3_000, 20_000, 100_000]), "RLIMIT_NOFILE": rng.choice([6, 12, 20])}
    name = rng.choice([*limits, "RLIMIT_FSIZE"])
    return Surroundings(limits={name: limits[name]})


def lay_out(campaign: Campaign, found: Plan, sandbox: Path) -> tuple[Path, list[str]]:
    """Make the folder of a try with copies of its inputs; returns where it runs, and the command line."""
    here = sandbox / "here"
    for place in (here / "runs", sandbox / "home", sandbox / "tmp"):
        place.mkdir(parents=True)
    for mine in (here / "notes.txt", here / "runs" / "mine.txt", sandbox / "home" / "mine.txt"):
        mine.write_text("the user's\n")
    (here / "loop").symlink_to("loop")
    for role, asset in found.shape.inputs.items():
        if found.names[role] not in inputs.NOWHERE:
            inputs.copy(campaign.assets / asset, here / found.names[role])
    names = {role: f"./{name}" if name.startswith("-") else name for role, name in found.names.items()}
    argv = [filled(word, names | {"out": found.out}) for word in [*found.shape.argv, *found.extra]]
    return here, argv


def filled(word: str, names: dict[str, str]) -> str:
    for role, name in names.items():
        word = word.replace(f"{{{role}}}", name)
    return word


def occupy(campaign: Campaign, found: Plan, here: Path, rng: random.Random) -> set[str]:
    """Put into the place of the output what the plan says; returns the paths that may be replaced."""
    out = here / found.out
    if found.place == "theirs":
        out.mkdir()
        for name in rng.sample(_THEIRS, 2):
            if name in ("states", "standard", ".partial", "checkpoints"):
                (out / name).mkdir()
                (out / name / "mine.txt").write_text("the user's\n")
            else:
                (out / name).write_text("the user's\n")
    elif found.place == "again":
        plain = replace(found, names=dict(found.shape.inputs), out="out", extra=[])
        sandbox = here.parent / "earlier"
        other, argv = lay_out(campaign, plain, sandbox)
        zygote.run(argv, other)
        if os.path.isdir(other / "out"):
            shutil.copytree(other / "out", out)
        shutil.rmtree(sandbox)
        replaceable = {str(path) for path in out.rglob("*")}
        if os.path.isdir(out) and rng.random() < 0.6:
            (out / "notes.txt").write_text("the user's\n")
        return replaceable
    elif found.place == "file":
        out.write_text("the user's\n")
    elif found.place == "link":
        (here / "elsewhere").mkdir()
        out.symlink_to("elsewhere")
    return set()

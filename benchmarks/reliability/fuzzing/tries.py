"""One try: a command line out of a seed, run in a folder of its own among files of the user's, and judged."""

from __future__ import annotations

import random
import shutil
import signal
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fuzzing import commands, inputs, oracle, zygote
from fuzzing.commands import Shape
from fuzzing.zygote import Ended, Running, Surroundings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
_PAIRED = ("trace", "compare", "exit", "predict", "align")
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
            here, argv = lay_out(self, plan, sandbox, random.Random(0))
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
        found.out = rng.choice(inputs.ODD_NAMES) if found.place == "odd" else "out"
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
    limits = {"RLIMIT_FSIZE": rng.choice([0, 100, 3_000, 20_000, 100_000]), "RLIMIT_NOFILE": rng.choice([6, 12, 20])}
    name = rng.choice([*limits, "RLIMIT_FSIZE"])
    return Surroundings(limits={name: limits[name]})


def lay_out(campaign: Campaign, found: Plan, sandbox: Path, rng: random.Random) -> tuple[Path, list[str]]:
    """Make the folder of a try with copies of its inputs; returns where it runs, and the command line."""
    here = sandbox / "here"
    for place in (here / "runs", sandbox / "home", sandbox / "tmp"):
        place.mkdir(parents=True)
    for mine in (here / "notes.txt", here / "runs" / "mine.txt", sandbox / "home" / "mine.txt"):
        mine.write_text("the user's\n")
    (here / "loop").symlink_to("loop")
    for role, asset in found.shape.inputs.items():
        target = here / found.names[role]
        if asset != "digits" and found.names[role] not in inputs.NOWHERE and not target.exists():
            source = campaign.assets / asset
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    names = {role: f"./{name}" if name.startswith("-") else name for role, name in found.names.items()}
    argv = [_filled(word, names | {"out": found.out}) for word in [*found.shape.argv, *found.extra]]
    return here, argv


def _filled(word: str, names: dict[str, str]) -> str:
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
        other, argv = lay_out(campaign, plain, sandbox, rng)
        zygote.run(argv, other)
        if (other / "out").is_dir():
            shutil.copytree(other / "out", out)
        shutil.rmtree(sandbox)
        replaceable = {str(path) for path in out.rglob("*")}
        if out.is_dir() and rng.random() < 0.6:
            (out / "notes.txt").write_text("the user's\n")
        return replaceable
    elif found.place == "file":
        out.write_text("the user's\n")
    elif found.place == "link":
        (here / "elsewhere").mkdir()
        out.symlink_to("elsewhere")
    return set()


# --- how it is judged ------------------------------------------------------------------------------------------------


def attempt(campaign: Campaign, seed: int, number: int, only: str | None = None) -> Result:
    """Make a try and judge it."""
    found, rng = plan(campaign, seed, number, only), random.Random(f"{seed} {number} inside")
    sandbox = campaign.root / f"try-{number}"
    here, argv = lay_out(campaign, found, sandbox, rng)
    about = [found.place, *([str(found.around)] if found.around != Surroundings() else [])]
    replaceable = occupy(campaign, found, here, rng)
    result = Result(
        number=number, verb=found.shape.verb, kind=found.kind, argv=argv, about=about, status=None, faults=[]
    )
    refusing = False
    if found.damaged is not None:
        refusing = _damage(rng, found, here, about)
    before = oracle.hashes(sandbox)
    judge = {"odd": _odd, "signal": _disturbed, "pair": _paired, "ranks": _ranks}[found.kind]
    result.faults = list(dict.fromkeys(judge(campaign, found, here, argv, before, replaceable, result, refusing)))
    if not result.faults:
        shutil.rmtree(sandbox, ignore_errors=True)
    return result


def _damage(rng: random.Random, found: Plan, here: Path, about: list[str]) -> bool:
    """Damage a file of an input; returns whether it must be refused."""
    assert found.damaged is not None
    place = here / found.names[found.damaged]
    files = inputs.files_of(place) if place.exists() else []
    if not files:
        return False
    file = rng.choice(files)
    raw = file.read_bytes()
    about.append(inputs.damage(rng, file))
    asset = found.shape.inputs[found.damaged]
    sealed = asset in inputs.EARLIER and (file.name in inputs.SEALED or ("exits" in asset and file.suffix != ".html"))
    return sealed and file.read_bytes() != raw and file.name not in ("curve.json",)


def _odd(
    campaign: Campaign,
    found: Plan,
    here: Path,
    argv: list[str],
    before: dict[str, str],
    replaceable: set[str],
    result: Result,
    refusing: bool,
) -> Iterator[str]:
    ended = zygote.run(argv, here, found.around)
    result.status, result.said = ended.status, ended.err
    tty = found.around.stdout == "tty"
    if "--debug" not in argv:  # which is to show where an error comes from
        yield from oracle.ending(ended, number=0, tty=tty, stdout=found.around.stdout)
    after = _after(here)
    done = ended.status == 0
    out = here / found.out
    yield from oracle.changes(before, after, replaceable=replaceable if done else set())
    # what could not be printed may have been done
    finished = done or (ended.status in (1, 2, 141) and found.around.stdout in ("closed", "full", "absent"))
    yield from oracle.left_over(before, after, out=_landed(found, here), succeeded=finished)
    if done and refusing:
        yield f"wrong success: damaged {result.about[-1]}"
    if done and found.damaged is None and found.shape.verb not in ("generate", "demo", "reproduce"):
        yield from _right(campaign, found, out, argv)


def _right(campaign: Campaign, found: Plan, out: Path, argv: list[str]) -> Iterator[str]:
    if any(flag in argv for flag in ("--list-objectives", "--help")):
        return
    last = {flag: value for flag, value in pairwise(argv) if flag.startswith("--")}
    rows = found.shape.rows
    if rows is not None and "--limit" in last:
        rows = min(rows, int(last["--limit"])) if rows != 20 else int(last["--limit"])
    if "--split" in last or "--stride" in last or "--pack" in argv:
        rows = None
    if found.shape.verb == "truncate" and not out.exists():
        return  # nothing shallower could be certified
    yield from oracle.wrong(found.shape.verb, out, model=argv[1], data=last.get("--data"), rows=rows)
    plain = [_filled(word, found.shape.inputs) for word in found.extra]
    expected, ended, _ = campaign.twin(found.shape, plain)
    if ended.status != 0:
        yield "wrong success: the same command in a plain folder fails"
    elif (differing := _differing(oracle.content(out), expected)) is not None:
        yield f"wrong success: {differing} differs from the undisturbed result"


def _differing(content: dict[str, str], expected: dict[str, str]) -> str | None:
    return next((name for name in sorted(expected) if content.get(name) != expected[name]), None)


def _disturbed(
    campaign: Campaign,
    found: Plan,
    here: Path,
    argv: list[str],
    before: dict[str, str],
    replaceable: set[str],
    result: Result,
    refusing: bool,
) -> Iterator[str]:
    ended = zygote.run(argv, here, found.around)
    result.status, result.said = ended.status, ended.err
    yield from oracle.ending(ended, number=found.around.signal, tty=False, stdout="file")
    yield from oracle.changes(before, _after(here), replaceable=replaceable)
    yield from _whole_in_the_end(campaign, found, here, argv, before, replaceable, result)


def _whole_in_the_end(
    campaign: Campaign,
    found: Plan,
    here: Path,
    argv: list[str],
    before: dict[str, str],
    replaceable: set[str],
    result: Result,
) -> Iterator[str]:
    """The same command again ends well, with the result of one that was never disturbed, and nothing is left over."""
    out = here / found.out
    again = [*argv, "--resume"] if found.shape.verb == "align" and (out / "align.json").exists() else argv
    ended = zygote.run(again, here)
    complete = ended.status == 2 and found.shape.verb in ("truncate", "export") and out.exists()
    if ended.status != 0 and not complete:
        yield f"again: status {ended.status}: {ended.err.strip()[-200:]}"
        return
    yield from (f"again: {fault}" for fault in oracle.ending(ended, number=0, tty=False, stdout="file"))
    after = _after(here)
    yield from oracle.changes(before, after, replaceable=replaceable)
    yield from oracle.left_over(before, after, out=_landed(found, here), succeeded=True)
    yield from _right(campaign, found, out, argv)


def _paired(
    campaign: Campaign,
    found: Plan,
    here: Path,
    argv: list[str],
    before: dict[str, str],
    replaceable: set[str],
    result: Result,
    refusing: bool,
) -> Iterator[str]:
    """Two commands into one folder: each ends well or is refused, and what is there is of one that ended well."""
    rng = random.Random(f"{result.number} pair")
    others = [shape for verb in _PAIRED for shape in campaign.shapes.get(verb, ())]
    shape = rng.choice([found.shape, *others])
    for asset in shape.inputs.values():
        if asset != "digits" and not (here / asset).exists():
            source = campaign.assets / asset
            (shutil.copytree if source.is_dir() else shutil.copy)(source, here / asset)
    before = oracle.hashes(here.parent)
    second = [_filled(word, shape.inputs | {"out": found.out}) for word in shape.argv]
    result.about.append(str(second))
    commands_ = [Running(argv, here, found.around, "a")]
    zygote.time.sleep(rng.choice([0, 0, 0.1, 0.5]))
    commands_.append(Running(second, here, found.around, "b"))
    ended = [command.wait() for command in commands_]
    result.status, result.said = ended[0].status, ended[0].err + ended[1].err
    for one in ended:
        yield from oracle.ending(one, number=0, tty=False, stdout="file")
    after = _after(here)
    yield from oracle.changes(before, after, replaceable=replaceable)
    landed = _landed(found, here)
    yield from oracle.left_over(before, after, out=landed, succeeded=True)
    there = oracle.content(here / found.out)
    expected = [
        campaign.twin(of, [])[0] for of, end in zip((found.shape, shape), ended, strict=True) if end.status == 0
    ]
    if expected and all(_differing(there, one) is not None for one in expected):
        yield "wrong success: the result is neither command's"
    if not expected and found.place == "new":
        yield "wrong refusal: neither command was let"


def _ranks(
    campaign: Campaign,
    found: Plan,
    here: Path,
    argv: list[str],
    before: dict[str, str],
    replaceable: set[str],
    result: Result,
    refusing: bool,
) -> Iterator[str]:
    """Two processes of one job, one of which may be killed: the other says so."""
    rng = random.Random(f"{result.number} ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared: dict[str, Any] = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    killed = rng.choice([None, 0, 1])
    running = []
    for rank in (0, 1):
        late = rng.uniform(0.3, 1.2) if rank == killed else None
        around = Surroundings(
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, seconds=late, signal=signal.SIGKILL
        )
        running.append(Running(argv, here, around, f"rank-{rank}"))
    ended = [one.wait() for one in (running[killed or 0], running[1 - (killed or 0)])]
    result.status, result.said = ended[1].status, ended[0].err + ended[1].err
    result.about.append(f"killed: {killed}")
    for rank, one in enumerate(ended):
        number = int(signal.SIGKILL) if killed is not None and rank == 0 else 0
        yield from oracle.ending(one, number=number, tty=False, stdout="file")
    yield from oracle.changes(before, _after(here), replaceable=replaceable)
    yield from _whole_in_the_end(campaign, found, here, argv, before, replaceable, result)


def _after(here: Path) -> dict[str, str]:
    after = oracle.hashes(here.parent)
    for name in ("a.out", "a.err", "b.out", "b.err", "rank-0.out", "rank-0.err", "rank-1.out", "rank-1.err"):
        after.pop(str(here.parent / name), None)
    return after


def _landed(found: Plan, here: Path) -> Path | None:
    out = here / found.out
    return out.resolve() if found.place == "link" else out

"""A try, run and judged: one command, one that is disturbed, two in one folder, two ranks of a job."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fuzzing import inputs, oracle, zygote
from fuzzing.tries import Campaign, Plan, Result, filled, lay_out, occupy, plan
from fuzzing.zygote import Running, Surroundings

_PAIRED = ("trace", "compare", "exit", "predict", "align")
_PRINTED = [f"{name}.{stream}" for name in ("a", "b", "rank-0", "rank-1") for stream in ("out", "err")]


@dataclass(kw_only=True)
class Case:
    """A try that is laid out, and what it is judged by.

    Attributes:
        campaign: of the try.
        plan: of the try.
        here: where it runs.
        argv: what runs.
        before: hashes of all files.
        replaceable: paths of an earlier result.
        refusing: whether it must be refused.
        result: what is told of it.
    """

    campaign: Campaign
    plan: Plan
    here: Path
    argv: list[str]
    before: dict[str, str]
    replaceable: set[str]
    refusing: bool
    result: Result

    @property
    def out(self) -> Path:
        """The folder that is written to."""
        return self.here / self.plan.out

    @property
    def landed(self) -> Path:
        """Where its files are in the end."""
        return self.out.resolve() if self.plan.place == "link" else Path(os.path.normpath(self.out))

    def after(self) -> dict[str, str]:
        """Hashes of all files now, but of what the commands printed."""
        printed = {str(self.here.parent / name) for name in _PRINTED}
        return {path: value for path, value in oracle.hashes(self.here.parent).items() if path not in printed}


def attempt(campaign: Campaign, seed: int, number: int, only: str | None = None) -> Result:
    """Make a try and judge it."""
    found, rng = plan(campaign, seed, number, only), random.Random(f"{seed} {number} inside")
    sandbox = campaign.root / f"try-{number}"
    here, argv = lay_out(campaign, found, sandbox)
    about = [found.place, *([str(found.around)] if found.around != Surroundings() else [])]
    replaceable = occupy(campaign, found, here, rng)
    refusing = found.damaged is not None and _damage(rng, found, here, about)
    result = Result(
        number=number, verb=found.shape.verb, kind=found.kind, argv=argv, about=about, status=None, faults=[]
    )
    case = Case(
        campaign=campaign,
        plan=found,
        here=here,
        argv=argv,
        before=oracle.hashes(sandbox),
        replaceable=replaceable,
        refusing=refusing,
        result=result,
    )
    judge = {"odd": _odd, "signal": _disturbed, "pair": _paired, "ranks": _ranks}[found.kind]
    result.faults = list(dict.fromkeys(judge(case)))
    if not result.faults:
        shutil.rmtree(sandbox, ignore_errors=True)
    return result


def _damage(rng: random.Random, found: Plan, here: Path, about: list[str]) -> bool:
    """Damage a file of an input; returns whether it must be refused."""
    place = here / found.names[found.damaged or ""]
    files = inputs.files_of(place) if os.path.exists(place) else []
    if not files:
        return False
    file = rng.choice(files)
    raw = file.read_bytes()
    about.append(inputs.damage(rng, file))
    used = any(f"{{{found.damaged}}}" in word for word in (*found.shape.argv, *found.extra))
    # what generates is the model that is named, not the copy beside its exits
    used = used and not (found.shape.verb == "generate" and file.suffix == ".safetensors")
    return used and file.read_bytes() != raw and inputs.is_sealed(found.shape.inputs[found.damaged or ""], file)


def _odd(case: Case) -> Iterator[str]:
    """One command, whatever it is given and finds around it."""
    around = case.plan.around
    ended = zygote.run(case.argv, case.here, around)
    case.result.status, case.result.said = ended.status, ended.err
    if "--debug" not in case.argv:  # which is to show where an error comes from
        plain = oracle.without_colours(ended) if "FORCE_COLOR" in around.environment else ended
        yield from oracle.ending(plain, number=0, tty=around.stdout == "tty", stdout=around.stdout)
    after, done = case.after(), ended.status == 0
    # what could not be printed may have been done
    finished = done or (ended.status in (2, 141) and around.stdout in ("closed", "full", "absent"))
    yield from oracle.changes(case.before, after, replaceable=case.replaceable if finished else set())
    yield from oracle.left_over(case.before, after, out=case.landed, succeeded=finished)
    if done and case.refusing:
        yield f"wrong success: damaged {case.result.about[-1]}"
    if done and case.plan.damaged is None:
        yield from _right(case)


def _right(case: Case) -> Iterator[str]:
    """Whether a success names what it was given, and equals what the same command gives in a plain folder."""
    verb, shape, argv = case.plan.shape.verb, case.plan.shape, case.argv
    if verb in ("generate", "demo", "reproduce") or "--list-objectives" in argv:
        return
    if verb == "truncate" and not os.path.exists(case.out):
        return  # nothing shallower could be certified
    last = {flag: value for flag, value in pairwise(argv) if flag.startswith("--")}
    rows = shape.rows
    if rows is not None and "--limit" in last:
        rows = int(last["--limit"]) if shape.inputs["data"] == "digits" else min(rows, int(last["--limit"]))
    if "--split" in last or "--stride" in last or "--pack" in argv:
        rows = None
    yield from oracle.wrong(verb, case.out, model=argv[1], data=last.get("--data"), rows=rows)
    expected, ended, _ = case.campaign.twin(shape, [filled(word, shape.inputs) for word in case.plan.extra])
    if ended.status != 0:
        yield "wrong success: the same command in a plain folder fails"
    elif (differing := _differing(oracle.content(case.out), expected)) is not None:
        yield f"wrong success: {differing} differs from the undisturbed result"


def _differing(content: dict[str, str], expected: dict[str, str]) -> str | None:
    return next((name for name in sorted(expected) if content.get(name) != expected[name]), None)


def _disturbed(case: Case) -> Iterator[str]:
    """A command to which a signal comes, and then the same again."""
    ended = zygote.run(case.argv, case.here, case.plan.around)
    case.result.status, case.result.said = ended.status, ended.err
    yield from oracle.ending(ended, number=case.plan.around.signal, tty=False, stdout="file")
    yield from oracle.changes(case.before, case.after(), replaceable=case.replaceable)
    yield from _whole_in_the_end(case)


def _whole_in_the_end(case: Case) -> Iterator[str]:
    """The same command again ends well, with the result of one that was never disturbed, and nothing is left over."""
    verb = case.plan.shape.verb
    begun = verb == "align" and os.path.exists(case.out) and any(case.out.iterdir())
    ended = zygote.run([*case.argv, "--resume"] if begun else case.argv, case.here)
    complete = ended.status == 2 and verb in ("truncate", "export") and os.path.exists(case.out)
    if ended.status != 0 and not complete:
        yield f"again: status {ended.status}: {ended.err.strip()[-200:]}"
        return
    yield from (f"again: {fault}" for fault in oracle.ending(ended, number=0, tty=False, stdout="file"))
    after = case.after()
    yield from oracle.changes(case.before, after, replaceable=case.replaceable)
    yield from oracle.left_over(case.before, after, out=case.landed, succeeded=True)
    yield from _right(case)


def _paired(case: Case) -> Iterator[str]:
    """Two commands into one folder: each ends well or is refused, and what is there is of one that ended well."""
    rng, campaign = random.Random(f"{case.result.number} pair"), case.campaign
    others = [shape for verb in _PAIRED for shape in campaign.shapes.get(verb, ())]
    shape = rng.choice([case.plan.shape, *others])
    for asset in shape.inputs.values():
        inputs.copy(campaign.assets / asset, case.here / asset)
    before = oracle.hashes(case.here.parent)
    second = [filled(word, shape.inputs | {"out": case.plan.out}) for word in shape.argv]
    case.result.about.append(str(second))
    first = Running(case.argv, case.here, case.plan.around, "a")
    time.sleep(rng.choice([0, 0, 0.1, 0.5]))
    ended = [command.wait() for command in (first, Running(second, case.here, case.plan.around, "b"))]
    case.result.status, case.result.said = ended[0].status, ended[0].err + ended[1].err
    for one in ended:
        yield from oracle.ending(one, number=0, tty=False, stdout="file")
    after = case.after()
    yield from oracle.changes(before, after, replaceable=case.replaceable)
    yield from oracle.left_over(before, after, out=case.landed, succeeded=True)
    there, pairs = oracle.content(case.out), zip((case.plan.shape, shape), ended, strict=True)
    expected = [campaign.twin(of, [])[0] for of, end in pairs if end.status == 0]
    if expected and all(_differing(there, one) is not None for one in expected):
        yield "wrong success: the result is neither command's"
    if not expected and case.plan.place == "new":
        yield "again: neither of two commands was let"


def _ranks(case: Case) -> Iterator[str]:
    """Two processes of one job, one of which may be killed: the other says so, and the job can be done again."""
    rng = random.Random(f"{case.result.number} ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared: dict[str, Any] = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    killed = rng.choice([None, 0, 1])
    running = []
    for rank in (0, 1):
        around = Surroundings(
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            seconds=rng.uniform(0.3, 1.2) if rank == killed else None,
            signal=signal.SIGKILL,
        )
        running.append(Running(case.argv, case.here, around, f"rank-{rank}"))
    ended = [running[killed or 0].wait(), running[1 - (killed or 0)].wait()]
    case.result.status, case.result.said = ended[1].status, ended[0].err + ended[1].err
    case.result.about.append(f"killed: {killed}")
    for place, one in enumerate(ended):
        number = int(signal.SIGKILL) if killed is not None and place == 0 else 0
        yield from oracle.ending(one, number=number, tty=False, stdout="file")
    yield from oracle.changes(case.before, case.after(), replaceable=case.replaceable)
    yield from _whole_in_the_end(case)

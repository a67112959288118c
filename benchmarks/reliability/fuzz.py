"""Thousands of command lines, most of them odd: what must never happen does not.

    python benchmarks/reliability/fuzz.py [--tries 2000] [--seed 0] [--only VERB] [--replay K] [--jobs 1]

Every verb and every option with values that fit and that do not; damaged files; odd names and surroundings; signals
at random moments, and the same command again; two commands, or two ranks, in one folder. Each try runs in a fork of a
process that has everything imported, in a folder of its own among files of the user's, and is judged by
`fuzzing/oracle.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "fuzz.json"
sys.path.insert(0, str(HERE))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}

from fuzzing import zygote  # noqa: E402
from fuzzing.judging import attempt  # noqa: E402
from fuzzing.tries import Campaign, Result  # noqa: E402

# What the summary counts: the start of a fault, and what it is called.
KINDS = {
    "traceback": "tracebacks",
    "status": "other exit statuses",
    "hang": "commands that hang",
    "user's": "lost or changed files of the user's",
    "wrong": "wrong successes",
    "left over": "left-overs",
    "noise": "lines of libraries",
    "escape": "control characters printed",
    "again": "commands that fail when given again",
    "not judged": "tries that could not be judged",
}


def campaign_in(root: Path, only: str | None) -> Campaign:
    """A campaign with its inputs, in a process that has everything imported."""
    os.environ |= {"HF_HOME": str(root / "hf"), "HF_DATASETS_CACHE": str(root / "hf" / "datasets")}
    zygote.preload()
    found = Campaign(root) if only is None else Campaign(root, [only])
    found.build()
    return found


def summary(results: list[Result], seed: int) -> dict[str, Any]:
    """The figures of a campaign, as JSON holds them."""
    faults = Counter(
        _kind(fault) for result in results for fault in {_kind(one): one for one in result.faults}.values()
    )
    return {
        "tries": len(results),
        "seed": seed,
        "by_verb": dict(sorted(Counter(result.verb for result in results).items())),
        "by_kind": dict(sorted(Counter(result.kind for result in results).items())),
        "by_status": dict(sorted(Counter(str(result.status) for result in results).items())),
        "faults": {name: faults[name] for name in (*KINDS.values(), *sorted(set(faults) - set(KINDS.values())))},
    }


def _kind(fault: str) -> str:
    return next((name for start, name in KINDS.items() if fault.startswith(start)), fault.split(":")[0])


def show(result: Result, *, all_of_it: bool = False) -> None:
    """What a try was, and what did not hold."""
    print(f"#{result.number} {result.kind}, status {result.status}: {result.faults}", flush=True)
    print(f"    {result.argv}  {result.about}".replace("\n", "\\n")[: None if all_of_it else 700])
    print("    " + repr(result.said if all_of_it else result.said.strip()[-500:]), flush=True)


def main() -> None:
    """Run a campaign, print its figures, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", help="a verb")
    parser.add_argument("--replay", type=int, help="only the try of this number, told in full; its folder stays")
    parser.add_argument("--folder", type=Path, help="where to work; kept, and gone on with")
    given = parser.parse_args()
    root = given.folder or Path(tempfile.mkdtemp(prefix="anydepth-fuzz-"))
    start = time.monotonic()
    campaign = campaign_in(root, given.only)
    if given.replay is not None:
        result = attempt(campaign, given.seed, given.replay, given.only)
        show(result, all_of_it=True)
        print(f"its folder, if it failed: {root / f'try-{given.replay}'}")
        return
    global _ATTEMPT
    _ATTEMPT = (campaign, given.seed, given.only)
    kept = root / f"tries-{given.seed}.jsonl"  # a campaign that was ended goes on, in the same folder
    results = [Result(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {result.number for result in results}
    numbers = [number for number in range(given.first, given.first + given.tries) if number not in done]
    with multiprocessing.get_context("fork").Pool(given.jobs) as pool, kept.open("a") as journal:
        for result in pool.imap_unordered(_attempt, numbers):
            results.append(result)
            print(json.dumps(asdict(result)), file=journal, flush=True)
            if result.faults:
                show(result)
            if len(results) % 100 == 0:
                print(f"-- {len(results)} tries, {time.monotonic() - start:.0f} s", flush=True)
    found = summary(sorted(results, key=lambda result: result.number), given.seed)
    for name, value in found.items():
        print(f"{name:10s} {value}")
    if given.only is None:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if given.folder is None and not any(result.faults for result in results):
        shutil.rmtree(root)
    sys.exit(any(result.faults for result in results))


_ATTEMPT: tuple[Campaign, int, str | None]


def _attempt(number: int) -> Result:
    campaign, seed, only = _ATTEMPT
    try:
        return attempt(campaign, seed, number, only)
    except Exception as error:  # the fuzzer's own, which must not end a campaign of hours
        fault = f"not judged: {type(error).__name__}: {error}"
        return Result(number=number, verb="?", kind="?", argv=[], about=[], status=None, faults=[fault])


if __name__ == "__main__":
    main()

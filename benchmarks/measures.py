"""Every similarity measure between all pairs of 12 depths of width 384, beside the libraries that have it.

    OMP_NUM_THREADS=1 python benchmarks/measures.py [--sizes 2000 10000] [--peers .cache/peers] [--fresh]

Every measurement is a process of its own with one thread, in turn; CPU seconds and peak memory, medians of up to three
runs (fewer of what takes more than 20 seconds in all). Ours reads the states from a file, through a memory map, and
that is in its time; the others are given arrays in memory, and their reading is not. None has intervals, so ours makes
none. What takes long is measured on some of the pairs, and scaled; the table says so. Every value is held against a
float64 reference of the definition that the library says it computes, and against our definition.

Results go to benchmarks/results/measures.md and .json as they come, and another call goes on from there, unless it is
`--fresh`. The peers are installed by

    pip install --target .cache/peers --no-deps -r benchmarks/peers.txt
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor
from peers.apart import INSTALL, cost, in_a_process, missing, too_large
from peers.chain import DEPTHS, WIDTH, make_states
from peers.references import references
from peers.ways import MEASURES, OURS, WAYS, Part, Way

RESULTS = Path(__file__).parent / "results"
REFERENCES = Path(".cache/measures")
REPEATS, ENOUGH = 3, 20.0  # runs, and CPU seconds after which there is no further one
EXACT = 1e-6


# One after the other ---------------------------------------------------------------------------------------------


def once(index: int, file: Path) -> dict[str, Any]:
    """One measurement, in this process."""
    import torch

    torch.set_num_threads(1)
    way, n = WAYS[index], len(np.load(file, mmap_mode="r"))
    pairs = way.parts(n).pairs
    with tempfile.TemporaryDirectory() as folder:  # what is set up on the first call is nobody's cost
        small = Path(folder) / "small.npy"
        make_states(small, 600, width=16)
        way.run(small, pairs)()
    spent = cost(lambda: way.run(file, pairs))
    return {"cpu_seconds": spent.cpu_seconds, "megabytes": spent.megabytes, "value": spent.value.tolist()}


@dataclass
class Result:
    """What one way took at one size, so far.

    Attributes:
        n: rows.
        measure: ours, that the values are or stand for.
        library: as the table calls it.
        seconds: CPU seconds of each run, of the part that was measured.
        megabytes: of each run.
        error: largest, over the pairs measured, from the definition it says it computes.
        apart: largest difference from our definition.
        note: why there is nothing, if there is nothing.
    """

    n: int
    measure: str
    library: str
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    error: float | None = None
    apart: float | None = None
    note: str = ""

    @property
    def part(self) -> Part:
        return by_name[self.measure, self.library].parts(self.n)

    @property
    def cpu_seconds(self) -> float | None:
        """Median, of the whole work."""
        return statistics.median(self.seconds) * self.part.factor if self.seconds else None

    @property
    def finished(self) -> bool:
        return bool(self.note) or len(self.seconds) >= REPEATS or sum(self.seconds) >= ENOUGH


by_name = {(way.measure, way.library): way for way in WAYS}


def obstacle(way: Way, n: int, peers: Path) -> str:
    """Why a way cannot be measured here, if it cannot."""
    if way.most is not None and n > way.most:
        return f"not run: {way.instead}"
    return missing(way.needs, peers) or too_large(way.bytes(n), "its Gram matrices") or ""


def measure(record: Record, n: int, peers: Path) -> None:
    """All ways at one size, those in the record going on from there."""
    for way in WAYS:
        record.of(n, way).note = record.of(n, way).note or obstacle(way, n, peers)
    if all(record.of(n, way).finished for way in WAYS):
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "states.npy"
        make_states(file, n)
        truth = kept_references(file, n)
        for _ in range(REPEATS):  # in turn, so that a machine that slows down slows all of them
            for index, way in enumerate(WAYS):
                result = record.of(n, way)
                if not result.finished:
                    add(result, in_a_process(__file__, ["--once", str(index), str(file)], peers), truth)
                    record.write()
                    print(f"n = {n}, {way.measure}, {way.library}: {result.seconds} {result.note}", flush=True)


def add(result: Result, found: dict[str, Any], truth: dict[str, np.ndarray]) -> None:
    """One more run."""
    if "failed" in found:
        result.note = f"failed: {found['failed']}"
        return
    result.seconds.append(found["cpu_seconds"])
    result.megabytes.append(found["megabytes"])
    way = by_name[result.measure, result.library]
    value = np.array(found["value"])
    value[np.diag_indices(DEPTHS)] = np.nan
    result.error = float(np.nanmax(np.abs(value - truth[way.definition])))
    result.apart = float(np.nanmax(np.abs(value - truth.get(way.measure, truth[way.definition]))))


def kept_references(file: Path, n: int) -> dict[str, np.ndarray]:
    """References take minutes: they are kept beside the peers."""
    kept = REFERENCES / f"{n}.npz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **references(file))
    with np.load(kept) as found:
        return dict(found)


class Record:
    """The results, as they are on disk."""

    def __init__(self, machine: str, *, fresh: bool) -> None:
        self.machine, self.file = machine, RESULTS / "measures.json"
        self.results: dict[tuple[int, str, str], Result] = {}
        if fresh or not self.file.exists():
            return
        kept = json.loads(self.file.read_text())
        if kept["machine"] != machine:
            raise SystemExit(f"{self.file} is of {kept['machine']}, this is {machine}: --fresh starts over")
        for one in kept["results"]:
            result = Result(**one)
            if (result.measure, result.library) in by_name:
                self.results[result.n, result.measure, result.library] = result

    def of(self, n: int, way: Way) -> Result:
        key = n, way.measure, way.library
        return self.results.setdefault(key, Result(*key))

    def at(self, n: int) -> list[Result]:
        """In the order of the measures, ours first."""
        ordered = sorted(WAYS, key=lambda way: [*MEASURES, "all"].index(way.measure))
        return [self.of(n, way) for way in ordered]

    def write(self) -> None:
        results = [asdict(result) for result in self.results.values()]
        record = {"machine": self.machine, "depths": DEPTHS, "width": WIDTH, "results": results}
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(record, indent=1) + "\n")


# What it came to -------------------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    mine = {result.measure: result.cpu_seconds for result in results if result.library == OURS}
    lines = [
        "| measure | library | CPU s | beside ours | peak MB | error | apart from ours | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        start = f"| {result.measure} | {result.library} |"
        seconds, own = result.cpu_seconds, mine.get(result.measure)
        if seconds is None or result.error is None or result.apart is None:
            lines.append(f"{start} {result.note} | | | | | |")
            continue
        beside = "" if result.library == OURS or own is None else f"{seconds / own:.1f} ×"
        apart = f"{result.apart:.0e}" if result.apart > EXACT else "same"
        lines.append(
            f"{start} {seconds:.3g} | {beside} | {statistics.median(result.megabytes):.0f} | {result.error:.0e} "
            f"| {apart} | {result.part.words or 'all'} |"
        )
    return "\n".join(lines)


def verdict(found: dict[int, list[Result]]) -> str:
    """For every measure: is ours ahead of every peer that is as exact, and of every one?"""
    lines = [
        "| measure | n | ahead at equal exactness | the fastest exact to 1e-6 | the fastest of all | with our values |",
        "|---|---|---|---|---|---|",
    ]
    for name in MEASURES:
        for n, results in found.items():
            own, *others = [result for result in results if result.measure == name]
            peers = [result for result in others if result.error is not None and result.apart is not None]
            if not peers or own.cpu_seconds is None or own.error is None:
                lines.append(f"| {name} | {n} | {'not measured' if others else 'no peer'} | | | |")
                continue
            exact = [result for result in peers if result.error is not None and result.error <= EXACT]
            ahead = own.error <= EXACT and all(own.cpu_seconds < seconds(result) for result in exact)
            same = [result.library for result in exact if result.apart is not None and result.apart <= EXACT]
            lines.append(
                f"| {name} | {n} | {'yes' if ahead else '**no**'} | {beside(exact, own.cpu_seconds)} "
                f"| {beside(peers, own.cpu_seconds)} | {', '.join(same) or 'none'} |"
            )
    return "\n".join(lines)


def beside(peers: list[Result], own: float) -> str:
    """The fastest of some, and how long it takes beside ours."""
    if not peers:
        return "none"
    fastest = min(peers, key=seconds)
    off = "" if fastest.error is None or fastest.error <= EXACT else f", off by {fastest.error:.0e}"
    return f"{fastest.library}, {seconds(fastest) / own:.1f} ×{off}"


def seconds(result: Result) -> float:
    return np.inf if result.cpu_seconds is None else result.cpu_seconds


def differences() -> str:
    """What each library computes, where it is not to the letter what we do."""
    return "\n".join(f"- {way.measure}, {way.library}: {way.difference}" for way in WAYS if way.difference)


REMARKS = """\
"Error" is the largest over the pairs measured, from a float64 reference of what the library says it computes, and
"apart from ours" from a reference of our definition; "same" is at most 1e-6. "Measured" says which part of the work was
done, and from which the CPU seconds of all 66 pairs follow. Peak memory is that of the part. RSA is over 2,000 rows,
by ours and by the others.

Not on the package index, and so not here: netrep (shape metrics), ReSi (the name `repsim` there is another library's),
and the code of the platonic representation hypothesis (kNN, CKNNA): CKNNA has no peer that installs. Left out: mne-rsa,
which ranks scipy's distances with scipy, and brings a desktop; cka-pytorch and torch-cka, which average over batches;
scikit-learn's CCA and cca-zoo, which fit models and do not compare depths. deep-reps calls a Python function for every
pair of rows in its RSA and CKA (8 million a pair of depths at n = 2,000), its RSA and PWCCA stop with a TypeError, and
it is not imported as published (a circular import): its modules are loaded one by one."""


def page(record: Record, sizes: list[int]) -> str:
    found = {n: record.at(n) for n in sizes}
    tables = [f"## n = {n}\n\n{table(results)}" for n, results in found.items()]
    parts = [*tables, REMARKS, f"## Verdict\n\n{verdict(found)}", f"## Definitions\n\n{differences()}"]
    return "\n\n".join([*parts, f"{record.machine}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--peers", type=Path, default=Path(".cache/peers"), help=f"where the peers are: {INSTALL}")
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument("--once", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(once(int(chosen.once[0]), Path(chosen.once[1]))))
        return
    if chosen.fresh:
        shutil.rmtree(REFERENCES, ignore_errors=True)
    machine = f"{processor()}, one thread; torch {version('torch')}, scipy {version('scipy')}, numpy {version('numpy')}"
    record = Record(machine, fresh=chosen.fresh)
    for n in chosen.sizes:
        measure(record, n, chosen.peers)
    record.write()
    found = page(record, chosen.sizes)
    (RESULTS / "measures.md").write_text(found)
    print(found)


if __name__ == "__main__":
    main()

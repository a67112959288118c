"""Exact CKA between all pairs of 12 depths of width 384, beside one ssyrk on the same array and beside peers.

    OMP_NUM_THREADS=1 python benchmarks/similarity.py [--sizes 2000 5000 50000] [--repeats 5] [--peers .cache/peers]

Every measurement is a process of its own with one thread, in turn; CPU seconds and peak memory, medians. Ours reads
the states from a file, through a memory map, and that is in its time; the others are given the array in memory, and
its reading is not. Errors are the largest over all pairs, against a float64 reference of the estimator that each
library says it computes. Results go to benchmarks/results/similarity.md and .json. The peers are installed by

    pip install --target .cache/peers --no-deps -r benchmarks/peers.txt
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor
from peers.apart import INSTALL, cost, in_a_process, missing, too_large
from peers.chain import DEPTHS, WIDTH, FileStates, depths, make_states
from peers.libraries import anatome_similarity
from peers.references import cka as cka_reference

RESULTS = Path(__file__).parent / "results"


# What is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to come by the numbers.

    Attributes:
        title: in the table.
        run: `.npy` file of (n, 12 * 384) float32, its rows -> (what is timed, the array in memory if it is needed).
        estimator: "debiased" or "biased", what the error is measured against; None for the bare products.
        needs: the module of a peer.
        bytes: of the largest array it makes for n rows, where that limits n.
        exact: computes the estimator of all rows, rather than an average of estimates from batches.
    """

    title: str
    run: Callable[[Path], Callable[[], Any]]
    estimator: str | None = None
    needs: str | None = None
    bytes: Callable[[int], int] = lambda n: 0
    exact: bool = True


def ssyrk(file: Path) -> Callable[[], Any]:
    from scipy.linalg import blas

    rows = np.load(file)
    return lambda: blas.ssyrk(1.0, rows.T, lower=1)


def torch_product(file: Path) -> Callable[[], Any]:
    import torch

    rows = torch.from_numpy(np.load(file))
    return lambda: rows.T @ rows


def ours(file: Path, *, name: str = "cka", jackknife_groups: int | None = None) -> Callable[[], Any]:
    from anydepth.measures import similarities

    states = FileStates(file)
    return lambda: similarities(states, [name], jackknife_groups=jackknife_groups)[name].value


def pytorch_cka(file: Path) -> Callable[[], Any]:
    import torch
    from cka import cka_from_features

    features = [torch.from_numpy(part) for part in depths(file)]
    return lambda: cka_from_features(features, features).numpy()


def pytorch_cka_batches(file: Path, batch: int = 250) -> Callable[[], Any]:
    import torch
    from cka import compute_cka
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    class Depths(nn.Module):
        """A model whose layers put out the stored states."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Identity() for _ in range(DEPTHS)])

        def forward(self, rows: Tensor) -> list[Tensor]:
            return [layer(part) for layer, part in zip(self.layers, rows.split(WIDTH, dim=1), strict=True)]

    model, names = Depths(), [f"layers.{depth}" for depth in range(DEPTHS)]
    loader = DataLoader(TensorDataset(torch.from_numpy(np.load(file))), batch_size=batch)
    return lambda: compute_cka(model, model, loader, layers=names, device="cpu", progress=False)[0].numpy()


def anatome(file: Path, *, debiased: bool) -> Callable[[], Any]:
    import torch

    linear_cka_distance = anatome_similarity().linear_cka_distance
    features = [torch.from_numpy(part) for part in depths(file)]

    def run() -> Any:
        value = np.ones((DEPTHS, DEPTHS))
        for a, b in zip(*np.triu_indices(DEPTHS, 1), strict=True):
            value[a, b] = value[b, a] = 1 - linear_cka_distance(features[a], features[b], debiased).item()
        return value

    return run


WAYS = {
    "ssyrk": Way("one `ssyrk`, OpenBLAS (scipy)", ssyrk),
    "product": Way("one `x.T @ x`, MKL (torch)", torch_product),
    "anydepth": Way("**anydepth**", ours, "debiased"),
    "anydepth-intervals": Way(
        "anydepth, with 95 % intervals", lambda file: ours(file, jackknife_groups=100), "debiased"
    ),
    "anydepth-biased": Way("anydepth, biased", lambda file: ours(file, name="cka_biased"), "biased"),
    "pytorch-cka": Way("pytorch-cka", pytorch_cka, "debiased", "cka", lambda n: 2 * DEPTHS * n * n * 4),
    "anatome": Way("anatome", lambda file: anatome(file, debiased=True), "debiased", "anatome"),
    "anatome-biased": Way("anatome, biased", lambda file: anatome(file, debiased=False), "biased", "anatome"),
    "pytorch-cka-batches": Way(
        "pytorch-cka, mean of batches of 250", pytorch_cka_batches, "debiased", "cka", exact=False
    ),
}


def once(way: str, file: Path) -> dict[str, Any]:
    """One measurement, in this process."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # what is set up on the first call is nobody's cost
        small = Path(folder) / "small.npy"
        np.save(small, np.random.default_rng(0).normal(size=(300, DEPTHS * WIDTH)).astype(np.float32))
        WAYS[way].run(small)()
    spent = cost(lambda: WAYS[way].run(file))
    found: dict[str, Any] = {"cpu_seconds": spent.cpu_seconds, "megabytes": spent.megabytes}
    if WAYS[way].estimator is not None:
        found["value"] = spent.value.tolist()
    return found


# One after the other ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The medians of one way at one size; or, without them, a note that says why."""

    n: int
    way: str
    cpu_seconds: float | None = None
    runs: tuple[float, ...] = ()
    megabytes: float | None = None
    error: float | None = None
    note: str = ""


def measure(ways: list[str], n: int, repeats: int, peers: Path) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "states.npy"
        make_states(file, n)
        truth = {"debiased": (found := cka_reference(file))["cka"], "biased": found["cka_biased"]}
        notes = {way: obstacle(way, n, peers) for way in ways}
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for repeat in range(repeats):  # in turn, so that a machine that slows down slows all of them
            for way in ways:
                if notes[way] is None:
                    found[way].append(in_a_process(__file__, ["--once", way, str(file)], peers))
            told = {way: round(runs[-1].get("cpu_seconds", np.nan), 2) for way, runs in found.items() if runs}
            print(f"n = {n}, {repeat + 1} of {repeats}: {told}", flush=True)
    return [result(n, way, found[way], notes[way], truth) for way in ways]


def obstacle(way: str, n: int, peers: Path) -> str | None:
    """Why a way cannot be measured here."""
    return missing(WAYS[way].needs, peers) or too_large(WAYS[way].bytes(n), "its Gram matrices")


def result(n: int, way: str, runs: list[dict[str, Any]], note: str | None, truth: dict[str, np.ndarray]) -> Result:
    failed = next((run["failed"] for run in runs if "failed" in run), None)
    if not runs or failed is not None:
        return Result(n, way, note=note or f"failed: {failed}")
    seconds = tuple(run["cpu_seconds"] for run in runs)
    megabytes = statistics.median(run["megabytes"] for run in runs)
    estimator = WAYS[way].estimator
    error = None if estimator is None else float(np.abs(np.array(runs[0]["value"]) - truth[estimator]).max())
    return Result(n, way, statistics.median(seconds), seconds, megabytes, error)


def table(results: list[Result]) -> str:
    floor = {result.n: result.cpu_seconds for result in results if result.way == "ssyrk"}
    lines = [
        "| n | | CPU s | beside `ssyrk` | peak MB | largest error | runs, CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        title = WAYS[result.way].title
        if result.cpu_seconds is None:
            lines.append(f"| {result.n} | {title} | {result.note} | | | | |")
            continue
        ratio = result.cpu_seconds / (floor[result.n] or np.nan)
        error = "" if result.error is None else f"{result.error:.0e}"
        spread = f"{min(result.runs):.2f}–{max(result.runs):.2f}"
        lines.append(
            f"| {result.n} | {title} | {result.cpu_seconds:.2f} | {ratio:.2f} | {result.megabytes:.0f} | {error} "
            f"| {spread} |"
        )
    return "\n".join(lines)


def verdict(results: list[Result]) -> str:
    """What must hold, and whether it did."""
    found = {(result.n, result.way): result for result in results}
    lines = []
    for n in sorted({result.n for result in results}):
        mine, floor = found[n, "anydepth"], found[n, "ssyrk"]
        if mine.cpu_seconds is None or floor.cpu_seconds is None or mine.error is None:
            lines.append(f"- n = {n}: not measured: {mine.note or floor.note}")
            continue
        slower = [
            result.cpu_seconds > mine.cpu_seconds
            for result in results
            if result.n == n and WAYS[result.way].needs and WAYS[result.way].exact and result.cpu_seconds is not None
        ]
        checks = {
            "at most 1.5 × ssyrk": mine.cpu_seconds <= 1.5 * floor.cpu_seconds,
            "error at most 1e-6": mine.error <= 1e-6,
            f"faster than each of {len(slower)} exact peers": all(slower),
        }
        lines.append(
            f"- n = {n}: " + ", ".join(f"{what}: {'yes' if holds else 'NO'}" for what, holds in checks.items())
        )
    return "\n".join(lines)


REMARKS = """\
`x.T @ x` by torch computes the whole product; `ssyrk` half of it, and so does ours. With intervals, ours computes
besides what each row (of 10,000 at most) does to the value. The peers' errors are those of float32 sums that are not
centred (pytorch-cka); of a denominator that is debiased but not the root of it (anatome, debiased); of float32 alone
(anatome, biased). A mean of estimates from batches is another number than the estimate from all rows, one that
depends on the batch size: cheaper, and listed for its error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 5000, 50_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ssyrk and anydepth belong in it")
    parser.add_argument("--peers", type=Path, default=Path(".cache/peers"), help=f"where the peers are: {INSTALL}")
    parser.add_argument("--once", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(once(chosen.once[0], Path(chosen.once[1]))))
        return
    results = [one for n in chosen.sizes for one in measure(chosen.ways, n, chosen.repeats, chosen.peers)]
    machine = f"{processor()}, one thread; torch {version('torch')}, scipy {version('scipy')}, numpy {version('numpy')}"
    page = f"{table(results)}\n\n{verdict(results)}\n\n{REMARKS}\n\n{machine}.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "similarity.md").write_text(page)
    record = {"machine": machine, "depths": DEPTHS, "width": WIDTH, "results": [asdict(result) for result in results]}
    (RESULTS / "similarity.json").write_text(json.dumps(record, indent=1) + "\n")
    print(page)


if __name__ == "__main__":
    main()

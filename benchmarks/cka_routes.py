"""Debiased CKA without sums beside the floor of the route it takes, and beside nine lines of torch.

    OMP_NUM_THREADS=1 python benchmarks/cka_routes.py [--shapes 1000x12x384 2000x32x2048] [--repeats 5]

A shape is n x depths x width. The floor of the Gram route is one `ssyrk` for each depth (n x n), that of the covariance
one `ssyrk` of all depths side by side, in float32 and in memory (scipy's BLAS). Ours reads the states from a file and
that is in its time; without intervals, and with the default ones. The nine lines are what a user would write, on arrays
in memory; where their Gram matrices do not fit, they are left out. CPU seconds, one thread, in turn in one process,
medians; the first round is not counted. The error is the largest beside the nine lines in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from peers.apart import cpu_seconds
from scipy.linalg import blas

from anydepth.measures import similarities
from anydepth.measures.engine.plan import available_memory, plan
from anydepth.storage.rows import StoredStates

RESULTS = Path(__file__).parent / "results"
SHAPES = ("1000x12x384", "2000x12x384", "5000x12x384", "20000x12x384", "2000x32x2048")
MOST = 4 * 2**30  # bytes of Gram matrices that the nine lines may hold


def make(file: Path, n: int, depths: int, width: int) -> None:
    """A chain of depths: each adds a little to the last; one feature lies far off."""
    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (n, depths * width))
    for start in range(0, n, 500):
        states = rng.standard_normal((min(500, n - start), depths, width), dtype=np.float32).cumsum(1)
        states[:, :, 7] += 10
        rows[start : start + len(states)] = states.reshape(len(states), -1)
    rows.flush()


def nine_lines(rows: torch.Tensor, depths: int) -> np.ndarray:
    n, grams = len(rows), []
    for x in rows.chunk(depths, dim=1):
        gram = (x := x - x.mean(0)) @ x.T
        grams.append(gram.fill_diagonal_(0))
    sums = torch.stack([gram.sum(0) for gram in grams])
    total = sums.sum(1)
    off = torch.tensor([[(one * two).sum() for two in grams] for one in grams], dtype=rows.dtype)
    hsic = off + total.outer(total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * sums @ sums.T
    return (hsic / hsic.diagonal().outer(hsic.diagonal()).sqrt()).numpy()


def floor_of(route: str, parts: list[np.ndarray], rows: np.ndarray) -> Callable[[], Any]:
    if route == "gram":
        return lambda: [blas.ssyrk(1.0, part.T, trans=1) for part in parts]
    return lambda: blas.ssyrk(1.0, rows.T, lower=1)


def measure(shape: str, repeats: int) -> dict[str, Any]:
    n, depths, width = map(int, shape.split("x"))
    widths = (width,) * depths
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "states.npy"
        make(file, n, depths, width)
        rows = np.load(file)
        tensor, states = torch.from_numpy(rows), StoredStates([file], widths)
        parts = [np.ascontiguousarray(rows[:, start : start + width]) for start in range(0, depths * width, width)]
        chosen = plan(n, widths, available_memory() // 2)
        ways: dict[str, Callable[[], Any]] = {
            f"floor, {route}": floor_of(route, parts, rows)
            for route in ("gram", "covariance")
            if route == chosen.route or depths * width <= 6000
        }
        ways["ours"] = lambda: similarities(states, ["cka"], jackknife_groups=None)["cka"].value
        ways["ours, intervals"] = lambda: similarities(states, ["cka"])["cka"].value
        fits = 4 * depths * n * n <= MOST
        if fits:
            ways["nine lines"] = lambda: nine_lines(tensor, depths)
        runs: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(repeats + 1):
            for way, run in ways.items():
                start = cpu_seconds()
                run()
                runs[way] += [cpu_seconds() - start] if repeat else []
        error = None
        if fits and depths * width <= 6000:
            error = float(np.abs(ways["ours"]() - nine_lines(tensor.double(), depths)).max())
    found = {way: statistics.median(seconds) for way, seconds in runs.items()}
    print(shape, chosen.note, {way: round(seconds, 3) for way, seconds in found.items()}, error, flush=True)
    return {"shape": shape, "route": chosen.route, "note": chosen.note, "medians": found, "runs": runs, "error": error}


def row(result: dict[str, Any]) -> str:
    found, floor = result["medians"], result["medians"][f"floor, {result['route']}"]
    cheapest = min(seconds for way, seconds in found.items() if way.startswith("floor"))
    ours, nine, error = found["ours"], found.get("nine lines"), result["error"]
    return (
        f"| {result['shape'].replace('x', ' × ')} | {result['route']} | {floor:.2f} | {ours:.2f} "
        f"({ours / floor:.2f} ×) | {ours / cheapest:.2f} × | {found['ours, intervals']:.2f} "
        f"| {'' if nine is None else f'{nine:.2f} ({ours / nine:.2f} ×)'} "
        f"| {'' if error is None else f'{error:.0e}'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(shape, chosen.repeats) for shape in chosen.shapes]
    lines = [
        "CPU seconds, medians; in brackets ours over the floor of its route, and over the nine lines.",
        "",
        "| n × depths × width | route | its floor | ours | beside the cheapest | with intervals | nine lines | error |",
        "|---|---|---|---|---|---|---|---|",
        *map(row, results),
    ]
    print("\n".join(lines))
    if tuple(chosen.shapes) == SHAPES:
        record = {"processor": processor(), "results": results}
        (RESULTS / "cka_routes.json").write_text(json.dumps(record, indent=1) + "\n")
        (RESULTS / "cka_routes.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Traces and comparisons by the command line, and what was found, read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from models import LIMITS, MODELS, ROOT, SEED, WORK, full, made, path

from anydepth import Trace
from anydepth.measures.engine.states import ArrayStates, States
from anydepth.measures.similarity import similarities
from anydepth.results.pairing import StatesSubset
from anydepth.stats.paired import Differences
from anydepth.storage.files import plain, write_json
from anydepth.tracing.comparison import Comparison

MEASURED = ("cosine", "cka", "cca", "svcca", "procrustes", "rsa", "knn")
Matrix = np.ndarray


def anydepth(*words: str | Path) -> None:
    """Run a command of the command line, on one thread."""
    arguments = [str(word) for word in words]
    print("$ anydepth", *(word.replace(str(Path.home()), "~") for word in arguments), flush=True)
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-m", "anydepth", *arguments], env=quiet, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def traced(name: str) -> Path:
    """The folder of a model's trace, made if it is not there."""
    folder = WORK / "traces" / name
    if not (folder / "trace.json").exists():
        data = MODELS[name].data
        limit = ["--limit", str(LIMITS[data])] if data in LIMITS else []
        words = ["--measures", ",".join(MEASURED), "--keep-states", "--no-sums"]
        anydepth("trace", made(name), "--data", path(data), *limit, *words, "--out", folder)
    return folder


@cache
def trace_of(name: str) -> Trace:
    return Trace.load(traced(name))


# what each is compared with, in one command
COMPARED: dict[str, tuple[str, ...]] = {
    "minilm-frozen": ("minilm-plain", "minilm-aligned", "minilm-random"),
    "minilm-plain": ("minilm-aligned", "minilm-plain-1", "minilm-random"),
    "dinov2s-frozen": ("dinov2s-plain", "dinov2s-aligned", "dinov2s-random", "vit-plain", "vit-aligned", "vit-random"),
    "dinov2s-plain": ("dinov2s-aligned", "dinov2s-random", "vit-plain"),
    "vit-plain": ("vit-aligned", "vit-plain-1", "vit-random", "dinov2s-random"),
}


@cache
def compared(first: str, second: str) -> Comparison:
    """What `anydepth compare` found, under names of ours."""
    folder, others = WORK / first, COMPARED[first]
    if not (folder / "compare.json").exists():
        traces = [traced(name) for name in (first, *others)]
        anydepth("compare", *traces, "--measures", ",".join(MEASURED), "--out", folder)
    record = json.loads((folder / "compare.json").read_text())["comparisons"][others.index(second)]
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in record["differences"]:
        rows.setdefault(row["statistic"], []).append(row)

    def column(name: str, key: str) -> np.ndarray:
        return np.array([row[key] for row in rows[name]], dtype=float)

    bounds = ("low", "high", "low_all", "high_all")
    return Comparison(
        names=(full(first), full(second)),
        samples=record["samples"],
        depths=tuple((one, other) for one, other in record["depths"]),
        differences={
            name: Differences(value=column(name, "difference"), **{bound: column(name, bound) for bound in bounds})
            for name in rows
        },
        values={name: np.stack([column(name, "a"), column(name, "b")]) for name in rows},
        similarity={name: np.array(value, dtype=float) for name, value in record["similarity"].items()},
        similarity_intervals={
            name: np.array(ends, dtype=float) for name, ends in record["similarity_intervals"].items()
        },
        notes=tuple(record["notes"]),
    )


@dataclass(frozen=True)
class Alike:
    """How alike every depth of one model is to every depth of another, or to something else.

    Attributes:
        value: (K_a, K_b).
        low: the lower end of the 95 % interval, NaN where the measure has none.
        high: the upper end.
    """

    value: Matrix
    low: Matrix
    high: Matrix

    def best(self, depth: int) -> tuple[float, float, float]:
        """The most alike depth's value, and its interval; NaN where nothing is defined."""
        if not np.isfinite(self.value[depth]).any():
            return (np.nan, np.nan, np.nan)
        most = int(np.nanargmax(self.value[depth]))
        return float(self.value[depth, most]), float(self.low[depth, most]), float(self.high[depth, most])

    def best_over_depths(self) -> tuple[float, float, float]:
        """Of the most alike depths' values: mean over the depths of the one, least and greatest."""
        most = np.array([self.best(depth)[0] for depth in range(len(self.value))])
        return tuple(float(f(most[np.isfinite(most)])) for f in (np.mean, np.min, np.max))  # type: ignore[return-value]


def likeness(one: str, other: str) -> dict[str, Alike]:
    """Between two models, by measure, the first model's depths in rows."""
    turned = other not in COMPARED.get(one, ())
    found = compared(other, one) if turned else compared(one, other)
    alike = {}
    for name, value in found.similarity.items():
        ends = found.similarity_intervals.get(name, np.full((2, *value.shape), np.nan))
        alike[name] = Alike(*(part.T if turned else part for part in (value, *ends)))
    return alike


def chance(one: str, other: str) -> dict[str, Alike]:
    """The same where the other's samples are in another order: what their number and the widths alone give."""

    def mixed() -> States:
        states = trace_of(other).states
        assert states is not None
        return StatesSubset(states, np.random.default_rng(SEED).permutation(states.count), None)

    return _kept(one, f"chance-{other}", mixed, MEASURED)


def with_input(one: str) -> dict[str, Alike]:
    """The same, with what the model is given in the place of states: how long a sentence is, or pixels."""
    return _kept(one, "input", lambda: _input(MODELS[one].data, trace_of(one).ids), MEASURED)


def with_class(one: str) -> Alike:
    """CKA with the true class, as one number of 0 or 1 for each."""

    def classes() -> States:
        rows = trace_of(one).rows
        assert rows is not None
        return ArrayStates({"class": np.eye(rows.label.max() + 1)[rows.label]})

    return _kept(one, "class", classes, ("cka",))["cka"]


def _input(data: str, ids: Sequence[Any]) -> States:
    from tasks import data_of

    rows = [int(one) for one in ids]  # by its number in the test data
    if data == "mr":
        sentences = data_of("minilm", "full").held_out
        return ArrayStates({"length": np.array([[sentences.length(row)] for row in rows], dtype=float)})
    images: Any = data_of("vit", "full").held_out
    return ArrayStates({"pixels": images.pixels[rows].flatten(1).numpy()})


def _kept(one: str, what: str, other: Callable[[], States], measures: Sequence[str]) -> dict[str, Alike]:
    """A model's similarity with states that no trace holds: measured once."""
    file = WORK / "beside" / f"{one}-{what}.json"
    if not file.exists():
        print(f"# {file}", flush=True)
        first = trace_of(one).states
        assert first is not None
        found = similarities(first, measures, other=other(), seed=SEED)
        file.parent.mkdir(exist_ok=True)
        write_json(file, plain({name: (alike.value, alike.low, alike.high) for name, alike in found.items()}))
    kept = json.loads(file.read_text())
    return {name: Alike(*_filled(parts)) for name, parts in kept.items()}


def _filled(parts: list[Any]) -> list[Matrix]:
    value = np.array(parts[0], dtype=float)
    return [np.full(value.shape, np.nan) if part is None else np.array(part, dtype=float) for part in parts]


def neighbours(name: str) -> tuple[Matrix, Matrix, Matrix]:
    """CKA of each depth with the one beside it that is more like it; its interval; and which that is."""
    trace = trace_of(name)
    value, ends = trace.similarity["cka"], trace.similarity_intervals["cka"]
    nearest = []
    for depth in range(trace.depth + 1):
        beside = [one for one in (depth - 1, depth + 1) if 0 <= one <= trace.depth and np.isfinite(value[depth, one])]
        nearest.append(max(beside, key=lambda one: value[depth, one], default=depth))
    at = np.arange(trace.depth + 1), np.array(nearest)
    return value[at], ends[:, at[0], at[1]], at[1]

"""How often 95 % intervals of what positions of texts show hold the true value: as they were, and as they are.

    python benchmarks/reliability/intervals.py [--tries 4000] [--seed 0]

Texts are drawn anew for each try: equally long (60 positions) or of Pareto length (index 1.2, 10 to 3,000), each with a
share of its own (beta, correlation .02 or .3 within a text) or a mean of its own (normal, half of the variance). "t" is
Student's t over texts with one degree of freedom fewer than there are texts, as all intervals were but those of
the theory's shares. Prints a table and writes results/intervals.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.stats.intervals import around, ratio, share_interval

Draws = tuple[np.ndarray, np.ndarray]  # sums and numbers of positions: a row for each text, a column for each try


def lengths(rng: np.random.Generator, shape: tuple[int, int], pareto: bool) -> np.ndarray:
    """Positions of each text."""
    drawn = np.ceil(10 * (1 + rng.pareto(1.2, shape))).clip(max=3000) if pareto else np.full(shape, 60)
    return drawn.astype(np.int64)


def shares(rng: np.random.Generator, shape: tuple[int, int], pareto: bool, share: float, within: float) -> Draws:
    """How many positions of each text are right."""
    sizes, strength = lengths(rng, shape, pareto), 1 / within - 1
    right = rng.binomial(sizes, rng.beta(share * strength, (1 - share) * strength, shape))
    return right.astype(float), sizes.astype(float)


def means(rng: np.random.Generator, shape: tuple[int, int], pareto: bool) -> Draws:
    """The sum of a quantity over the positions of each text; its mean is 0."""
    sizes = lengths(rng, shape, pareto).astype(float)
    return sizes * rng.normal(size=shape) + np.sqrt(sizes) * rng.normal(size=shape), sizes


def students(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The interval as it was."""
    value, texts = sums.sum(0) / sizes.sum(0), len(sums)
    error = np.sqrt(((sums - sizes * value) ** 2).sum(0) * texts / (texts - 1)) / sizes.sum(0)
    return around(value, error, texts - 1)


def of_a_mean(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The interval of a mean as it is."""
    return around(*ratio(sums, sizes))


def coverage(draws: Draws, truth: float, interval: Callable[..., np.ndarray]) -> dict[str, float]:
    """The share of intervals that hold the truth, of those that leave 0..1, and their median width."""
    low, high = interval(*draws)
    return {
        "held": float(((low <= truth) & (truth <= high)).mean()),
        "outside": float(((low < 0) | (high > 1)).mean()),
        "width": float(np.median(high - low)),
    }


def cases(tries: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every setting, before and now."""
    settings = [*product((0.98, 0.5), (0.02, 0.3)), (None, None)]
    for (share, within), pareto, texts in product(settings, (False, True), (5, 16, 50)):
        rng = np.random.default_rng(seed)
        if share is None or within is None:
            draws, truth, now = means(rng, (texts, tries), pareto), 0.0, of_a_mean
        else:
            draws = shares(rng, (texts, tries), pareto, share, within)
            truth, now = share, share_interval
        yield {
            "of": "mean" if share is None else f"share {share}",
            "within": within,
            "lengths": "Pareto" if pareto else "equal",
            "texts": texts,
            "before": coverage(draws, truth, students),
            "now": coverage(draws, truth, now),
        }


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = list(cases(asked.tries, asked.seed))
    print("of          within  lengths  texts   t: held (width)   now: held (width)")
    for one in found:
        before, now = (f"{one[which]['held']:.3f} ({one[which]['width']:.3f})" for which in ("before", "now"))
        print(f"{one['of']:12}{one['within'] or '':<8}{one['lengths']:9}{one['texts']:<8}{before:18}{now}")
    place = Path(__file__).parent / "results" / "intervals.json"
    place.parent.mkdir(exist_ok=True)
    content = {"tries": asked.tries, "seed": asked.seed, "cases": found}
    place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

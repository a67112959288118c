"""Is the guarantee of early exit kept, and do fitted temperatures pay? 2,000 calibrations in each of many settings.

    OMP_NUM_THREADS=1 python benchmarks/reliability/certificates.py            all settings, about twelve CPU minutes
    OMP_NUM_THREADS=1 python benchmarks/reliability/certificates.py --draws 50 --settings "smooth, 600"

A finite set of made-up samples is the population: draws from it with replacement are independent, and the share of
failures over all of it is the truth, exactly. Each draw is calibrated by `anydepth.exits.calibration.calibrate` itself,
once with temperatures and once without. A violation is a policy that truly fails more often than its certificate
says; of all calibrations, at most 1 - confidence may be.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pages

from anydepth.exits.calibration import calibrate
from anydepth.exits.costs import Cost, Costs
from anydepth.exits.exit_scores import PolicyInputs
from anydepth.exits.policies import AtDepth, Confidence, Entropy, Margin, Patience, Policy
from anydepth.stats.certificates import Failures
from anydepth.storage.files import write_json

RESULTS = Path(__file__).parent / "results" / "certificates.json"
CLASSES, DEPTHS, POPULATION = 4, (1, 2, 3, 4), 2_000
AGREEMENT = (0.67, 0.95, 0.999)
CONFIDENCE = Confidence(0.5)
Draw = Callable[[PolicyInputs, int, np.random.Generator], PolicyInputs]


def population(
    sharpness: tuple[float, ...] = (1.0, 1.0, 1.0), *, spread: float = 0.5, adverse: bool = False, seed: int = 0
) -> PolicyInputs:
    """Logits at three depths of four; failures are among the hard samples, of which the shallow depths are less sure.

    Args:
        sharpness: of each depth: by how much its logits are multiplied.
        spread: of how sure a depth is about its chance to be right, in log-odds.
        adverse: one sample in fifty is answered wrongly at depth 1, and most surely of all.
        seed: of the samples.
    """
    rng = np.random.default_rng(seed)
    hard, final = rng.random(POPULATION), rng.integers(0, CLASSES, POPULATION)
    seen, predictions = np.zeros((POPULATION, 3, CLASSES)), []
    for place, agreement in enumerate(AGREEMENT):
        right = np.clip(1 - 4 * (1 - agreement) * hard**3, 1 / CLASSES, 1 - 1e-6)
        top = np.where(rng.random(POPULATION) < right, final, (final + rng.integers(1, CLASSES, POPULATION)) % CLASSES)
        lead = np.maximum(np.log(right / (1 - right) * (CLASSES - 1)) + rng.normal(0, spread, POPULATION), 0.05)
        if adverse and place == 0:
            lured = rng.random(POPULATION) < 0.02
            top, lead = (
                np.where(lured, (final + 1) % CLASSES, top),
                np.where(lured, 16.0 + rng.random(POPULATION), lead),
            )
        seen[np.arange(POPULATION), place, top] = lead
        seen[:, place] *= sharpness[place]
        predictions.append(top)
    return PolicyInputs(
        depths=DEPTHS, seen=seen.astype(np.float32), predictions=np.stack([*predictions, final], 1), labels=None
    )


def drawn(pool: PolicyInputs, count: int, rng: np.random.Generator) -> PolicyInputs:
    """Independent samples."""
    return pool.rows(rng.integers(0, len(pool), count))


def repeated(pool: PolicyInputs, count: int, rng: np.random.Generator) -> PolicyInputs:
    """Independent samples, each written down once or several times: a set of data with copies."""
    copies = rng.geometric(0.4, count)
    sample, content = drawn(pool, count, rng), np.repeat(np.arange(count), copies)[:count]
    return replace(sample.rows(content), digests=content.astype(np.uint64))


def frequent(pool: PolicyInputs, count: int, rng: np.random.Generator) -> PolicyInputs:
    """Independent samples of inputs of which one comes up a tenth of the time; see `heavy`."""
    rows = rng.integers(0, len(pool), count)
    rows[rng.random(count) < 0.1] = 0
    return replace(pool.rows(rows), digests=rows.astype(np.uint64))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is calibrated, on how many samples, and what is asked of it."""

    pool: PolicyInputs
    samples: int
    tolerance: float = 0.01
    confidence: float = 0.95
    policy: Policy = CONFIDENCE
    costs: Costs | None = None
    draw: Draw = drawn
    weights: np.ndarray | None = None

    def truth(self, policy: Policy) -> tuple[float, float]:
        """The probability of a failure, and the mean depth, over the population."""
        if isinstance(policy, AtDepth):
            return 0.0, float(policy.threshold)
        shown = self.pool.under(policy)
        failed = shown.failed(policy.level, "model")
        return float(np.average(failed, weights=self.weights)), shown.mean_depth(policy.level)


def tied() -> PolicyInputs:
    """Logits in whole numbers, as of a coarsely quantised model."""
    pool = population()
    return replace(pool, seen=np.round(pool.seen))


def heavy() -> tuple[PolicyInputs, np.ndarray]:
    """A population in which sample 0 is a tenth of all inputs, surely and wrongly answered at depth 1."""
    pool = population()
    pool.seen[0, 0], pool.predictions[0, 0] = [0, 14, 0, 0], 1
    pool.predictions[0, 1:] = 0
    weights = np.full(len(pool), 0.9 / len(pool))
    weights[0] += 0.1
    return pool, weights


def settings() -> dict[str, Setting]:
    """By name."""
    smooth, uneven = population(), population((0.3, 1.0, 3.0))
    saturated, adverse = population((8.0, 8.0, 8.0)), population(adverse=True)
    useless, (frequented, weights) = population(spread=8.0), heavy()
    block = Cost(0.0, 1.0)
    costs = Costs(batch=8, whole=Cost(0.0, 4.3), start=Cost(0.0, 0.0), blocks=(block,) * 4, readout=Cost(0.0, 0.3))
    one_in_ten = Setting(pool=frequented, samples=600, tolerance=0.05, draw=frequent, weights=weights)
    return {
        "smooth, 600": Setting(pool=smooth, samples=600),
        "unevenly sure depths, 600": Setting(pool=uneven, samples=600),
        "logits × 8, 600": Setting(pool=saturated, samples=600),
        "24 samples, 20 % at 90 %": Setting(pool=smooth, samples=24, tolerance=0.2, confidence=0.9),
        "60 samples, 10 % at 90 %": Setting(pool=uneven, samples=60, tolerance=0.1, confidence=0.9),
        "ties, 600, 5 %": Setting(pool=tied(), samples=600, tolerance=0.05),
        "depths by costs, 600, 5 %": Setting(pool=uneven, samples=600, tolerance=0.05, costs=costs),
        "copies, 600, 5 %": Setting(pool=smooth, samples=600, tolerance=0.05, draw=repeated),
        "one input in ten, 600, 5 %": one_in_ten,
        "surest are wrong, 600, 5 %": Setting(pool=adverse, samples=600, tolerance=0.05),
        "score says little, 600, 5 %": Setting(pool=useless, samples=600, tolerance=0.05),
        "patience, 600, 5 %": Setting(pool=smooth, samples=600, tolerance=0.05, policy=Patience(2)),
        "logits × 8, margin, 600": Setting(pool=saturated, samples=600, policy=Margin(0.5)),
        "logits × 8, entropy, 600": Setting(pool=saturated, samples=600, policy=Entropy(0.5)),
        "smooth, 2,000": Setting(pool=smooth, samples=2_000),
    }


def run(setting: Setting, draws: int, seed: int = 0) -> dict[str, float]:
    """Calibrate again and again, with and without temperatures on the same samples."""
    rng, depths, broken, certified = np.random.default_rng(seed), np.zeros((draws, 2)), [0, 0], [0, 0]
    for draw in range(draws):
        sample = setting.draw(setting.pool, setting.samples, rng)
        for column, temperature in enumerate((1.0, 1.0 + 1e-12)):  # one that is named is left alone
            policy, found = calibrate(
                replace(setting.policy, temperature=temperature),
                sample,
                tolerance=setting.tolerance,
                confidence=setting.confidence,
                against="model",
                costs=setting.costs,
                seed=draw,
            )
            share, depths[draw, column] = setting.truth(policy)
            broken[column] += share > setting.tolerance
            certified[column] += found.level is not None
    low, high = Failures(name="", samples=draws, failures=broken[0]).interval()
    apart = depths[:, 0] - depths[:, 1]
    return {
        "draws": draws,
        "delta": round(1 - setting.confidence, 6),
        "violations": broken[0] / draws,
        "low": low,
        "high": high,
        "violations_without": broken[1] / draws,
        "certified": certified[0] / draws,
        "depth": float(depths[:, 0].mean()),
        "depth_without": float(depths[:, 1].mean()),
        "apart": float(apart.mean()),
        "standard_error": float(apart.std() / np.sqrt(draws)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", choices=settings(), metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    print(pages.table(pages.CALIBRATIONS, []))
    table, start = {}, time.process_time()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for name, setting in settings().items():
        if chosen.settings is None or name in chosen.settings:
            table[name] = run(setting, chosen.draws, chosen.seed)
            print(pages.row(pages.calibrations(name, table[name])), flush=True)
            write_json(chosen.out, {"draws": chosen.draws, "seed": chosen.seed, "settings": table})
    print(f"{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()

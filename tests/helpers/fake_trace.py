"""Traces for the tests of the report: small simulated models, with the attributes a report reads and nothing else.

The numbers hang together as in a real trace: states that drift towards their class, similarities, predictions and
intervals computed from them by the shortest formula there is.
"""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from anydepth.results.trace_data import TraceData
from anydepth.stats.agreement import Agreement

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
HOSTILE = "</script><script>alert(1)</script>"
HOSTILE_LABELS = (
    "<b>bold</b>",
    "\"quoted\" 'twice'",
    "naïve ☃ 日本語",
    "<img src=x onerror=alert(2)>",
    "{{ 7*7 }} ${1}",
)


@dataclass(frozen=True, kw_only=True)
class FakeTrace(TraceData):
    """A trace with statistics of its own, which come from no rows."""

    measured: tuple = ()
    values: dict = field(default_factory=dict)
    intervals: dict = field(default_factory=dict)
    counts: np.ndarray | None = None
    classes: pd.DataFrame | None = None

    @property
    def statistics(self):
        return self.measured

    def _mean(self, name):
        # A statistic that was not measured must not be asked for: the real trace raises as well.
        if name not in self.measured:
            raise LookupError(f"{name} was not measured")
        return self.values[name]

    @property
    def stays_correct(self):
        return self._mean("stays_correct")

    @property
    def saturation(self):
        if self.counts is None:
            raise LookupError("saturation was not measured")
        return self.counts

    def interval(self, name, confidence=0.95):
        return self.intervals[name]

    def by_class(self):
        return self.classes

    def measure_agreement(self):
        return {
            pair: _agreement(*(self.similarity[name] for name in pair))
            for pair in itertools.combinations(self.similarity, 2)
        }


def _agreement(a, b):
    below = np.tril_indices(len(a), -1)
    a, b = a[below], b[below]
    known = np.isfinite(a) & np.isfinite(b)
    a, b, pairs = a[known], b[known], int(known.sum())
    if pairs < 4:
        return Agreement((np.nan,) * 3, (np.nan,) * 3, pairs)
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return Agreement(_correlation(a, b), _correlation(*ranks), pairs)


def _correlation(a, b):
    r = float(np.corrcoef(a, b)[0, 1])
    z, half = np.arctanh(min(r, 1 - 1e-12)), 1.96 / np.sqrt(len(a) - 3)
    return r, float(np.tanh(z - half)), float(np.tanh(z + half))


def _wilson(share, n):
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.stack([middle - half, middle + half])


def _states(rng, labels, classes, depth, width, constant_first):
    centres = rng.normal(size=(classes, width)) * 2.2
    state = rng.normal(size=(len(labels), width)) * (0 if constant_first else 1.3)
    states = [state.copy()]
    # Classes are not equally early, samples not equally easy, and one in twelve ends at a wrong class.
    power = 2.5 + labels[:, None] / 2 + rng.normal(size=(len(labels), 1)) ** 2
    target = np.where(rng.random(len(labels)) < 1 / 12, rng.integers(classes, size=len(labels)), labels)
    for k in range(1, depth + 1):
        pull = 0.75 * (k / depth) ** power
        turn = rng.normal(size=(width, width)) * 0.35 / np.sqrt(width)
        state = state + state @ turn + pull * (centres[target] - state) + rng.normal(size=state.shape) * 0.45
        states.append(state.copy())
    return states, centres


def _cosines(states):
    unit = []
    for x in states:
        x = x - x.mean(0)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        unit.append(np.divide(x, norm, out=np.full_like(x, np.nan), where=norm > 1e-9))
    return np.einsum("knd,lnd->nkl", np.stack(unit), np.stack(unit))


def _cka(states, debiased):
    n = len(states[0])
    if debiased and n < 4:
        return np.full((len(states), len(states)), np.nan)
    grams = []
    for x in states:
        x = x - x.mean(0)
        gram = x @ x.T
        if debiased:
            np.fill_diagonal(gram, 0)
            rows = gram.sum(0) / (n - 2)
            gram = gram - rows[:, None] - rows[None] + rows.sum() / (n - 1)
            np.fill_diagonal(gram, 0)
        grams.append(gram.ravel())
    stacked = np.stack(grams)
    product = stacked @ stacked.T
    scale = np.sqrt(np.diag(product))
    with np.errstate(invalid="ignore", divide="ignore"):
        return product / np.outer(scale, scale)


def _readout(states, centres, labels):
    logits = np.stack([(x @ centres.T - 0.5 * (centres**2).sum(1)) * 0.06 for x in states], 1)  # (n, K, C)
    logits = logits - logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp.argmax(-1), np.exp(logp.max(-1)), -np.take_along_axis(logp, labels[:, None, None], -1)[..., 0]


def make(
    *,
    samples=240,
    depth=12,
    width=24,
    classes=8,
    seed=0,
    constant_first=False,
    readout=True,
    name="small-vit",
    data="clothes",
    labels_named=None,
    notes=(),
):
    """A trace of a simulated model of `depth` blocks."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(samples) % classes)
    states, centres = _states(rng, labels, classes, depth, width, constant_first)
    cosine = _cosines(states)
    mean, std = cosine.mean(0), cosine.std(0)
    half = 1.96 * std / np.sqrt(samples)
    cka, biased = _cka(states, True), _cka(states, False)
    if constant_first:
        for matrix in (cka, biased):
            matrix[0] = matrix[:, 0] = np.nan
        notes = ("cosine, cka: depth 0 is the same vector for every sample under `first`, so it is left blank", *notes)
    similarity = {"cosine": mean, "cosine_raw": 0.5 + mean / 2, "cka": cka, "cka_biased": biased}
    intervals = {"cosine": np.stack([mean - half, mean + half]), "cka": np.stack([cka - 0.02, cka + 0.02])}
    quantiles = {"cosine": np.quantile(cosine, QUANTILES, axis=0), "cosine_raw": np.quantile(cosine, QUANTILES, axis=0)}
    provenance = {
        "model": {"name": name, "class": "ViTForImageClassification", "parameters": 21_666_000, "blocks": depth},
        "data": {"name": data, "split": "test", "fingerprint": "0a1b2c3d"},
        "samples": samples, "positions": samples, "tokens": "first", "readout": "tail",
        "measures": list(similarity), "dtype": "float32", "device": "cpu", "seed": seed,
        "versions": {"anydepth": "0.1.0", "torch": "2.14.1", "transformers": "5.23.0"},
        "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    shared = {"names": tuple(map(str, range(depth + 1))), "similarity": similarity, "similarity_intervals": intervals}
    shared |= {"quantiles": quantiles, "provenance": provenance}
    if not readout:
        notes = (*notes, "the model has no classifier: accuracy, confidence and saturation are not measured")
        return FakeTrace(**shared, notes=notes)
    measured = ("accuracy", "cross_entropy", "confidence", "agreement", "stays_correct")
    statistics = _statistics(states, centres, labels, labels_named)
    return FakeTrace(**shared, notes=notes, measured=measured, **statistics)


def _statistics(states, centres, labels, labels_named):
    n, depths, classes = len(labels), len(states), len(centres)
    predicted, confidence, loss = _readout(states, centres, labels)
    correct, agrees = predicted == labels[:, None], predicted == predicted[:, -1:]
    settled = depths - np.argmin(np.flip(np.c_[np.zeros(n, bool), agrees], 1), 1)  # first depth of the last run
    settled = np.clip(settled, 1, depths - 1)
    later = np.flip(np.minimum.accumulate(np.flip(correct, 1), 1), 1)
    with np.errstate(invalid="ignore"):
        stays = later.sum(0) / correct.sum(0)
    shares = {"accuracy": correct.mean(0), "agreement": agrees.mean(0), "stays_correct": stays}
    means = {"confidence": confidence, "cross_entropy": loss}
    intervals = {name: _wilson(value, n) for name, value in shares.items()}
    for name, rows in means.items():
        half = 1.96 * rows.std(0) / np.sqrt(n)
        intervals[name] = np.stack([rows.mean(0) - half, rows.mean(0) + half])
    named = labels_named or [f"class {c}" for c in range(classes)]
    rows = [
        {
            "class": named[c % len(named)] + ("" if c < len(named) else f" {c}"),
            "count": int((labels == c).sum()),
            "depth": k,
            "accuracy": correct[labels == c, k].mean() if (labels == c).any() else np.nan,
            "saturated": (settled[labels == c] <= k).mean() if (labels == c).any() else np.nan,
        }
        for c in range(classes)
        for k in range(depths)
    ]
    return {
        "values": shares | {name: rows.mean(0) for name, rows in means.items()},
        "intervals": intervals,
        "counts": np.bincount(settled, minlength=depths),
        "classes": pd.DataFrame(rows),
    }


def plausible():
    """Twelve blocks, everything measured."""
    return make()


def features_only():
    """A model without a classifier."""
    return make(readout=False, name="dinov2-small", data="photos")


def blank_first():
    """Depth 0 is the same vector for every sample: its similarities are NaN."""
    return make(constant_first=True, seed=3)


def arrays():
    """States without a model: the depths are called as their arrays are, and one of them means harm."""
    made = make(depth=3, readout=False)
    provenance = {"samples": 240, "positions": 240, "data": {"samples": 240}, "measures": ["cosine", "cka"]}
    return replace(made, names=("early", HOSTILE, 'it\'s \\ "late"', "last"), provenance=provenance, notes=())


def tiny():
    """Two samples: hardly anything is defined."""
    trace = make(samples=2, classes=2, depth=3, name="tiny", notes=("cka: 2 samples; debiased CKA needs 4",))
    trace.similarity_intervals["cka"][:] = np.nan
    trace.similarity_intervals["cosine"][:] = np.nan
    return trace


def hostile():
    """Every string of it tries to break out of the page."""
    return make(
        samples=60, classes=5, depth=4, name=HOSTILE, data="<img src=x onerror=alert(3)>",
        labels_named=HOSTILE_LABELS, notes=(HOSTILE, "depth 0 <b>is</b> blank & \u2028 odd"),
    )  # fmt: skip


ALL = {
    "plausible": plausible,
    "features_only": features_only,
    "blank_first": blank_first,
    "arrays": arrays,
    "tiny": tiny,
    "hostile": hostile,
}

"""Similarity of depths by several measures at once, sharing what they share: within a model, or across two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from anydepth.errors import MeasureError
from anydepth.measures.cca import cca as _mean_cca
from anydepth.measures.cca import pwcca, svcca
from anydepth.measures.cka import cka
from anydepth.measures.cosine import cosine
from anydepth.measures.intervals import around, around_correlation
from anydepth.measures.kernels import cka_rbf
from anydepth.measures.knn import cknna, knn
from anydepth.measures.measure import Invariance, Measure, Similarity
from anydepth.measures.plan import available_memory
from anydepth.measures.precision import usual_settings
from anydepth.measures.procrustes import procrustes
from anydepth.measures.rsa import rsa
from anydepth.measures.run import Progress, Run, Watched, blank_notes
from anydepth.measures.states import JoinedStates, ScaledStates, States, epsilons, locate, rows_per_chunk, undefined

__all__ = ["MEASURES", "Progress", "Similarity", "blank_notes", "similarities"]


def similarities(
    states: States,
    measures: Sequence[str] = ("cosine", "cka"),
    *,
    other: States | None = None,
    jackknife_groups: int | None = 100,
    memory: int | None = None,
    mergeable: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Similarity]:
    """Measure how alike all pairs of depths are, of one model or of two; memory does not grow with the rows' number.

    Over all rows, but for measures that look at all pairs of rows: they say in the notes how many rows they took. A
    depth that is constant or not finite is NaN in its row and column, and named in the notes.

    Args:
        states: of n rows at K depths.
        measures: names from `MEASURES`.
        other: of another model for the same n rows in the same order; each depth of the first is then compared with
            each of the second. Numbers of depths and widths may differ.
        jackknife_groups: parts into which whole samples are dealt for the 95 % intervals; None for no intervals.
        memory: bytes that may be used; by default half of what is free.
        mergeable: have CKA leave sums that can be merged, at any cost that fits in memory.
        seed: of the dealing of samples into parts.
        device: where the products are made.
        progress: called with rows done, rows in all, and what is being done.

    Returns:
        One `Similarity` for each name, (K, K) or (K_a, K_b).

    Raises:
        MeasureError: an unknown measure, no rows, or a product that does not fit in `memory`.
        DataError: the two models' states are not of the same number of rows.

    Example:
        >>> from anydepth.measures.states import ArrayStates
        >>> x = np.random.default_rng(0).normal(size=(200, 8))
        >>> found = similarities(ArrayStates({"h0": x, "h1": x @ np.diag(np.arange(8.0))}), ["cosine", "cka"])
        >>> found["cosine"].value[0, 1].round(2), found["cka"].value[0, 1].round(2)
        (np.float64(0.85), np.float64(0.75))
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise MeasureError(f"unknown measure {unknown[0]!r}: choose from {', '.join(MEASURES)}")
    if states.count == 0:
        raise MeasureError("there are no rows to measure: expected at least one sample")
    allowed = available_memory() // 2 if memory is None else memory
    every, device = states if other is None else JoinedStates(states, other), torch.device(device)
    with usual_settings():
        read = Watched(every, device, progress).during("mean").chunks(rows_per_chunk(every.widths, megabytes=8))
        location = locate(read, every.widths, epsilons(every))
        exponents = location.exponents(every.widths)
        if any(exponents):
            every, location = ScaledStates(every, exponents), location.scaled(exponents, every.widths)
        run = Run(
            Watched(every, device, progress),
            location,
            exponents,
            None if other is None else len(states.widths),
            "cka" in measures,
            jackknife_groups,
            allowed,
            mergeable,
            seed,
        )
        return {name: MEASURES[name].of(run) for name in measures}


def _cosine(run: Run, *, centred: bool) -> Similarity:
    states = run.states.during("cosine" if centred else "raw cosine")
    split = run.split(run.states.count) if states.groups is not None else None
    found = cosine(states, centred=centred, location=run.location, split=split)
    blank = run.location.blank
    notes = run.blank_notes
    if len(set(states.widths)) > 1:
        notes.append(f"cosine is undefined between depths of different widths {states.widths}")
    notes += [
        f"{run.named(depth)} is the zero vector in {rows} of {states.count} rows, which have no cosine"
        for depth, rows in enumerate(found.directionless)
        if rows and depth not in blank
    ]
    low = high = None
    if run.jackknife_groups is not None and states.count > 1:
        error, freedom = found.std / np.sqrt(states.count), float(states.count - 1)
        if found.parts is not None:
            error, freedom = found.parts.error(states.count), found.parts.freedom
        bounds = around(found.mean, error, freedom).clip(-1, 1)  # where no mean of cosines lies beyond
        low, high = (run.block(undefined(blank, bound)) for bound in bounds)
    mean, quantiles = (run.block(undefined(blank, values)) for values in (found.mean, found.quantiles))
    return Similarity(mean, low, high, quantiles, notes=tuple(notes))


def _cka(run: Run, *, debiased: bool) -> Similarity:
    sums, parts = run.cka_sums
    value = cka(sums, debiased=debiased).cpu().numpy()
    n, blank = run.states.count, sums.location.blank
    notes = [run.plan.note, *run.blank_notes]
    if debiased and n <= 3:
        notes.append(f"debiased CKA is undefined for {n} rows: it needs at least 4")
    elif debiased:
        notes += [
            f"{run.named(depth)} has no positive HSIC with itself: debiased CKA is undefined there"
            for depth in np.flatnonzero(np.isnan(value.diagonal())).tolist()
            if depth not in blank
        ]
    low = high = None
    if debiased and parts is not None and len(parts.sizes) > 1:
        low, high = map(run.block, around_correlation(value, parts.error(n), parts.freedom))
    moments = run.moments if run.first is None else None
    if moments is not None and any(run.exponents):
        held = max(map(abs, run.exponents)) < _FOURTH_POWERS
        moments = moments.scaled(tuple(-one for one in run.exponents)) if held else None  # of the states as they came
    return Similarity(run.block(value), low, high, moments=moments, notes=tuple(notes))


_FOURTH_POWERS = 250  # powers of two whose fourth powers, which the sums hold, float64 holds

_RIGID: frozenset[Invariance] = frozenset({"orthogonal", "scaling", "translation", "permutation"})

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        measure.name: measure
        for measure in (
            Measure(
                "cosine",
                "cosine",
                lambda run: _cosine(run, centred=True),
                range=(-1, 1),
                invariances=frozenset({"scaling", "translation"}),
                interval="t over samples",
                source="Jiang, Zhou, Zhu 2025",
            ),
            Measure(
                "cosine_raw",
                "cosine, not centred",
                lambda run: _cosine(run, centred=False),
                range=(-1, 1),
                invariances=frozenset({"scaling"}),
                interval="t over samples",
                source="Jiang, Zhou, Zhu 2025",
            ),
            Measure(
                "cka",
                "CKA, debiased",
                lambda run: _cka(run, debiased=True),
                range=(-1, 1),
                invariances=_RIGID,
                interval="jackknife over samples",
                source="Kornblith et al. 2019; Song et al. 2012",
            ),
            Measure(
                "cka_biased",
                "CKA, biased",
                lambda run: _cka(run, debiased=False),
                range=(0, 1),
                invariances=_RIGID,
                source="Kornblith et al. 2019",
            ),
            Measure(
                "cca",
                "mean CCA",
                _mean_cca,
                range=(0, 1),
                invariances=_RIGID | {"linear"},
                source="Hotelling 1936; Raghu et al. 2017",
            ),
            Measure("svcca", "SVCCA", svcca, range=(0, 1), invariances=_RIGID, source="Raghu et al. 2017"),
            Measure(
                "pwcca",
                "projection-weighted CCA",
                pwcca,
                range=(0, 1),
                invariances=_RIGID - {"orthogonal"},
                source="Morcos, Raghu, Bengio 2018",
                symmetric=False,
            ),
            Measure(
                "procrustes",
                "Procrustes similarity",
                procrustes,
                range=(0, 1),
                invariances=_RIGID,
                source="Schönemann 1966; Ding et al. 2021; Williams et al. 2021",
            ),
            Measure(
                "rsa",
                "RSA",
                rsa,
                range=(-1, 1),
                invariances=_RIGID,
                interval="jackknife over samples",
                source="Kriegeskorte, Mur, Bandettini 2008",
            ),
            Measure(
                "knn", "mutual nearest neighbours", knn, range=(0, 1), invariances=_RIGID, source="Huh et al. 2024"
            ),
            Measure(
                "cka_rbf",
                "CKA, Gaussian kernel",
                cka_rbf,
                range=(-1, 1),
                invariances=_RIGID,
                interval="jackknife over samples",
                source="Kornblith et al. 2019; Song et al. 2012",
            ),
            Measure("cknna", "CKNNA", cknna, range=(-1, 1), invariances=_RIGID, source="Huh et al. 2024"),
        )
    }
)

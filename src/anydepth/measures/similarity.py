"""The table of measures (`MEASURES`), and the similarity of all pairs of depths by several of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from anydepth.errors import MeasureError, choose
from anydepth.measures.cca import cca as _mean_cca
from anydepth.measures.cca import pwcca, svcca
from anydepth.measures.cka_rbf import cka_rbf
from anydepth.measures.cosine import cosine_similarity
from anydepth.measures.engine.context import MeasureContext, ReportedStates
from anydepth.measures.engine.plan import available_memory
from anydepth.measures.engine.precision import usual_settings
from anydepth.measures.engine.states import (
    JoinedStates,
    ScaledStates,
    States,
    epsilons,
    locate,
    rows_per_chunk,
)
from anydepth.measures.knn import cknna, knn
from anydepth.measures.linear_cka import linear_cka
from anydepth.measures.measure import Invariance, Measure, Similarity
from anydepth.measures.procrustes import procrustes
from anydepth.measures.rsa import rsa
from anydepth.progress import Progress


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
    """Similarity of all pairs of depths, of one model or across two, by one or more measures.

    Over all rows, in memory that does not grow with their number; measures of all pairs of rows draw a sample, whose
    size is in the notes. A depth that is constant or not finite is NaN in its row and column, and named in the notes.

    Args:
        states: of n rows at K depths.
        measures: names from `MEASURES`.
        other: states of another model for the same n rows in the same order; each depth of the first is then compared
            with each of the second. Numbers of depths and widths may differ.
        jackknife_groups: parts into which whole samples are dealt for the 95 % intervals; None for no intervals.
        memory: bytes that may be used; by default half of what is free.
        mergeable: give sums of CKA that can be merged, at any cost that fits in memory.
        seed: of the split into parts, and of samples of rows.
        device: where matrix products are computed.
        progress: called with rows done, rows in all, and what is being done.

    Returns:
        One `Similarity` for each name, (K, K) or (K_a, K_b).

    Raises:
        MeasureError: an unknown measure, no rows, or a product that does not fit in `memory`.
        DataError: the two models' states are not of the same number of rows.

    Example:
        >>> import numpy as np
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> x = np.random.default_rng(0).normal(size=(200, 8))
        >>> results = similarities(ArrayStates({"h0": x, "h1": x @ np.diag(np.arange(8.0))}), ["cosine", "cka"])
        >>> results["cosine"].value[0, 1].round(2), results["cka"].value[0, 1].round(2)
        (np.float64(0.85), np.float64(0.75))
    """
    check_measures(measures)
    if states.count == 0:
        raise MeasureError("there are no rows to measure: expected at least one sample")
    allowed = available_memory() // 2 if memory is None else memory
    every, device = states if other is None else JoinedStates(states, other), torch.device(device)
    with usual_settings():
        read = ReportedStates(every, device, progress).during("mean").chunks(rows_per_chunk(every.widths, megabytes=8))
        location = locate(read, every.widths, epsilons(every))
        exponents = location.exponents(every.widths)
        if any(exponents):
            every, location = ScaledStates(every, exponents), location.scaled(exponents, every.widths)
        run = MeasureContext(
            states=ReportedStates(every, device, progress),
            location=location,
            exponents=exponents,
            first=None if other is None else len(states.widths),
            intervals_of_cka="cka" in measures,
            jackknife_groups=jackknife_groups,
            memory=allowed,
            mergeable=mergeable,
            seed=seed,
        )
        return {name: MEASURES[name].of(run) for name in measures}


_RIGID: frozenset[Invariance] = frozenset({"orthogonal", "scaling", "translation", "permutation"})

_MEASURES = (
    Measure(
        "cosine",
        "cosine",
        lambda run: cosine_similarity(run, centred=True),
        range=(-1, 1),
        invariances=frozenset({"scaling", "translation"}),
        interval="t over samples",
        source="Jiang, Zhou, Zhu 2025",
        about="Mean over samples of the cosine between a sample's states at two depths, each depth centred on its "
        "mean. It asks whether states point the same way.",
    ),
    Measure(
        "cosine_raw",
        "cosine, not centred",
        lambda run: cosine_similarity(run, centred=False),
        range=(-1, 1),
        invariances=frozenset({"scaling"}),
        interval="t over samples",
        source="Jiang, Zhou, Zhu 2025",
        about="The cosine without centring: what all samples share counts as well, and mostly raises it.",
    ),
    Measure(
        "cka",
        "CKA, debiased",
        lambda run: linear_cka(run, debiased=True),
        range=(-1, 1),
        invariances=_RIGID,
        interval="jackknife over samples",
        source="Kornblith et al. 2019; Song et al. 2012",
        about="Linear CKA, debiased. It asks whether two depths arrange the samples alike, whatever the rotation and "
        "scale.",
    ),
    Measure(
        "cka_biased",
        "CKA, biased",
        lambda run: linear_cka(run, debiased=False),
        range=(0, 1),
        invariances=_RIGID,
        source="Kornblith et al. 2019",
        about="The usual estimate of linear CKA. With few samples and wide states it is too high.",
    ),
    Measure(
        "cca",
        "mean CCA",
        _mean_cca,
        range=(0, 1),
        invariances=_RIGID | {"linear"},
        source="Hotelling 1936; Raghu et al. 2017",
        about="Mean canonical correlation: how well the best linear map predicts one depth from the other. Any "
        "invertible map counts as none.",
    ),
    Measure(
        "svcca",
        "SVCCA",
        svcca,
        range=(0, 1),
        invariances=_RIGID,
        source="Raghu et al. 2017",
        about="The same over the leading directions of each depth, those that hold 99 % of its variance.",
    ),
    Measure(
        "pwcca",
        "projection-weighted CCA",
        pwcca,
        range=(0, 1),
        invariances=_RIGID - {"orthogonal"},
        source="Morcos, Raghu, Bengio 2018",
        about="Canonical correlations weighted by how much of the row's depth they stand for; not symmetric.",
        symmetric=False,
    ),
    Measure(
        "procrustes",
        "Procrustes similarity",
        procrustes,
        range=(0, 1),
        invariances=_RIGID,
        source="Schönemann 1966; Ding et al. 2021; Williams et al. 2021",
        about="How far two depths coincide after the best rotation and scaling.",
    ),
    Measure(
        "rsa",
        "RSA",
        rsa,
        range=(-1, 1),
        invariances=_RIGID,
        interval="jackknife over samples",
        source="Kriegeskorte, Mur, Bandettini 2008",
        about="Rank correlation of all cosine distances between samples: whether two depths find the same pairs alike.",
    ),
    Measure(
        "knn",
        "mutual nearest neighbours",
        knn,
        range=(0, 1),
        invariances=_RIGID,
        source="Huh et al. 2024",
        about="Share of a sample's ten nearest neighbours that are its neighbours at the other depth, too.",
    ),
    Measure(
        "cka_rbf",
        "CKA, Gaussian kernel",
        cka_rbf,
        range=(-1, 1),
        invariances=_RIGID,
        interval="jackknife over samples",
        source="Kornblith et al. 2019; Song et al. 2012",
        about="CKA with a Gaussian kernel as wide as the median distance: near neighbours count more.",
    ),
    Measure(
        "cknna",
        "CKNNA",
        cknna,
        range=(-1, 1),
        invariances=_RIGID,
        source="Huh et al. 2024",
        about="CKA over pairs that are near neighbours at both depths.",
    ),
)

MEASURES: Mapping[str, Measure] = MappingProxyType({measure.name: measure for measure in _MEASURES})


def check_measures(measures: Sequence[str]) -> None:
    """Check that all measures have known names.

    Raises:
        MeasureError: one has not.

    Example:
        >>> check_measures(["cka", "ckaa"])
        Traceback (most recent call last):
        anydepth.errors.MeasureError: unknown measure 'ckaa', expected one of cosine, cosine_raw, cka, cka_biased, ...
    """
    if isinstance(measures, str):
        raise MeasureError(f"measures is the text {measures!r}, expected a list: measures=[{measures!r}]")
    for name in measures:
        choose(name, MEASURES, "measure", MeasureError)

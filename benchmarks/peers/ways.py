"""Every way that is measured to come by the measures that anydepth has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers import libraries
from peers.chain import DEPTHS, FileStates
from peers.references import pairs as all_pairs

PAIRS = list(all_pairs())
MEASURES = ("cosine", "cka", "cka_biased", "cca", "svcca", "pwcca", "procrustes", "rsa", "knn", "cka_rbf", "cknna")


@dataclass(frozen=True)
class Part:
    """What of the work is done, and what the whole takes: `factor` times as long."""

    pairs: tuple[libraries.Pair, ...]
    factor: float = 1.0
    words: str = ""


WHOLE = Part(tuple(PAIRS))


def some(count: int) -> Part:
    """Pairs spread over all; every pair takes as long as another."""
    chosen = np.linspace(0, len(PAIRS) - 1, count).round().astype(int)
    return Part(tuple(PAIRS[index] for index in chosen), len(PAIRS) / count, f"{count} of {len(PAIRS)} pairs, scaled")


FIRST_TWO = (0, 1)
TWO_DEPTHS = Part((FIRST_TWO,), DEPTHS / 2, f"2 of {DEPTHS} depths, scaled by depths: a lower bound")
TWO_KERNELS = Part((FIRST_TWO,), 90 / 5, f"2 of {DEPTHS} depths, 5 of 90 products of kernel matrices, scaled")
ONE_PAIR = Part((FIRST_TWO,), len(PAIRS), f"1 of {len(PAIRS)} pairs, scaled")


@dataclass(frozen=True)
class Way:
    """One way to come by a measure.

    Attributes:
        measure: ours, whose values these are or stand for.
        library: as the table calls it.
        run: what is timed, of the states in a file and some pairs of depths.
        definition: the reference of what it says it computes.
        difference: how that differs from ours, or why the value does, in a sentence.
        parts: what of the work is done at a size; all of it where nothing is said.
        needs: the module of a peer.
        bytes: of the largest array it makes for n rows, where that limits n.
        most: rows beyond which it is not run, for the reason `instead`.
    """

    measure: str
    library: str
    run: libraries.Adapter
    definition: str
    difference: str = ""
    parts: Callable[[int], Part] = lambda n: WHOLE
    needs: str | None = None
    bytes: Callable[[int], int] = lambda n: 0
    most: int | None = None
    instead: str = ""


def ours(*names: str) -> libraries.Adapter:
    def adapter(file: Path, pairs: Any) -> Callable[[], np.ndarray]:
        from anydepth.measures import similarities

        states = FileStates(file)
        return lambda: similarities(states, names, jackknife_groups=None)[names[0]].value

    return adapter


OURS = "**anydepth**"
FLOAT32 = "The same definition, in float32."
ANATOME, REPSIM, DEEP_REPS, CKATORCH = "anatome", "repsim", "deep-reps", "ckatorch"
REPSIM_STOPS = "three n × n × n products for each pair: 125 times as long as at n = 2,000"

WAYS = [
    *(Way(name, OURS, ours(name), name) for name in MEASURES),
    Way("all", f"{OURS}, all eleven in one call", ours(*MEASURES), "cosine"),
    Way("cosine", "torch, by hand", libraries.torch_cosine, "cosine", FLOAT32),
    Way(
        "cka",
        "pytorch-cka",
        libraries.pytorch_cka,
        "cka",
        "The same definition, from float32 sums of rows that are not centred.",
        needs="cka",
        bytes=lambda n: 2 * DEPTHS * n * n * 4,
    ),
    Way(
        "cka",
        ANATOME,
        libraries.anatome("linear_cka_distance", True),
        "cka",
        "Its denominator is not under a root, and mixes the two depths: no estimate of CKA.",
        needs="anatome",
    ),
    Way(
        "cka",
        CKATORCH,
        libraries.ckatorch("linear", unbiased=True),
        "cka",
        "",
        lambda n: some(12) if n <= 2000 else some(1),
        "ckatorch",
    ),
    Way(
        "cka",
        REPSIM,
        libraries.repsim("cka", "linear", "song"),
        "cka_mixed",
        "It divides the debiased HSIC of two depths by the biased ones of each: too low.",
        lambda n: TWO_KERNELS,
        "repsim",
        most=4000,
        instead=REPSIM_STOPS,
    ),
    Way("cka_biased", ANATOME, libraries.anatome("linear_cka_distance", False), "cka_biased", FLOAT32, needs="anatome"),
    Way(
        "cka_biased",
        CKATORCH,
        libraries.ckatorch("linear", unbiased=False),
        "cka_biased",
        "",
        lambda n: some(12) if n <= 2000 else some(1),
        "ckatorch",
    ),
    Way(
        "cka_biased",
        REPSIM,
        libraries.repsim("cka", "linear", "gretton"),
        "cka_biased",
        "",
        lambda n: TWO_KERNELS,
        "repsim",
        most=4000,
        instead=REPSIM_STOPS,
    ),
    Way(
        "cca",
        ANATOME,
        libraries.anatome_cca,
        "cca",
        "The mean of what its `cca` gives, in float32.",
        lambda n: WHOLE if n <= 2000 else some(22),
        "anatome",
    ),
    Way("cca", DEEP_REPS, libraries.deep_reps_cca("compute_standard_cca"), "cca", FLOAT32, needs="deep_reps"),
    Way(
        "cca",
        REPSIM,
        libraries.repsim("cca", "pillai"),
        "cca",
        "Its default, called Yanai's, is the mean of the squares ρ²; `pillai` is the mean of ρ.",
        lambda n: TWO_DEPTHS,
        "repsim",
    ),
    Way(
        "svcca",
        ANATOME,
        libraries.anatome("svcca_distance", 0.99, "svd"),
        "svcca_sums",
        "It keeps 99 % of the sum of the singular values, not of their squares, of rows that are not centred, less one "
        "direction.",
        lambda n: some(22),
        "anatome",
    ),
    Way(
        "svcca",
        DEEP_REPS,
        libraries.deep_reps_cca("compute_standard_svcca"),
        "svcca_over_width",
        "It divides the sum of the correlations by the width D, not by the number of directions kept.",
        needs="deep_reps",
    ),
    Way(
        "svcca",
        REPSIM,
        libraries.repsim("svcca", "pillai"),
        "svcca_whitened",
        "It whitens before it cuts, so that 99 % of the directions stay, whatever their variance (rounding decides "
        "which), and divides by D.",
        lambda n: TWO_DEPTHS,
        "repsim",
    ),
    Way(
        "pwcca",
        ANATOME,
        libraries.anatome_pwcca,
        "pwcca",
        "The same definition, weighted by the first argument, in float32; as published it stops at "
        "`torch.linalg.qr(input=…)`, a keyword mended here.",
        lambda n: some(22),
        "anatome",
    ),
    Way(
        "pwcca",
        REPSIM,
        libraries.repsim("pwcca"),
        "pwcca_mean",
        "The mean of the values weighted by either side.",
        lambda n: ONE_PAIR,
        "repsim",
    ),
    Way(
        "procrustes",
        ANATOME,
        libraries.anatome("orthogonal_procrustes_distance"),
        "procrustes",
        FLOAT32 + " Given as the distance 1 − value.",
        needs="anatome",
    ),
    Way(
        "procrustes",
        DEEP_REPS,
        libraries.deep_reps_procrustes,
        "procrustes",
        "Given as √(|X|² + |Y|² − 2 |XᵀY|_*), neither centred nor scaled: here it is given rows that are.",
        needs="deep_reps",
    ),
    Way(
        "procrustes",
        "scipy.spatial.procrustes",
        libraries.scipy_procrustes,
        "procrustes",
        "Given as the disparity 1 − value².",
        lambda n: WHOLE if n <= 2000 else some(22),
    ),
    Way(
        "rsa",
        "rsatoolbox, 2,000 rows",
        libraries.rsatoolbox,
        "rsa_of_correlations",
        "Its distance is the correlation within rows: it sees every row from its own mean, not from that of all rows.",
        needs="rsatoolbox",
    ),
    Way(
        "rsa",
        "scipy: `pdist` and `spearmanr`, 2,000 rows",
        libraries.scipy_rsa,
        "rsa",
        "Over the rows that ours draws, centred by hand.",
    ),
    Way(
        "knn",
        "platonic-universe",
        libraries.platonic_universe,
        "knn",
        "Not centred: here it is given rows that are.",
        lambda n: some(12) if n <= 2000 else some(2),
        "pu",
    ),
    Way(
        "knn",
        "scikit-learn, by hand",
        libraries.sklearn_knn,
        "knn",
        "Neighbours of each depth once, of centred rows of unit length; in float32, where near ones change places.",
    ),
    Way(
        "knn",
        DEEP_REPS,
        libraries.deep_reps_jaccard,
        "jaccard",
        "Jaccard's index |A ∩ B| / |A ∪ B|, of Euclidean neighbours.",
        lambda n: some(2) if n <= 2000 else some(1),
        "deep_reps",
    ),
    Way(
        "cka_rbf",
        CKATORCH,
        libraries.ckatorch("rbf", unbiased=True),
        "cka_rbf_diagonal",
        "Debiased too; its σ² is the median of all squared distances, a row's zero with itself among them.",
        lambda n: some(12) if n <= 2000 else some(1),
        "ckatorch",
    ),
    Way(
        "cka_rbf",
        REPSIM,
        libraries.repsim("cka", "rbf", "gretton"),
        "cka_rbf_biased",
        "The same kernel, with the biased estimator.",
        lambda n: TWO_KERNELS,
        "repsim",
        most=4000,
        instead=REPSIM_STOPS,
    ),
]

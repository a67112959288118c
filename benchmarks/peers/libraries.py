"""How other libraries come by the measures that anydepth has, each by its own public functions.

An adapter is given the states and the pairs of depths to measure, prepares what a user of the library would hold, and
returns what is timed: the values, as similarities, in a (K, K) matrix with NaN where nothing was measured. Where a
library leaves centring to its users, it is given centred rows, and centring is in its time.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from peers.chain import DEPTHS, depths

Pair = tuple[int, int]
Adapter = Callable[[Path, Sequence[Pair]], Callable[[], np.ndarray]]


def by_pairs(of: Callable[[Any, Any], float], states: Sequence[Any], pairs: Sequence[Pair]) -> np.ndarray:
    """One value for each pair, its other side left out."""
    value = np.full((DEPTHS, DEPTHS), np.nan)
    for k, other in pairs:
        value[k, other] = float(of(states[k], states[other]))
    return value


def centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(0, dtype=np.float64).astype(np.float32)


def tensors(file: Path) -> list[Any]:
    import torch

    return [torch.from_numpy(part) for part in depths(file)]


# anatome, published as ultimate-anatome --------------------------------------------------------------------------


def anatome_similarity() -> ModuleType:
    """`anatome.similarity`, without its author's utilities, which it imports but does not declare or use here."""
    for name in ("uutils", "uutils.torch_uu"):
        sys.modules[name] = ModuleType(name)
    sys.modules["uutils"].torch_uu = sys.modules["uutils.torch_uu"]  # type: ignore[attr-defined]
    return importlib.import_module("anatome.similarity")


def anatome(function: str, *arguments: Any, distance: bool = True) -> Adapter:
    def adapter(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
        of, states = getattr(anatome_similarity(), function), tensors(file)
        return lambda: by_pairs(lambda x, y: 1 - of(x, y, *arguments), states, pairs)

    return adapter


def anatome_cca(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    cca, states = anatome_similarity().cca, tensors(file)
    return lambda: by_pairs(lambda x, y: cca(x, y, "svd")[2].mean(), states, pairs)


def anatome_pwcca(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    """With the one keyword mended on which it fails: `torch.linalg.qr(input=...)`."""
    import torch

    qr = torch.linalg.qr
    torch.linalg.qr = lambda input: qr(input)  # type: ignore[assignment]
    return anatome("pwcca_distance_choose_best_layer_matrix", "svd")(file, pairs)


# repsim ----------------------------------------------------------------------------------------------------------


def repsim(function: str, *arguments: str) -> Adapter:
    """All pairs of the depths that the pairs name, since it takes no pairs."""

    def adapter(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
        import repsim

        wanted = sorted({depth for pair in pairs for depth in pair})
        of, parts = getattr(repsim, function), depths(file)
        states = [parts[depth] for depth in wanted]
        del parts

        def run() -> np.ndarray:
            value, found = np.full((DEPTHS, DEPTHS), np.nan), of(states, *arguments)
            value[np.ix_(wanted, wanted)] = found
            return value

        return run

    return adapter


# deep-reps -------------------------------------------------------------------------------------------------------


def deep_reps_module(name: str) -> Any:
    """A module of deep-reps by itself: the package as a whole imports itself in a circle, and open_clip."""
    if "deep_reps" not in sys.modules:
        found = importlib.util.find_spec("deep_reps")
        assert found is not None
        package = ModuleType("deep_reps")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["deep_reps"] = package
        package.get_knn_indices_and_ranks = importlib.import_module(  # type: ignore[attr-defined]
            "deep_reps.utils"
        ).get_knn_indices_and_ranks
    return importlib.import_module(f"deep_reps.{name}")


def deep_reps_cca(function: str) -> Adapter:
    def adapter(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
        of, states = getattr(deep_reps_module("cca_measures"), function), tensors(file)
        return lambda: by_pairs(of, states, pairs)

    return adapter


def deep_reps_procrustes(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    """A distance of rows that it neither centres nor scales: given rows of Frobenius norm 1, it is √(2 − 2 value)."""
    import torch

    of, states = deep_reps_module("alignment_measures").orthogonal_procrustes, depths(file)

    def run() -> np.ndarray:
        rows = [torch.from_numpy(centred(part)) for part in states]
        scaled = [part / torch.linalg.vector_norm(part, dtype=torch.float64).float() for part in rows]
        return by_pairs(lambda x, y: 1 - of(x, y) ** 2 / 2, scaled, pairs)

    return run


def deep_reps_jaccard(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    of, states = deep_reps_module("neighbors_measures").knn_jaccard_similarity, tensors(file)
    return lambda: by_pairs(lambda x, y: of(x, y, 10), states, pairs)


# Libraries for CKA -----------------------------------------------------------------------------------------------


def pytorch_cka(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    from cka import cka_from_features

    features = tensors(file)
    return lambda: cka_from_features(features, features).numpy()


def ckatorch(kernel: str, *, unbiased: bool) -> Adapter:
    def adapter(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
        from ckatorch import cka_base

        states = tensors(file)
        return lambda: by_pairs(lambda x, y: cka_base(x, y, kernel, unbiased), states, pairs)

    return adapter


# RSA -------------------------------------------------------------------------------------------------------------


def drawn(part: np.ndarray) -> np.ndarray:
    """The rows that ours ranks the pairs of."""
    from anydepth.measures import ArrayStates
    from anydepth.measures.engine.sample import Sample
    from anydepth.measures.rsa import RSA_ROWS

    ids = np.arange(len(part)).astype(np.float32)[:, None]
    return part[Sample(ArrayStates({"ids": ids}), RSA_ROWS, seed=0).ids]


def rsatoolbox(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    states = [drawn(part) for part in depths(file)]

    def run() -> np.ndarray:
        distances = calc_rdm([Dataset(part.astype(np.float64)) for part in states], method="correlation")
        return np.asarray(compare(distances, distances, method="spearman"))

    return run


def scipy_rsa(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    parts = depths(file)
    means = [part.mean(0, dtype=np.float64) for part in parts]
    states = [drawn(part) for part in parts]
    del parts

    def run() -> np.ndarray:
        distances = [pdist(part - mean, "cosine") for part, mean in zip(states, means, strict=True)]
        return np.asarray(spearmanr(np.stack(distances, axis=1)).statistic)

    return run


# By hand, from what everybody has --------------------------------------------------------------------------------


def torch_cosine(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    import torch

    states = depths(file)

    def run() -> np.ndarray:
        rows = [torch.from_numpy(centred(part)) for part in states]
        return by_pairs(lambda x, y: torch.nn.functional.cosine_similarity(x, y).mean(), rows, pairs)

    return run


def scipy_procrustes(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    from scipy.spatial import procrustes

    states = depths(file)
    return lambda: by_pairs(lambda x, y: (1 - procrustes(x, y)[2]) ** 0.5, states, pairs)


def sklearn_knn(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    """Neighbours of every depth once: of rows of unit length, Euclidean, which is the order of cosines."""
    from sklearn.neighbors import NearestNeighbors

    states = depths(file)

    def nearest(part: np.ndarray) -> np.ndarray:
        rows = centred(part)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        search = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(rows)
        return np.asarray(search.kneighbors(return_distance=False))

    def shared(first: np.ndarray, second: np.ndarray) -> float:
        return float((first[:, :, None] == second[:, None, :]).sum()) / first.size

    return lambda: by_pairs(shared, [nearest(part) for part in states], pairs)


def platonic_universe(file: Path, pairs: Sequence[Pair]) -> Callable[[], np.ndarray]:
    """Its `mknn` alone: the package as a whole imports astronomy, and its module a reader of tables."""
    package = importlib.util.find_spec("pu")
    assert package is not None
    assert package.origin is not None
    spec = importlib.util.spec_from_file_location("pu_metrics", Path(package.origin).parent / "metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["polars"] = ModuleType("polars")
    spec.loader.exec_module(module)
    del sys.modules["polars"]  # scikit-learn would ask it for its tables
    states = depths(file)

    def run() -> np.ndarray:
        rows = [centred(part) for part in states]
        return by_pairs(module.mknn, rows, pairs)

    return run

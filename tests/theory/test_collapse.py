"""Neural collapse and what updates write: against the definitions with whole covariances, and where all is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from naive_measures import Ragged

from anydepth.errors import MeasureError
from anydepth.measures.engine.states import ArrayStates
from anydepth.theory.collapse import Collapse, collapse
from anydepth.theory.updates import updates

K, C = 3, 4


def states_of(h: np.ndarray, cuts: tuple[int, ...] = ()) -> Ragged:
    return Ragged(list(h.transpose(1, 0, 2)), cuts)


def drawn(n: int, width: int, classes: int = C, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States (n, K, D) about class means that move apart with depth, float32 exactly, and labels of unequal number."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(2 * classes) % classes, rng.integers(0, classes, n) ** 2 // classes])[:n]
    centres = rng.normal(size=(classes, width))
    h = np.stack([scale * centres[labels] + rng.normal(size=(n, width)) + 5 for scale in (0.5, 1, 4)], axis=1)
    return h.astype(np.float32).astype(np.float64), labels


def by_hand(x: np.ndarray, labels: np.ndarray, weight: np.ndarray | None) -> tuple[float, float, float, float]:
    """Papyan et al. 2020, with each class counting alike."""
    classes = sorted(set(labels.tolist()))
    rows = {c: x[labels == c] for c in classes}
    means = np.array([rows[c].mean(0) for c in classes])
    about = means - means.mean(0)
    within = np.mean([np.cov(rows[c].T, bias=True).reshape(x.shape[1], -1) for c in classes], axis=0)
    between = np.mean([np.outer(one, one) for one in about], axis=0)
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)) / len(classes)
    norms = np.linalg.norm(about, axis=1)
    angles = [abs(about[a] @ about[b] / norms[a] / norms[b] + 1 / (len(classes) - 1)) for a, b in pairs(len(classes))]
    nc3 = np.nan
    if weight is not None:
        own = weight[classes] - weight[classes].mean(0)
        nc3 = ((own / np.linalg.norm(own) - about / np.linalg.norm(about)) ** 2).sum()
    return float(nc1), float(norms.std() / norms.mean()), float(np.mean(angles)), float(nc3)


def pairs(count: int) -> list[tuple[int, int]]:
    return list(combinations(range(count), 2))


def values(found: Collapse) -> np.ndarray:
    return np.stack([found.nc1, found.nc2_norm, found.nc2_angle, found.nc3], axis=1)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("n", "width", "classes"), [(80, 7, 4), (12, 30, 4), (60, 2, 5), (40, 1, 3), (30, 5, 2)])
def test_against_the_definitions(n: int, width: int, classes: int, weighted: bool) -> None:
    """Fewer rows than features, and more classes than features, among them."""
    h, labels = drawn(n, width, classes)
    weight = np.random.default_rng(3).normal(size=(classes, width)) + 2 if weighted else None
    found = collapse(states_of(h, (1, n // 2)), labels, weight)
    for depth in range(K):
        np.testing.assert_allclose(values(found)[depth], by_hand(h[:, depth], labels, weight), rtol=1e-6, atol=1e-9)
    assert found.classes == classes


def test_full_collapse_is_zero() -> None:
    simplex = np.random.default_rng(0).normal(size=(C, 9))
    simplex = np.linalg.qr(simplex.T)[0].T  # orthonormal: about their mean a simplex
    labels = np.arange(40) % C
    states = ArrayStates({"0": 3 * simplex[labels] + 1, "1": simplex[labels]})
    np.testing.assert_allclose(values(collapse(states, labels, 7 * simplex - 2)), 0, atol=1e-6)


def test_weights_that_point_the_other_way() -> None:
    simplex = np.eye(C) - 1 / C
    labels = np.arange(40) % C
    found = collapse(ArrayStates({"0": simplex[labels], "1": simplex[labels]}), labels, -simplex)
    np.testing.assert_allclose(found.nc3, 4, atol=1e-6)


def test_spread_of_a_known_size() -> None:
    """Rows at ± s in each of D directions about a simplex: tr Σ_W Σ_B⁺ / C is s² (C - 1) / C per unit of spread."""
    simplex, s = np.eye(C) - 1 / C, 0.25
    around = np.concatenate([np.eye(C), -np.eye(C)]) * s * np.sqrt(C)  # Σ_W = s² I
    h = (simplex[:, None] + around[None]).reshape(-1, C)
    labels = np.arange(C).repeat(2 * C)
    found = collapse(ArrayStates({"0": h, "1": 2 * h}), labels)
    # Σ_B = (I - 11ᵀ/C) / C, whose pseudo-inverse has trace C (C - 1)
    np.testing.assert_allclose(found.nc1, s**2 * (C - 1), rtol=1e-5)


def test_what_does_not_change_it() -> None:
    h, labels = drawn(50, 6)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    weight = np.random.default_rng(1).normal(size=(C, 6))
    plain = values(collapse(states_of(h), labels, weight))
    turned = values(collapse(states_of(3 * h @ rotation + 1), labels, 5 * weight @ rotation + 2))
    np.testing.assert_allclose(turned, plain, rtol=1e-4)
    often = np.arange(50).repeat(np.where(labels == 0, 4, 1))  # one class four times as often
    np.testing.assert_allclose(values(collapse(states_of(h[often]), labels[often], weight)), plain, rtol=1e-4)


def test_shuffled_labels_are_far_from_collapse() -> None:
    h, labels = drawn(400, 6)
    chance = collapse(states_of(h), np.random.default_rng(0).permutation(labels))
    assert (chance.nc1 > 10 * collapse(states_of(h), labels).nc1).all()


# --- what is undefined ------------------------------------------------------------------------------------------------


def test_a_class_that_does_not_occur() -> None:
    h, labels = drawn(60, 5)
    kept = labels != 2
    weight = np.random.default_rng(1).normal(size=(C, 5))
    found = collapse(states_of(h[kept]), labels[kept], weight)
    for depth in range(K):
        expected = by_hand(h[kept][:, depth], labels[kept], weight)
        np.testing.assert_allclose(values(found)[depth], expected, rtol=1e-6)
    assert found.notes == ("1 of 4 classes do not occur: collapse is of the others",)


def test_one_class_alone() -> None:
    h, _ = drawn(20, 5)
    found = collapse(states_of(h), np.zeros(20, int))
    assert np.isnan(values(found)).all()
    assert found.notes == ("only one class occurs: collapse is undefined",)


def test_constant_states() -> None:
    h, labels = drawn(40, 5)
    h[:, 0] = h[0, 0]
    found = collapse(states_of(h), labels)
    assert np.isnan(values(found)[0]).all()
    assert np.isfinite(values(found)[1:, :3]).all()
    assert found.notes == ("depth 0: the class means are the same, so that no collapse is defined",)


def test_classes_of_one_row() -> None:
    h, _ = drawn(C, 5)
    found = collapse(states_of(h), np.arange(C))
    np.testing.assert_allclose(found.nc1, 0, atol=1e-12)
    assert found.notes == ("4 of 4 classes have one row, which has no spread: NC1 is too low",)


def test_a_class_in_the_middle_has_no_angle() -> None:
    labels = np.arange(30) % 3
    line = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])[labels]
    found = collapse(ArrayStates({"0": line, "1": line}), labels)
    assert np.isnan(found.nc2_angle).all()
    assert found.nc2_norm == pytest.approx(np.sqrt(0.5))
    assert (
        found.notes[0] == "depth 0: a class lies at the mean of all classes, so that it has no angle with others (NC2)"
    )


@pytest.mark.parametrize(
    ("labels", "weight", "message"),
    [
        (np.zeros(4, int), None, "4 labels came for 20 rows"),
        (np.zeros(20, int), np.zeros((3, 4)), "weights of width 4 came for states of width 5"),
        (np.full(20, 3), np.zeros((3, 5)), "labels lie in 3..3, and there are 3 weights"),
    ],
)
def test_what_does_not_fit(labels: np.ndarray, weight: np.ndarray | None, message: str) -> None:
    h, _ = drawn(20, 5)
    with pytest.raises(MeasureError) as error:
        collapse(states_of(h), labels, weight)
    assert str(error.value).startswith(message)


def test_more_class_means_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anydepth.theory.collapse._MOST_BYTES", 400)
    h, labels = drawn(20, 5)
    with pytest.raises(MeasureError, match="the means of 4 classes take 480 bytes: expected fewer classes or rows"):
        collapse(states_of(h), labels)


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "width"), [(4, 9), (9, 4), (2, 5), (5, 5)])
def test_updates_against_projections(classes: int, width: int) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, K, width)).astype(np.float32).astype(np.float64)
    own, weight = rng.integers(0, classes, 30), rng.normal(size=(classes, width)) + 3
    found = updates(states_of(z, (11,)), own, weight)
    about = weight - weight.mean(0)
    projector = about.T @ np.linalg.pinv(about.T)
    shares = np.zeros((4, K - 1))
    for path, c in zip(z, own, strict=True):
        unit = about[c] / np.linalg.norm(about[c])
        for step, change in enumerate(np.diff(path, axis=0)):
            length = change @ change
            inside, along = change @ projector @ change / length, (change @ unit) ** 2 / length
            shares[:, step] += np.array([along, inside - along, 1 - inside, change @ unit > 0]) / 30
    for expected, one in zip(shares, (found.own, found.others, found.outside, found.towards), strict=True):
        np.testing.assert_allclose(one.value, expected, atol=1e-6)
    assert (found.rank, found.width) == (min(classes - 1, width), width)
    np.testing.assert_allclose(found.own.value + found.others.value + found.outside.value, 1)


def test_the_case_of_the_theorem() -> None:
    """Δ = δ w_k + η, η past all weights: nothing along others, and the shares are those of δ² and |η|²."""
    weight = np.concatenate([np.eye(3) - 1 / 3, np.zeros((3, 1))], axis=1)
    unit = weight[0] / np.linalg.norm(weight[0])
    z = np.zeros((1, 2, 4))
    z[0, 1] = 3 * unit + np.array([0, 0, 0, 4.0])
    found = updates(states_of(z), np.array([0]), weight)
    assert [one.value.item() for one in (found.own, found.others, found.outside, found.towards)] == pytest.approx(
        [9 / 25, 0, 16 / 25, 1], abs=1e-6
    )


def test_updates_without_aim() -> None:
    rng = np.random.default_rng(0)
    z, weight = rng.normal(size=(4000, 2, 8)), rng.normal(size=(4, 8))
    found = updates(states_of(z), rng.integers(0, 4, 4000), weight)
    assert found.own.low[0] < 1 / found.width < found.own.high[0]
    assert found.outside.value[0] == pytest.approx(1 - found.rank / found.width, abs=0.01)


def test_what_all_weights_share_is_seen_by_none() -> None:
    rng = np.random.default_rng(0)
    z, weight, own = rng.normal(size=(20, 2, 6)), rng.normal(size=(3, 6)), rng.integers(0, 3, 20)
    plain, moved = (updates(states_of(z), own, w) for w in (weight, weight + rng.normal(size=6)))
    np.testing.assert_allclose(plain.own.value, moved.own.value)
    np.testing.assert_allclose(plain.outside.value, moved.outside.value)


def test_updates_of_states_that_stay() -> None:
    found = updates(states_of(np.ones((5, 3, 4))), np.zeros(5, int), np.eye(4))
    assert np.isnan([one.value for one in (found.own, found.others, found.outside, found.towards)]).all()


def test_weights_that_are_all_alike_span_nothing() -> None:
    found = updates(states_of(np.random.default_rng(0).normal(size=(5, 2, 4))), np.zeros(5, int), np.ones((3, 4)))
    assert found.rank == 0
    assert (found.own.value, found.outside.value) == (0, 1)
    assert np.isnan(found.towards.value)


@pytest.mark.parametrize(
    ("classes", "weight", "message"),
    [
        (np.zeros(3, int), np.eye(5), "3 classes came for 20 rows"),
        (np.full(20, 5), np.eye(5), "classes lie in 5..5, and there are 5 weights"),
        (np.zeros(20, int), np.eye(4), "weights of width 4 came for features of width 5"),
    ],
)
def test_updates_that_do_not_fit(classes: np.ndarray, weight: np.ndarray, message: str) -> None:
    h, _ = drawn(20, 5)
    with pytest.raises(MeasureError) as error:
        updates(states_of(h), classes, weight)
    assert str(error.value).startswith(message)

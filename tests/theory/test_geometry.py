"""The way through the depths: against loops in float64 from the definitions, and where the answer is known."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged

from anydepth.errors import MeasureError
from anydepth.measures.engine.states import ArrayStates
from anydepth.stats.means import PARTS, Means
from anydepth.theory.closeness import closeness, log_probability
from anydepth.theory.geometry import Geometry, geometry
from anydepth.theory.paths import NULLS, Paths

N, K, D = 40, 6, 7


def states_of(h: np.ndarray, groups: np.ndarray | None = None, cuts: tuple[int, ...] = ()) -> Ragged:
    """(n, K, D) as states, in chunks that end at `cuts`."""
    return Ragged(list(h.transpose(1, 0, 2)), cuts, groups)


def some(n: int = N, depths: int = K, width: int = D, seed: int = 0) -> np.ndarray:
    """Paths that drift, in numbers that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(n, depths, width)).cumsum(1) + rng.normal(size=(depths, width))
    return h.astype(np.float32).astype(np.float64)


def cos(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def by_hand(path: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of one path (K, D), one after the other."""
    last, steps = len(path) - 1, np.diff(path, axis=0)
    lengths = np.array([np.sqrt(sum(x * x for x in step)) for step in steps])
    chord = path[-1] - path[0]
    triples = list(combinations(range(last + 1), 3))
    broken = [cos(path[k], path[m]) > min(cos(path[k], path[mid]), cos(path[mid], path[m])) for k, mid, m in triples]
    to_last = np.array([cos(state, path[-1]) for state in path])
    progress = np.array([(state - path[0]) @ chord / (chord @ chord) for state in path])
    nearest = [path[0] + t * chord for t in progress]
    behind = [lengths[:depth].sum() / lengths.sum() for depth in range(last + 1)]
    predicted = np.array([cos((1 - x) * path[0] + x * path[-1], path[-1]) for x in behind])
    return {
        "violations": np.mean(broken),
        "monotone": float(not any(broken)),
        "closer": (np.diff(to_last) > 0).astype(float),
        "straightness": np.linalg.norm(chord) / lengths.sum(),
        "turning": np.array([np.degrees(np.arccos(cos(a, b))) for a, b in pairwise(steps)]),
        "residual": np.array([np.linalg.norm(a - b) for a, b in zip(path, nearest, strict=True)])
        / np.linalg.norm(chord),
        "progress": progress,
        "step": lengths,
        "norm": np.linalg.norm(path, axis=1),
        "cosine": to_last,
        "predicted": predicted,
        "gap": np.abs(to_last - predicted)[1:-1].mean(),
    }


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("n", "depths", "width"), [(N, K, D), (5, 4, 30), (300, 3, 2), (2, 9, 4)])
def test_against_loops(n: int, depths: int, width: int, centred: bool) -> None:
    h = some(n, depths, width)
    found = geometry(states_of(h, cuts=(1, n // 2)), centred=centred)
    seen = h - h.mean(0) if centred else h
    rows = [by_hand(path) for path in seen]
    for name in rows[0]:
        expected = np.mean([row[name] for row in rows], axis=0)
        np.testing.assert_allclose(getattr(found, name).value, expected, rtol=1e-6, atol=1e-6, err_msg=name)


# --- where the answer is known ---------------------------------------------------------------------------------------


def test_a_straight_line() -> None:
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(2, N, 1, D))
    x = np.array([0, 0.1, 0.3, 0.7, 1])[None, :, None]
    found = geometry(states_of((1 - x) * ends[0] + x * ends[1]), centred=False)
    assert found.violations.value == 0
    assert found.monotone.value == 1
    assert found.straightness.value == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.turning.value, 0, atol=1e-3)  # degrees, of float32 states
    np.testing.assert_allclose(found.residual.value, 0, atol=1e-6)
    np.testing.assert_allclose(found.progress.value, x.ravel(), atol=1e-6)
    np.testing.assert_allclose(found.cosine.value, found.predicted.value, atol=1e-6)
    assert found.gap.value == pytest.approx(0, abs=1e-6)


def test_lines_seen_from_the_mean_are_lines() -> None:
    """Theorem 2.1 survives centring where all samples go at the same pace."""
    rng = np.random.default_rng(1)
    x = np.array([0, 0.2, 0.5, 1])[None, :, None]
    found = geometry(states_of((1 - x) * rng.normal(size=(N, 1, D)) + x * rng.normal(size=(N, 1, D)) + 3))
    assert (found.violations.value, found.straightness.value) == (0, pytest.approx(1, abs=1e-5))


def test_a_half_circle() -> None:
    """K points at equal angles: every turn is pi / L, the path L chords, the way along it (1 - cos) / 2."""
    angle = np.linspace(0, np.pi, K)
    plane = np.linalg.qr(np.random.default_rng(0).normal(size=(D, 2)))[0].T
    h = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane
    found = geometry(states_of(np.stack([h, 2 * h])), centred=False)
    last = K - 1
    np.testing.assert_allclose(found.turning.value, np.degrees(np.pi / last), rtol=1e-5)
    assert found.straightness.value == pytest.approx(2 / (last * 2 * np.sin(np.pi / last / 2)), rel=1e-6)
    np.testing.assert_allclose(found.progress.value, (1 - np.cos(angle)) / 2, atol=1e-6)
    np.testing.assert_allclose(found.residual.value, np.sin(angle) / 2, atol=1e-6)
    np.testing.assert_allclose(found.cosine.value, np.cos(angle - np.pi), atol=1e-6)
    np.testing.assert_allclose(found.norm.value, 1.5, rtol=1e-6)
    assert found.violations.value == 0  # along a half circle similarity falls off, too


def test_a_whole_circle_comes_back() -> None:
    angle = np.linspace(0, 2 * np.pi, 5)
    h = np.stack([np.cos(angle), np.sin(angle)], axis=1)[None].repeat(2, 0)
    h[:, -1] = h[:, 0]
    found = geometry(states_of(h), centred=False)
    assert found.straightness.value == 0
    assert np.isnan(found.progress.value).all()  # there is no chord to be on
    assert found.violations.value == 0.7  # worked out by hand below
    cosines = np.cos(angle[:, None] - angle)
    broken = [cosines[a, c] > min(cosines[a, b], cosines[b, c]) + 1e-9 for a, b, c in combinations(range(5), 3)]
    assert np.mean(broken) == 0.7


@pytest.mark.parametrize("null", [None, "random walk"])
def test_a_random_walk_in_many_dimensions(null: str | None) -> None:
    """Monotone without any line: cos(h_l, h_L) is √(l / L), turns are right angles, straightness is 1 / √L."""
    rng = np.random.default_rng(0)
    width, last = 4000, 4
    steps = rng.normal(size=(60, last, width))
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    h = np.concatenate([np.zeros((60, 1, width)), steps.cumsum(1)], axis=1)
    if null:  # of a straight line from the origin, of which it keeps nothing but the lengths
        h = np.arange(last + 1)[None, :, None] * steps[:, :1]
    found = geometry(states_of(h), centred=False, null=null and NULLS[null])
    share = np.arange(1, last + 1) / last
    np.testing.assert_allclose(found.cosine.value[1:], np.sqrt(share), atol=0.01)
    np.testing.assert_allclose(found.turning.value, 90, atol=0.5)
    assert found.straightness.value == pytest.approx(1 / np.sqrt(last), abs=0.01)
    np.testing.assert_allclose(found.residual.value[1:], np.sqrt(share * (1 - share)), atol=0.01)
    assert found.violations.value < 0.01  # which is why monotone similarity is no evidence of a line


# --- nulls -----------------------------------------------------------------------------------------------------------


def test_a_random_walk_keeps_the_start_and_the_lengths() -> None:
    h = some()
    walked = np.concatenate([path.numpy() for _, path in Paths(states_of(h), null=NULLS["random walk"], seed=3)])
    seen = h - h.mean(0)
    np.testing.assert_allclose(walked[:, 0], seen[:, 0], atol=1e-6)
    lengths = [np.linalg.norm(np.diff(one, axis=1), axis=2) for one in (walked, seen)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert not np.allclose(walked[:, 1], seen[:, 1])


def test_shuffling_keeps_the_ends_and_the_updates() -> None:
    h = some()
    mixed = np.concatenate([path.numpy() for _, path in Paths(states_of(h), null=NULLS["shuffled"], seed=3)])
    seen = h - h.mean(0)
    np.testing.assert_allclose(mixed[:, [0, -1]], seen[:, [0, -1]], atol=1e-5)
    orders = set()
    for one, other in zip(np.diff(mixed, axis=1), np.diff(seen, axis=1), strict=True):
        apart = np.linalg.norm(one[:, None] - other[None], axis=2)
        order = apart.argmin(1).tolist()
        assert sorted(order) == list(range(K - 1))
        assert apart.min(1).max() < 1e-5
        orders.add(tuple(order))
    assert len(orders) > N / 3, "each row is put in an order of its own"
    plain, null = geometry(states_of(h)), geometry(states_of(h), null=NULLS["shuffled"])
    assert null.straightness.value == pytest.approx(plain.straightness.value, rel=1e-5)


@pytest.mark.parametrize("name", NULLS)
def test_nulls_depend_on_the_seed_and_not_on_chunks(name: str) -> None:
    h = some()
    whole = geometry(states_of(h), null=NULLS[name], seed=1)
    cut = geometry(states_of(h, cuts=(1, 17, 18)), null=NULLS[name], seed=1)
    other = geometry(states_of(h), null=NULLS[name], seed=2)
    np.testing.assert_allclose(whole.residual.value, cut.residual.value, rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole.residual.value, other.residual.value, rtol=1e-3)


# --- what is undefined ------------------------------------------------------------------------------------------------


def test_a_first_depth_that_all_rows_share() -> None:
    """As under `first`: seen from the mean it is the origin, which has no direction and is a start all the same."""
    h = some()
    h[:, 0] = h[0, 0]
    found = geometry(states_of(h))
    assert np.isnan(found.cosine.value[0])
    assert np.isnan(found.predicted.value[0])
    assert found.norm.value[0] == 0
    assert np.isnan(found.closer.value[0])
    seen = (h - h.mean(0))[:, 1:]
    rest = [by_hand(path) for path in seen]
    for name in ("violations", "gap"):  # the line starts where there is a direction
        assert getattr(found, name).value == pytest.approx(np.mean([path[name] for path in rest]))
    np.testing.assert_allclose(found.predicted.value[1:], np.mean([path["predicted"] for path in rest], axis=0))
    assert found.notes == ("depth 0 is the same for every row: no similarity is defined there",)
    assert geometry(states_of(h), centred=False).notes == ()


def test_states_that_never_move() -> None:
    h = np.repeat(some(depths=1), 4, axis=1)
    found = geometry(states_of(h), centred=False)
    assert (found.violations.value, found.monotone.value) == (0, 1)  # all cosines are 1: no pair is more alike
    for name in ("straightness", "turning", "progress", "predicted", "gap"):
        assert np.isnan(getattr(found, name).value).all(), name
    np.testing.assert_allclose(found.step.value, 0)
    nowhere = geometry(states_of(np.ones((5, 3, 2))))
    assert np.isnan(nowhere.violations.value)
    assert np.isnan(nowhere.monotone.value)
    assert len(nowhere.notes) == 3


def test_two_depths_have_no_triple() -> None:
    found = geometry(states_of(some(depths=2)))
    assert np.isnan([found.violations.value, found.monotone.value, found.gap.value]).all()
    assert found.turning.value.shape == (0,)
    assert found.straightness.value == pytest.approx(1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"0": (3, 4)}, "depths of the widths (4,) came: a path needs at least two depths, all of one width"),
        ({"0": (3, 4), "1": (3, 5)}, "depths of the widths (4, 5) came: a path needs at least two depths"),
        ({"0": (0, 4), "1": (0, 4)}, "states without rows came: expected at least one"),
    ],
)
def test_what_is_no_path(arrays: dict[str, tuple[int, int]], message: str) -> None:
    with pytest.raises(MeasureError) as error:
        geometry(ArrayStates({name: np.zeros(shape) for name, shape in arrays.items()}))
    assert str(error.value).startswith(message)


def test_one_row_has_no_interval() -> None:
    found = geometry(states_of(some(n=1)), centred=False)
    assert np.isfinite(found.straightness.value)
    assert np.isnan(found.straightness.low)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_rotating_and_scaling_everything_changes_nothing_but_lengths(scale: float, seed: int) -> None:
    h, rng = some(n=12, seed=seed), np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(D, D)))[0]
    plain, other = geometry(states_of(h)), geometry(states_of(scale * h @ rotation))
    for name in Geometry.__dataclass_fields__:
        if name not in ("notes", "monotone", "closer", "violations"):  # which jump at ties
            factor = scale if name in ("step", "norm") else 1
            expected = factor * getattr(plain, name).value
            np.testing.assert_allclose(getattr(other, name).value, expected, rtol=2e-3, atol=1e-4, err_msg=name)


# --- intervals -------------------------------------------------------------------------------------------------------


def means_of(values: np.ndarray, groups: np.ndarray | None = None) -> Means:
    means = Means(len(values), groups)
    for part in np.array_split(values, 3):
        means.add({"x": torch.from_numpy(part)})
    return means


def test_the_interval_of_a_mean_is_students_over_samples() -> None:
    from anydepth.stats.intervals import t_interval

    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(90, 4)), rng.integers(0, 20, 90)
    for of in (None, groups):
        found = means_of(values, of).mean("x")
        np.testing.assert_allclose([found.low, found.high], t_interval(values, of))


def test_undefined_entries_play_no_part() -> None:
    from anydepth.stats.intervals import t_interval

    values = np.random.default_rng(0).normal(size=(50, 2))
    values[::3, 1] = np.nan
    found, counts = means_of(values).mean("x"), means_of(values).count("x")
    assert counts.tolist() == [50, 33]
    known = values[np.isfinite(values[:, 1]), 1:]
    np.testing.assert_allclose([found.low[1:], found.high[1:]], t_interval(known))


def test_the_interval_of_a_share_is_wilsons() -> None:
    from anydepth.stats.intervals import wilson

    values = np.array([[1.0, 1.0]] * 7 + [[0.0, 1.0]] * 3)
    found = means_of(values).share("x")
    np.testing.assert_allclose([found.low, found.high], wilson(np.array([7, 10]), 10))
    together = means_of(values.repeat(5, 0), np.arange(10).repeat(5)).share("x")
    assert (together.high - together.low > (found.high - found.low) * 0.999).all(), "five copies are no more evidence"


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_shares_of_rows_that_belong_together_are_covered(spread: float) -> None:
    """95 % ± 2 % of 1,000 draws of 60 samples with 1 to 9 rows each; at 1.5 the rows of a sample hang together."""
    rng, held, draws = np.random.default_rng(0), 0, 1000
    truth = float(np.mean(1 / (1 + np.exp(-1 - spread * np.random.default_rng(9).normal(size=10**6)))))
    for _ in range(draws):
        groups = np.arange(60).repeat(rng.integers(1, 10, 60))
        chance = 1 / (1 + np.exp(-1 - spread * rng.normal(size=60)))[groups]
        found = means_of((rng.random(len(groups)) < chance).astype(float)[:, None], groups).share("x")
        held += bool(found.low[0] <= truth <= found.high[0])
    assert 0.93 <= held / draws <= 0.97


def test_many_samples_share_parts() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5 * PARTS, 1))
    found, error = means_of(values).mean("x"), values.std(ddof=1) / np.sqrt(len(values))
    assert found.value[0] == pytest.approx(values.mean())
    assert (found.high - found.low)[0] == pytest.approx(2 * 1.96 * error, rel=0.08)


# --- Theorem 2.2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, np.arange(N) // 4])
@pytest.mark.parametrize("centred", [True, False])
def test_closeness_against_loops(centred: bool, groups: np.ndarray | None) -> None:
    h, rng = some(), np.random.default_rng(5)
    log_p = -rng.exponential(size=(N, K)).astype(np.float32)
    log_p[:, 2] = log_p[:, 1]  # a step in which no probability changes
    found = closeness(states_of(h, groups, cuts=(7,)), log_p, centred=centred)
    seen = h - h.mean(0) if centred else h
    counts, ups = np.zeros((2, K - 1)), np.zeros((2, K - 1))
    for path, chances in zip(seen, log_p, strict=True):
        for step in range(K - 1):
            before, after = cos(path[step], path[-1]), cos(path[step + 1], path[-1])
            if chances[step + 1] != chances[step]:
                counts[int(after < before), step] += 1
                ups[int(after < before), step] += chances[step + 1] > chances[step]
    assert found.counts.tolist() == counts.tolist()
    shares = np.divide(ups, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    for expected, one in zip(shares, (found.closer, found.farther), strict=True):
        known = np.isfinite(one.value)
        np.testing.assert_allclose(one.value[known], expected[known])
        assert np.isnan(expected[~known]).all()
    assert np.isnan(found.closer.value[1])
    for way, one in enumerate((found.all_closer, found.all_farther)):
        assert one.value == pytest.approx(ups[way, :-1].sum() / counts[way, :-1].sum())
        assert one.low < one.value < one.high


def test_where_the_theorem_holds_it_always_rises() -> None:
    """States at one direction plus something no weight sees, of equal norm: the theorem's own case."""
    x = np.linspace(0.1, 1, K)
    h = np.stack([x, np.sqrt(1 - x**2)], axis=1)[None].repeat(9, 0)
    found = closeness(states_of(h), np.log(np.tile(x, (9, 1))), centred=False)
    assert found.closer.value.tolist() == [1.0] * (K - 1)
    assert np.isnan(found.farther.value).all()


def test_log_probabilities_near_one_are_not_lost() -> None:
    logits = torch.randn(20, 6, dtype=torch.float64) * 20
    classes = torch.arange(20) % 6
    expected = torch.log_softmax(logits, 1)[torch.arange(20), classes]
    torch.testing.assert_close(log_probability(logits, classes), expected, rtol=1e-9, atol=1e-12)
    assert log_probability(torch.tensor([[60.0, 0.0]]), torch.tensor([0])) < 0


def test_probabilities_of_other_rows_are_refused() -> None:
    with pytest.raises(MeasureError, match=r"log-probabilities have shape \(40, 5\): expected one for each of the 40"):
        closeness(states_of(some()), np.zeros((N, K - 1)))

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.errors import ObjectiveError
from anydepth.training.depth_weights import WEIGHTS, sampled, sampling, weights_of


@st.composite
def exits(draw: st.DrawFn) -> tuple[list[int], int]:
    """Some depths of a model, in any order, and its L."""
    depth = draw(st.integers(1, 40))
    chosen = draw(st.lists(st.integers(1, depth), min_size=1, unique=True))
    return chosen, depth


@given(exits())
def test_linear_is_the_formula_for_any_subset_and_order(case: tuple[list[int], int]) -> None:
    depths, depth = case
    found = weights_of("linear", depths, depth)
    assert list(found) == depths
    for one in depths:
        assert found[one] == pytest.approx(float(Fraction(one, sum(depths))), rel=1e-12)
    assert math.fsum(found.values()) == pytest.approx(1, rel=1e-12)


@given(st.integers(1, 200))
def test_linear_over_all_depths_is_the_papers(depth: int) -> None:
    found = weights_of("linear", range(1, depth + 1), depth)
    assert all(found[one] == pytest.approx(2 * one / (depth * (depth + 1)), rel=1e-12) for one in found)


@given(exits())
def test_the_other_names(case: tuple[list[int], int]) -> None:
    depths, depth = case
    assert set(weights_of("uniform", depths, depth).values()) == {1 / len(depths)}
    if depth in depths:
        assert weights_of("final", depths, depth) == {one: float(one == depth) for one in depths}
        added, plain = weights_of("additive", depths, depth), weights_of("linear", depths, depth)
        assert added == plain | {depth: 1.0}


def test_numbers_keep_the_order_of_the_exits() -> None:
    assert weights_of([3, 1, 0.5], [6, 2, 4], 6) == {6: 3.0, 2: 1.0, 4: 0.5}
    assert weights_of(lambda one, depth: one / depth, [2, 4], 4) == {2: 0.5, 4: 1.0}


@pytest.mark.parametrize(
    ("weights", "depths", "message"),
    [
        (
            "linaer",
            [1, 2],
            "unknown weights 'linaer', expected one of linear, uniform, final, additive, or numbers: "
            "did you mean linear?",
        ),
        ([1.0], [1, 2], "there are 1 weights for 2 exits, expected one for each"),
        ([1.0, -0.5], [1, 2], "the weight of depth 2 is -0.5, expected a number from 0 on"),
        ([float("nan"), 1.0], [1, 2], "the weight of depth 1 is nan, expected a number from 0 on"),
        ([1.0, math.inf], [1, 2], "the weight of depth 2 is inf, expected a number from 0 on"),
        ([0, 0], [1, 2], "every exit of [1, 2] has the weight 0: nothing would be trained"),
        ("final", [1, 2], "every exit of [1, 2] has the weight 0: nothing would be trained"),
        ("linear", [0, 1], "exits are [0, 1], expected depths among 1..3, each once"),
        ("linear", [4], "exits are [4], expected depths among 1..3, each once"),
        ("linear", [2, 2], "exits are [2, 2], expected depths among 1..3, each once"),
        ("linear", [], "exits are [], expected depths among 1..3, each once"),
    ],
)
def test_what_makes_no_sense(weights: object, depths: list[int], message: str) -> None:
    with pytest.raises(ObjectiveError) as caught:
        weights_of(weights, depths, 3)  # type: ignore[arg-type]
    assert str(caught.value) == message


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=12).filter(lambda w: sum(w[:-1]) > 1e-6), st.integers(0, 9))
def test_a_draw_stands_for_all_shallow_depths(numbers: list[float], step: int) -> None:
    depth = len(numbers)
    weights = dict(enumerate(numbers, start=1))
    shares = sampling(weights, depth)
    drawn = sampled(weights, depth, seed=3, step=step)
    assert math.fsum(shares.values()) == pytest.approx(1)
    assert set(shares) == {one for one in range(1, depth) if weights[one]}
    (chosen,) = set(drawn) - {depth}
    assert drawn[depth] == weights[depth]
    # by enumeration: what a draw weighs times its probability is the weight it stands for
    assert drawn[chosen] * shares[chosen] == pytest.approx(weights[chosen], rel=1e-9)


def test_draws_follow_their_probabilities_and_nothing_but_seed_and_step() -> None:
    weights = {1: 0.1, 2: 0.3, 3: 0.6}
    draws = [min(sampled(weights, 3, seed=5, step=step)) for step in range(2000)]
    assert draws == [min(sampled(weights, 3, seed=5, step=step)) for step in range(2000)]
    assert draws != [min(sampled(weights, 3, seed=6, step=step)) for step in range(2000)]
    assert draws.count(1) / len(draws) == pytest.approx(0.25, abs=0.04)  # four standard errors
    runs = [len(list(group)) for _, group in itertools.groupby(draws)]
    assert max(runs) < 60, "neighbouring steps draw alike"


def test_nothing_to_draw_leaves_the_weights() -> None:
    assert sampled({3: 1.0}, 3, seed=0, step=0) == {3: 1.0}
    assert sampled({1: 0.0, 3: 1.0}, 3, seed=0, step=0) == {1: 0.0, 3: 1.0}


def test_every_name_has_its_purpose() -> None:
    assert all(function.__doc__ for function in WEIGHTS.values())

"""What generating costs and what it would save: formulas against enumeration, fits against known costs, real steps."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import BLOCKS, greedy, prompts, speaker

from anydepth.core.stack import Stack
from anydepth.errors import GenerationError
from anydepth.generation.costs import (
    DecodeCosts,
    _fitted,
    acceptance_by_depth,
    advise,
    best_draft,
    measure_decode_costs,
    tokens_per_round,
)

COSTS = DecodeCosts(
    last=8, context=50, start=0.5, block=1.0, block_several=0.3, block_more=0.2, head=2.0, head_more=0.1, fill=0.25
)


@given(st.floats(0, 1), st.integers(1, 6))
def test_tokens_of_a_round_are_their_expectation(chance: float, length: int) -> None:
    """Over every way in which drafts can be accepted or not, each on its own."""
    expected = 0.0
    for accepted in product([True, False], repeat=length):
        likely = np.prod([chance if one else 1 - chance for one in accepted])
        kept = next((place for place, one in enumerate(accepted) if not one), length)
        expected += likely * (kept + 1)
    assert tokens_per_round(chance, length) == pytest.approx(expected)


def test_a_round_costs_what_its_forwards_do() -> None:
    """Three drafts at depth 2 of 8: four shallow forwards, three of them read out, and one deep one on four tokens."""
    shallow = 4 * (0.5 + 2 * 1.0) + 3 * 2.0
    deep = 0.5 + 6 * (1.0 + 0.3 + 3 * 0.2) + 2.0 + 3 * 0.1
    plain = 0.5 + 8 * 1.0 + 2.0
    assert COSTS.token == pytest.approx(plain)
    assert COSTS.speculative(2, 3, 1.0) == pytest.approx(4 * plain / (shallow + deep))
    assert COSTS.speculative(2, 3, 0.0) == pytest.approx(plain / (shallow + deep))
    assert COSTS.at_depth(3) == pytest.approx(plain / (0.5 + 3 * 1.0 + 2.0))


def test_dynamic_exit_costs_its_tests_and_the_cache() -> None:
    at_three = 3 * 1.0 + 5 * 0.25 + (0.5 + 2.0)
    at_six = 6 * 1.0 + 2 * 0.25 + 2 * (0.5 + 2.0)
    at_last = 8 * 1.0 + 3 * (0.5 + 2.0)
    found = COSTS.dynamic([3, 6, 8, 8], [3, 6])
    assert found == pytest.approx(4 * COSTS.token / (at_three + at_six + 2 * at_last))


@given(st.lists(st.floats(0, 1), min_size=7, max_size=7))
def test_the_best_draft_is_the_best_of_all(acceptance: list[float]) -> None:
    found = best_draft(COSTS, acceptance)
    ways = [COSTS.speculative(k, g, a) for k, a in enumerate(acceptance, 1) for g in range(1, 17)]
    assert found.speedup == pytest.approx(max(1.0, *ways))
    if found.depth is None:
        assert max(ways) <= 1
        assert "no draft depth pays" in str(found)
    else:
        assert COSTS.speculative(found.depth, found.length, acceptance[found.depth - 1]) == found.speedup


@settings(deadline=None)  # the first import of scipy's optimizers is slow
@given(st.tuples(*[st.floats(0.1, 10)] * 6))
def test_costs_are_found_from_the_times_they_make(parts: tuple[float, ...]) -> None:
    names = ("start", "block", "block_several", "block_more", "head", "head_more")
    known = DecodeCosts(last=8, context=50, **dict(zip(names, parts, strict=True)))
    kinds = [
        (8, 1, 1),
        (8, 1, 0),
        (4, 1, 1),
        (4, 1, 0),
        (1, 1, 0),
        (8, 2, 2),
        (8, 2, 0),
        (8, 9, 9),
        (8, 9, 0),
        (4, 9, 9),
    ]
    times = np.array([known.forward(blocks, tokens=tokens, read=read) for blocks, tokens, read in kinds])
    found = _fitted(kinds, times, 8, 50)
    assert [getattr(found, name) for name in names] == pytest.approx(parts, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_acceptance_is_what_truncated_models_would_have_said(name: str) -> None:
    """Each depth asked for one token at a time, by `generate` at that depth."""
    from anydepth.generation import at_depth

    model = speaker(name)
    starts = prompts(3)
    texts = [greedy(model, start, 6) for start in starts]
    right, modes = np.zeros(BLOCKS - 1), {depth: at_depth(depth) for depth in range(1, BLOCKS)}
    for start, text in zip(starts, texts, strict=True):
        for end in range(start.shape[1], text.shape[1]):
            for depth, mode in modes.items():
                said = greedy(model, text[:, :end], 1, mode)
                right[depth - 1] += int(said[0, -1] == text[0, end])
    found = acceptance_by_depth(Stack(model), texts, [start.shape[1] for start in starts])
    assert found == pytest.approx(right / 18)


def test_measured_costs_are_positive_and_add_up() -> None:
    model = speaker("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs = measure_decode_costs(Stack(model), torch.randint(5, 20, (1, 24)), rounds=5)
    assert costs.last == BLOCKS
    assert costs.block > 0
    assert costs.token > costs.forward(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_advice_says_how_it_came_to_it() -> None:
    found = advise(speaker("gpt2"), prompts(2), new_tokens=8)
    assert len(found.acceptance) == BLOCKS - 1
    assert "blocks" in str(found)
    assert (found.depth is None) == (found.speedup == 1.0)


def test_nothing_to_measure_on() -> None:
    with pytest.raises(GenerationError, match="no prompt to measure on"):
        advise(speaker("gpt2"), [])
    with pytest.raises(GenerationError, match="a text of 3 tokens is too short"):
        measure_decode_costs(Stack(speaker("gpt2")), torch.tensor([[5, 6, 7]]))

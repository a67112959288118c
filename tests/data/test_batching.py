"""Texts sorted by length: less padding, and every result as in the order of the data."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import checkpoints
import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import same

import anydepth as ad
from anydepth import data
from anydepth.data.batching import Batches, by_length
from anydepth.early_exit.classifier import EarlyExit
from anydepth.errors import IncompatibleTraces
from anydepth.exits.policies import Convergence
from anydepth.models import loading as models
from anydepth.theory.observation import observe

SIZE, COUNT = 4, 42


def batches(root: Path, folder: Path, **columns: list[int]) -> Batches:
    """Texts of 1 to 20 words, in batches that are sorted six at a time."""
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(checkpoints.WORDS, size=rng.integers(1, 21))) for _ in range(COUNT)]
    datasets.Dataset.from_dict({"text": texts, **columns}).save_to_disk(root / "texts")
    ready = data.batches(data.load(str(root / "texts")), models.load(str(folder), device="cpu"), batch_size=SIZE)
    return replace(ready, sorted_batches=6)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    root = tmp_path_factory.mktemp("reviews")
    folder = checkpoints.bert(root / "bert", num_labels=2, initializer_range=0.5)
    return batches(root, folder, label=[index % 2 for index in range(COUNT)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    root = tmp_path_factory.mktemp("corpus")
    return batches(root, checkpoints.gpt2(root / "gpt2", initializer_range=0.5))


def in_order(ready: Batches) -> Batches:
    return replace(ready, sorted_batches=1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 7))
def test_each_sample_once_and_batches_of_neighbours_in_length(lengths: list[int], size: int) -> None:
    batches = by_length(np.array(lengths), size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert len(batches[0]) == min(size, len(lengths))
    spans = sorted((min(part), max(part)) for part in ([lengths[index] for index in batch] for batch in batches))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_the_first_batch_is_full_and_of_the_mean_length() -> None:
    lengths = np.random.default_rng(0).permutation(103)
    assert abs(lengths[by_length(lengths, 10)[0]].mean() - lengths.mean()) <= 5


def test_less_is_padding_and_the_samples_are_the_same(reviews: Batches) -> None:
    def computed(ready: Batches) -> tuple[dict[int, list[int]], int]:
        tokens, positions = {}, 0
        for batch in ready:
            positions += batch["input_ids"].numel()
            for number, ids, mask in zip(batch.numbers, batch["input_ids"], batch["attention_mask"], strict=True):
                tokens[int(number)] = ids[mask.bool()].tolist()
        return tokens, positions

    (tokens, positions), (expected, before) = computed(reviews), computed(in_order(reviews))
    assert tokens == expected
    real = sum(map(len, tokens.values()))
    assert positions / real < 1.15 < before / real
    assert [batch.numbers.tolist() for batch in in_order(reviews)][:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("kind", ["reviews", "corpus"])
def test_a_trace_is_the_same_but_for_rounding(kind: str, request: pytest.FixtureRequest) -> None:
    ready: Batches = request.getfixturevalue(kind)
    settings = {"measures": ("cosine", "cka", "rsa"), "positions": 3 if kind == "corpus" else None, "seed": 1}
    traced, expected = (ad.trace(ready.model.model, each, **settings) for each in (ready, in_order(ready)))
    assert traced.ids == expected.ids
    same(traced, expected, tolerance=2e-5)  # intervals, too: the same samples make the same parts
    assert np.array_equal(traced.rows.sample, expected.rows.sample)


def test_kept_states_and_theory_are_in_the_order_of_the_data(reviews: Batches, tmp_path: Path) -> None:
    kept = [
        ad.trace(reviews.model.model, each, measures=(), out=tmp_path / name, keep_states=True).states
        for name, each in (("sorted", reviews), ("before", in_order(reviews)))
    ]
    assert kept[0].groups is kept[1].groups is None
    np.testing.assert_allclose(kept[0].rows(np.arange(COUNT)), kept[1].rows(np.arange(COUNT)), atol=2e-5)
    stack, observed = ad.Stack(reviews.model.model), []
    for name, each in (("a", reviews), ("b", in_order(reviews))):
        (tmp_path / name).mkdir()
        observed.append(observe(stack, each, tmp_path / name))
    for first, second in ((each.states, each.features) for each in observed):
        assert first.groups is second.groups is None
    assert observed[0].labels.tolist() == observed[1].labels.tolist() == [index % 2 for index in range(COUNT)]
    assert observed[0].final.tolist() == observed[1].final.tolist()
    for name in ("true", "final"):
        np.testing.assert_allclose(*(each.log_probability[name] for each in observed), atol=2e-5)
    for size in (5, COUNT):
        rows = (np.concatenate([part.numpy() for part in each.features.chunks(size)]) for each in observed)
        np.testing.assert_allclose(*rows, atol=2e-5)


def test_what_a_policy_reads_is_in_the_order_of_the_data(reviews: Batches) -> None:
    exits = EarlyExit(reviews.model.model, Convergence(0.9))
    inputs, expected = (exits.look(each, labels=True) for each in (reviews, in_order(reviews)))
    assert inputs.labels.tolist() == expected.labels.tolist() == [index % 2 for index in range(COUNT)]
    assert np.array_equal(inputs.digests, expected.digests)
    np.testing.assert_allclose(inputs.seen, expected.seen, atol=2e-5)


def test_a_pass_in_the_older_order_is_not_gone_on_with(reviews: Batches, tmp_path: Path) -> None:
    def interrupted(done: int, total: int | None, what: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ad.trace(reviews.model.model, in_order(reviews), out=tmp_path, progress=interrupted)
    with pytest.raises(IncompatibleTraces, match="of a version that did not sort texts by length"):
        ad.trace(reviews.model.model, reviews, out=tmp_path)
    assert len(ad.trace(reviews.model.model, reviews, out=tmp_path, resume=False).ids) == COUNT

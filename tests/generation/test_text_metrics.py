"""Repetition, diversity and coherence against plain loops, the script they come from, and their laws."""

import re
from itertools import pairwise

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from text_rates import diversity, repetition
from tiny_tokenizer import text, tokenizer

from anydepth.errors import DataError, ModelError
from anydepth.generation.text_metrics import coherence, embed
from anydepth.models.loaded import LoadedModel

words = st.text("ab ", max_size=40)
texts_of_words = st.lists(words, min_size=1, max_size=6)


def naive_repetition(texts, n):
    different, total = 0, 0
    for one in texts:
        own = one.split()
        seen = []
        for start in range(len(own) - n + 1):
            gram = own[start : start + n]
            total += 1
            if gram not in seen:
                seen.append(gram)
        different += len(seen)
    return 1 - different / total if total else np.nan


def script(texts):
    """SimCTG's, as it counts: the last n-gram of a text is missed, shares are percentages of two decimals."""
    found = {}
    for n in (2, 3, 4):
        different, total = 0, 0
        for one in texts:
            own, end, seen = one.strip().split(), n, set()
            while end < len(own):
                seen.add(" ".join(own[end - n : end]))
                total += 1
                end += 1
            different += len(seen)
        found[n] = round(100 * (1 - different / total), 2)
    return found, np.prod([1 - one / 100 for one in found.values()])


@given(texts_of_words, st.integers(1, 5))
def test_repetition_is_that_of_a_plain_loop(texts, n):
    np.testing.assert_allclose(repetition(texts, n), naive_repetition(texts, n), atol=1e-12)


@given(texts_of_words)
def test_diversity_is_the_product(texts):
    expected = np.prod([1 - naive_repetition(texts, n) for n in (2, 3, 4)])
    np.testing.assert_allclose(diversity(texts), expected, atol=1e-12)
    assert np.isnan(expected) or 0 <= diversity(texts) <= 1


def test_the_script_counts_the_same_but_for_each_text_s_last_n_gram():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefg"), size=40)) for _ in range(20)]
    longer = [f"{one} end{place}" for place, one in enumerate(texts)]  # what is last there is not counted
    found, product = script(longer)
    for n in (2, 3, 4):
        assert repetition(texts, n) == pytest.approx(found[n] / 100, abs=5.1e-5)
    assert diversity(texts) == pytest.approx(product, abs=2e-4)


@given(texts_of_words, st.randoms(use_true_random=False))
def test_the_order_of_texts_and_how_often_they_come_change_nothing(texts, random):
    mixed = random.sample(texts, len(texts))
    np.testing.assert_allclose(diversity(mixed), diversity(texts), atol=1e-12)
    np.testing.assert_allclose(diversity(texts * 3), diversity(texts), atol=1e-12)  # counted within each text


def test_what_repeats_in_another_text_is_no_repetition():
    assert repetition(["a b c", "a b c"], 2) == 0
    assert repetition(["a b c a b c"], 2) == pytest.approx(0.4)
    assert diversity(["a b c d e f"]) == 1


def test_a_word_again_and_again():
    assert repetition(["no " * 10], 2) == pytest.approx(1 - 1 / 9)
    assert diversity(["no " * 10]) == pytest.approx(1 / 9 / 8 / 7)


@given(st.lists(words, max_size=4))
def test_longer_n_grams_repeat_no_more_of_a_text(texts):
    for one in texts:
        repeated = [naive_repetition([one], n) * max(len(one.split()) - n + 1, 0) for n in (1, 2, 3, 4)]
        known = [value for value in repeated if np.isfinite(value)]
        assert all(longer <= shorter + 1e-9 for shorter, longer in pairwise(known))


@pytest.mark.parametrize("texts", [[], [""], ["one two three"]])
def test_too_few_words_are_nothing_to_tell_of(texts):
    assert np.isnan(diversity(texts))
    assert np.isnan(repetition(texts, 4))


def test_white_space_separates_words_and_nothing_else_does():
    assert repetition(["a  b\n\ta b"], 2) == pytest.approx(1 / 3)
    assert repetition(["a, b A b"], 2) == 0


# --- coherence -------------------------------------------------------------------------------------------------------


def encoder(name="bert", **settings):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(tiny_models._text_config(name, tiny_models.ENCODERS[name])).eval()
    return LoadedModel(
        model=model, processor=tokenizer(framed=True), kind="text", task="features", name=name, **settings
    )


TEXTS = [text(length, seed) for seed, length in enumerate((9, 3, 1, 6, 5))]


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_a_text_s_vector_is_that_of_its_own_unpadded_states(name, pooling):
    found = encoder(name)
    got = embed(TEXTS, found, pooling=pooling, batch=2)
    for row, one in zip(got, TEXTS, strict=True):
        ids = found.processor(one, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = found.model(input_ids=ids).last_hidden_state[0].double().numpy()
        expected = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_batches_change_nothing():
    one, all_ = (embed(TEXTS, encoder(), batch=size) for size in (1, 32))
    np.testing.assert_allclose(one, all_, atol=1e-6)


def test_coherence_is_the_cosine():
    found = encoder()
    a, b = embed(TEXTS, found), embed(TEXTS[::-1], found)
    expected = [x @ y / np.sqrt(x @ x) / np.sqrt(y @ y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(coherence(TEXTS, TEXTS[::-1], found), expected, atol=1e-9)
    np.testing.assert_allclose(coherence(TEXTS, TEXTS, found), 1, atol=1e-9)


def test_a_blank_continuation_is_about_nothing():
    got = coherence(TEXTS[:3], [TEXTS[0], "", " \n"], encoder())
    assert got[0] == pytest.approx(1)
    assert np.isnan(got[1:]).all()


def test_a_long_text_is_cut_to_what_the_encoder_takes():
    found = encoder(max_length=6)
    whole = text(20)
    np.testing.assert_allclose(embed([whole], found), embed([" ".join(whole.split()[:4])], found), atol=1e-6)


def test_the_encoder_is_left_as_it_was():
    found = encoder()
    found.model.train()
    first, second = embed(TEXTS, found), embed(TEXTS, found)
    np.testing.assert_array_equal(first, second)  # no dropout
    assert found.model.training


@pytest.mark.parametrize(
    ("pooling", "says"),
    [
        ("each", "pooling 'each' gives a vector for each token, expected first, last or mean"),
        ("max", "unknown token policy 'max', expected one of first, last, each, mean"),
    ],
)
def test_unknown_pooling(pooling, says):
    with pytest.raises(DataError, match=says):
        embed(TEXTS, encoder(), pooling=pooling)


def test_what_is_no_encoder_is_refused():
    model, _ = tiny_models.build("bert")
    found = LoadedModel(
        model=model, processor=tokenizer(framed=True), kind="text", task="text-classification", name="judge"
    )
    says = "'judge' gives no last_hidden_state, expected a text encoder: load it for its features"
    with pytest.raises(ModelError, match=says):
        embed(TEXTS, found)
    eye = LoadedModel(model=tiny_models.build("vit")[0], processor=None, kind="image", task="features", name="eye")
    with pytest.raises(ModelError, match="'eye' takes no text, expected a text encoder"):
        embed(TEXTS, eye)


def test_one_continuation_for_each_prefix():
    with pytest.raises(DataError, match=re.escape("1 continuations came for 2 prefixes, expected one for each")):
        coherence(["a", "b"], ["c"], encoder())

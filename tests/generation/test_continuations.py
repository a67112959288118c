"""Texts cut in two, gone on with at a depth, and told of with intervals that hold."""

import math
import re

import numpy as np
import pytest
import tiny_models
import torch
from text_rates import diversity, repetition
from tiny_tokenizer import ids_of, text, tokenizer
from tokenizers import processors

import anydepth
from anydepth.errors import DataError, GenerationError
from anydepth.generation import continuations as module
from anydepth.generation.continuations import Passages, continuing, text_metrics
from anydepth.models.loaded import LoadedModel

TEXTS = [text(20, seed) for seed in range(5)]


def starting():
    """A tokenizer that puts a start token."""
    found = tokenizer()
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 1)]
    )
    return found


def language_model(name="gpt2", **settings):
    return LoadedModel(
        model=tiny_models.build(name)[0], processor=tokenizer(), kind="text", task="causal-lm", name=name, **settings
    )


# --- cutting ---------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_in_two():
    found = Passages.of([*TEXTS, text(9)], tokenizer(), prefix=4, continuation=6)
    assert len(found) == 5
    assert found.ids.tolist() == [ids_of(one)[:4].tolist() for one in TEXTS]
    for one, prefix, continuation in zip(TEXTS, found.prefixes, found.continuations, strict=True):
        words = one.split()
        assert (prefix.split(), continuation.split()) == (words[:4], words[4:10])
    assert found.notes == ("1 of 6 texts are too short and left out",)
    assert Passages.of(TEXTS, tokenizer(), prefix=4, continuation=16).notes == ()


def test_a_start_token_comes_first_and_is_no_part_of_the_text():
    found = Passages.of(TEXTS, starting(), prefix=4, continuation=6)
    assert found.ids.tolist() == [[1, *ids_of(one)[:4].tolist()] for one in TEXTS]
    assert found.prefixes[0].split() == TEXTS[0].split()[:4]


@pytest.mark.parametrize(
    ("prefix", "continuation", "says"),
    [
        (
            15,
            6,
            "none of 5 texts has the 21 tokens that a prefix of 15 and a continuation of 6 take: the longest has 20",
        ),
        (0, 6, "a prefix of 0 tokens and 6 after it, expected at least one of each"),
    ],
)
def test_texts_that_are_too_short(prefix, continuation, says):
    with pytest.raises(DataError, match=says):
        Passages.of(TEXTS, tokenizer(), prefix=prefix, continuation=continuation)


# --- going on --------------------------------------------------------------------------------------------------------


def passages(prefix=4):
    return Passages.of(TEXTS, tokenizer(), prefix=prefix, continuation=6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("depth", [1, 3, tiny_models.BLOCKS])
def test_a_depth_goes_on_as_the_model_cut_there(name, depth):
    model = language_model(name)
    generate = continuing(model, passages(), tokens=7, top_p=1e-6, batch=2)  # the nucleus is the likeliest token
    cut = anydepth.truncate(model.model, depth=depth) if depth < tiny_models.BLOCKS else model.model
    for got, one in zip(generate(depth), TEXTS, strict=True):
        ids = ids_of(one)[None, :4]
        with torch.no_grad():
            for _ in range(7):
                token = cut(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, token], 1)
                if int(token) == 2:
                    break
        assert got == model.processor.decode(ids[0, 4:], skip_special_tokens=True)


def test_draws_depend_on_the_seed_alone_and_leave_the_others_alone():
    model = language_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (continuing(model, passages(), tokens=6, seed=seed)(2) for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(torch.rand(3), expected)


def test_what_a_checkpoint_says_of_sampling_does_not_count():
    model = language_model()
    plain = continuing(model, passages(), tokens=6)(2)
    model.model.generation_config.update(temperature=0.01, top_k=1, repetition_penalty=3.0)
    assert continuing(model, passages(), tokens=6)(2) == plain


def test_what_cannot_go_on_is_refused():
    judge = LoadedModel(
        model=tiny_models.build("bert")[0], processor=tokenizer(), kind="text", task="text-classification", name="judge"
    )
    with pytest.raises(GenerationError, match="'judge' cannot generate: expected a causal language model"):
        continuing(judge, passages())
    says = "4 tokens and 128 to generate are 132, and 'gpt2' takes 64: expected fewer"
    with pytest.raises(GenerationError, match=says):
        continuing(language_model(max_length=64), passages())
    with pytest.raises(GenerationError, match="depth 9"):
        continuing(language_model(), passages(), tokens=5)(9)


# --- by depth --------------------------------------------------------------------------------------------------------


def pretended(depth):
    """In the place of a model: the deeper, the fewer repetitions."""
    rng = np.random.default_rng(depth)
    return [" ".join(rng.choice([f"x{place}" for place in range(3 * depth)], size=30)) for _ in TEXTS]


def test_every_value_is_that_of_the_texts():
    found = text_metrics(passages(), pretended, [1, 2, 4], resamples=100)
    assert found.names == ("1", "2", "4", "text")
    assert found.count == 5
    assert list(found.values) == ["rep-2", "rep-3", "rep-4", "diversity"]
    for place, depth in enumerate((1, 2, 4)):
        for n in (2, 3, 4):
            assert found.values[f"rep-{n}"].value[place] == pytest.approx(repetition(pretended(depth), n))
        assert found.values["diversity"].value[place] == pytest.approx(diversity(pretended(depth)))
    assert found.values["diversity"].value[-1] == pytest.approx(diversity(passages().continuations))
    for one in found.values.values():
        assert ((one.low <= one.value) & (one.value <= one.high)).all()


def test_coherence_leaves_out_what_is_blank_and_says_so(monkeypatch):
    monkeypatch.setattr(module, "coherence", lambda a, b, encoder, pooling: np.array([0.1, 0.3, np.nan, 0.2, np.nan]))
    model = language_model()
    found = text_metrics(passages(), pretended, [1], encoder=model, resamples=100)
    one = found.values["coherence"]
    assert one.value.tolist() == pytest.approx([0.2, 0.2])
    assert (one.low < 0.2).all()
    assert (one.high > 0.2).all()
    assert found.notes == tuple(
        f"2 blank continuations of '{name}' are left out of its coherence" for name in ("1", "text")
    )


def test_another_text_s_continuation_shows_what_no_relation_gives(monkeypatch):
    cut = passages()
    share = lambda a, b, encoder, pooling: np.array([float(one in other) for one, other in zip(a, b, strict=True)])  # noqa: E731
    monkeypatch.setattr(module, "coherence", share)
    own = Passages(ids=cut.ids, prefixes=cut.prefixes, continuations=tuple(f"{one} and on" for one in cut.prefixes))
    found = text_metrics(own, lambda depth: list(own.continuations), [1], encoder=language_model(), resamples=50)
    assert found.values["coherence"].value.tolist() == [1, 1]
    assert found.unrelated.value == 0
    assert text_metrics(own, lambda depth: list(own.continuations), [1]).unrelated is None


def test_an_encoder_may_be_named(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "load", lambda name, task: asked.append((name, task)) or language_model())
    monkeypatch.setattr(module, "coherence", lambda a, b, encoder, pooling: np.full(5, np.nan))
    found = text_metrics(passages(), pretended, [1], encoder="some/encoder", resamples=100)
    assert asked == [("some/encoder", "features")]
    assert np.isnan(found.values["coherence"].value).all()


def test_one_text_has_no_interval():
    one = Passages(ids=torch.zeros(1, 1, dtype=torch.int64), prefixes=("a",), continuations=("a b a b a b",))
    found = text_metrics(one, lambda depth: ["c d c d c d"], [1])
    assert found.values["diversity"].value.tolist() == pytest.approx([2 / 5 * 2 / 4 * 2 / 3] * 2)
    assert np.isnan(found.values["diversity"].low).all()


def test_texts_of_too_few_words_have_no_value():
    found = text_metrics(passages(), lambda depth: ["one two"] * 5, [1], resamples=50)
    assert math.isnan(found.values["diversity"].value[0])
    assert math.isnan(found.values["diversity"].low[0])
    assert found.values["rep-2"].value[0] == 0


def test_a_frame_has_one_row_for_each_depth():
    found = text_metrics(passages(), pretended, [1, 4], resamples=100)
    frame = found.to_frame()
    assert frame["depth"].tolist() == ["1", "4", "text"]
    assert frame["diversity_low"].tolist() == found.values["diversity"].low.tolist()
    assert len(frame.columns) == 1 + 3 * 4


def test_a_depth_that_gives_too_few_is_refused():
    says = "4 continuations came for 5 prefixes, expected one for each"
    with pytest.raises(DataError, match=re.escape(says)):
        text_metrics(passages(), lambda depth: pretended(depth)[:4], [1])


def test_intervals_hold_what_they_promise():
    """Texts of unlike lengths and habits: the pooled value lies in 95 % of the intervals, give or take."""

    def drawn(rng, count):
        total = rng.integers(20, 60, size=(count, 1)) - np.array([1, 2, 3])
        share = np.clip(rng.beta(6, 3, size=(count, 1)) + np.array([0.0, 0.1, 0.15]), 0, 1)
        return np.stack([np.maximum(rng.binomial(total, share), 1), total], axis=-1)

    rng = np.random.default_rng(0)
    whole = drawn(rng, 400_000).sum(0)
    shares = whole[:, 0] / whole[:, 1]
    truth = {"rep-2": 1 - shares[0], "rep-4": 1 - shares[2], "diversity": shares.prod()}
    hit = dict.fromkeys(truth, 0)
    for trial in range(400):
        found = module._of_counts(drawn(rng, 100), 400, trial)
        for name, value in truth.items():
            hit[name] += bool(found[name].low <= value <= found[name].high)
    for name, count in hit.items():
        assert 0.92 <= count / 400 <= 0.98, name

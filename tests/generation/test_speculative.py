"""Self-speculation against plain generation: token for token if it is greedy, in distribution if it is sampled."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny_lm import (
    BLOCKS,
    CACHE,
    NAMES,
    SHALLOW,
    Streamed,
    greedy,
    lengths,
    prompts,
    speaker,
    together,
    watched,
)
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast, StoppingCriteriaList, StopStringCriteria

from anydepth.core.stack import Stack
from anydepth.generation import Spent, self_speculative, speculative
from anydepth.generation.decoder import Decoder, checked_on
from anydepth.generation.speculative import DraftLength, accepted_of

ROWS = together(prompts(8))


def same(model: Any, prompt: Any, count: int = 12, mode: Any = None, **more: Any) -> Tensor:
    """What both say."""
    mode = mode or self_speculative(SHALLOW)
    expected = greedy(model, prompt, count, **more)
    found = greedy(model, prompt, count, mode, **more)
    assert found.tolist() == expected.tolist()
    return found


# --- Greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_token_for_token(name: str) -> None:
    model, mode = speaker(name), self_speculative(SHALLOW)
    accepted = drafted = 0
    for prompt in prompts(10):
        same(model, prompt, mode=mode)
        accepted, drafted = accepted + mode.spent.accepted, drafted + mode.spent.drafted
    assert 0.1 < accepted / drafted < 0.99, "else this shows only one side"


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_padded_batch(name: str) -> None:
    model, mode = speaker(name), self_speculative(SHALLOW)
    same(model, ROWS, mode=mode)
    assert 0 < mode.spent.accepted < mode.spent.drafted
    ends = [*range(5, 30)]  # of which one comes sooner or later
    found = same(model, ROWS, 20, mode=mode, eos_token_id=ends)[:, 10:]
    assert len(set(torch.isin(found, torch.tensor(ends)).int().argmax(1).tolist())) > 1, "rows end at different times"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_token_for_token_on_many_prompts(name: str) -> None:
    model, mode = speaker(name), self_speculative(SHALLOW)
    texts = prompts(200, seed=5, longest=20)
    for prompt in texts:
        same(model, prompt, 32, mode=mode)
    for start in range(0, 200, 8):
        same(model, together(texts[start : start + 8]), 32, mode=mode, eos_token_id=[7, 8])


@pytest.mark.parametrize("name", [name for name in tiny_models.DECODERS if name not in NAMES])
def test_every_decoder(name: str) -> None:
    same(speaker(name), together(prompts(3)), 6)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 4, None])
def test_every_depth_and_draft_length(depth: int, length: int | None) -> None:
    mode = self_speculative(depth, draft_length=length)
    same(speaker("gpt2"), prompts(1)[0], 8, mode)
    same(speaker("gemma2"), together(prompts(3)), 8, mode)


SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 8, "eos_token_id": [*range(5, 50)]},
    {"bad_words_ids": [[11], [12, 13]], "suppress_tokens": [*range(40, 60)]},
    {"encoder_repetition_penalty": 1.4, "sequence_bias": [[[9], 2.0]]},
    {"forced_eos_token_id": 5, "forced_bos_token_id": 6},
    {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": 5},
    {"max_time": 1e-9},
    {"max_new_tokens": 1},
]


@pytest.mark.parametrize("more", SETTINGS, ids=lambda more: "-".join(more))
def test_every_setting(more: dict[str, Any]) -> None:
    model = speaker("llama", seed=2)
    same(model, prompts(1)[0], **more)
    if "max_time" not in more:  # by then rows have got further or less far
        same(model, together(prompts(4)), **more)


def test_tokens_that_are_allowed() -> None:
    """Only what was written so far decides; a text that cannot be is not asked for."""
    model, inputs = speaker("llama", seed=2), together(prompts(4))
    width = inputs["input_ids"].shape[1]

    def by_text(place: int, text: Tensor) -> list[int]:
        new = text[width:].tolist()
        assert all(after % 5 == before % 5 + 1 for before, after in itertools.pairwise(new) if before % 5 < 4)
        return [token for token in range(5, 99) if not new or new[-1] % 5 == 4 or token % 5 == new[-1] % 5 + 1]

    def by_place(place: int, text: Tensor) -> list[int]:
        return [*range(5 + place, 99, 4)]

    for allowed in (by_text, by_place):
        found = same(model, inputs, prefix_allowed_tokens_fn=allowed)
        assert len(set(found[:, width:].flatten().tolist())) > 3


def test_strings_and_criteria_that_end_a_text() -> None:
    from tokenizers import Tokenizer, decoders, models

    letters = Tokenizer(models.BPE({chr(33 + token): token for token in range(99)}, []))
    letters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    model, inputs = speaker("llama", seed=2), together(prompts(4))
    said = greedy(model, inputs, 12)[:, inputs["input_ids"].shape[1] :]
    strings = StopStringCriteria(tokenizer, [tokenizer.decode(said[0, 4:6]), tokenizer.decode(said[2, 3:5])])
    # where nothing ends a text, transformers goes on with rows that a criterion has ended, until all have
    found = same(model, inputs, stopping_criteria=StoppingCriteriaList([strings]), eos_token_id=2)
    assert found.shape == (4, 12 + inputs["input_ids"].shape[1])
    assert (found == 0).any(1).sum() > 1
    same(model, prompts(1)[0], stopping_criteria=StoppingCriteriaList([strings]))


def test_criteria_that_look_at_scores() -> None:
    model, seen = speaker("gpt2"), []

    def looks(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        seen.append((ids.shape[1], len(scores), scores[-1].shape))
        return torch.zeros(len(ids), dtype=torch.bool)

    settings = {"stopping_criteria": StoppingCriteriaList([looks]), "return_dict_in_generate": True}
    for mode in (None, self_speculative(SHALLOW)):
        greedy(model, prompts(1)[0], 6, mode, output_scores=True, **settings)
    assert seen[:6] == seen[6:]


def test_behind_the_window_and_up_to_the_last_position() -> None:
    same(speaker("gemma3_text"), prompts(1)[0], 60)
    same(speaker("gpt2"), torch.full((1, 40), 7), 24)

    def full(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 64)

    for prompt in (torch.full((1, 50), 7), {"input_ids": torch.full((3, 50), 7) + torch.arange(3)[:, None]}):
        # drafts must not go beyond the positions that there are, whatever might be written
        more = {"stopping_criteria": StoppingCriteriaList([full]), "eos_token_id": 2}
        same(speaker("gpt2"), prompt, 100, self_speculative(SHALLOW, draft_length=16), **more)


def test_rows_that_ended_long_ago_need_no_positions() -> None:
    model = speaker("gpt2")
    rows = {"input_ids": torch.randint(5, 99, (6, 20), generator=torch.Generator().manual_seed(0))}
    said = greedy(model, rows, 44)
    first = int(said[0, 22])
    assert not (said[1:, 20:] == first).all(1).any()
    same(model, rows, 44, eos_token_id=first)


def test_all_that_is_returned() -> None:
    model, prompt = speaker("llama"), prompts(1)[0]
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.2}
    expected = greedy(model, prompt, 9, **asked)
    found = greedy(model, prompt, 9, self_speculative(SHALLOW), **asked)
    assert type(found) is type(expected)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(found[name]) == 9
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert lengths(found[CACHE]) == lengths(expected[CACHE])
    for mine, theirs in zip(found[CACHE], expected[CACHE], strict=True):
        torch.testing.assert_close(mine[:2], theirs[:2], rtol=1e-4, atol=1e-5)
    plain = greedy(model, prompt, 9, self_speculative(SHALLOW), return_dict_in_generate=True)
    assert plain.scores is plain.logits is None
    batch = greedy(model, together(prompts(2)), 9, self_speculative(SHALLOW), return_dict_in_generate=True)
    assert getattr(batch, CACHE) is None


def test_a_streamer_is_given_each_token() -> None:
    model, prompt = speaker("gpt2"), prompts(1)[0]
    mine, theirs = Streamed(), Streamed()
    greedy(model, prompt, 9, self_speculative(SHALLOW, streamer=mine))
    greedy(model, prompt, 9, streamer=theirs)
    assert (mine.puts, mine.ends) == (theirs.puts, 1)


# --- What runs, and what is kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, None])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_nothing_runs_twice(name: str, length: int | None) -> None:
    model, prompt = speaker(name), prompts(1)[0]
    mode = self_speculative(SHALLOW, draft_length=length)
    greedy(model, prompt, 3, mode)  # the law is checked on the first
    with watched(model) as ran:
        said = greedy(model, prompt, 20, mode)
    spent, size = mode.spent, prompt.shape[1]
    assert ran.started[SHALLOW:] == [ran.started[SHALLOW]] * (BLOCKS - SHALLOW)
    rounds = ran.started[SHALLOW][1:]  # g + 1 tokens at a time
    assert ran.started[:SHALLOW] == [[size] + [1] * sum(rounds)] * SHALLOW
    assert (len(rounds), sum(rounds)) == (spent.rounds, spent.drafted + spent.rounds)
    assert ran.finished == [len(calls) for calls in ran.started]
    assert spent.blocks == sum(ran.finished)
    assert spent.blocks == BLOCKS + sum(each * SHALLOW + BLOCKS - SHALLOW for each in rounds)
    assert spent.readouts == ran.heads == 1 + sum(rounds)
    assert spent.tokens == said.shape[1] - size == 20 == 1 + spent.rounds + spent.accepted
    if length is not None:
        assert set(rounds[:-1]) <= {length + 1}


@pytest.mark.parametrize("name", NAMES)
def test_its_cache_goes_on(name: str) -> None:
    model, prompt, mode = speaker(name), prompts(2)[1], self_speculative(SHALLOW)
    expected = greedy(model, prompt, 14)
    for goes_on in (None, mode):
        first = greedy(model, prompt, 6, mode, return_dict_in_generate=True)
        cache = first[CACHE]
        assert lengths(cache) == [first.sequences.shape[1] - 1] * BLOCKS
        assert all(len(layer.values[0, 0]) == len(layer.keys[0, 0]) for layer in cache.layers)
        more = greedy(model, first.sequences, 8, goes_on, **{CACHE: cache})
        assert more.tolist() == expected.tolist()
        assert lengths(cache) == [expected.shape[1] - 1] * BLOCKS


def test_its_cache_ends_where_the_text_does() -> None:
    """Also if more drafts were right than were asked for."""
    model, prompt, mode = speaker("qwen3"), prompts(1)[0], self_speculative(SHALLOW, draft_length=6)
    said, shorter = greedy(model, prompt, 16)[0, prompt.shape[1] :].tolist(), 0
    for end in set(said):
        found = greedy(model, prompt, 16, mode, eos_token_id=end, return_dict_in_generate=True)
        assert found.sequences[0, prompt.shape[1] :].tolist() == said[: said.index(end) + 1]
        assert lengths(found[CACHE]) == [found.sequences.shape[1] - 1] * BLOCKS
        shorter += mode.spent.tokens < 1 + mode.spent.rounds + mode.spent.accepted
    assert shorter, "else no text ended among drafts"


def test_rows_in_the_cache() -> None:
    """Each keeps its own positions, at the end; what is padding in all rows goes."""
    stack, sample = Stack(speaker("gpt2")), checked_on(ROWS["input_ids"][:3], None)
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    with stack.segments(sample) as legs:
        decoder = Decoder(stack, legs, DynamicCache(), {"attention_mask": mask}, sample, Spent())
        held = torch.arange(8.0)[None, None, :, None] + torch.tensor([0, 10, 20])[:, None, None, None]
        for layer in range(BLOCKS):
            decoder.cache.update(held, held, layer)
        decoder.length = 4

        def kept(*counts: int) -> list[list[float]]:
            for layer in decoder.cache.layers:
                assert torch.equal(layer.keys, layer.values)
                assert layer.keys.shape[2] == decoder.length == max(counts)
            return [row[-count:].tolist() for row, count in zip(layer.keys[:, 0, :, 0], counts, strict=True)]

        decoder.keep([1, 3, 2])
        assert kept(4, 5, 6) == [[1, 2, 3, 4], [12, 13, 14, 15, 16], [20, 21, 22, 23, 24, 25]]
        decoder.keep([0, 0], [1, 0])
        assert kept(5, 4) == [[12, 13, 14, 15, 16], [1, 2, 3, 4]]


def test_a_cache_of_plain_generation_and_only_what_is_new() -> None:
    model, prompt, mode = speaker("llama"), prompts(2)[1], self_speculative(SHALLOW)
    expected = greedy(model, prompt, 24)
    cache = DynamicCache()
    said = greedy(model, prompt, 10, **{CACHE: cache})
    for known in (said, said[:, -1:]):  # all of it, or with a mask that says how much there is
        inputs = {"input_ids": known, "attention_mask": torch.ones_like(said)}
        now = cache if known is said else DynamicCache([layer[:2] for layer in cache])
        found = greedy(model, inputs, 14, mode, **{CACHE: now})
        assert found[:, known.shape[1] :].tolist() == expected[:, said.shape[1] :].tolist()
        assert lengths(now) == [expected.shape[1] - 1] * BLOCKS
        now.crop(said.shape[1] - expected.shape[1])
        assert lengths(now) == [said.shape[1] - 1] * BLOCKS


def test_a_cache_given_with_a_batch_stays_as_it_is() -> None:
    """Rows move in the cache, each by its own drafts: what its user has of it would not fit any more."""
    model, rows, cache = speaker("llama"), together(prompts(4)), DynamicCache()
    model(**rows, **{CACHE: cache})
    cache.crop(-1)
    kept = [tuple(one.clone() for one in layer[:2]) for layer in cache]
    expected = greedy(model, rows, 12, **{CACHE: DynamicCache(kept)})
    assert greedy(model, rows, 12, self_speculative(SHALLOW), **{CACHE: cache}).tolist() == expected.tolist()
    for layer, before in zip(cache, kept, strict=True):
        torch.testing.assert_close(tuple(layer[:2]), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, mode = speaker("llama").to(dtype), self_speculative(SHALLOW)
    for prompt in prompts(3):
        said = greedy(model, prompt, 12, mode, return_dict_in_generate=True)
        assert said[CACHE].layers[0].keys.dtype is dtype
        if dtype is torch.float64:
            assert said.sequences.tolist() == greedy(model, prompt, 12).tolist()
        with torch.no_grad():  # each token is the likeliest, up to rounding
            scores = model(said.sequences[:, :-1]).logits[0, prompt.shape[1] - 1 :].float()
        chosen = scores.gather(1, said.sequences[0, prompt.shape[1] :, None])[:, 0]
        assert (scores.amax(1) - chosen).max() <= (1e-12 if dtype is torch.float64 else 0.05)


def test_grad_modes_and_training() -> None:
    model, prompt, mode = speaker("llama"), prompts(1)[0], self_speculative(SHALLOW)
    expected = greedy(model, prompt, 8)
    with torch.inference_mode():
        assert greedy(model, prompt, 8, mode).tolist() == expected.tolist()
    with torch.enable_grad():
        assert not greedy(model, prompt, 8, mode).requires_grad
    assert greedy(model.train(), prompt, 8, mode).tolist() == expected.tolist()
    assert all(module.training for module in model.modules())


# --- How many are drafted --------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**6), st.integers(1, 10**7), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=20)
)
def test_as_many_are_drafted_as_pays(head: int, block: int, seen: list[tuple[int, int]]) -> None:
    draft, verify = 2 * block + head, 4 * block + head
    lengths, accepted, judged = DraftLength(draft, verify), 4.0, 6.0
    for kept, count in ((min(kept, count), count) for kept, count in seen):
        lengths.learn(kept, count)
        accepted, judged = 0.9 * accepted + kept, 0.9 * judged + kept + (kept < count)
    chance = min(accepted / judged, 0.99)
    rates = {g: sum(chance**i for i in range(g + 1)) / (g * draft + verify) for g in range(1, 17)}
    assert rates[lengths.next()] == pytest.approx(max(rates.values()), rel=1e-9)
    assert DraftLength(draft, verify, fixed=5).next() == 5


# --- Sampled ---------------------------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)


class Dice:
    """Stands for torch's random numbers: a level that is compared with, and what was to be drawn from."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.level = 0.0
        self.drawn_from = torch.zeros(4)
        patch.setattr(torch, "rand_like", lambda like: torch.full_like(like, self.level))
        patch.setattr(torch, "multinomial", self._draw)

    def _draw(self, weights: Tensor, count: int) -> Tensor:
        self.drawn_from = weights / weights.sum()
        return weights.argmax(-1, keepdim=True)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, WEIGHTS, WEIGHTS, st.booleans())
def test_what_is_accepted_and_drawn_together_is_the_full_model_s(
    first: list[float], second: list[float], shallow: list[float], zero: bool
) -> None:
    """All that can happen to one draft, added up: q(x) a(x) + (1 - sum q a) r(x) = p(x)."""
    p, after, q = (torch.tensor(one, dtype=torch.float64) for one in (first, second, shallow))
    p, after, q = p / p.sum(), after / after.sum(), q / q.sum()
    if zero:
        p[1], q[2] = 0.0, 0.0
        p, q = p / p.sum(), q / q.sum()
    verified = torch.stack([p.log(), after.log()])
    accepted, rest = torch.zeros(4, dtype=torch.float64), None
    with pytest.MonkeyPatch.context() as patch:
        dice = Dice(patch)
        for token in (token for token in range(4) if q[token] > 0):
            low, high = 0.0, 1.0
            for _ in range(40):  # the level below which it is accepted
                dice.level = (low + high) / 2
                kept, _ = accepted_of(torch.tensor([token]), q.log()[None], verified, sampled=True)
                low, high = (dice.level, high) if kept else (low, dice.level)
                if kept:
                    torch.testing.assert_close(dice.drawn_from, after)
                else:
                    rest = dice.drawn_from
            accepted[token] = low
    outcome = q * accepted
    if rest is not None:
        outcome = outcome + (1 - outcome.sum()) * rest
    torch.testing.assert_close(outcome, p, rtol=1e-6, atol=1e-9)


def test_a_draft_that_fails_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Dice(monkeypatch).level = 1.0
    scores = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    assert accepted_of(torch.tensor([0]), scores[:1], scores, sampled=True) == (0, torch.tensor([0]))


WORDS = (7, 20, 33, 46)


def exact(model: Any, prompt: Tensor, count: int, k: int, temperature: float) -> dict[tuple[int, ...], float]:
    """The probability of each continuation by some words under the plain model, by going through all of them."""
    cells: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(count):
        texts = torch.cat([prompt.expand(len(cells), -1), torch.tensor(list(cells)).long().view(len(cells), -1)], 1)
        with torch.no_grad():
            top = (model(texts).logits[:, -1, WORDS] / temperature).topk(k)
        chances = top.values.double().softmax(-1)
        cells = {
            (*cell, WORDS[place]): before * float(chance)
            for (cell, before), places, row in zip(cells.items(), top.indices, chances, strict=True)
            for place, chance in zip(places, row, strict=True)
        }
    return cells


def p_value(found: Tensor, cells: dict[tuple[int, ...], float]) -> float:
    """Of the chi-square test, with those cells in one of which fewer than 10 are expected; 0 for what cannot be."""
    counts = Counter(tuple(row) for row in found.tolist())
    if set(counts) - set(cells):
        return 0.0
    often = [cell for cell in cells if cells[cell] * len(found) >= 10]
    seen, expected = [counts[cell] for cell in often], [cells[cell] * len(found) for cell in often]
    if len(often) < len(cells):
        seen, expected = [*seen, len(found) - sum(seen)], [*expected, len(found) - sum(expected)]
    return float(chisquare(seen, expected).pvalue)


def accepts_all(drafts: Tensor, proposed: Tensor, verified: Tensor, *, sampled: bool) -> tuple[int, Tensor]:
    """Wrong: no draft is refused."""
    return len(drafts), torch.multinomial(verified[-1].softmax(-1), 1)


def draws_anew(drafts: Tensor, proposed: Tensor, verified: Tensor, *, sampled: bool) -> tuple[int, Tensor]:
    """Wrong: after a draft that is refused, drawn from all of p rather than from what q leaves of it."""
    kept, _ = accepted_of(drafts, proposed, verified, sampled=sampled)
    return kept, torch.multinomial(verified[kept].softmax(-1), 1)


@pytest.mark.parametrize(("name", "k"), [("gpt2", 4), ("gemma2", 3)])
def test_sampled_tokens_are_the_plain_model_s(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens, of which the second and third are drafts; the same test notices rules that are wrong."""
    model, prompt, count = speaker(name, later=1.0), prompts(1)[0], 1000
    cells = exact(model, prompt, 4, k, temperature=0.5)
    others = [token for token in range(tiny_models.VOCABULARY) if token not in WORDS]
    asked = {"suppress_tokens": others, "top_k": k, "temperature": 0.5, "num_return_sequences": count}
    values = []
    for rule in (accepted_of, accepts_all, draws_anew):
        torch.manual_seed(0)
        monkeypatch.setattr(speculative, "accepted_of", rule)
        mode = self_speculative(SHALLOW, draft_length=2)
        found = greedy(model, prompt, 4, mode, do_sample=True, **asked)[:, prompt.shape[1] :]
        values.append(p_value(found, cells))
    assert values[0] > 0.01
    assert max(values[1:]) < 1e-4


def test_rows_are_drawn_apart() -> None:
    """The same prompt many times gives many texts, and in a batch each row its own model's."""
    model, rows = speaker("llama"), together(prompts(3))
    torch.manual_seed(0)
    found = greedy(model, rows, 10, self_speculative(SHALLOW), do_sample=True, num_return_sequences=4)
    assert found.shape == (12, 10 + rows["input_ids"].shape[1])
    assert len({tuple(row) for row in found.tolist()}) == 12

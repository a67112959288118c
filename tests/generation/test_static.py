"""Generation at a depth against generation with the model cut there, and what all ways to generate refuse."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
import transformers
from tiny_lm import CACHE, NAMES, SHALLOW, Streamed, greedy, lengths, prompts, speaker, together, watched
from transformers import StoppingCriteriaList
from transformers.generation import LogitsProcessorList

import anydepth as ad
from anydepth.generation import at_depth


def cut(model: Any, depth: int) -> Any:
    """The model cut at a depth, which generates as the whole one is set to."""
    shallow = ad.truncate(model, depth)
    shallow.generation_config = model.generation_config
    return shallow


def same(model: Any, depth: int, inputs: Any, **settings: Any) -> None:
    """At a depth and in the model cut there, from the same random numbers."""
    torch.manual_seed(3)
    expected = greedy(cut(model, depth), inputs, 8, **settings)
    torch.manual_seed(3)
    assert torch.equal(greedy(model, inputs, 8, at_depth(depth), **settings), expected)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_model_cut_there(name: str, depth: int) -> None:
    model = speaker(name)
    same(model, depth, together(prompts(3)))
    same(model, depth, together(prompts(2)), do_sample=True, temperature=1.3, top_k=20)


@pytest.mark.parametrize("name", [name for name in tiny_models.DECODERS if name not in NAMES])
def test_every_decoder(name: str) -> None:
    same(speaker(name), SHALLOW, together(prompts(3)))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "bad_words_ids": [[7], [8, 9]]},
        {"guidance_scale": 1.5},
        {"max_new_tokens": 30, "eos_token_id": list(range(5, 15)), "min_new_tokens": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 3},
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_every_setting(name: str, settings: dict[str, Any]) -> None:
    same(speaker(name), SHALLOW, together(prompts(2)), **settings)


def test_windows_before_and_behind_the_cut() -> None:
    """The masks of full attention go by the first layer that has it: here it comes behind the cut, and stays empty."""
    config = tiny_models.DECODERS["gemma3_text"] | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**config, pad_token_id=0))
    same(model.eval(), SHALLOW, together(prompts(3)))


def test_all_that_is_returned() -> None:
    model = speaker("llama")
    model.set_attn_implementation("eager")
    asked = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
    settings = {"return_dict_in_generate": True, **dict.fromkeys(asked, True)}
    found = greedy(model, prompts(1)[0], 5, at_depth(SHALLOW), **settings)
    expected = greedy(cut(model, SHALLOW), prompts(1)[0], 5, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == 5
        torch.testing.assert_close(found[name], expected[name])
    for name, each in (("hidden_states", SHALLOW + 1), ("attentions", SHALLOW)):
        assert [len(step) for step in found[name]] == [each] * 5
        torch.testing.assert_close(found[name], expected[name])
    assert lengths(found[CACHE]) == lengths(expected[CACHE])
    for mine, theirs in zip(found[CACHE], expected[CACHE], strict=True):
        torch.testing.assert_close(mine[:2], theirs[:2])


def test_a_streamer_is_given_each_token() -> None:
    model, prompt = speaker("gpt2"), prompts(1)[0]
    mine, theirs = Streamed(), Streamed()
    greedy(model, prompt, 5, at_depth(SHALLOW, streamer=mine))
    greedy(cut(model, SHALLOW), prompt, 5, streamer=theirs)
    assert (mine.puts, mine.ends) == (theirs.puts, 1)
    assert len(mine.puts) == 6, "the prompt, and each token"


def test_stopping_criteria_and_processors_of_ones_own() -> None:
    model, inputs = speaker("qwen3"), together(prompts(3))

    def even_only(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 1, -torch.inf)

    def after(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return ids[:, -1] > 60

    settings = {"stopping_criteria": StoppingCriteriaList([after]), "eos_token_id": 2}
    same(model, SHALLOW, inputs, logits_processor=LogitsProcessorList([even_only]), **settings)


def test_what_runs_is_what_is_said() -> None:
    model, prompt = speaker("llama"), torch.randint(5, 99, (1, 6))
    way = at_depth(3)
    greedy(model, prompt, 5, way)  # the law is checked on the first
    with watched(model) as ran:
        greedy(model, prompt, 5, way)
    assert ran.started == [[6, 1, 1, 1, 1]] * 3 + [[]]
    assert (way.spent.blocks, way.spent.readouts, way.spent.tokens) == (15, 5, 5)
    assert ran.heads == 5
    greedy(model, together(prompts(2)), 5, way, num_beams=2, num_return_sequences=2)
    assert way.spent.tokens == 20


def test_its_cache_goes_on_at_that_depth_only() -> None:
    model, prompt = speaker("gemma2"), prompts(1)[0]
    expected = greedy(model, prompt, 8, at_depth(SHALLOW))
    first = greedy(model, prompt, 4, at_depth(SHALLOW), return_dict_in_generate=True)
    assert lengths(first[CACHE]) == [prompt.shape[1] + 3] * SHALLOW
    more = greedy(model, first.sequences, 4, at_depth(SHALLOW), **{CACHE: first[CACHE]})
    assert torch.equal(more, expected)
    with pytest.raises(IndexError):
        greedy(model, more, 2, **{CACHE: first[CACHE]})

"""Dynamic exit against a reference without a cache, which computes all positions at all depths anew for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_lm import BLOCKS, CACHE, NAMES, Streamed, greedy, lengths, prompts, speaker, together, watched
from torch import Tensor
from transformers import DynamicCache, StoppingCriteriaList

from anydepth.core.stack import Stack
from anydepth.exits.policies import Confidence, Convergence, Entropy, Margin, Patience, Policy
from anydepth.generation import dynamic_exit

NEVER, ALWAYS = Confidence(1.0, depths=(1, 2)), Confidence(0.0, depths=(1, 2))
KINDS: dict[str, Policy] = {
    "confidence": Confidence(0.5, depths=(1, 2)),
    "margin": Margin(0.5, depths=(1, 3)),
    "entropy": Entropy(0.5, depths=(2, 3), temperature={2: 0.8, 3: 1.6}),
    "patience": Patience(2, depths=(1, 2, 3)),
    "convergence": Convergence(0.5, depths=(1, 2, 3)),
}


@dataclass
class Written:
    """Prompt and what is written after it, the depth where each position was left, and what each token was read from.

    Attributes:
        text: (T,).
        depths: of all positions but the last, which none was read from.
        logits: of each new token, (V,).
    """

    text: list[int]
    depths: list[int]
    logits: list[Tensor]


@torch.no_grad()
def reference(model: Any, prompt: Tensor, policy: Policy, count: int, before: Sequence[int] = ()) -> Written:
    """One row without a cache: each position keeps, at all depths behind the one where it was left, its state there.

    `before` are depths of the first positions; the others of the prompt go through all blocks.
    """
    stack, text, logits = Stack(model), prompt, []
    depths = [*before, *[stack.depth] * (prompt.shape[1] - len(before))]
    for new in range(count):
        batch = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        if new:
            depths.append(stack.depth)
        replay, memory, is_open = stack.replay(batch), None, new > 0
        state = replay.state
        for depth in range(1, stack.depth + 1):
            left = torch.tensor(depths) < depth
            state = torch.where(left[None, :, None], state, replay.step(state, depth))
            if is_open and depth in policy.tested(stack.depth):
                seen = state if policy.reads == "state" else stack.readout(state, batch)
                score, memory = policy.scores(depth, seen[:, -1], memory)
                if bool(score >= policy.level):
                    depths[-1], is_open = depth, False
        logits.append(stack.readout(state, batch)[0, -1])
        text = torch.cat([text, logits[-1].argmax()[None, None]], 1)
    return Written(text[0].tolist(), depths, logits)


@torch.no_grad()
def tuned(model: Any, policy: Policy) -> Policy:
    """The same policy with a threshold, if it has a scale, that half of what it is first asked about reach."""
    if isinstance(policy, Patience):
        return policy
    stack, memory, score = Stack(model), None, torch.tensor([-torch.inf])
    text = greedy(model, together(prompts(4, seed=2)), 12)[:, -12:]
    batch, tested = {"input_ids": text, "attention_mask": torch.ones_like(text)}, list(policy.tested(stack.depth))
    states = stack.states(batch)
    while not score.isfinite().all():  # at the first depth nothing can have converged
        depth = tested.pop(0)
        read = states[depth] if policy.reads == "state" else stack.readout(states[depth], batch)
        score, memory = policy.scores(depth, read.flatten(0, 1), memory)
    seen = score.sort().values.tolist()[len(score) // 3 : 2 * len(score) // 3]
    gap = max(range(1, len(seen)), key=lambda place: seen[place] - seen[place - 1])
    return policy.at_level((seen[gap] + seen[gap - 1]) / 2)


CASES = [*(("gemma2", kind) for kind in KINDS), *((name, "confidence") for name in NAMES if name != "gemma2")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_is_the_reference(name: str, kind: str) -> None:
    """Alone and in company, however much padding is before a row: the same tokens, from the same numbers."""
    model, texts = speaker(name, later=1.0), prompts(4, seed=1)
    policy, rows = tuned(model, KINDS[kind]), together(texts)
    mode, width = dynamic_exit(policy), rows["input_ids"].shape[1]
    said = greedy(model, rows, 8, mode, return_dict_in_generate=True, output_logits=True)
    left = torch.tensor(mode.spent.depths).view(8, 4).T.tolist()
    assert len({depth for row in left for depth in row[1:]}) > 1, "else nobody leaves before another"
    steps, tested = list(zip(*left, strict=True))[1:], policy.tested(BLOCKS)
    assert mode.spent.blocks == BLOCKS + sum(max(step) for step in steps), "as many as the least sure row takes"
    asked = [
        len(set(step)) if policy.reads == "state" else 1 + sum(depth < max(step) for depth in tested) for step in steps
    ]
    assert mode.spent.readouts == 1 + sum(asked)
    for row, text in enumerate(texts):
        expected, size = reference(model, text, policy, 8), text.shape[1]
        assert said.sequences[row, width - size :].tolist() == expected.text
        assert left[row] == expected.depths[size - 1 :]
        for found, logits in zip(said.logits, expected.logits, strict=True):
            torch.testing.assert_close(found[row], logits, rtol=1e-4, atol=1e-5)
        if row == 0:
            alone = greedy(model, text, 8, mode, return_dict_in_generate=True, output_logits=True)
            assert alone.sequences[0].tolist() == expected.text
            assert list(mode.spent.depths) == left[row]
            torch.testing.assert_close(torch.cat(alone.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-5)


def test_rows_that_end_do_not_touch_the_others() -> None:
    model, rows = speaker("llama", later=1.0), together(prompts(4, seed=1))
    mode, width = dynamic_exit(tuned(model, KINDS["confidence"])), rows["input_ids"].shape[1]
    said = greedy(model, rows, 8, mode)[:, width:].tolist()
    ends = [said[0][2], said[1][4]]
    for row, ended in zip(said, greedy(model, rows, 8, mode, eos_token_id=ends)[:, width:].tolist(), strict=True):
        stop = next((place for place, token in enumerate(row, 1) if token in ends), 8)
        assert ended == (row[:stop] + [0] * 8)[: len(ended)]


@pytest.mark.parametrize("name", NAMES)
def test_caches_stay_level(name: str) -> None:
    model, prompt, cache, seen = speaker(name, later=1.0), prompts(1)[0], DynamicCache(), []
    policy = tuned(model, KINDS["confidence"])

    def look(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        seen.append(lengths(cache))
        return torch.zeros(len(ids), dtype=torch.bool)

    looking = StoppingCriteriaList([look])
    mode = dynamic_exit(policy)
    said = greedy(model, prompt, 10, mode, **{CACHE: cache}, stopping_criteria=looking)
    assert seen == [[size] * BLOCKS for size in range(prompt.shape[1], prompt.shape[1] + 10)]
    # what it goes on with is the cache, and not the text alone
    before = [BLOCKS] * prompt.shape[1] + list(mode.spent.depths[1:])
    expected = reference(model, said, policy, 6, before)
    more = greedy(model, said, 6, mode, **{CACHE: cache})
    assert more[0].tolist() == expected.text
    assert list(mode.spent.depths) == expected.depths[said.shape[1] - 1 :]
    assert set(map(len, cache.layers[0].keys[0])) == {more.shape[1] - 1}


@pytest.mark.parametrize("kind", ["confidence", "convergence"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_what_runs_is_what_is_said(name: str, kind: str) -> None:
    model, prompt = speaker(name, later=1.0), prompts(1)[0]
    policy = tuned(model, KINDS[kind])
    mode = dynamic_exit(policy)
    greedy(model, prompt, 3, mode)  # the law is checked on the first
    with watched(model) as ran:
        greedy(model, prompt, 16, mode)
    spent, depths, tested = mode.spent, mode.spent.depths, policy.tested(BLOCKS)
    assert ran.finished == [sum(depth >= block for depth in depths) for block in range(1, BLOCKS + 1)]
    assert [len(calls) for calls in ran.started] == [16] * BLOCKS, "blocks that do not run still leave keys and values"
    assert spent.blocks == sum(ran.finished) == sum(depths)
    assert spent.filled == 16 * BLOCKS - sum(depths)
    assert (spent.tokens, len(depths), depths[0]) == (16, 16, BLOCKS)
    asked = [sum(test < depth for test in tested) + 1 if kind == "confidence" else 1 for depth in depths[1:]]
    assert spent.readouts == ran.heads == 1 + sum(asked)
    assert 0 < spent.filled < 15 * BLOCKS


@pytest.mark.parametrize("name", NAMES)
def test_never_is_the_plain_model_and_always_stops_at_the_first(name: str) -> None:
    model, rows = speaker(name), together(prompts(3))
    more: dict[str, Any] = {"do_sample": True, "top_k": 20, "repetition_penalty": 1.2, "num_return_sequences": 2}
    for settings in ({}, more):
        torch.manual_seed(0)
        expected = greedy(model, rows, 8, **settings)
        torch.manual_seed(0)
        mode = dynamic_exit(NEVER)
        assert greedy(model, rows, 8, mode, **settings).tolist() == expected.tolist()
        assert (set(mode.spent.depths), mode.spent.filled) == ({BLOCKS}, 0)
    mode = dynamic_exit(ALWAYS)
    greedy(model, rows, 8, mode)
    assert mode.spent.depths == (BLOCKS,) * 3 + (1,) * 21
    assert mode.spent.blocks == BLOCKS + 7


def test_a_prompt_in_pieces() -> None:
    model, prompt, mode = speaker("gemma2", later=1.0), torch.arange(5, 12)[None], dynamic_exit(ALWAYS)
    expected = greedy(model, prompt, 6, mode)
    for size in (1, 3, 6):
        assert greedy(model, prompt, 6, mode, prefill_chunk_size=size).tolist() == expected.tolist()
        assert mode.spent.depths == (BLOCKS, 1, 1, 1, 1, 1)
        assert mode.spent.blocks == BLOCKS * -(-7 // size) + 5


def test_all_that_is_returned() -> None:
    model, prompt, mode, streamer = speaker("llama", later=1.0), prompts(1)[0], dynamic_exit(ALWAYS), Streamed()
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = greedy(model, prompt, 6, dynamic_exit(ALWAYS, streamer=streamer), **asked)
    assert found.sequences.tolist() == greedy(model, prompt, 6, mode).tolist()
    assert [int(scores.argmax()) for scores in found.scores] == found.sequences[0, prompt.shape[1] :].tolist()
    assert len(found.logits) == 6
    assert streamer.puts == [prompt[0].tolist(), *found.sequences[:, prompt.shape[1] :].T.tolist()]
    assert streamer.ends == 1
    assert lengths(found[CACHE]) == [found.sequences.shape[1] - 1] * BLOCKS


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_and_modes(dtype: torch.dtype) -> None:
    model, prompt = speaker("llama", later=1.0), prompts(1)[0]
    policy = tuned(model, KINDS["confidence"])
    model, mode = model.to(dtype).train(), dynamic_exit(policy)
    with torch.inference_mode():
        found = greedy(model, prompt, 8, mode, return_dict_in_generate=True)
    assert found[CACHE].layers[-1].keys.dtype is dtype
    assert all(module.training for module in model.modules())
    if dtype is torch.float64:
        assert found.sequences[0].tolist() == reference(model, prompt, policy, 8).text

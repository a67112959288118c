"""What all ways to generate share: nothing is left behind, also after an error, and what makes no sense is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from tiny_lm import CACHE, SHALLOW, Streamed, greedy, lengths, looks_of, prompts, speaker
from torch import Tensor
from transformers import DynamicCache, StaticCache, StoppingCriteriaList
from transformers.generation import LogitsProcessorList

from anydepth.errors import AnydepthError, GenerationError
from anydepth.exits.policies import AtDepth, Confidence
from anydepth.generation import at_depth, dynamic_exit, self_speculative

Way = Callable[..., Any]
WAYS: dict[str, Way] = {
    "at_depth": lambda **more: at_depth(SHALLOW, **more),
    "self_speculative": lambda **more: self_speculative(SHALLOW, **more),
    "dynamic_exit": lambda **more: dynamic_exit(Confidence(0.2, depths=(1, 2)), **more),
}
of_all = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
of_ours = pytest.mark.parametrize(
    "way", [WAYS["self_speculative"], WAYS["dynamic_exit"]], ids=["speculative", "dynamic"]
)
PROMPT, PAIR = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7], [8, 9, 10]])


# --- What is left behind ---------------------------------------------------------------------------------------------


class Failing(Exception):
    pass


@contextmanager
def failing(model: Any, mode: Any, place: str, calls: int, error: type[BaseException]) -> Iterator[dict[str, Any]]:
    """Something that a generation calls fails after so many calls; what to give to `generate` for that."""
    left = [calls]

    def burn(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    def criterion(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        burn()
        return torch.zeros(len(ids), dtype=torch.bool)

    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        burn()
        return scores

    hooks = [layer.mlp.register_forward_hook(burn) for layer in model.model.layers if place == "block"]
    if place == "streamer":
        mode.streamer.put = burn
    try:
        yield {
            "logits_processor": LogitsProcessorList([processor] if place == "processor" else []),
            "stopping_criteria": StoppingCriteriaList([criterion] if place == "criterion" else []),
        }
    finally:
        mode.streamer = Streamed()
        for hook in hooks:
            hook.remove()


@of_all
@pytest.mark.parametrize("place", ["processor", "criterion", "block", "streamer"])
def test_an_error_leaves_everything_as_it_was(way: Way, place: str) -> None:
    """Whatever was running: a prompt, a draft, what verifies it, what is filled."""
    model, prompt, cache, mode = speaker("gemma2").train(), prompts(1)[0], DynamicCache(), way(streamer=Streamed())
    model.model.layers[1].eval()  # modes may differ
    expected, before = greedy(model, prompt, 6, mode), looks_of(model)
    for calls, error in ((0, Failing), (4, Failing), (7, KeyboardInterrupt)):
        with failing(model, mode, place, calls, error) as settings, pytest.raises(error):
            greedy(model, prompt, 30, mode, **{CACHE: cache}, **settings)
        assert looks_of(model) == before
        assert len(set(lengths(cache))) <= 1
        cache.crop(-cache.get_seq_length())
        assert torch.equal(greedy(model, prompt, 6, mode, **{CACHE: cache}), expected)
        cache.crop(-cache.get_seq_length())


@of_all
def test_states_can_be_asked_for_afterwards(way: Way) -> None:
    """transformers hooks the blocks at the first forward that asks for their states, and never again."""
    model, prompt = speaker("llama"), prompts(1)[0]
    model.config.output_hidden_states = True
    greedy(model, prompt, 3, way())
    assert len(model(prompt).hidden_states) == tiny_models.BLOCKS + 1


@of_all
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")  # peft's own call
def test_adapters_take_part(way: Way) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj", "lm_head"], r=2, init_lora_weights=False)
    adapted, prompt = peft.get_peft_model(speaker("llama"), config).eval(), prompts(1)[0]
    found = greedy(adapted, prompt, 8, way())
    merged = adapted.merge_and_unload()
    merged.generation_config = speaker("llama").generation_config
    assert torch.equal(found, greedy(merged, prompt, 8, way()))
    assert not torch.equal(found, greedy(speaker("llama"), prompt, 8, way()))


@of_all
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning", "ignore:Position ids are not supported")
def test_learnt_prompts(way: Way) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(speaker("llama"), config).eval()
    if way is WAYS["at_depth"]:
        assert torch.equal(greedy(adapted, PROMPT, 6, at_depth(4)), greedy(adapted, PROMPT, 6))
    else:  # they are counted among the positions of the cache, and the prompt's tokens are not
        with pytest.raises(GenerationError, match="learnt prompts with .*: they take positions that input_ids do not"):
            greedy(adapted, PROMPT, 6, way())


@of_all
def test_one_mode_for_several_models(way: Way) -> None:
    mode, prompt = way(), prompts(1)[0]
    models = [speaker("llama"), speaker("gpt2"), speaker("llama", seed=2)]
    once = [greedy(model, prompt, 6, mode) for model in models]
    for model, said in zip(models[::-1], once[::-1], strict=True):
        assert torch.equal(greedy(model, prompt, 6, mode), said)


# --- What makes no sense ---------------------------------------------------------------------------------------------


def refused(model: Any, mode: Any, message: str | tuple[str, ...], prompt: Any = PROMPT, **settings: Any) -> None:
    """One line, and the model is as it was."""
    before = looks_of(model)
    with pytest.raises(AnydepthError) as caught:
        greedy(model, prompt, 4, mode, **settings)
    assert str(caught.value).startswith(message), str(caught.value)
    assert "\n" not in str(caught.value)
    assert looks_of(model) == before


@of_all
def test_prompts_that_cannot_be(way: Way) -> None:
    model = speaker("gpt2")
    refused(model, way(), "the prompt is empty: expected input_ids of at least one token", PROMPT[:, :0])
    long = torch.full((1, 64), 7)
    refused(model, way(), "the prompt has 64 tokens, and GPT2LMHeadModel has positions for 64: expected one that", long)
    padded = {"input_ids": long, "attention_mask": (torch.arange(64) > 60).long()[None]}
    assert greedy(model, padded, 2, way()).shape == (1, 66), "positions are counted, not places"
    states = {"inputs_embeds": torch.zeros(1, 3, 32), "input_ids": PROMPT}
    refused(model, way(), "the prompt is given as inputs_embeds: expected input_ids", states)


@of_all
def test_models_that_cannot_be(way: Way) -> None:
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    t5 = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=99, **special)
    model = transformers.T5ForConditionalGeneration(t5).eval()
    refused(model, way(), "T5ForConditionalGeneration is an encoder-decoder: expected a model that only decodes")
    bert = transformers.BertConfig(**tiny_models.ENCODERS["bert"], is_decoder=False)
    refused(transformers.BertLMHeadModel(bert).eval(), way(), "BertLMHeadModel lets tokens look at those behind them")
    rwkv = transformers.RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=99, attention_hidden_size=32)
    refused(transformers.RwkvForCausalLM(rwkv).eval(), way(), "RwkvForCausalLM has a cache of its own kind: expected a")


NO_CACHE = {
    "mamba": (
        {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 99, "state_size": 8},
        # from transformers 5.24, which gives it a cache of a kind that keeps no positions; and before
        (
            "a DynamicCache of 4 layers (LinearAttentionLayer) cannot be taken back",
            "nothing to keep keys and values in",
        ),
    ),
    "lfm2": (
        tiny_models.DECODERS["llama"] | {"layer_types": ["conv", "full_attention"] * 2},
        "a DynamicCache of 4 layers (DynamicLayer, LinearAttentionLayer) cannot be taken back; expected a DynamicCache",
    ),
    "gemma3n_text": (
        tiny_models.DECODERS["gemma2"]
        | {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 8}
        | {"laurel_rank": 4, "intermediate_size": [48] * 4, "activation_sparsity_pattern": None}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        "a DynamicCache of ",  # how many layers stand for nothing depends on the release
    ),
    "openai-gpt": (
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 99, "n_positions": 64},
        "block 1 keeps 0 of 3 positions: expected a causal language model in which every block keeps keys and values",
    ),
}


@pytest.mark.parametrize("name", NO_CACHE)
def test_models_whose_cache_cannot_be_taken_back(name: str) -> None:
    """They generate at a depth all the same: as the whole forward over and over does."""
    settings, message = NO_CACHE[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **settings, pad_token_id=0, eos_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for way in (WAYS["self_speculative"], WAYS["dynamic_exit"]):
        refused(model, way(), message)
    assert torch.equal(greedy(model, PROMPT, 6, at_depth(2)), greedy(model, PROMPT, 6, at_depth(2), use_cache=False))


def test_a_window_that_only_the_cache_knows() -> None:
    """Moshi's masks have none: what it generates is not what its own forward on the whole text says."""
    config = transformers.AutoConfig.for_model(
        "moshi",
        **tiny_models.DECODERS["llama"] | {"ffn_dim": 48, "sliding_window": 5, "tie_word_embeddings": False},
        head_dim=8,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.MoshiForCausalLM(config).eval()
    message = "MoshiForCausalLM attends beyond the window of 5 positions that its own cache keeps"
    for way in (WAYS["self_speculative"], WAYS["dynamic_exit"]):
        refused(model, way(), message)
        within = greedy(model, PROMPT, 2, way())  # as long as the window, and no longer
        assert torch.equal(within, greedy(model, PROMPT, 2))
    assert torch.equal(greedy(model, PROMPT, 6, at_depth(4)), greedy(model, PROMPT, 6))


@of_ours
def test_caches_that_cannot_be_taken_back(way: Way) -> None:
    model = speaker("gemma2")
    nothing = "nothing to keep keys and values in: expected use_cache=True and a model that takes a DynamicCache"
    refused(model, way(), nothing, use_cache=False)
    static = StaticCache(config=model.config, max_cache_len=20)
    kept = "a StaticCache of 4 layers (StaticLayer, StaticSlidingWindowLayer) cannot be taken back; expected a Dynamic"
    refused(model, way(), kept, **{CACHE: static})
    refused(model, way(), kept, cache_implementation="static")
    dropping = "a DynamicCache of 4 layers (DynamicLayer, DynamicSlidingWindowLayer) cannot be taken back; expected a"
    refused(model, way(), dropping, **{CACHE: DynamicCache(config=model.config)})
    offloaded = DynamicCache()
    offloaded.offloading = True
    refused(model, way(), "a DynamicCache of 0 layers (none, offloaded) cannot be taken", **{CACHE: offloaded})
    ahead = greedy(model, PROMPT, 3, way(), return_dict_in_generate=True)[CACHE]
    refused(model, way(), "the cache has 5 positions, and the prompt 3 tokens: expected at least", **{CACHE: ahead})


@pytest.mark.parametrize("mode", [at_depth(3), at_depth(4), self_speculative(2), WAYS["dynamic_exit"]()])
def test_a_cache_that_was_filled_at_a_lesser_depth(mode: Any) -> None:
    model, cache = speaker("gpt2"), DynamicCache()
    said = greedy(model, PROMPT, 4, at_depth(2), **{CACHE: cache})
    with pytest.raises(GenerationError, match="a cache whose layers have 6, 6, 0(, 0)? positions: expected as many in"):
        greedy(model, said, 2, mode, **{CACHE: cache})
    assert lengths(cache) == [6, 6]


@of_all
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search "),
        ({"prompt_lookup_num_tokens": 2}, "assisted_generation "),
        ({"dola_layers": "low"}, "dola_generation "),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
)
def test_other_ways_to_search(way: Way, settings: dict[str, Any], message: str) -> None:
    refused(speaker("llama"), way(), message, **settings)


@of_ours
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 3}, "num_beams=3 with {way}: beams share and reorder what was generated"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5 with {way}: its processor runs the model itself"),
        ({"output_hidden_states": True}, "output_hidden_states with {way}: these are not kept"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions with {way}: these are not"),
        ({"watermarking_config": {"greenlist_ratio": 0.3}}, "watermarking_config with {way}: a watermark goes by"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
)
def test_settings_that_a_loop_of_ones_own_does_not_know(way: Way, settings: dict[str, Any], message: str) -> None:
    name = "self-speculation" if way is WAYS["self_speculative"] else "dynamic exit"
    refused(speaker("llama"), way(), message.format(way=name), **settings)


def test_the_rest_of_what_is_refused() -> None:
    model = speaker("llama")
    for depth in (0, 4, 5):
        refused(
            model, self_speculative(depth), f"depth {depth} of LlamaForCausalLM with 4 blocks: expected one from 1 to 3"
        )
    for depth in (0, 5, -1):
        refused(model, at_depth(depth), f"depth {depth} of LlamaForCausalLM with 4 blocks: expected one from 1 to 4")
    refused(model, dynamic_exit(Confidence(0.5, depths=(5,))), "the policy tests depth 5, and the model has 4 blocks")
    rows = "a streamer for 2 rows, beams counted: expected one"
    refused(model, at_depth(2, streamer=Streamed()), rows, num_beams=2)
    for way in WAYS.values():
        refused(model, way(streamer=Streamed()), rows, PAIR)
    scores = {"output_scores": True, "return_dict_in_generate": True}
    refused(
        model, self_speculative(2), "output_scores with self-speculation: these are not kept of a batch", PAIR, **scores
    )
    places = {"input_ids": PROMPT, "position_ids": torch.tensor([[3, 4, 5]])}
    refused(model, self_speculative(2), "position_ids of your own: expected those that attention_mask gives", places)
    bert = tiny_models.build("bert")[0]
    assert not hasattr(bert, "generate"), "an encoder's own AttributeError says so before anything of ours runs"
    with pytest.raises(GenerationError, match="draft_length=0: expected at least 1, or None to go by what is accepted"):
        self_speculative(2, draft_length=0)
    with pytest.raises(GenerationError, match="AtDepth exits at the same depth for every token: use at_depth"):
        dynamic_exit(AtDepth(2))


def test_rows_that_end_and_no_token_to_fill_them_up() -> None:
    model = speaker("llama")
    model.generation_config.pad_token_id = None

    def seven(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return ids[:, -1] == 7

    settings = {"stopping_criteria": StoppingCriteriaList([seven])}
    message = "2 rows that may end at different lengths, and no token to fill them up: expected pad_token_id"
    refused(model, self_speculative(2), message, PAIR, **settings)
    for prompt, more in ((PAIR, {}), (PROMPT, settings)):
        assert torch.equal(greedy(model, prompt, 6, self_speculative(2), **more), greedy(model, prompt, 6, **more))
    for eos in (7, [7, 8]):  # transformers fills up with the first token that ends a text, and says so
        found = greedy(model, PAIR, 6, self_speculative(2), eos_token_id=eos)
        assert torch.equal(found, greedy(model, PAIR, 6, eos_token_id=eos))


@of_ours
@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable:FutureWarning"
)  # in the oldest release, its only name
def test_checkpoints_in_training_may_leave_no_keys(way: Way) -> None:
    """As before transformers 5.24, which keeps those of some models: then the text is the same, or it is refused."""
    model = speaker("llama")
    expected = greedy(model, PROMPT, 6, way())
    model.train().gradient_checkpointing_enable()
    nothing = "block 1 keeps 0 of 3 positions: expected a causal language model in which every block keeps"
    try:
        again = greedy(model, PROMPT, 6, way()).tolist()
    except GenerationError as error:
        again = str(error)[: len(nothing)]
    assert again in (expected.tolist(), nothing)


@of_ours
@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_angles_that_change_with_the_length(way: Way, kind: str) -> None:
    """Keys that were turned by other angles stay in the cache, and several positions at once change it for all."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4} if kind == "longrope" else {"factor": 2.0}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": 16, **factors}
    config = tiny_models.DECODERS["llama"] | {"max_position_embeddings": 32 if kind == "longrope" else 16}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**config, rope_parameters=rope, pad_token_id=0, eos_token_id=None)
    ).eval()
    message = (
        f"17 positions with .*: the rotary angles of this model .{kind}. change after 16; expected max_length up to"
    )
    with pytest.raises(GenerationError, match=message):
        greedy(model, PROMPT, 14, way())
    assert torch.equal(greedy(model, PROMPT, 13, self_speculative(2)), greedy(model, PROMPT, 13))


@of_ours
def test_weights_that_are_spread_over_ranks(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaker("llama")
    model._is_fsdp_managed_module = True
    assert greedy(model, PROMPT, 2, way()).shape == (1, 5), "of one rank"
    monkeypatch.setattr("anydepth.generation.modes.rank_and_count", lambda: (0, 2))
    refused(model, way(), "FSDP or ZeRO-3 with ")

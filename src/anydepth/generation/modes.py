"""What all ways of generating share: what they refuse, and the `Stack` of the model they are used with."""

from __future__ import annotations

import sys
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import MaxLengthCriteria

from anydepth.core.model_io import call_model, distance, model_output
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack, tolerance_of
from anydepth.dependencies import require
from anydepth.distributed import rank_and_count
from anydepth.errors import GenerationError
from anydepth.generation.decoder import GenerationStats, checked_on
from anydepth.models.input_length import max_input_length


class GenerationMethod:
    """A way to generate, given to a model as `model.generate(..., custom_generate=mode)`.

    Args:
        blocks: the dotted name of the list of blocks, for a model that has several.
        streamer: is given tokens as they are decided. transformers keeps the streamer that `generate` is given to
            itself when its loop is another's, so it has to come this way.

    Attributes:
        streamer: as given; it may be set anew.
    """

    def __init__(self, *, blocks: str | None = None, streamer: Any = None) -> None:
        self._blocks, self.streamer = blocks, streamer
        self._stack: Stack | None = None
        self._spent: dict[int, GenerationStats] = {}  # by thread
        self._latest = GenerationStats()

    @property
    def spent(self) -> GenerationStats:
        """What the last generation took: of this thread's, or of all where this thread made none."""
        return self._spent.get(get_ident(), self._latest)

    def counted(self) -> GenerationStats:
        """What is to count the generation that begins."""
        self._latest = self._spent[get_ident()] = spent = GenerationStats()
        return spent

    def stack(self, model: Any, prompt: Int64[Tensor, "b t"], given: dict[str, Any]) -> Stack:
        """The model as blocks, its law checked on the end of the prompt when it is first used.

        Raises:
            DependencyError: the installed transformers generates differently.
            GenerationError: an encoder, an encoder-decoder, or a model that keeps what came before in a way of its
                own; the prompt is empty, or longer than the model has positions for.
            UnknownArchitecture: see `Stack`.
        """
        require("transformers")
        config, name = getattr(model, "config", None), type(model).__name__
        if getattr(config, "is_encoder_decoder", False):
            raise GenerationError(f"{name} is an encoder-decoder: expected a model that only decodes")
        if not model._supports_default_dynamic_cache():
            raise GenerationError(
                f"{name} has a cache of its own kind: expected a model that generates with a DynamicCache"
            )
        if given.get("inputs_embeds") is not None:
            raise GenerationError("the prompt is given as inputs_embeds: expected input_ids")
        if not prompt.shape[-1]:
            raise GenerationError("the prompt is empty: expected input_ids of at least one token")
        room, count = positions_of(model), _longest(prompt, given.get("attention_mask"))
        if count >= room:
            raise GenerationError(
                f"the prompt has {count} tokens, and {name} has positions for {room}: "
                "expected one that leaves room for a token"
            )
        stack = self._stack
        if stack is None or stack.model is not model:
            stack, sample = Stack(model, blocks=self._blocks), checked_on(prompt, given.get("attention_mask"))
            stack.verify(sample)
            _require_causal(model, sample)
            self._stack = stack
        return stack

    def streaming(self, prompt: Int64[Tensor, "b t"], streamer: Any) -> Any:
        """The streamer to give tokens to, which has been given the prompt; None if there is none.

        Raises:
            GenerationError: there are several rows.
        """
        if streamer is None and self.streamer is not None:
            if len(prompt) > 1:
                raise GenerationError(f"a streamer for {len(prompt)} rows, beams counted: expected one")
            self.streamer.put(prompt.cpu())
            return self.streamer
        return streamer


def written(output: Any, prompt: Int64[Tensor, "b t"]) -> int:
    """Tokens over all rows that `generate`'s own loop put behind the prompt."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    return int(sequences.shape[0] * (sequences.shape[1] - prompt.shape[1]))


def positions_of(model: nn.Module) -> int:
    """How many positions the model has, or was trained for; very many if its config does not tell."""
    return max_input_length(model) or sys.maxsize


def _longest(prompt: Int64[Tensor, "b t"], mask: Tensor | None) -> int:
    """Tokens of the longest prompt, padding not counted, those that a cache holds counted."""
    return prompt.shape[1] if mask is None else int(mask.sum(1).max())


def _require_causal(model: nn.Module, sample: dict[str, Tensor]) -> None:
    """See that a token does not look at those behind it: its states could not be kept while others come.

    Raises:
        GenerationError: one does.
    """
    more = {name: torch.cat([values, values[:, -1:]], dim=1) for name, values in sample.items()}
    with evaluating(model):
        alone, before = (model_output(call_model(model, one))[1] for one in (sample, more))
    counts = sample["attention_mask"] != 0
    if not distance(before[:, :-1][counts], alone[counts]) <= tolerance_of(alone):
        raise GenerationError(
            f"{type(model).__name__} lets tokens look at those behind them, as encoders do: expected a causal language "
            "model"
        )


def require_depth(depth: int, stack: Stack, *, below: bool) -> None:
    """See that blocks can be left out behind a depth.

    Raises:
        GenerationError: it is not one of the model's, or nothing would be left out where something must be.
    """
    last = stack.depth - 1 if below else stack.depth
    if not 1 <= depth <= last:
        raise GenerationError(
            f"depth {depth} of {type(stack.model).__name__} with {stack.depth} blocks: expected one from 1 to {last}"
        )


def new_tokens(prompt: Int64[Tensor, "b t"], cache: Cache, given: dict[str, Any], config: Any) -> Int64[Tensor, "b q"]:
    """What of the prompt the cache does not have, by `generate`'s own rule: a mask as long as the prompt is of all.

    Raises:
        GenerationError: it has all of it.
    """
    mask = given.get("attention_mask")
    known = getattr(config, "_mask_length", -1) if mask is None else mask.shape[1]
    past = cache.get_seq_length() if known == prompt.shape[1] else 0
    if past >= prompt.shape[1]:
        raise GenerationError(
            f"the cache has {past} positions, and the prompt {prompt.shape[1]} tokens: expected at least one more"
        )
    return prompt[:, past:]


def require_padding(prompt: Int64[Tensor, "b t"], config: Any, stops: Any) -> None:
    """See that rows which end before others can be filled up.

    Raises:
        GenerationError: they cannot.
    """
    alike = all(isinstance(one, MaxLengthCriteria) for one in stops)
    if len(prompt) > 1 and config._pad_token_tensor is None and not alike:
        raise GenerationError(
            f"{len(prompt)} rows that may end at different lengths, and no token to fill them up: expected pad_token_id"
        )


def several_ranks(model: nn.Module) -> bool:
    """Whether processes hold the weights together, so that each must run as many forwards, of the same blocks.

    `generate` finds this out as well, and does not tell a loop that is not its own.
    """
    if rank_and_count()[1] == 1:
        return False
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_managed_module

    return bool(is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))


def require_supported(model: Any, config: Any, *, unless: str, several: bool = False) -> None:
    """Refuse what a loop of our own does not do, with the reason.

    Args:
        model: that is to generate.
        config: the generation config.
        unless: what is refusing, in the message.
        several: whether the batch has several rows of which none is kept apart.

    Raises:
        GenerationError: beams, guidance, outputs that are not kept, angles that change on the way, learnt prompts.
    """
    if (config.num_beams or 1) > 1:
        raise GenerationError(
            f"num_beams={config.num_beams} with {unless}: beams share and reorder what was generated, so there is no "
            "one sequence to go by; use num_beams=1, or beams at a static depth"
        )
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise GenerationError(f"{mode.value} with {unless}: expected greedy search or sampling")
    if config.guidance_scale not in (None, 1, 1.0):
        raise GenerationError(
            f"guidance_scale={config.guidance_scale} with {unless}: its processor runs the model itself"
        )
    if config.watermarking_config is not None:
        raise GenerationError(f"watermarking_config with {unless}: a watermark goes by each token in turn, and once")
    if several_ranks(model):
        raise GenerationError(f"FSDP or ZeRO-3 with {unless}: ranks would run different numbers of blocks")
    adapted = getattr(model.prepare_inputs_for_generation, "__self__", model)  # peft's, while it generates
    if getattr(getattr(adapted, "active_peft_config", None), "is_prompt_learning", False):
        raise GenerationError(f"learnt prompts with {unless}: they take positions that input_ids do not have")
    _refuse_outputs(config, unless, several)
    _refuse_stretching(getattr(model, "config", None), config.max_length, unless)


def _refuse_outputs(config: Any, unless: str, several: bool) -> None:
    asked = [name for name in ("output_attentions", "output_hidden_states") if getattr(config, name)]
    if several and config.return_dict_in_generate:
        asked += [name for name in ("output_scores", "output_logits") if getattr(config, name)]
    if asked:
        alone = " of a batch" if several else ""
        raise GenerationError(
            f"{asked[0]} with {unless}: these are not kept{alone}; leave it out, or use a static depth"
        )


def _refuse_stretching(config: Any, length: int, unless: str) -> None:
    """Rotary angles that change for all positions at some length leave keys in the cache that no longer fit."""
    known = getattr(config, "rope_parameters", None) or {}
    for one in (known, *known.values()):
        kind = one.get("rope_type", "") if isinstance(one, dict) else ""
        limit = one.get("original_max_position_embeddings", config.max_position_embeddings) if kind else length
        if ("dynamic" in kind or kind == "longrope") and length > limit:
            raise GenerationError(
                f"{length} positions with {unless}: the rotary angles of this model ({kind}) change after {limit}; "
                "expected max_length up to that"
            )

"""What all generation methods share: the arguments of `generate`'s loop, the model's `Stack`, and what is refused."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import MaxLengthCriteria

from anydepth.core.model_io import call_model, distance, model_output
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.verification import tolerance_of
from anydepth.dependencies import cache_name, require
from anydepth.distributed import rank_and_count
from anydepth.errors import GenerationError
from anydepth.generation.cache import whole_cache, window_of
from anydepth.generation.decoder import GenerationStats, checked_on
from anydepth.models.input_length import max_input_length


@dataclass(frozen=True, kw_only=True)
class LoopArguments:
    """The arguments that `generate` calls a generation loop with.

    `processors` are of logits, `stops` the stopping criteria, `config` is the generation config, and `model_inputs` go
    to the model beside `input_ids`: mask, positions, cache.
    """

    model: Any
    input_ids: Int64[Tensor, "b t"]
    processors: Any
    stops: Any
    config: Any
    streamer: Any
    model_inputs: dict[str, Any]

    @property
    def cache(self) -> Any:
        """The cache that `generate` prepared or its user gave; None without one."""
        return self.model_inputs.get(cache_name())

    @property
    def sample(self) -> dict[str, Tensor]:
        """The end of the prompt, as a batch to verify a `Stack` on."""
        return checked_on(self.input_ids, self.model_inputs.get("attention_mask"))

    def uncached_tokens(self, cache: Cache) -> Int64[Tensor, "b q"]:
        """The tokens of the prompt that are not in the cache, by `generate`'s own rule.

        A mask as long as the prompt means that the prompt repeats what the cache holds.

        Raises:
            GenerationError: the cache holds the whole prompt.
        """
        prompt, mask = self.input_ids, self.model_inputs.get("attention_mask")
        known = getattr(self.config, "_mask_length", -1) if mask is None else mask.shape[1]
        past = cache.get_seq_length() if known == prompt.shape[1] else 0
        if past >= prompt.shape[1]:
            raise GenerationError(
                f"the cache has {past} positions, and the prompt {prompt.shape[1]} tokens: expected at least one more"
            )
        return prompt[:, past:]

    def run(self, loop: Callable[..., Any], stats: GenerationStats, replaced: Mapping[str, Any]) -> Any:
        """Output of one of `generate`'s own loops with these arguments, some replaced; `stats` counts its tokens."""
        output = loop(
            self.input_ids,
            logits_processor=self.processors,
            stopping_criteria=self.stops,
            generation_config=self.config,
            **{**self.model_inputs, **replaced},
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        stats.tokens = int(sequences.shape[0] * (sequences.shape[1] - self.input_ids.shape[1]))
        return output


class GenerationMethod(ABC):
    """A way to generate, given to a model as `model.generate(..., custom_generate=mode)`.

    Attributes:
        streamer: is given tokens as they are decided; it may be set anew. transformers keeps the streamer that
            `generate` is given to itself when its loop is another's, so it has to come this way.
    """

    def __init__(self, *, blocks: str | None = None, streamer: Any = None) -> None:
        self._blocks, self.streamer = blocks, streamer
        self._stack: Stack | None = None
        self._windowed: Stack | None = None
        self._stats: dict[int, GenerationStats] = {}  # by thread
        self._latest = GenerationStats()

    def __call__(
        self,
        model: Any,
        input_ids: Int64[Tensor, "b t"],
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Generate in place of `generate`'s own loop, which calls this with the loop's arguments."""
        return self._generate(
            LoopArguments(
                model=model,
                input_ids=input_ids,
                processors=logits_processor,
                stops=stopping_criteria,
                config=generation_config,
                streamer=streamer,
                model_inputs=model_kwargs,
            )
        )

    @abstractmethod
    def _generate(self, arguments: LoopArguments) -> Any:
        """The output of `generate`."""

    @property
    def spent(self) -> GenerationStats:
        """Statistics of the last generation: of this thread's, or of all where this thread made none."""
        return self._stats.get(get_ident(), self._latest)

    def _new_stats(self) -> GenerationStats:
        """Statistics of the generation that begins, all 0."""
        self._latest = self._stats[get_ident()] = stats = GenerationStats()
        return stats

    def _stack_of(self, arguments: LoopArguments) -> Stack:
        """The model as blocks, verified on the end of the prompt when it is first used.

        Raises:
            DependencyError: the installed transformers generates differently.
            GenerationError: an encoder, or a model with a cache of its own kind; no prompt, or a too long one.
            UnknownArchitecture: see `Stack`.
        """
        require("transformers")
        model, prompt, inputs = arguments.model, arguments.input_ids, arguments.model_inputs
        config, name = getattr(model, "config", None), type(model).__name__
        if getattr(config, "is_encoder_decoder", False):
            raise GenerationError(f"{name} is an encoder-decoder: expected a model that only decodes")
        if not model._supports_default_dynamic_cache():
            raise GenerationError(
                f"{name} has a cache of its own kind: expected a model that generates with a DynamicCache"
            )
        if inputs.get("inputs_embeds") is not None:
            raise GenerationError("the prompt is given as inputs_embeds: expected input_ids")
        if not prompt.shape[-1]:
            raise GenerationError("the prompt is empty: expected input_ids of at least one token")
        mask = inputs.get("attention_mask")  # of what a cache holds, too
        room, count = positions_of(model), prompt.shape[1] if mask is None else int(mask.sum(1).max())
        if count >= room:
            raise GenerationError(
                f"the prompt has {count} tokens, and {name} has positions for {room}: "
                "expected one that leaves room for a token"
            )
        stack = self._stack
        if stack is None or stack.model is not model:
            stack = Stack(model, blocks=self._blocks)
            stack.verify(arguments.sample)
            _require_causal(model, arguments.sample)
            self._stack = stack
        return stack

    def _whole_cache(self, arguments: LoopArguments, stack: Stack) -> Cache:
        """The cache to generate with, which keeps every position; see `whole_cache`.

        Where `generate` would drop positions behind a window, the model's masks must hide them: seen once of a model.
        """
        cache = whole_cache(arguments.cache, stack.depth)
        window = window_of(arguments.cache)
        if cache is not arguments.cache and arguments.config.max_length > window and self._windowed is not stack:
            _require_window(stack.model, arguments.input_ids, window)
            self._windowed = stack
        return cache

    def _started_streamer(self, arguments: LoopArguments) -> Any:
        """The streamer, which has been given the prompt; None if there is none. It takes one row only."""
        prompt = arguments.input_ids
        if arguments.streamer is not None or self.streamer is None:
            return arguments.streamer
        if len(prompt) > 1:
            raise GenerationError(f"a streamer for {len(prompt)} rows, beams counted: expected one")
        self.streamer.put(prompt.cpu())
        return self.streamer


def positions_of(model: nn.Module) -> int:
    """How many positions the model has, or was trained for; very many if its config does not tell."""
    return max_input_length(model) or sys.maxsize


def _require_causal(model: nn.Module, sample: dict[str, Tensor]) -> None:
    """Raise `GenerationError` if a token attends to later ones: its states could not be kept while others come."""
    longer = {name: torch.cat([values, values[:, -1:]], dim=1) for name, values in sample.items()}
    with evaluating(model):
        alone, before = (model_output(call_model(model, batch))[1] for batch in (sample, longer))
    counts = sample["attention_mask"] != 0
    if not distance(before[:, :-1][counts], alone[counts]) <= tolerance_of(alone):
        raise GenerationError(
            f"{type(model).__name__} lets tokens look at those behind them, as encoders do: expected a causal language "
            "model"
        )


def _require_window(model: Any, prompt: Int64[Tensor, "b t"], window: int) -> None:
    """Raise `GenerationError` if a model attends beyond the window behind which its own cache drops positions."""
    tokens = prompt[:1].repeat(1, window // prompt.shape[1] + 1)[:, : window + 1]
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with evaluating(model), torch.no_grad():
        whole = model_output(call_model(model, {"input_ids": tokens, "use_cache": False}))[1]
        model(input_ids=tokens[:, :-1], use_cache=True, **{cache_name(): cache})
        step = model(input_ids=tokens[:, -1:], use_cache=True, **{cache_name(): cache}).logits
    if not distance(step[:, -1], whole[:, -1]) <= tolerance_of(whole):
        raise GenerationError(
            f"{type(model).__name__} attends beyond the window of {window} positions that its own cache keeps, so what "
            f"it generates depends on the cache; expected max_length up to {window}, or a static depth"
        )


def require_depth(depth: int, stack: Stack, *, below: bool) -> None:
    """Raise `GenerationError` unless a depth is one of 1..L, or of 1..L-1 if it must lie `below` L."""
    last = stack.depth - 1 if below else stack.depth
    if not 1 <= depth <= last:
        raise GenerationError(
            f"depth {depth} of {type(stack.model).__name__} with {stack.depth} blocks: expected one from 1 to {last}"
        )


def require_padding(arguments: LoopArguments) -> None:
    """Raise `GenerationError` if rows may end at different lengths and there is no token to pad them with."""
    count, config = len(arguments.input_ids), arguments.config
    same_length = all(isinstance(criterion, MaxLengthCriteria) for criterion in arguments.stops)
    if count > 1 and config._pad_token_tensor is None and not same_length:
        raise GenerationError(
            f"{count} rows that may end at different lengths, and no token to fill them up: expected pad_token_id"
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


def require_supported(arguments: LoopArguments, method: str, *, several: bool = False) -> None:
    """Raise `GenerationError` for settings that dynamic exit and self-speculation do not support.

    Beams, guidance, watermarks, weights spread over ranks, outputs that are not kept, learnt prompts, rotary angles
    that change on the way. With `several`, logits and scores are not kept either.
    """
    model, config = arguments.model, arguments.config
    if (config.num_beams or 1) > 1:
        raise GenerationError(
            f"num_beams={config.num_beams} with {method}: beams share and reorder what was generated, so there is no "
            "one sequence to go by; use num_beams=1, or beams at a static depth"
        )
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise GenerationError(f"{mode.value} with {method}: expected greedy search or sampling")
    if config.guidance_scale not in (None, 1, 1.0):
        raise GenerationError(
            f"guidance_scale={config.guidance_scale} with {method}: its processor runs the model itself"
        )
    if config.watermarking_config is not None:
        raise GenerationError(f"watermarking_config with {method}: a watermark goes by each token in turn, and once")
    if several_ranks(model):
        raise GenerationError(f"FSDP or ZeRO-3 with {method}: ranks would run different numbers of blocks")
    adapted = getattr(model.prepare_inputs_for_generation, "__self__", model)  # peft's, while it generates
    if getattr(getattr(adapted, "active_peft_config", None), "is_prompt_learning", False):
        raise GenerationError(f"learnt prompts with {method}: they take positions that input_ids do not have")
    _refuse_outputs(config, method, several)
    _refuse_changing_angles(getattr(model, "config", None), config.max_length, method)


def _refuse_outputs(config: Any, method: str, several: bool) -> None:
    names = ["output_attentions", "output_hidden_states"]
    if several and config.return_dict_in_generate:
        names += ["output_scores", "output_logits"]
    requested = [name for name in names if getattr(config, name)]
    if requested:
        rows = " of a batch" if several else ""
        raise GenerationError(
            f"{requested[0]} with {method}: these are not kept{rows}; leave it out, or use a static depth"
        )


def _refuse_changing_angles(config: Any, length: int, method: str) -> None:
    """Raise `GenerationError` if rotary angles change at some length: keys in the cache would no longer fit."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):  # some models have one for each kind of layer
        kind = rope.get("rope_type", "") if isinstance(rope, dict) else ""
        known = getattr(config, "max_position_embeddings", length)
        limit = rope.get("original_max_position_embeddings", known) if kind else length
        if ("dynamic" in kind or kind == "longrope") and length > limit:
            raise GenerationError(
                f"{length} positions with {method}: the rotary angles of this model ({kind}) change after {limit}; "
                "expected max_length up to that"
            )

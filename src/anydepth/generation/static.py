"""Generating at a depth: the blocks behind it don't run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation.configuration_utils import GenerationMode

from anydepth.core.patching import evaluating, forward_as
from anydepth.dependencies import cache_name
from anydepth.errors import GenerationError
from anydepth.generation.cache import levelled, require_even
from anydepth.generation.decoder import GenerationStats, checked_on
from anydepth.generation.modes import GenerationMethod, require_depth, several_ranks, written


class StaticDepth(GenerationMethod):
    """See `at_depth`."""

    def __init__(self, depth: int, *, blocks: str | None = None, streamer: Any = None) -> None:
        super().__init__(blocks=blocks, streamer=streamer)
        self.depth = depth

    def __call__(
        self,
        model: Any,
        input_ids: Int64[Tensor, "b t"],
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        **given: Any,
    ) -> Any:
        """What `generate` calls in place of its own loop: that loop itself, on the model without its last blocks."""
        stack = self.stack(model, input_ids, given)
        require_depth(self.depth, stack, below=False)
        mode = generation_config.get_generation_mode()
        beams = mode in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)
        if not beams and mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise GenerationError(f"{mode.value} at a static depth: expected greedy search, sampling or beams")
        cache = given.get(cache_name())
        require_even(cache, self.depth)
        if isinstance(cache, Cache) and not getattr(cache, "_is_user_defined", False):
            del cache.layers[self.depth :]  # given to the whole model, it then fails, and is not silently wrong
        generation_config.disable_compile = True  # what was compiled would go on without the other blocks
        spent = self.counted()
        loop = model._beam_search if beams else model._sample
        streamer = self.streaming(input_ids, streamer)
        sample = checked_on(input_ids, given.get("attention_mask"))
        _ask_before(model, sample, generation_config)
        with stack.cut(self.depth, sample), self._counting(model, spent), levelled(cache, self.depth):
            output = loop(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=several_ranks(model),
                **({} if beams else {"streamer": streamer}),
                **given,
            )
        spent.tokens = written(output, input_ids)
        return output

    def _counting(self, model: nn.Module, spent: GenerationStats) -> AbstractContextManager[None]:
        """Inside, forwards add to what is spent."""
        own = model.forward

        @wraps(own)  # `generate` looks at what a forward takes
        def forward(*args: Any, **kwargs: Any) -> Any:
            spent.blocks += self.depth
            spent.readouts += 1
            return own(*args, **kwargs)

        return forward_as(model, forward)


def _ask_before(model: nn.Module, sample: dict[str, Tensor], config: Any) -> None:
    """Run a forward that answers with states or attentions too, if they will be asked for.

    transformers hooks the blocks that it finds at the first such forward, and no others later.
    """
    names = ("output_attentions", "output_hidden_states")
    asked = [name for name in names if getattr(config, name) or getattr(model.config, name, False)]
    if asked:
        with evaluating(model):
            model(**sample, **dict.fromkeys(asked, True))


def at_depth(depth: int, *, blocks: str | None = None, streamer: Any = None) -> StaticDepth:
    """Generate as if the model ended after a block: `readout(h[depth])` decides every token.

    The same as generating with `anydepth.truncate(model, depth)`, without another model: every option of `generate`
    works as it does there. Blocks behind the depth do not run, and keep no keys and values.

    Args:
        depth: 1..L.
        blocks: see `anydepth.Stack`.
        streamer: is given the tokens as they come; give it here, not to `generate`.

    Raises:
        GenerationError: on use: no such depth, an empty prompt, or one that leaves no room.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()
        >>> prompt = torch.tensor([[3, 1, 4]])
        >>> model.generate(prompt, max_new_tokens=5, custom_generate=at_depth(2)).shape
        torch.Size([1, 8])
    """
    return StaticDepth(depth, blocks=blocks, streamer=streamer)

"""Generate with the first blocks of a model only."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation.configuration_utils import GenerationMode

from anydepth.core.patching import evaluating, forward_as
from anydepth.errors import GenerationError
from anydepth.generation.cache import levelled, require_even
from anydepth.generation.decoder import GenerationStats
from anydepth.generation.modes import GenerationMethod, LoopArguments, require_depth, several_ranks


class StaticDepth(GenerationMethod):
    """See `at_depth`."""

    def __init__(self, depth: int, *, blocks: str | None = None, streamer: Any = None) -> None:
        super().__init__(blocks=blocks, streamer=streamer)
        self.depth = depth

    def _generate(self, arguments: LoopArguments) -> Any:
        """Run `generate`'s own loop on the model without its last blocks."""
        model, config, cache = arguments.model, arguments.config, arguments.cache
        stack = self._stack_of(arguments)
        require_depth(self.depth, stack, below=False)
        mode = config.get_generation_mode()
        beams = mode in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)
        if not beams and mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise GenerationError(f"{mode.value} at a static depth: expected greedy search, sampling or beams")
        require_even(cache, self.depth)
        if isinstance(cache, Cache) and len(cache.layers) > stack.depth:
            raise GenerationError(
                f"{type(model).__name__} keeps keys and values in {len(cache.layers)} layers, and has {stack.depth} "
                f"blocks at {stack.path!r}: expected at most one layer for each"
            )
        if isinstance(cache, Cache) and not getattr(cache, "_is_user_defined", False):
            del cache.layers[self.depth :]  # given to the whole model, it then fails, and is not silently wrong
        config.disable_compile = True  # what was compiled would run the other blocks, too
        stats = self._new_stats()
        streamer = self._started_streamer(arguments)
        sample = arguments.sample
        _install_hooks(model, sample, config)
        with stack.cut(self.depth, sample), self._counting(model, stats), levelled(cache, self.depth):
            return arguments.run(
                model._beam_search if beams else model._sample,
                stats,
                {"synced_gpus": several_ranks(model)} | ({} if beams else {"streamer": streamer}),
            )

    def _counting(self, model: nn.Module, stats: GenerationStats) -> AbstractContextManager[None]:
        """Context manager: count the blocks and readouts of every forward."""
        original = model.forward

        @wraps(original)  # `generate` looks at what a forward takes
        def forward(*args: Any, **kwargs: Any) -> Any:
            stats.blocks += self.depth
            stats.readouts += 1
            return original(*args, **kwargs)

        return forward_as(model, forward)


def _install_hooks(model: nn.Module, sample: dict[str, Tensor], config: Any) -> None:
    """Run a forward that returns hidden states or attentions too, if `generate` is to return them.

    transformers hooks the blocks that it finds at the first such forward, and no others later.
    """
    names = ("output_attentions", "output_hidden_states")
    requested = [name for name in names if getattr(config, name) or getattr(model.config, name, False)]
    if requested:
        with evaluating(model):
            model(**sample, **dict.fromkeys(requested, True))


def at_depth(depth: int, *, blocks: str | None = None, streamer: Any = None) -> StaticDepth:
    """Generate at a depth: every token is decided by the readout (logit lens) of `h[depth]`.

    The same as generating with `anydepth.truncate(model, depth)`, without another model: every option of `generate`
    works as it does there. Later blocks do not run, and keep no keys and values.

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

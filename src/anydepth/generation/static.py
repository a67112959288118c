"""Generating at a depth: the blocks behind it don't run."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int64
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from anydepth.errors import GenerationError
from anydepth.generation.decoder import checked_on
from anydepth.generation.modes import Mode, require_depth


class StaticDepth(Mode):
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
        loop = model._beam_search if beams else model._sample
        streamer = self.streaming(input_ids, streamer)
        with stack.cut(self.depth, checked_on(input_ids, given.get("attention_mask"))):
            return loop(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                **({} if beams else {"streamer": streamer}),
                **given,
            )


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

"""What all ways of generating share: what they refuse, and the `Stack` of the model they are used with."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from anydepth.errors import GenerationError
from anydepth.generation.decoder import Spent, checked_on
from anydepth.stack import Stack


class Mode:
    """A way to generate, given to a model as `model.generate(..., custom_generate=mode)`.

    Args:
        blocks: the dotted name of the list of blocks, for a model that has several.
        streamer: is given tokens as they are decided. transformers keeps the streamer that `generate` is given to
            itself when its loop is another's, so it has to come this way.

    Attributes:
        spent: what the last generation took.
    """

    def __init__(self, *, blocks: str | None = None, streamer: Any = None) -> None:
        self._blocks, self._streamer = blocks, streamer
        self._stack: Stack | None = None
        self.spent = Spent()

    def stack(self, model: nn.Module, prompt: Int64[Tensor, "b t"], given: dict[str, Any]) -> Stack:
        """The model as blocks, its law checked on the end of the prompt when it is first used.

        Raises:
            GenerationError: the prompt is empty, or longer than the model has positions for.
            UnknownArchitecture: see `Stack`.
        """
        if not prompt.shape[-1] or given.get("inputs_embeds") is not None:
            raise GenerationError("the prompt is empty: expected input_ids of at least one token")
        room = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if room is not None and prompt.shape[1] >= room:
            raise GenerationError(
                f"the prompt has {prompt.shape[1]} tokens, and {type(model).__name__} has positions for {room}: "
                "expected one that leaves room for a token"
            )
        if self._stack is None or self._stack.model is not model:
            self._stack = Stack(model, blocks=self._blocks)
            self._stack.verify(checked_on(prompt, given.get("attention_mask")))
        return self._stack

    def streaming(self, prompt: Int64[Tensor, "b t"], streamer: Any) -> Any:
        """The streamer to give tokens to, which has been given the prompt; None if there is none.

        Raises:
            GenerationError: there are several rows.
        """
        if streamer is None and self._streamer is not None:
            if len(prompt) > 1:
                raise GenerationError(f"a streamer for {len(prompt)} rows: expected one")
            self._streamer.put(prompt.cpu())
            return self._streamer
        return streamer


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


def refuse(config: Any, *, unless: str, beams: bool = True, several: bool = False) -> None:
    """Refuse what a loop of our own does not do, with the reason.

    Args:
        config: the generation config.
        unless: what is refusing, in the message.
        beams: whether beams are refused.
        several: whether the batch has several rows.

    Raises:
        GenerationError: beams, guidance, or outputs that are not kept.
    """
    if beams and (config.num_beams or 1) > 1:
        raise GenerationError(
            f"num_beams={config.num_beams} with {unless}: beams share and reorder what was generated, so there is no "
            "one sequence to go by; use num_beams=1, or beams at a static depth"
        )
    if config.guidance_scale not in (None, 1, 1.0):
        raise GenerationError(
            f"guidance_scale={config.guidance_scale} with {unless}: its processor runs the model itself"
        )
    if config.watermarking_config is not None:
        raise GenerationError(f"watermarking_config with {unless}: a watermark goes by each token in turn, and once")
    if config.return_dict_in_generate:
        asked = [name for name in ("output_attentions", "output_hidden_states") if getattr(config, name)]
        if several:
            asked += [name for name in ("output_scores", "output_logits") if getattr(config, name)]
        if asked:
            alone = " of a batch" if several else ""
            raise GenerationError(
                f"{asked[0]} with {unless}: these are not kept{alone}; leave it out, or use a static depth"
            )

"""Which positions of hidden states and answers are padding: which mask says so is learnt from the model.

A batch may have masks that belong to other positions than the states': that of the encoder's texts beside a decoder,
that of a text beside an image. A token is changed, and the input of the first block shows where it went.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from anydepth.core.model_io import Batch
from anydepth.errors import DataError

_MASK, _DECODER = "attention_mask", "decoder_"
_NO_TOKENS = ("pixel_", "image_", "video_", "input_features", "audio_")
Belongs = int | Literal["in front", "shifted", "in turn", "elsewhere"]
"""Where the positions of a mask lie in the states: each as so many of theirs, side by side (mostly 1); followed by
padding of the model's own; each one place later, as a classifier gives its decoder the encoder's text; all of them
several times in turn, as in the streams of Gemma-3n; nowhere."""


class Masks:
    """What is known of the masks in a model's batches.

    Args:
        first_state: the input of the first block for a batch, (B, T, D), computed anew.
        virtual: whether an adapter puts virtual tokens before those of the batch (prompt tuning).
        joined: whether a sample has several rows of positions, one after the other, and masks of as many axes.
        pad: the token that fills up a decoder's texts, where a batch has no mask for them.
    """

    def __init__(
        self,
        first_state: Callable[[Batch], Tensor],
        *,
        virtual: bool = False,
        joined: bool = False,
        pad: int | None = None,
    ) -> None:
        self._first_state, self._virtual, self._joined, self._pad = first_state, virtual, joined, pad
        self._known: dict[str, Belongs] = {}

    def of_states(self, batch: Batch, state: Tensor) -> Bool[Tensor, "b t"]:
        """The positions of a hidden state that are not padding; all where no mask of the batch is about them.

        Raises:
            DataError: virtual tokens, or a mask of another length than the states.
        """
        size, length = state.shape[0], state.shape[1] if state.ndim == 3 else 1
        every = torch.ones(size, length, dtype=torch.bool, device=state.device)
        if state.ndim == 2 or not isinstance(batch, Mapping):
            return every
        for name, mask in _masks(batch, size, joined=self._joined):
            if name not in self._known:
                self._known[name] = self._learn(batch, name, mask, state)
            if (belongs := self._known[name]) == "elsewhere":
                continue
            own = mask.repeat_interleave(belongs, dim=1) if isinstance(belongs, int) else mask
            if belongs == "in turn":
                own = mask.repeat(1, length // mask.shape[1])
            if belongs == "shifted":
                own = torch.nn.functional.pad(mask[:, :-1], (1, 0), value=1)
            if own.shape[1] > length or (belongs != "in front" and own.shape[1] != length):
                raise _mismatch(name, mask, state)
            every[:, own.shape[1] :] = False
            every[:, : own.shape[1]] = own.to(state.device).bool()
            return every
        return self._of_decoder(batch, every)

    def of_answers(self, batch: Batch, answer: Tensor) -> Bool[Tensor, "b t"]:
        """The positions of answers that are not the states' which are not padding: by a mask of their length."""
        every = torch.ones(answer.shape[:2], dtype=torch.bool, device=answer.device)
        if not isinstance(batch, Mapping):
            return every
        masks = {name: mask for name, mask in _masks(batch, len(answer)) if mask.shape == every.shape}
        decoder = f"{_DECODER}{_MASK}"
        name = decoder if decoder in masks else _MASK if _MASK in masks and f"{_DECODER}input_ids" not in batch else ""
        return masks[name].to(answer.device).bool() if name else self._of_decoder(batch, every)

    def _of_decoder(self, batch: Mapping[str, Any], every: Tensor) -> Tensor:
        """Without a mask, a decoder's texts end where only padding follows."""
        ids = batch.get(f"{_DECODER}input_ids")
        if self._pad is None or not isinstance(ids, Tensor) or ids.shape != every.shape:
            return every
        is_text = (ids != self._pad).to(every.device)
        is_text[:, 0] = True  # it starts with what may be the same token
        return is_text.flip(1).cumsum(1).flip(1) > 0

    def _learn(self, batch: Mapping[str, Any], name: str, mask: Tensor, state: Tensor) -> Belongs:
        length, count = state.shape[1], mask.shape[1]
        place = int(mask[0].nonzero()[-1]) if mask[0].any() else count - 1
        changed = self._reached(batch, name, place)
        if changed is None:  # nothing could be changed: the lengths alone tell
            if count != length:
                raise _mismatch(name, mask, state)
            return 1
        if self._virtual and length > count and changed == [place + length - count]:
            raise DataError(
                f"the states have {length - count} virtual tokens before the {count} of the batch (prompt tuning): "
                "they stand for no token of a text; trace the model without the adapter, or another kind of adapter"
            )
        if count == length:
            if place and place not in changed and changed != [place + 1]:
                # the last place of all has none after it, and the last token of a text may stand elsewhere, too (MBart)
                place, changed = place - 1, self._reached(batch, name, place - 1) or []
            return 1 if place in changed else "shifted" if changed == [place + 1] else "elsewhere"
        if length > count and changed == [place]:
            return "in front"
        streams, rest = divmod(length, count)
        if rest:
            return "elsewhere"
        if changed == list(range(place, length, count)):
            return "in turn"
        return streams if changed == list(range(place * streams, (place + 1) * streams)) else "elsewhere"

    def _reached(self, batch: Mapping[str, Any], name: str, place: int) -> list[int] | None:
        """The positions of h[0] that change with the first sample's token at a place; None if none can be changed."""
        before = self._first_state(batch)
        for tokens, changed in _changed(batch, name, place):
            try:
                after = self._first_state({**batch, tokens: changed})
            except Exception:
                continue
            if before.shape == after.shape and before.ndim == 3:
                rows = (before[0] != after[0]) & ~(before[0].isnan() & after[0].isnan())
                return [int(row) for row in rows.any(-1).nonzero()[:, 0]]
        return None


def _mismatch(name: str, mask: Tensor, state: Tensor) -> DataError:
    return DataError(
        f"{name} is {tuple(mask.shape)}, the states have {tuple(state.shape[:2])} positions: expected a mask of the "
        "tokens that the model is given"
    )


def with_positions_of(batch: Mapping[str, Any], name: str) -> list[str]:
    """The names of a batch's tensors that have an entry for each position of a mask, itself among them.

    What is as long by chance is left out: beside tokens, pixels and sounds; beside an encoder's texts, a decoder's.
    """
    mask, prefix = batch[name], name.removesuffix(_MASK)
    others = (_DECODER, *_NO_TOKENS) if "input_ids" in batch else (_DECODER,)
    return [
        other
        for other, value in batch.items()
        if isinstance(value, Tensor)
        and value.shape[: mask.ndim] == mask.shape
        and (other.startswith(prefix) if prefix else not other.startswith(others))
    ]


def _masks(batch: Mapping[str, Any], size: int, *, joined: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The batch's masks of one row a sample, by name; `joined` ones of more axes, too, in one row."""
    for name, mask in batch.items():
        is_mask = name.endswith(_MASK) and isinstance(mask, Tensor) and mask.ndim > 1 and len(mask) == size
        if is_mask and (joined or mask.ndim == 2):
            yield name, mask.flatten(1)


def _changed(batch: Mapping[str, Any], name: str, place: int) -> Iterator[tuple[str, Tensor]]:
    """The tokens that a mask is about, by name, with that of the first sample at a place exchanged for others."""
    about, mask = with_positions_of(batch, name), batch[name].bool()
    tokens = (other for other in about if not other.endswith(("mask", "position_ids", "token_type_ids")))
    for other in sorted(tokens, key=lambda name: not name.endswith("input_ids")):
        value = batch[other]
        own = value[0].flatten(0, mask.ndim - 2)[place]
        # no padding, by which a model may count the tokens of a text
        known = [] if own.ndim or value.is_floating_point() else value[(value != own) & mask].unique()[:3]
        for replacement in (*known, own + 1, own - 1):
            if value.is_floating_point() or (replacement >= 0).all():
                changed = value.clone(memory_format=torch.contiguous_format)
                changed[0].flatten(0, mask.ndim - 2)[place] = replacement
                yield other, changed

"""Answers of a batch at every depth, in pieces: logits over a vocabulary are larger than all else in a forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from anydepth.core.model_io import Batch
from anydepth.core.patching import forward_as
from anydepth.core.stack import Stack

# Logits in a piece, 67 MB in float32: 333 rows of GPT-2's vocabulary, enough for a matrix product at full speed.
PIECE = 2**24


class Readouts:
    """The hidden states of a batch by one forward, and the model's answers at every depth.

    Where the classifier may be given some positions alone (both is known from the first batch), no logits are computed
    but those asked for; where nothing comes after it, the forward and the readouts run without it, and it runs on the
    positions asked for, once a depth.

    Args:
        stack: the model.
        batch: one of its.

    Attributes:
        states: h[0..L].
        answer: the forward's own; where nothing comes after the classifier, what this is given.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=8, vocab_size=9)).eval()
        >>> batch = {"input_ids": torch.arange(6).reshape(2, 3)}
        >>> with torch.no_grad():
        ...     readouts = Readouts(Stack(model), batch)
        ...     pieces = list(readouts.pieces(1, classes=9, where=(torch.tensor([0, 1]), torch.tensor([2, 0]))))
        >>> [tuple(piece.shape) for piece in pieces]
        [(2, 9)]
    """

    def __init__(self, stack: Stack, batch: Batch) -> None:
        self._stack, self._batch, self._traits = stack, batch, stack.learn(batch)
        classifier = self._traits.classifier if self._traits.classifier_is_last else None
        with nullcontext() if classifier is None else forward_as(classifier, lambda features: features):
            self.states, self.answer = stack.forward(batch)

    def pieces(
        self, depth: int, *, classes: int, where: tuple[Tensor, Tensor] | None = None, final_norm: bool = True
    ) -> Iterator[Tensor]:
        """The answers at a depth, (n, C), at most `PIECE` numbers at a time where it answers for every position.

        Args:
            depth: one that can be read out.
            classes: C.
            where: samples and positions of the answers asked for; None of a model that answers once for a sample.
            final_norm: False skips the final norm; see `Stack.readout`.
        """
        own = depth == self._stack.depth
        if where is None:
            yield self.answer if own else self._readout(depth, final_norm)
            return
        some = zip(*(torch.split(index, max(1, PIECE // classes)) for index in where), strict=True)
        if self._traits.classifier_is_last:
            features = self.answer if own else self._stack.classifier_input(self.states[depth], self._batch, final_norm)
            yield from map(self._head(depth), map(features.__getitem__, some))
        elif self._traits.answers_by_row and not own:
            for rows in some:
                yield self._readout_at(rows, depth, final_norm)
        else:
            yield from map((self.answer if own else self._readout(depth, final_norm)).__getitem__, some)

    def _readout(self, depth: int, final_norm: bool) -> Tensor:
        return self._stack.readout(self.states[depth], self._batch, depth=depth, final_norm=final_norm)

    def _readout_at(self, rows: tuple[Tensor, Tensor], depth: int, final_norm: bool) -> Tensor:
        """The readout of a depth whose classifier is given some positions alone."""
        stack, head = self._stack, self._head(depth).forward
        with forward_as(stack.classifier(self._batch), lambda features: head(features[rows][None])):
            return stack.readout(self.states[depth], self._batch, depth=stack.depth, final_norm=final_norm)[0]

    def _head(self, depth: int) -> nn.Module:
        """The classifier, or the one of this depth."""
        heads = self._stack.heads
        if heads is None or not 0 < depth < self._stack.depth:
            return self._stack.classifier(self._batch)
        return heads[depth]

"""What is being written: each row's tokens, what the processors make of its logits, and when it ends."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


class Writing:
    """Rows of tokens that grow by different numbers at a time, each as `generate`'s own loop would grow it.

    Args:
        prompt: with its padding, which processors see as they do in `generate`.
        processors: what `generate` makes of temperature, penalties and the like.
        stops: when a row ends.
        streamer: is given tokens as they are decided; of one row only.
        sampled: whether tokens are drawn, rather than the likeliest taken.

    Attributes:
        rows: the tokens of each row so far, (T,).
        finished: whether each row has ended.
        sampled: as given.
    """

    def __init__(
        self, prompt: Int64[Tensor, "b t"], processors: Any, stops: Any, streamer: Any = None, *, sampled: bool = False
    ) -> None:
        self._processors, self._stops, self._streamer, self.sampled = processors, stops, streamer, sampled
        self.rows = list(prompt)
        self.finished = [False] * len(prompt)
        self._prompt = prompt.shape[1]

    @property
    def written(self) -> int:
        """Tokens over all rows, without the prompts."""
        return sum(len(row) - self._prompt for row in self.rows)

    @property
    def unfinished(self) -> list[int]:
        """The rows that have not ended."""
        return [row for row, done in enumerate(self.finished) if not done]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with its prompt."""
        return max(map(len, self.rows))

    def scores(self, logits: Float[Tensor, "b v"], ahead: Int64[Tensor, "b q"] | None = None) -> Float[Tensor, "b v"]:
        """What the processors make of the logits of each row's next token.

        Args:
            logits: of the position after the row, and after what lies `ahead` of it.
            ahead: tokens that were drafted behind each row.
        """
        if not self._processors:
            return logits
        rows = self.rows if ahead is None else [torch.cat(pair) for pair in zip(self.rows, ahead, strict=True)]
        scores = torch.empty_like(logits)
        # Processors may go by a row's place in the batch, and see rows of one length: so they are asked once for each
        # length that there is, with the other rows cut or filled up to it, and answer for the rows that have it.
        for length in {len(row) for row in rows}:
            alike = torch.stack([functional.pad(row, (0, length - len(row))) for row in rows])
            own = torch.tensor([len(row) == length for row in rows], device=logits.device)
            scores[own] = self._processors(alike, logits.clone())[own]
        return scores

    def choose(self, scores: Float[Tensor, "b v"]) -> Int64[Tensor, " b"]:
        """A token for each row."""
        return torch.multinomial(scores.softmax(-1), 1)[:, 0] if self.sampled else scores.argmax(-1)

    def add(self, row: int, tokens: Int64[Tensor, " n"]) -> int:
        """Add tokens to a row until it ends; returns how many there was room for."""
        for count, token in enumerate(tokens.unsqueeze(1), start=1):
            self.rows[row] = torch.cat([self.rows[row], token])
            if self._streamer is not None:
                self._streamer.put(token.cpu())
            if bool(self._stops(self.rows[row][None], None).all()):
                self.finished[row] = True
                return count
        return len(tokens)

    def padded(self, padding: Tensor | None) -> Int64[Tensor, "b t"]:
        """All rows, as long as the longest."""
        longest = self.longest
        fill = 0 if padding is None else int(padding)
        return torch.stack([functional.pad(row, (0, longest - len(row)), value=fill) for row in self.rows])

"""The rows of tokens that a generation loop extends, with logits processors and stopping criteria."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


class TokenRows:
    """Rows of tokens that grow by different numbers at a time, each as in `generate`'s own loop.

    Args:
        prompt: with its padding, which processors see as they do in `generate`.
        processors: of logits; their output must depend on the tokens alone, since they are called on drafts, too.
        stops: stopping criteria, called on one row at a time.
        config: the generation config.
        streamer: is given tokens as they are decided; of one row only.

    Attributes:
        rows: the tokens of each row so far, (T,).
        finished: whether each row has ended.
        sampled: whether tokens are drawn.
        logits: of each token of a single row, (1, V), float32; None if they are not kept.
        scores: the processed logits; None if they are not kept.
    """

    def __init__(
        self, prompt: Int64[Tensor, "b t"], processors: Any, stops: Any, config: Any, streamer: Any = None
    ) -> None:
        self._processors, self._stops, self._streamer = processors, stops, streamer
        self.rows = list(prompt)
        self.finished = [False] * len(prompt)
        self.sampled = bool(config.do_sample)
        keep = bool(config.return_dict_in_generate) and len(prompt) == 1
        self.logits: list[Tensor] | None = [] if keep and config.output_logits else None
        self.scores: list[Tensor] | None = [] if keep and config.output_scores else None
        self._prompt = prompt.shape[1]
        self._padding = 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)

    @property
    def written(self) -> int:
        """Tokens over all rows, without the prompts."""
        return sum(len(row) - self._prompt for row in self.rows)

    @property
    def unfinished(self) -> list[int]:
        """The places of the rows that have not ended."""
        return [row for row, done in enumerate(self.finished) if not done]

    @property
    def last(self) -> Int64[Tensor, "b 1"]:
        """The last token of each row that has not ended."""
        return torch.stack([self.rows[row][-1:] for row in self.unfinished])

    @property
    def longest(self) -> int:
        """Tokens of the longest row that has not ended, with its prompt; of the longest of all if all have."""
        return max(len(self.rows[row]) for row in self.unfinished or range(len(self.rows)))

    def processed(
        self, logits: Float[Tensor, "b v"], ahead: Int64[Tensor, "b q"] | None = None
    ) -> Float[Tensor, "b v"]:
        """Scores of the next token of each row that has not ended, after tokens drafted `ahead`: processed logits."""
        if not self._processors:
            return logits
        places = self.unfinished
        drafted = [logits.new_zeros(0, dtype=torch.long)] * len(places) if ahead is None else list(ahead)
        texts = {row: torch.cat([self.rows[row], draft]) for row, draft in zip(places, drafted, strict=True)}
        whole = logits.new_zeros(len(self.rows), logits.shape[1])
        whole[places] = logits
        scores = torch.empty_like(logits)
        # Processors take rows of one length, each in its place: so they are called once for each length that there is.
        for length in {len(text) for text in texts.values()}:
            group = [place for place, row in enumerate(places) if len(texts[row]) == length]
            processed = self._processors(self._rows_of_length(length, texts), whole.clone())
            scores[group] = processed[[places[place] for place in group]]
        return scores

    def all_processed(self, logits: Float[Tensor, "b n v"], ahead: Int64[Tensor, "b q"]) -> Float[Tensor, "b n v"]:
        """Scores of n = q + 1 positions: after the row, and after each of the q tokens drafted `ahead` of it."""
        if not self._processors:
            return logits
        places = range(logits.shape[1])
        return torch.stack([self.processed(logits[:, place], ahead[:, :place]) for place in places], 1)

    def _rows_of_length(self, length: int, texts: dict[int, Tensor]) -> Int64[Tensor, "n t"]:
        """All rows at one length: longer ones cut, ended ones padded, shorter ones replaced by another row."""
        substitute = next(text for text in texts.values() if len(text) == length)
        rows = []
        for row, text in enumerate(self.rows):
            text = texts.get(row, text)
            if len(text) < length:
                pad = (0, length - len(text))
                text = functional.pad(text, pad, value=self._padding) if self.finished[row] else substitute
            rows.append(text[:length])
        return torch.stack(rows)

    def choose(self, scores: Float[Tensor, "b v"]) -> Int64[Tensor, " b"]:
        """A token for each row of scores."""
        return torch.multinomial(scores.softmax(-1), 1)[:, 0] if self.sampled else scores.argmax(-1)

    def add(
        self, row: int, tokens: Int64[Tensor, " n"], logits: Float[Tensor, "m v"], scores: Float[Tensor, "m v"]
    ) -> None:
        """Add tokens to a row until it ends: n decided ones, with the logits and scores of m >= n positions."""
        for place, token in enumerate(tokens.unsqueeze(1)):
            self.rows[row] = torch.cat([self.rows[row], token])
            for kept, values in ((self.logits, logits), (self.scores, scores)):
                if kept is not None:
                    kept.append(values[place : place + 1])
            ended = self._stops(self.rows[row][None], None if self.scores is None else tuple(self.scores))
            if self._streamer is not None:
                self._streamer.put(token.cpu())
            if bool(ended.all()):
                self.finished[row] = True
                return

    def padded(self) -> Int64[Tensor, "b t"]:
        """All rows, as long as the longest."""
        longest = max(map(len, self.rows))
        return torch.stack([functional.pad(row, (0, longest - len(row)), value=self._padding) for row in self.rows])

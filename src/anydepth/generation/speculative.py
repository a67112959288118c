"""Self-speculative decoding: the first blocks draft tokens, the other blocks verify them.

One round: the blocks up to the draft depth run token by token, and their readout proposes the next one each time. Then
the remaining blocks run once, on the hidden states of the drafted tokens, and give the full model's distribution after
each of them. Drafts that agree with it are kept. Nothing runs twice: drafting keeps the keys and values of the shallow
blocks, and the states that the deep blocks start from.

Leviathan, Kalman, Matias 2023 (speculative sampling); Elhoushi et al. 2024 (drafting with a model's own first blocks).
"""

from __future__ import annotations

from itertools import accumulate
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from anydepth.core.stack import Stack
from anydepth.dependencies import cache_name
from anydepth.errors import GenerationError
from anydepth.generation import modes
from anydepth.generation.cache import copied, require_filled
from anydepth.generation.decoder import Decoder, decoding
from anydepth.generation.modes import GenerationMethod, LoopArguments
from anydepth.generation.token_rows import TokenRows

LONGEST_DRAFT = 16


def best_length(chance: float, draft: int | float, verify: int | float) -> int:
    """The number of drafts in a round that gives the most tokens for its cost: g times `draft`, and `verify`.

    With a `chance` a for each draft to be accepted, a round of g drafts yields 1 + a + ... + a^g tokens in the mean,
    the one that is no draft among them (Leviathan et al. 2023, equation 1).

    Example:
        >>> best_length(0.5, 0.25, 1.5), best_length(0.0, 0.25, 1.5)
        (2, 1)
    """
    tokens = accumulate(chance**place for place in range(LONGEST_DRAFT + 1))
    rates = [(expected / (count * draft + verify), count) for count, expected in enumerate(tokens)]
    return max(rates[1:], key=itemgetter(0))[1]


class DraftLength:
    """The number of tokens to draft in the next round, from the acceptance so far; `fixed` if it is given.

    `draft` and `verify` are the costs that `best_length` takes.
    """

    def __init__(self, draft: int | float, verify: int | float, fixed: int | None = None) -> None:
        self._draft, self._verify, self._fixed = draft, verify, fixed
        # as if a few drafts had been seen: two in three accepted
        self._accepted, self._judged = 4.0, 6.0

    def next(self) -> int:
        """Tokens to draft in the next round."""
        if self._fixed is not None:
            return self._fixed
        chance = min(self._accepted / self._judged, 0.99)
        return best_length(chance, self._draft, self._verify)

    def learn(self, accepted: int, drafted: int) -> None:
        """Count the accepted drafts of one row; drafts behind the first rejected one were not judged."""
        fade = 0.9
        self._accepted = fade * self._accepted + accepted
        self._judged = fade * self._judged + accepted + (accepted < drafted)


def accepted_of(
    drafts: Int64[Tensor, " g"], proposed: Float[Tensor, "g v"], verified: Float[Tensor, "n v"], *, sampled: bool
) -> tuple[int, Int64[Tensor, " 1"]]:
    """How many drafts of a row are accepted, and the token that comes after them.

    Greedy: as long as the draft is the full model's token. Sampled: with probability min(1, p / q), and where one is
    rejected the next token is drawn from max(0, p - q), which together is a draw from p (Leviathan et al., Theorem 1).

    The drafts were drawn from the scores `proposed`; `verified` are the full model's scores in the same places, and in
    the one after them: n = g + 1.
    """
    count = len(drafts)
    if not sampled:
        right = verified.argmax(-1)
        kept = _leading(drafts == right[:count])
        return kept, right[kept : kept + 1]
    full, shallow = verified.softmax(-1), proposed.softmax(-1)
    places = torch.arange(count, device=drafts.device)
    chances = full[places, drafts] / shallow[places, drafts]
    kept = _leading(torch.rand_like(chances) < chances)
    remainder = full[kept] if kept == count else (full[kept] - shallow[kept]).clamp(min=0)
    # where p = q a draft may fail by rounding alone, and the remainder is 0
    return kept, torch.multinomial(remainder if bool(remainder.any()) else full[kept], 1)


def _leading(holds: Bool[Tensor, " g"]) -> int:
    """How many are true before the first that is not."""
    return int(holds.long().cumprod(0).sum())


class SelfSpeculative(GenerationMethod):
    """See `self_speculative`."""

    def __init__(
        self, draft_depth: int, *, draft_length: int | None = None, blocks: str | None = None, streamer: Any = None
    ) -> None:
        super().__init__(blocks=blocks, streamer=streamer)
        if draft_length is not None and draft_length < 1:
            raise GenerationError(
                f"draft_length={draft_length}: expected at least 1, or None to go by what is accepted"
            )
        self.draft_depth, self.draft_length = draft_depth, draft_length

    def _generate(self, arguments: LoopArguments) -> Any:
        """Draft and verify, round after round, until all rows have ended."""
        model, prompt, config = arguments.model, arguments.input_ids, arguments.config
        single = len(prompt) == 1
        modes.require_supported(arguments, "self-speculation", several=not single)
        modes.require_padding(arguments)
        stack = self._stack_of(arguments)
        modes.require_depth(self.draft_depth, stack, below=True)
        cache = self._whole_cache(arguments, stack)
        new = arguments.uncached_tokens(cache)
        total = cache.get_seq_length() + new.shape[1]
        if not single:
            cache = copied(cache)  # rows move in it, and are dropped when they end
        lengths = DraftLength(*_parameter_counts(stack, self.draft_depth), self.draft_length)
        stats = self._new_stats()
        with decoding(stack, prompt, cache, arguments.model_inputs, stats) as decoder:
            streamer = self._started_streamer(arguments)
            rows = TokenRows(prompt, arguments.processors, arguments.stops, config, streamer)
            rounds = _Rounds(decoder, rows, lengths, (self.draft_depth, stack.depth))
            rounds.begin(new)
            # the last token of a round is never a draft, and there are positions for so many
            room = min(config.max_length - 1, modes.positions_of(model) - total + prompt.shape[1])
            while rows.unfinished:
                rounds.run(min(lengths.next(), max(room - rows.longest, 0)))
            stats.tokens = rows.written
            decoder.length = min(decoder.length, total + rows.written - 1)  # as after any generation
        if streamer is not None:
            streamer.end()
        if not config.return_dict_in_generate:
            return rows.padded()
        return GenerateDecoderOnlyOutput(
            sequences=rows.padded(),
            scores=None if rows.scores is None else tuple(rows.scores),
            logits=None if rows.logits is None else tuple(rows.logits),
            **{cache_name(): cache if single else None},
        )


def _parameter_counts(stack: Stack, draft_depth: int) -> tuple[int, int]:
    """The parameters that a draft, and the rest of a round, read: what they cost where memory is the bottleneck."""
    model: Any = stack.model
    block = sum(weights.numel() for weights in stack.blocks[0].parameters())
    embedding = model.get_output_embeddings()
    head = embedding.weight.numel() if embedding is not None else 0
    return draft_depth * block + head, stack.depth * block + head


class _Rounds:
    """Drafting and verifying, round after round, of the rows that have not ended."""

    def __init__(self, decoder: Decoder, rows: TokenRows, lengths: DraftLength, depths: tuple[int, int]) -> None:
        self._decoder, self._rows, self._lengths = decoder, rows, lengths
        self._shallow, self._deep = depths

    def begin(self, new: Int64[Tensor, "b t"]) -> None:
        """Run the tokens of the prompt that the cache lacks, and add the first new token of each row."""
        _, logits = self._decoder.run(new, upto=self._deep, read=1)
        assert logits is not None
        require_filled(self._decoder.cache, self._decoder.length + new.shape[1])
        scores = self._rows.processed(logits[:, -1])[:, None]
        tokens = self._rows.choose(scores[:, 0])
        unfinished = self._rows.unfinished
        for row in unfinished:
            self._rows.add(row, tokens[row : row + 1], logits[row], scores[row])
        self._keep(unfinished, [new.shape[1]] * len(unfinished))

    def run(self, count: int) -> None:
        """Draft `count` tokens for each row, verify them, and add the accepted ones and the token after them."""
        unfinished, last = self._rows.unfinished, self._rows.last
        drafts, scores, states = self._draft(last, count)
        _, logits = self._decoder.run(
            torch.cat([last, drafts], 1), upto=self._deep, after=self._shallow, state=states, read=count + 1
        )
        assert logits is not None
        verified = self._rows.all_processed(logits, drafts)
        proposed = torch.stack(scores, 1) if scores else verified[:, :0]
        self._decoder.stats.rounds += 1
        by_row = zip(unfinished, drafts, proposed, verified, logits, strict=True)
        self._keep(unfinished, [1 + self._accept(*tensors) for tensors in by_row])

    def _accept(self, row: int, drafts: Tensor, proposed: Tensor, verified: Tensor, logits: Tensor) -> int:
        """Add a round's tokens to a row; returns how many of its drafts were accepted."""
        kept, after = accepted_of(drafts, proposed, verified, sampled=self._rows.sampled)
        self._decoder.stats.drafted += len(drafts)
        self._decoder.stats.accepted += kept
        self._lengths.learn(kept, len(drafts))
        self._rows.add(row, torch.cat([drafts[:kept], after]), logits, verified)
        return kept

    def _keep(self, rows: list[int], counts: list[int]) -> None:
        """Keep the accepted positions; rows that have ended are dropped, unless no row would remain."""
        remaining = [place for place, row in enumerate(rows) if not self._rows.finished[row]]
        if 0 < len(remaining) < len(rows):
            self._decoder.keep([counts[place] for place in remaining], remaining)
        else:
            self._decoder.keep(counts)

    def _draft(self, last: Int64[Tensor, "b 1"], count: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Tokens (B, g), the scores they were chosen by, and h[k] of the last token and of all of them."""
        tokens, at = last, self._decoder.length
        states: list[Tensor] = []
        scores: list[Tensor] = []
        for place in range(count):
            state, logits = self._decoder.run(tokens[:, -1:], upto=self._shallow, at=at + place, read=1)
            assert logits is not None
            states.append(state)
            scores.append(self._rows.processed(logits[:, -1], tokens[:, 1:]))
            tokens = torch.cat([tokens, self._rows.choose(scores[-1])[:, None]], 1)
        # the last draft is not read out, but its state is needed to verify it
        states.append(self._decoder.run(tokens[:, -1:], upto=self._shallow, at=at + count)[0])
        return tokens[:, 1:], scores, torch.cat(states, 1)


def self_speculative(
    draft_depth: int, *, draft_length: int | None = None, blocks: str | None = None, streamer: Any = None
) -> SelfSpeculative:
    """Generate the full model's output faster, by self-speculative decoding: first blocks draft, the others verify.

    Greedy output is the same token for token (up to ties that rounding decides); sampled output is drawn from the same
    distribution, by other random numbers. It pays where the readout at `draft_depth` often agrees with the last one,
    as after aligned training, and where the blocks behind it cost more than the head.

    In a batch each row goes on at its own pace and is dropped when it ends; no cache is returned then, and one that was
    given stays as it is. Logits processors are called on drafts, too, so they must depend on the tokens alone; stopping
    criteria are called on one row at a time.

    Args:
        draft_depth: where drafts are read out, 1..L-1.
        draft_length: tokens drafted in each round; None to go by how many are accepted.
        blocks: see `anydepth.Stack`.
        streamer: is given the tokens as they are decided; give it here, not to `generate`.

    Raises:
        GenerationError: a draft length below 1; on use: no such depth, an empty prompt or one that leaves no room,
            beams, a model or a cache whose keys and values cannot be taken back.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()
        >>> prompt, speculative = torch.tensor([[3, 1, 4]]), self_speculative(2)
        >>> sooner = model.generate(prompt, max_new_tokens=9, do_sample=False, custom_generate=speculative)
        >>> bool((sooner == model.generate(prompt, max_new_tokens=9, do_sample=False)).all()), speculative.spent.tokens
        (True, 9)
    """
    return SelfSpeculative(draft_depth, draft_length=draft_length, blocks=blocks, streamer=streamer)

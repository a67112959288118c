"""Self-speculation: a shallow depth drafts, the rest of the blocks verify, and the answer is the full model's own.

One round: the blocks up to the draft depth run token by token, and their readout proposes the next one each time. Then
the remaining blocks run once, on the states that drafting left behind, and say what the full model would have written
after each of these tokens. What agrees is kept. Nothing runs twice: drafting leaves the keys and values of the shallow
blocks, and the states that the deep blocks start from.

Leviathan, Kalman, Matias 2023 (speculative sampling); Elhoushi et al. 2024 (drafting with a model's own first blocks).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from anydepth.errors import GenerationError
from anydepth.generation.cache import whole_cache
from anydepth.generation.decoder import Decoder, Spent, decoding
from anydepth.generation.modes import Mode, refuse, require_depth
from anydepth.generation.writing import Writing
from anydepth.stack import Stack

LONGEST_DRAFT = 16


class DraftLength:
    """How many tokens to draft next, from how many were accepted so far.

    A token is worth drafting as long as tokens per round grow faster than what a round costs. With a chance a for each
    draft to be accepted, a round of g drafts yields (1 - a**(g + 1)) / (1 - a) tokens.

    Args:
        draft: what a drafted token costs.
        verify: what a round costs beside its drafts.
        fixed: always draft as many.
    """

    def __init__(self, draft: float, verify: float, fixed: int | None = None) -> None:
        self._draft, self._verify, self._fixed = draft, verify, fixed
        # as if a few drafts had been seen: two in three accepted
        self._accepted, self._judged = 4.0, 6.0

    def next(self) -> int:
        """Tokens to draft in the next round."""
        if self._fixed is not None:
            return self._fixed
        chance = min(self._accepted / self._judged, 0.99)
        rates = [
            (1 - chance ** (count + 1)) / (1 - chance) / (count * self._draft + self._verify)
            for count in range(1, LONGEST_DRAFT + 1)
        ]
        return 1 + rates.index(max(rates))

    def learn(self, accepted: int, drafted: int) -> None:
        """Take a round of one row into account; drafts behind the first that failed were not judged."""
        fade = 0.9
        self._accepted = fade * self._accepted + accepted
        self._judged = fade * self._judged + accepted + (accepted < drafted)


def accepted_of(
    drafts: Int64[Tensor, " g"], proposed: Float[Tensor, "g v"], verified: Float[Tensor, "n v"], *, sampled: bool
) -> tuple[int, Int64[Tensor, " 1"]]:
    """How many drafts of a row are kept, and the token that comes after them.

    Greedy: as long as the draft is what the full model says. Sampled: with probability min(1, p / q), and where one is
    refused the next token is drawn from max(0, p - q), which together is a draw from p (Leviathan et al., Theorem 1).

    Args:
        drafts: g tokens.
        proposed: the scores they were drawn from.
        verified: the full model's scores in the same places, and in the one after them: n = g + 1.
        sampled: whether tokens are drawn.
    """
    count = len(drafts)
    if not sampled:
        right = verified.argmax(-1)
        kept = int((drafts == right[:count]).int().cumprod(0).sum())
        return kept, right[kept : kept + 1]
    full, shallow = verified.softmax(-1), proposed.softmax(-1)
    places = torch.arange(count, device=drafts.device)
    chances = full[places, drafts] / shallow[places, drafts]
    kept = int((torch.rand_like(chances) < chances).int().cumprod(0).sum())
    left = full[kept] if kept == count else (full[kept] - shallow[kept]).clamp(min=0)
    return kept, torch.multinomial(left, 1)


class SelfSpeculative(Mode):
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

    def __call__(
        self,
        model: Any,
        input_ids: Int64[Tensor, "b t"],
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **given: Any,
    ) -> Any:
        """What `generate` calls in place of its own loop."""
        refuse(generation_config, unless="self-speculation", several=len(input_ids) > 1)
        if synced_gpus:
            raise GenerationError(
                "self-speculation under FSDP or ZeRO-3: ranks would draft different numbers of tokens"
            )
        stack = self.stack(model, input_ids, given)
        require_depth(self.draft_depth, stack, below=True)
        cache = whole_cache(given.get("past_key_values"), stack.depth)
        streamer = self.streaming(input_ids, streamer)
        sampled = bool(generation_config.do_sample)
        writing = Writing(input_ids, logits_processor, stopping_criteria, streamer, sampled=sampled)
        lengths = DraftLength(*_shares(stack, self.draft_depth), self.draft_length)
        self.spent = Spent()
        with decoding(stack, input_ids, cache, given, self.spent) as decoder:
            rounds = _Rounds(decoder, writing, lengths, (self.draft_depth, stack.depth))
            rounds.begin(input_ids)
            while not all(writing.finished):
                # the last token of a round is never a draft
                rounds.go(min(lengths.next(), max(generation_config.max_length - writing.longest - 1, 0)))
            self.spent.tokens = writing.written
            if len(input_ids) == 1:
                # as after any generation: all but the last token
                decoder.length = min(decoder.length, writing.longest - 1)
        if streamer is not None:
            streamer.end()
        sequences = writing.padded(generation_config._pad_token_tensor)
        if not generation_config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences,
            scores=tuple(rounds.scores) if generation_config.output_scores else None,
            logits=tuple(rounds.logits) if generation_config.output_logits else None,
            past_key_values=cache if len(input_ids) == 1 else None,
        )


def _shares(stack: Stack, draft_depth: int) -> tuple[float, float]:
    """What a draft and the rest of a round cost, in parameters that have to be read for it."""
    model: Any = stack.model
    block = sum(weights.numel() for weights in model.get_submodule(stack.path)[0].parameters())
    embedding = model.get_output_embeddings()
    head = embedding.weight.numel() if embedding is not None else 0
    return draft_depth * block + head, stack.depth * block + head


class _Rounds:
    """Drafting and verifying, round after round.

    Attributes:
        scores: of each token of the first row, (1, V) as the processors left them.
        logits: the same before the processors.
    """

    def __init__(self, decoder: Decoder, writing: Writing, lengths: DraftLength, depths: tuple[int, int]) -> None:
        self._decoder, self._writing, self._lengths = decoder, writing, lengths
        self._shallow, self._deep = depths
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []

    def begin(self, prompt: Int64[Tensor, "b t"]) -> None:
        """Run the prompt, or what the cache does not have of it, and write the first token of each row."""
        new = prompt[:, self._decoder.length :]
        _, logits = self._decoder.run(new, upto=self._deep, read=1)
        assert logits is not None
        self._decoder.keep([new.shape[1]] * len(prompt))
        scores = self._writing.scores(logits[:, -1])[:, None]
        tokens = self._writing.choose(scores[:, 0])[:, None]
        for row in range(len(prompt)):
            self._write(row, tokens[row], logits[row], scores[row])

    def go(self, count: int) -> None:
        """Draft `count` tokens for each row, verify them, and write what holds and the token after it."""
        last = torch.stack([row[-1:] for row in self._writing.rows])
        drafts, proposed, states = self._draft(last, count)
        _, logits = self._decoder.run(
            torch.cat([last, drafts], 1), upto=self._deep, after=self._shallow, state=states, read=count + 1
        )
        assert logits is not None
        places = range(count + 1)
        verified = torch.stack([self._writing.scores(logits[:, place], drafts[:, :place]) for place in places], 1)
        kept = {row: self._judge(row, drafts, proposed, verified, logits) for row in self._writing.unfinished}
        # a row that has ended goes along with the others, which then need not move for it
        longest = max(kept.values())
        self._decoder.keep([kept.get(row, longest) + 1 for row in range(len(drafts))])
        self._decoder.spent.rounds += 1

    def _judge(self, row: int, drafts: Tensor, proposed: Tensor, verified: Tensor, logits: Tensor) -> int:
        """Write what a round gave a row; returns how many of its drafts were kept."""
        kept, after = accepted_of(drafts[row], proposed[row], verified[row], sampled=self._writing.sampled)
        self._decoder.spent.drafted += drafts.shape[1]
        self._decoder.spent.accepted += kept
        self._lengths.learn(kept, drafts.shape[1])
        self._write(row, torch.cat([drafts[row, :kept], after]), logits[row], verified[row])
        return kept

    def _write(self, row: int, tokens: Tensor, logits: Tensor, scores: Tensor) -> None:
        added = self._writing.add(row, tokens)
        if row == 0 and len(self._writing.rows) == 1:
            self.scores += scores[:added, None].unbind()
            self.logits += logits[:added, None].unbind()

    def _draft(self, last: Int64[Tensor, "b 1"], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, g), the scores they were chosen by (B, g, V), and h[k] of the last token and of all of them."""
        token = last
        states: list[Tensor] = []
        drafts: list[Tensor] = []
        proposed: list[Tensor] = []
        at = self._decoder.length
        for place in range(count + 1):
            reads = int(place < count)
            state, logits = self._decoder.run(token, upto=self._shallow, at=at + place, read=reads)
            states.append(state)
            if logits is None:
                break
            scores = self._writing.scores(logits[:, -1], torch.cat(drafts, 1) if drafts else None)
            token = self._writing.choose(scores)[:, None]
            drafts.append(token)
            proposed.append(scores)
        if not drafts:
            return last[:, :0], last.new_zeros(len(last), 0, 0, dtype=torch.float32), states[0]
        return torch.cat(drafts, 1), torch.stack(proposed, 1), torch.cat(states, 1)


def self_speculative(
    draft_depth: int, *, draft_length: int | None = None, blocks: str | None = None, streamer: Any = None
) -> SelfSpeculative:
    """Generate what the model would generate, sooner: its first blocks draft, the others verify.

    Greedy output is the same token for token (up to ties that rounding decides); sampled output is drawn from the same
    distribution, by other random numbers. It pays where the readout at `draft_depth` often agrees with the last one,
    as after aligned training, and where the blocks behind it cost more than the head.

    Args:
        draft_depth: where drafts are read out, 1..L-1.
        draft_length: tokens drafted in each round; None to go by how many are accepted.
        blocks: see `anydepth.Stack`.
        streamer: is given the tokens as they are decided; give it here, not to `generate`.

    Raises:
        GenerationError: on use: no such depth, an empty prompt or one that leaves no room, beams, a model or a cache
            whose keys and values cannot be taken back.

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

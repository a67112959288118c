"""Generate continuations of texts at every depth, and measure them by `text_metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.core.model_io import device_of, predicts_next_token
from anydepth.errors import DataError, GenerationError
from anydepth.generation.text_metrics import LENGTHS, coherence, counts, different, require_pairs
from anydepth.models.loaded import LoadedModel
from anydepth.models.loading import load
from anydepth.stats.intervals import bootstrap
from anydepth.stats.means import Estimate

if TYPE_CHECKING:
    import pandas

PREFIX, CONTINUATION = 32, 128
"""Tokens of the paper's prefixes, and tokens it generates."""
OWN = "text"
"""The name of the texts' own continuations, among those of the depths."""


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Texts cut in two: a prefix to generate from, and the text's own continuation.

    Attributes:
        ids: the prefixes as tokens, all of one length, after the tokenizer's start token if it adds one.
        prefixes: the same as text.
        continuations: the next tokens of each text, as text.
        notes: how many texts were too short.
    """

    ids: Int64[Tensor, "n p"]
    prefixes: tuple[str, ...]
    continuations: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, texts: Iterable[str], tokenizer: Any, *, prefix: int = PREFIX, continuation: int = CONTINUATION
    ) -> Passages:
        """Cut the first `prefix` + `continuation` tokens of each text; texts that are shorter are left out.

        Raises:
            DataError: no text is long enough.
        """
        if prefix < 1 or continuation < 1:
            raise DataError(f"a prefix of {prefix} tokens and {continuation} after it, expected at least one of each")
        encoded = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        kept = [ids[: prefix + continuation] for ids in encoded if len(ids) >= prefix + continuation]
        if not kept:
            longest = max(map(len, encoded), default=0)
            raise DataError(
                f"none of {len(encoded)} texts has the {prefix + continuation} tokens that a prefix of {prefix} and a "
                f"continuation of {continuation} take: the longest has {longest}"
            )
        start = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
        short = len(encoded) - len(kept)
        return cls(
            ids=torch.tensor([start + ids[:prefix] for ids in kept]),
            prefixes=tuple(tokenizer.decode(ids[:prefix]) for ids in kept),
            continuations=tuple(tokenizer.decode(ids[prefix:]) for ids in kept),
            notes=(f"{short} of {len(encoded)} texts are too short and left out",) if short else (),
        )

    def __len__(self) -> int:
        return len(self.prefixes)


def continuing(
    model: LoadedModel,
    passages: Passages,
    *,
    tokens: int = CONTINUATION,
    top_p: float = 0.95,
    seed: int = 0,
    batch: int = 16,
) -> Callable[[int], list[str]]:
    """A function that generates from the passages' prefixes at a depth, as the paper does: nucleus sampling.

    Args:
        model: a causal language model.
        passages: their prefixes are the prompts.
        tokens: the maximum number to generate.
        top_p: share of the probability that is sampled from.
        seed: of the draws, the same at every depth.
        batch: prefixes at a time.

    Raises:
        GenerationError: the model cannot generate, or takes fewer tokens; when called: a depth it does not have.
    """
    network: Any = model.model
    if not predicts_next_token(network):
        raise GenerationError(f"'{model.name}' cannot generate: expected a causal language model")
    whole = passages.ids.shape[1] + tokens
    if model.max_length is not None and whole > model.max_length:
        raise GenerationError(
            f"{passages.ids.shape[1]} tokens and {tokens} to generate are {whole}, and '{model.name}' takes "
            f"{model.max_length}: expected fewer"
        )

    def generate(depth: int) -> list[str]:
        from anydepth.generation import at_depth

        device, texts = device_of(network), []
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(passages), batch):
                ids = passages.ids[start : start + batch].to(device)
                rows = network.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    custom_generate=at_depth(depth),
                    max_new_tokens=tokens,
                    do_sample=True,
                    top_p=top_p,
                    # the checkpoint's own settings would change the sampling
                    **{"top_k": 0, "temperature": 1.0, "repetition_penalty": 1.0},
                    pad_token_id=model.processor.pad_token_id,
                )
                texts += model.processor.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True)
        return texts

    return generate


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """Repetition, diversity and coherence of continuations at several depths, and of the texts' own.

    Attributes:
        names: the depths, and last "text", the texts' own continuations. A model as good as these texts has their
            values; neither higher nor lower is better by itself.
        values: "rep-2", "rep-3", "rep-4", "diversity" and, with an encoder, "coherence": one value for each of
            `names`, with 95 % intervals over another draw of prefixes.
        count: of prefixes.
        unrelated: coherence of each prefix with the continuation of the next text, as a baseline. None without an
            encoder, and with a single prefix.
        notes: what was left out.
    """

    names: tuple[str, ...]
    values: Mapping[str, Estimate]
    count: int
    unrelated: Estimate | None = None
    notes: tuple[str, ...] = ()

    def to_frame(self) -> pandas.DataFrame:
        """One row for each depth, and one for the texts: every value with its interval."""
        import pandas

        columns: dict[str, Any] = {"depth": self.names}
        for name, estimate in self.values.items():
            columns |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return pandas.DataFrame(columns)


def text_metrics(
    passages: Passages,
    generate: Callable[[int], Sequence[str]],
    depths: Sequence[int],
    *,
    encoder: LoadedModel | str | None = None,
    pooling: str = "mean",
    resamples: int = 2000,
    seed: int = 0,
) -> TextMetrics:
    """Generate at each depth, and measure the continuations.

    Intervals are percentile bootstrap over prefixes, all continuations of one prefix drawn together.

    Args:
        passages: prefixes, and the texts' own continuations.
        generate: gives the continuations at a depth, one for each prefix: see `continuing`.
        depths: where to generate.
        encoder: of sentences, for coherence: loaded, or the name of one; None leaves coherence out.
        pooling: see `embed`.
        resamples: draws of the bootstrap.
        seed: of these draws.

    Raises:
        DataError: a depth gives another number of continuations than there are prefixes.
        ModelError: the encoder cannot be used.

    Example:
        >>> ids, texts = torch.zeros(2, 1, dtype=torch.int64), ("one two three four", "a b a b a")
        >>> passages = Passages(ids=ids, prefixes=("a", "b"), continuations=texts)
        >>> metrics = text_metrics(passages, lambda depth: ["no no no no no", "so so so so so"], depths=[1])
        >>> metrics.names, metrics.values["rep-2"].value.tolist()
        (('1', 'text'), [0.75, 0.2857142857142857])
    """
    if isinstance(encoder, str):
        encoder = load(encoder, task="features")
    continuations = {str(depth): list(generate(depth)) for depth in depths} | {OWN: list(passages.continuations)}
    for texts in continuations.values():
        require_pairs(passages.prefixes, texts)
    metrics = {name: _of_counts(counts(texts), resamples, seed) for name, texts in continuations.items()}
    notes, unrelated = list(passages.notes), None
    if encoder is not None:
        if len(passages) > 1:
            others = [*passages.continuations[1:], passages.continuations[0]]
            unrelated = _mean(coherence(passages.prefixes, others, encoder, pooling=pooling), resamples, seed)
        for name, texts in continuations.items():
            cosines = coherence(passages.prefixes, texts, encoder, pooling=pooling)
            metrics[name]["coherence"] = _mean(cosines, resamples, seed)
            if blank := int(np.isnan(cosines).sum()):
                notes.append(f"{blank} blank continuations of '{name}' are left out of its coherence")
    return TextMetrics(
        names=tuple(continuations),
        values={name: Estimate.stack([values[name] for values in metrics.values()]) for name in metrics[OWN]},
        count=len(passages),
        unrelated=unrelated,
        notes=tuple(notes),
    )


def _of_counts(each: Int64[np.ndarray, "n m 2"], resamples: int, seed: int) -> dict[str, Estimate]:
    """rep-n and diversity of some texts, with bootstrap intervals."""
    count = len(each)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    whole, drawn = different(each.sum(0)), different(np.einsum("rn,nmc->rmc", times, each))
    rates = {f"rep-{n}": _estimate(1 - whole[at], 1 - drawn[:, at], count) for at, n in enumerate(LENGTHS)}
    return rates | {"diversity": _estimate(whole.prod(), drawn.prod(1), count)}


def _estimate(value: Any, draws: Float64[np.ndarray, " r"], count: int) -> Estimate:
    """A value with the 95 % interval of its draws; a single text has none."""
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if count > 1 and len(known) else (np.nan, np.nan)
    return Estimate(np.asarray(value, float), np.asarray(low), np.asarray(high))


def _mean(values: Float64[np.ndarray, " n"], resamples: int, seed: int) -> Estimate:
    known = values[np.isfinite(values)]
    if not len(known):
        return Estimate.without_interval(np.array(np.nan))
    low, high = bootstrap(known, resamples=resamples, seed=seed) if len(known) > 1 else np.full(2, np.nan)
    return Estimate(np.asarray(known.mean()), np.asarray(low), np.asarray(high))

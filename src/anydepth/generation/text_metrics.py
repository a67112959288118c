"""Metrics of generated text: repetition, diversity and coherence.

The metrics of open-ended generation that the paper reports, by the definitions of Su et al. (2022), "A Contrastive
Framework for Neural Text Generation". Words are what white space separates, case and punctuation kept, as there; in
scripts without spaces, put words apart first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.core.model_io import device_of, to_device
from anydepth.core.patching import evaluating
from anydepth.core.tokens import check_policy, select
from anydepth.errors import DataError, ModelError
from anydepth.models.loaded import LoadedModel

LENGTHS = (2, 3, 4)
"""The n of the n-grams in diversity."""


def embed(
    texts: Sequence[str], encoder: LoadedModel, *, pooling: str = "mean", batch: int = 32
) -> Float64[np.ndarray, "n d"]:
    """Embeddings of texts, one vector each.

    Args:
        texts: cut to the encoder's maximum length.
        encoder: loaded for its features: `anydepth.models.loading.load(name, task="features")`.
        pooling: how the last hidden states of a text become one: "mean" over all that are not padding, special tokens
            included, which is what sentence-transformers does with most of its models; "first", the [CLS] that SimCSE
            reads; or "last". The encoder's own pooler is left out: most checkpoints have none that is trained.
        batch: texts at a time.

    Returns:
        (n, D) vectors; NaN for a text without tokens.

    Raises:
        DataError: an unknown pooling, or no text with tokens.
        ModelError: the model gives no hidden states of a text.
    """
    policy = check_policy(pooling)
    if policy == "each":
        raise DataError("pooling 'each' gives a vector for each token, expected first, last or mean")
    if encoder.kind != "text":
        raise ModelError(f"'{encoder.name}' takes no text, expected a text encoder")
    accepted = inspect.signature(encoder.model.forward).parameters
    parts, filled = [], _with_tokens(texts, encoder)
    with evaluating(encoder.model), torch.no_grad():
        for start in range(0, len(filled), batch):
            tokens = encoder.processor(
                [texts[index] for index in filled[start : start + batch]],
                padding=True,
                truncation=True,
                max_length=encoder.max_length,
                return_tensors="pt",
            )
            batch_tokens = {name: tensor for name, tensor in tokens.items() if name in accepted}
            inputs = to_device(batch_tokens, device_of(encoder.model))
            assert not isinstance(inputs, Tensor)
            states = getattr(encoder.model(**inputs), "last_hidden_state", None)
            if states is None:
                raise ModelError(
                    f"'{encoder.name}' gives no last_hidden_state, expected a text encoder: load it for its features"
                )
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            parts.append(select(states, mask.bool(), policy)[0].cpu().double())
    rows = torch.cat(parts).numpy()
    vectors: Float64[np.ndarray, "n d"] = np.full((len(texts), rows.shape[1]), np.nan)
    vectors[filled] = rows
    return vectors


def _with_tokens(texts: Sequence[str], encoder: LoadedModel) -> list[int]:
    """Indices of the texts with tokens: of all texts, where the tokenizer adds special ones."""
    if encoder.processor("")["input_ids"]:
        return list(range(len(texts)))
    filled = [index for index, ids in enumerate(encoder.processor(list(texts))["input_ids"]) if ids]
    if not filled:
        raise DataError(f"none of {len(texts)} texts becomes a token of '{encoder.name}', expected one that does")
    return filled


def coherence(
    prefixes: Sequence[str], continuations: Sequence[str], encoder: LoadedModel, *, pooling: str = "mean"
) -> Float64[np.ndarray, " n"]:
    """Coherence of each continuation with its prefix: the cosine of their embeddings (Su et al. 2022).

    The paper's encoder is SimCSE. Values of different encoders, or poolings, can't be compared; see `embed`.

    Returns:
        (n,) in -1..1; NaN where the continuation is blank.
    """
    require_pairs(prefixes, continuations)
    a, b = (embed(texts, encoder, pooling=pooling) for texts in (prefixes, continuations))
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    blank = np.array([not text.strip() for text in continuations])
    return np.where(blank, np.nan, cosines)


def counts(texts: Iterable[str], lengths: Sequence[int] = LENGTHS) -> Int64[np.ndarray, "n m 2"]:
    """For each text and length n: the number of different n-grams, and of all.

    Both are counted within each text (Welleck et al. 2020) and added up over texts, as in SimCTG's script, which leaves
    out the last n-gram of each text and rounds to four decimals; this does neither.
    """
    rows = []
    for text in texts:
        words = text.split()
        grams = [list(zip(*(words[start:] for start in range(n)), strict=False)) for n in lengths]
        rows.append([[len(set(of_length)), len(of_length)] for of_length in grams])
    return np.array(rows, dtype=np.int64).reshape(-1, len(lengths), 2)


def different(sums: Int64[np.ndarray, "*r m 2"]) -> Float64[np.ndarray, "*r m"]:
    """The share of different n-grams from counts summed over texts, in 0..1; NaN where there are none.

    One minus it is rep-n, the share of n-grams that occurred before in their text. Diversity is its product over
    n = 2, 3, 4 (Su et al. 2022).

    Example:
        >>> 1 - different(counts(["to be or not to be"], [2]).sum(0)), different(counts(["round and round and"]).sum(0))
        (array([0.2]), array([0.66666667, 1.        , 1.        ]))
    """
    unlike, total = sums[..., 0].astype(float), sums[..., 1].astype(float)
    return np.asarray(np.divide(unlike, total, out=np.full(total.shape, np.nan), where=total > 0))


def require_pairs(prefixes: Sequence[str], continuations: Sequence[str]) -> None:
    """Raise `DataError` unless there is one continuation for each prefix."""
    if len(prefixes) != len(continuations):
        raise DataError(f"{len(continuations)} continuations came for {len(prefixes)} prefixes, expected one for each")

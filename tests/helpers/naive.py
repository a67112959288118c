"""The numbers of a trace by the plainest means: one sample at a time, heads written out, loops and float64 numpy.

Nothing here calls anydepth; `same` compares what it gave. Models come from `tiny_models`; each sample goes through the
alone and unpadded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import naive_measures
import numpy as np
import tiny_models
import torch
from torch import Tensor, nn


def sentences(count: int, *, seed: int = 0, longest: int = 9) -> list[Tensor]:
    """Texts of 3 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(5, tiny_models.VOCABULARY, (length,), generator=generator) for length in lengths]


def classes(count: int, *, seed: int = 1) -> list[int]:
    return torch.randint(0, tiny_models.CLASSES, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(
    texts: Sequence[Tensor], labels: Sequence[Any] | None, size: int, *, left: bool = False
) -> list[dict[str, Any]]:
    """Batches of `size`, each padded to its longest text; labels of each position are padded with -100."""
    batches = []
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        longest = max(map(len, part))
        batch = {"input_ids": _pad(part, longest, 0, left)}
        batch["attention_mask"] = _pad([torch.ones_like(text) for text in part], longest, 0, left)
        if labels is not None:
            own = labels[start : start + size]
            tags = isinstance(own[0], Tensor)
            batch["labels"] = _pad(own, longest, -100, left) if tags else torch.tensor(own)
        batches.append(batch)
    return batches


def _pad(rows: Sequence[Tensor], length: int, fill: int, left: bool) -> Tensor:
    padding = [torch.full((length - len(row),), fill) for row in rows]
    pairs = zip(padding, rows, strict=True) if left else zip(rows, padding, strict=True)
    return torch.stack([torch.cat(pair) for pair in pairs])


# --- models taken apart by hand --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """Where a model's blocks are, and its own head written out."""

    blocks: str
    head: Callable[[Any, Tensor], Tensor]


BERT = Anatomy("bert.encoder.layer", lambda model, h: model.classifier(torch.tanh(model.bert.pooler.dense(h[:, 0]))))
TAGGER = Anatomy("bert.encoder.layer", lambda model, h: model.classifier(h))
GPT2 = Anatomy("transformer.h", lambda model, h: model.lm_head(model.transformer.ln_f(h)))
LLAMA = Anatomy("model.layers", lambda model, h: model.lm_head(model.model.norm(h)))
GPT2_RAW = Anatomy("transformer.h", lambda model, h: model.lm_head(h))


@torch.no_grad()
def alone(model: nn.Module, text: Tensor, anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """States (K, T, D) and logits (K, C) or (K, T, C) of one text, seen by plain hooks."""
    seen: list[Tensor] = []
    blocks = list(model.get_submodule(anatomy.blocks))
    handles = [blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    handles += [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    model(input_ids=text[None])
    for handle in handles:
        handle.remove()
    logits = [anatomy.head(model, state)[0] for state in seen]
    return torch.cat(seen).double().numpy(), torch.stack(logits).double().numpy()


def stand_for(states: np.ndarray, policy: str) -> np.ndarray:
    """The rows (r, K, D) that stand for one unpadded text of states (K, T, D)."""
    rows = {"first": states[:, :1], "last": states[:, -1:], "mean": states.mean(1, keepdims=True), "each": states}
    return rows[policy].transpose(1, 0, 2)


# --- readout statistics ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """Logits (n, K, C), the true class (n,), the sample (n,) and position (n,) of each answer."""

    logits: np.ndarray
    label: np.ndarray
    sample: np.ndarray
    position: np.ndarray

    @property
    def prediction(self) -> np.ndarray:
        return self.logits.argmax(-1)

    @property
    def probability(self) -> np.ndarray:
        shares = np.exp(self.logits - self.logits.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)

    def accuracy(self) -> np.ndarray:
        return np.array([np.mean([p == y for p, y in zip(at, self.label, strict=True)]) for at in self.prediction.T])

    def cross_entropy(self) -> np.ndarray:
        of_rows = zip(self.probability, self.label, strict=True)
        return np.mean([[-np.log(shares[y]) for shares in depths] for depths, y in of_rows], axis=0)

    def confidence(self) -> np.ndarray:
        return self.probability.max(-1).mean(0)

    def entropies(self) -> np.ndarray:
        return np.array([[-sum(p * np.log(p) for p in shares if p > 0) for shares in row] for row in self.probability])

    def entropy(self) -> np.ndarray:
        return self.entropies().mean(0)

    def agreement(self) -> np.ndarray:
        return np.array([np.mean(column == self.prediction[:, -1]) for column in self.prediction.T])

    def stays_correct(self) -> np.ndarray:
        right = self.prediction == self.label[:, None]
        found = []
        for depth in range(right.shape[1]):
            later = [row[depth:].all() for row in right if row[depth]]
            found.append(np.mean(later) if later else np.nan)
        return np.array(found)

    def saturates(self) -> list[int]:
        last = self.prediction.shape[1] - 1
        return [next(depth for depth in range(1, last + 1) if len(set(row[depth:])) == 1) for row in self.prediction]

    def saturation(self) -> list[int]:
        return [self.saturates().count(depth) for depth in range(self.prediction.shape[1])]

    def by_class(self) -> Iterator[tuple[int, int, int, float, float]]:
        """Class, count, depth, accuracy, share settled."""
        for label in sorted(set(self.label.tolist())):
            mine = [row for row, y in enumerate(self.label) if y == label]
            for depth in range(self.prediction.shape[1]):
                right = np.mean([self.prediction[row, depth] == label for row in mine])
                settled = np.mean([self.saturates()[row] <= depth for row in mine])
                yield label, len(mine), depth, float(right), float(settled)


# --- similarity ------------------------------------------------------------------------------------------------------


def similarity(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure of rows (n, K, D)."""
    states = list(rows.transpose(1, 0, 2))
    centred = [state - state.mean(0) for state in states]  # changes no CKA, but keeps large Gram matrices exact
    return {
        "cosine": naive_measures.cosines(states, centred=True).mean(0),
        "cosine_raw": naive_measures.cosines(states, centred=False).mean(0),
        "cka": naive_measures.cka(centred, debiased=True),
        "cka_biased": naive_measures.cka(centred, debiased=False),
    }


def cosine_quantiles(rows: np.ndarray) -> np.ndarray:
    cosines = naive_measures.cosines(list(rows.transpose(1, 0, 2)), centred=True)
    return np.quantile(cosines, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)


# --- two traces ------------------------------------------------------------------------------------------------------


def same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    """Two traces say the same of the same samples, apart from their origin."""
    assert (one.names, one.ids, one.statistics) == (other.names, other.ids, other.statistics)
    for group in ("similarity", "similarity_intervals", "quantiles"):
        assert getattr(one, group).keys() == getattr(other, group).keys()
        for name, values in getattr(one, group).items():
            np.testing.assert_allclose(values, getattr(other, group)[name], atol=tolerance, rtol=0, err_msg=name)
    assert (one.rows is None) == (other.rows is None)
    if one.rows is not None and other.rows is not None:
        for name in ("sample", "label", "prediction"):
            assert np.array_equal(getattr(one.rows, name), getattr(other.rows, name)), name
        assert one.rows.columns.keys() == other.rows.columns.keys()
        for name in one.rows.columns.keys() & {"cross_entropy", "confidence", "entropy"}:
            np.testing.assert_allclose(
                getattr(one.rows, name), getattr(other.rows, name), atol=tolerance, rtol=0, err_msg=name
            )

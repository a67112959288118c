"""Readout statistics of a causal language model by token position and by token frequency, from its trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from anydepth.core.provenance import entry
from anydepth.core.windows import texts_of
from anydepth.errors import MeasureError
from anydepth.results.trace_data import Rows, TraceData
from anydepth.stats.means import Estimate, Means

if TYPE_CHECKING:
    import pandas

RANKS = (10, 110, 1110)
"""The last rank of each frequency band but the rarest: the 10 most frequent tokens, the next 100, the next 1,000."""

_MEANS, _SHARES = ("cross_entropy", "confidence", "entropy"), ("accuracy", "agreement", "settled")
_AT_ONCE = 2**16  # answers


@dataclass(frozen=True, kw_only=True)
class Band:
    """A range of positions or of frequency ranks, and the number of answers in it.

    Attributes:
        first: least number of tokens read, or frequency rank of the next token.
        last: the largest; None for all from `first` on.
        count: answers.
        texts: different texts, the independent units behind intervals.
        tokens: different next tokens; 0 without labels.
    """

    first: int
    last: int | None
    count: int
    texts: int
    tokens: int

    @property
    def name(self) -> str:
        """The range as text.

        Example:
            >>> [Band(first=64, last=last, count=500, texts=9, tokens=300).name for last in (127, 64, None)]
            ['64–127', '64', '64 and beyond']
        """
        if self.last is None:
            return f"{self.first:,} and beyond"
        return f"{self.first:,}" if self.first == self.last else f"{self.first:,}–{self.last:,}"


@dataclass(frozen=True, kw_only=True)
class BandedStatistics:
    """Readout statistics by band and depth, B bands and K = L + 1 depths.

    Intervals are over another draw of texts, with the same bands: Student's t for means, Wilson's with the number of
    independent answers that has the same variance for shares (see `anydepth.stats.means`). Values that are fixed by
    definition have no width: at depth L all answers agree and have saturated, at depth 0 none has. Intervals of the
    mean saturation depth are clipped to 1..L.

    Attributes:
        bands: in order; those without an answer are left out.
        values: (B, K) each: "accuracy", "cross_entropy" in nats, "confidence", "entropy", "agreement" with depth L, and
            "settled", the share of answers whose saturation depth is at most that depth. Without labels there are only
            the last four; entropy is missing from older traces.
        saturation: (B,) mean saturation depth, 1..L.
    """

    bands: tuple[Band, ...]
    values: Mapping[str, Estimate]
    saturation: Estimate

    @property
    def perplexity(self) -> Estimate:
        """(B, K) exp of the cross-entropy, and of the ends of its intervals."""
        nats = self.values["cross_entropy"]
        with np.errstate(over="ignore"):  # beyond what a float holds it is infinite
            return nats.map(np.exp)

    def to_frame(self) -> pandas.DataFrame:
        """One row for each band and depth: band, first, last, depth, count, texts, tokens, values with their ends."""
        import pandas

        depths = self.values["settled"].value.shape[1]
        columns: dict[str, Any] = {"band": [band.name for band in self.bands]}
        for name in ("first", "last", "count", "texts", "tokens"):
            kind = "Int64" if name == "last" else "int64"  # the last band may have no end
            columns[name] = pandas.array([getattr(band, name) for band in self.bands], dtype=kind)
        frame = pandas.DataFrame(columns).loc[np.repeat(np.arange(len(self.bands)), depths)].reset_index(drop=True)
        frame.insert(3, "depth", np.tile(np.arange(depths), len(self.bands)))
        both = {**self.values, "perplexity": self.perplexity} if "cross_entropy" in self.values else self.values
        for name, estimate in both.items():
            for end, array in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
                frame[name + end] = array.ravel()
        return frame


def tells_next_token(trace: TraceData) -> bool:
    """Whether a trace is of a causal language model, by its provenance or, in older traces, the model's class."""
    if trace.rows is None or not (trace.rows.position >= 0).all():
        return False
    known = trace.provenance.get("next_token")
    if isinstance(known, bool):
        return known
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return entry(trace.provenance, "model", "class") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def by_position(trace: TraceData) -> BandedStatistics:
    """Readout statistics by the number of tokens that the model has read of its sequence: 1, 2–3, 4–7, 8–15, ...

    Powers of two, because one more token of context matters about in proportion to how many there are already. And they
    are the same for all data, so that traces can be compared. In a window of a long text, its own tokens count.

    Raises:
        MeasureError: the trace is of another model than a causal language model.

    Example:
        >>> import torch
        >>> from anydepth import trace
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        >>> batches = [{"input_ids": torch.arange(24).view(4, 6) % 9}, {"input_ids": torch.arange(10).view(2, 5) % 9}]
        >>> statistics = by_position(trace(GPT2LMHeadModel(config), batches, measures=[]))
        >>> [(band.name, band.count, band.texts) for band in statistics.bands]
        [('1', 6, 6), ('2–3', 12, 6), ('4–7', 10, 6)]
        >>> statistics.values["accuracy"].value.shape, statistics.saturation.value.shape
        ((3, 3), (3,))
    """
    rows = _next_token_rows(trace)
    read = rows.position.astype(np.int64) + 1
    ends = 2 ** np.arange(1, int(read.max()).bit_length() + 1) - 1
    return _banded(trace, read, np.append(0, ends))


def by_frequency(trace: TraceData) -> BandedStatistics:
    """Readout statistics by the frequency of the next token among all next tokens: the 10 first, the next 100, ...

    Bands are of ranks (see `RANKS`), 1 for the most frequent token; equally frequent tokens are in vocabulary order.

    Raises:
        MeasureError: the trace is of another model than a causal language model, or without labels.
    """
    rows = _next_token_rows(trace)
    if "accuracy" not in trace.statistics:
        raise MeasureError(
            "bands of frequency are of the tokens to come, and this trace has no labels: trace with them"
        )
    _, token, counts = np.unique(rows.label, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)
    return _banded(trace, rank[token], np.array([0, *RANKS]))


def _next_token_rows(trace: TraceData) -> Rows:
    if not tells_next_token(trace):
        model = entry(trace.provenance, "model", "class", default="states without a model")
        raise MeasureError(
            f"bands are of positions at which the next token is predicted, and this trace is of {model}: expected one "
            "of a causal language model, with readouts"
        )
    assert trace.rows is not None
    return trace.rows


def _banded(trace: TraceData, place: Int64[np.ndarray, " n"], ends: Int64[np.ndarray, " b"]) -> BandedStatistics:
    """Readout statistics by bands of a number, `place`, that each answer has, above `ends[0]`.

    `ends` are the last number before the first band, then of each band; larger numbers are one more band.
    """
    rows = trace.rows
    assert rows is not None
    text = texts_of(trace.ids)[rows.sample]
    which, bands, estimates = np.searchsorted(ends, place) - 1, [], []
    for index in np.unique(which):
        own = np.flatnonzero(which == index)
        last = int(ends[index + 1]) if index + 1 < len(ends) else None
        tokens = len(np.unique(rows.label[own][rows.label[own] >= 0]))
        first, texts = int(ends[index]) + 1, len(np.unique(text[own]))
        bands.append(Band(first=first, last=last, count=len(own), texts=texts, tokens=tokens))
        estimates.append(_estimates(trace, own, text[own]))
    values = {name: Estimate.stack([of_band[name] for of_band in estimates]) for name in estimates[0]}
    saturation = values.pop("saturation").map(lambda depths: depths.clip(1, trace.depth))
    return BandedStatistics(bands=tuple(bands), values=values, saturation=saturation)


def _estimates(trace: TraceData, own: Int64[np.ndarray, " n"], text: Int64[np.ndarray, " n"]) -> dict[str, Estimate]:
    """Readout statistics of some of the answers, with the text of each."""
    alone = len(np.unique(text)) == len(text)
    means = Means(len(own), None if alone else text)
    for start in range(0, len(own), _AT_ONCE):
        means.add({name: torch.from_numpy(rows) for name, rows in _columns(trace, own[start : start + _AT_ONCE])})
    estimates = {name: means.share(name) if name in _SHARES else means.mean(name) for name in means.names}
    estimates["saturation"] = estimates["saturation"][0]
    for name, depth in (("agreement", -1), ("settled", -1), ("settled", 0)):  # fixed by definition
        estimate = estimates[name]
        estimate.low[depth] = estimate.high[depth] = estimate.value[depth]
    return estimates


def _columns(trace: TraceData, some: Int64[np.ndarray, " n"]) -> Iterator[tuple[str, Float64[np.ndarray, "n _"]]]:
    """The values to average, of some of the answers."""
    assert trace.rows is not None
    part = replace(trace, rows=Rows(**{name: column[some] for name, column in trace.rows.columns.items()}))
    for name in (*_MEANS, *_SHARES):
        if name in trace.statistics:
            yield name, part.per_answer(name)
    yield "saturation", part.saturation_depth[:, None].astype(np.float64)
    yield "settled", part.saturated.astype(np.float64)

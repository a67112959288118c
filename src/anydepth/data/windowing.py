"""Sliding windows over long texts for causal language models, or over all texts joined.

Each token except the first of a text (of all of them, where they are joined) is predicted in exactly one window; labels
say in which, as transformers has them: at the token itself, `IGNORED` where another window predicts it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64
from torch import Tensor

from anydepth.core.tokens import IGNORED
from anydepth.core.windows import name, spans
from anydepth.data.inputs import tokens_of
from anydepth.data.loading import LoadedData
from anydepth.errors import DataError
from anydepth.models.loaded import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of tokens, in the order of the texts.

    Attributes:
        tokens: of all texts, concatenated.
        spans: of each window, its start and end among them, and the first token that it predicts.
        ids: see `anydepth.core.windows.name`; of texts that were joined, that of the text in which the window starts.
        notes: how the windows were made, one sentence each.
    """

    tokens: Int32[Tensor, " n"]
    spans: Int64[np.ndarray, "w 3"]
    ids: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def examples(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Some windows, unpadded: "input_ids" and, if one of them repeats tokens of another, "labels"."""
        examples, overlapping = [], False
        for start, end, first_predicted in self.spans[indices].tolist():
            ids = self.tokens[start:end].long()
            labels = ids.clone()
            labels[: first_predicted - start] = IGNORED
            examples.append({"input_ids": ids, "labels": labels})
            overlapping = overlapping or first_predicted > start + 1
        return examples if overlapping else [{"input_ids": example["input_ids"]} for example in examples]


def windows_of(data: LoadedData, model: LoadedModel, size: int, stride: int | None, *, pack: bool) -> Windows:
    """Cut the texts of a causal language model into windows of `size` tokens; see `anydepth.data.batches`.

    Without a stride it is `size` - 1, so that a window begins with the last token of the one before. One out of range,
    or no token to predict, raise a `DataError`; a tokenizer that is not the model's a `ModelError`.
    """
    stride = size - 1 if stride is None else stride
    if not 1 <= stride < size:
        raise DataError(
            f"stride is {stride:,} tokens, expected 1 to {size - 1:,}: windows of {size:,} tokens must overlap, for a "
            "token is predicted from those before it"
        )
    tokens = tokens_of(data, model, ended=pack)
    ends = tokens.ends.numpy()
    starts = np.concatenate([[0], ends[:-1]])
    wholes = np.array([[0, len(tokens.ids)]]) if pack else np.stack([starts, ends], axis=1)
    windows = np.concatenate([start + spans(int(end - start), size, stride) for start, end in wholes])
    if not (windows[:, 1] > windows[:, 2]).any():
        raise DataError(
            f"'{data.name}' holds {len(tokens.ids)} tokens and none that follows another: expected longer texts"
        )
    # of a text without tokens, the next one has the same start, and is the one that counts
    text = np.searchsorted(starts, windows[:, 0], side="right") - 1
    texts = data.rows.tolist() if data.columns.id is None else list(data.dataset[data.columns.id])
    ids = tuple(name(texts[row], int(start - starts[row])) for row, start in zip(text, windows[:, 0], strict=True))
    if pack:
        end = model.processor.eos_token
        what = f"{len(data):,} texts{'' if end is None else f', each ended by {end},'} are joined"
    else:
        what = f"{int((np.bincount(text) > 1).sum()):,} of {len(data):,} texts are longer than {size:,} tokens"
    return Windows(tokens=tokens.ids, spans=windows, ids=ids, notes=tuple(_notes(what, ids, size, stride)))


def _notes(what: str, ids: Sequence[str], size: int, stride: int) -> Iterator[str]:
    overlap = size - stride
    others = "one other" if overlap == 1 else f"{overlap:,} others"
    yield f"{what}, and read in windows of {size:,} that advance by {stride:,}: {len(ids):,} windows in all"
    yield f"a token counts in the first window that holds it, behind at least {others} or all that there are"
    yield f"a window is called as the text it starts in, and the token it starts at: {ids[-1]!r}"
    if overlap > 1:
        yield f"similarities take windows as they are: the {overlap:,} positions in which two overlap count in both"

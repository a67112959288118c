"""Model inputs from rows of a data set: tokens of texts, pixels of images, label tensors."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anydepth.core.tokens import IGNORED
from anydepth.data.columns import is_words
from anydepth.data.loading import LoadedData
from anydepth.errors import DataError, ModelError
from anydepth.models.loaded import LoadedModel
from anydepth.storage.paths import local_path

Rows = Mapping[str, Any]
"""Some rows of a data set, by column."""

TEXTS_AT_ONCE = 1000  # tokenised by one call


def text_inputs(
    rows: Rows, indices: Sequence[int], data: LoadedData, model: LoadedModel, max_length: int | None
) -> dict[str, Any]:
    """Token tensors, padded to the longest text of the batch; with "words", the word of each token, for a tagger.

    Padding goes to the right: models that count positions themselves would count it on the left. `indices` are those of
    the rows, for messages: a text without tokens raises a `DataError`, a tokenizer of another model a `ModelError`.
    """
    text, pair = data.columns.text, data.columns.pair
    assert text is not None  # `batches` asks for it
    tokens = model.processor(
        rows[text],
        None if pair is None else rows[pair],
        is_split_into_words=is_words(data.dataset.features[text]),
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    ids, network = tokens["input_ids"], model.model
    empty = ~tokens.get("attention_mask", torch.ones_like(ids)).bool().any(1)
    if empty.any():
        raise DataError(nothing_in(data, indices[int(empty.nonzero()[0])]))
    check_vocabulary(int(ids.max()), model)
    takes = inspect.signature(network.forward).parameters
    batch = {name: tensor for name, tensor in tokens.items() if name in takes}
    if model.task == "token-classification" and tokens.is_fast:
        batch["words"] = [tokens.word_ids(row) for row in range(len(ids))]
    return batch


def nothing_in(data: LoadedData, index: int) -> str:
    """The message about a text without tokens: the model's answer to padding alone is no answer to it."""
    return (
        f"the text in {data.where(index)} becomes no tokens, expected at least one for the model to answer to: fill it "
        "or leave the row out"
    )


def token_counts(rows: Rows, data: LoadedData, model: LoadedModel, max_length: int | None) -> Int64[np.ndarray, " n"]:
    """How many tokens `text_inputs` makes of each of some rows, without padding."""
    text, pair = data.columns.text, data.columns.pair
    assert text is not None  # `batches` asks for it
    words = is_words(data.dataset.features[text])
    pairs = None if pair is None else rows[pair]
    tokens = model.processor(
        rows[text], pairs, is_split_into_words=words, truncation=True, max_length=max_length, verbose=False
    )
    return np.array([len(ids) for ids in tokens["input_ids"]])


@dataclass(frozen=True)
class Tokens:
    """Ids of all tokens of some texts, concatenated, and the end of each text among them.

    Ids have 32 bits, a quarter of the memory of lists.
    """

    ids: Int32[Tensor, " n"]
    ends: Int64[Tensor, " texts"]


def tokens_of(data: LoadedData, model: LoadedModel, *, ended: bool = False) -> Tokens:
    """Tokenize texts without truncation, `ended` by the end token if there is one; a `ModelError` as `text_inputs`."""
    text, pair, end = data.columns.text, data.columns.pair, model.processor.eos_token_id if ended else None
    assert text is not None  # `batches` asks for it
    words = is_words(data.dataset.features[text])
    parts, lengths = [torch.empty(0, dtype=torch.int32)], []
    for start in range(0, len(data), TEXTS_AT_ONCE):
        rows = data.dataset[start : start + TEXTS_AT_ONCE]
        pairs = None if pair is None else rows[pair]
        # not truncated, and without the tokenizer's warning about texts longer than the model takes
        for ids in model.processor(rows[text], pairs, is_split_into_words=words, verbose=False)["input_ids"]:
            closed = ids if end is None or (ids and ids[-1] == end) else [*ids, end]
            parts.append(torch.tensor(closed, dtype=torch.int32))
            lengths.append(len(closed))
    ids = torch.cat(parts)
    if len(ids):
        check_vocabulary(int(ids.max()), model)
    return Tokens(ids, torch.tensor(lengths).cumsum(0))


@dataclass(frozen=True)
class Padding:
    """Collator of texts of different lengths, padded on the right as by `text_inputs`."""

    token: int
    masked: bool
    """Whether the model takes a mask."""

    @classmethod
    def of(cls, model: LoadedModel) -> "Padding":
        """The padding for a model."""
        masked = "attention_mask" in inspect.signature(model.model.forward).parameters
        return cls(model.processor.pad_token_id, masked)

    def __call__(self, examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch of examples: sequences are padded to the longest, scalars are stacked."""
        fill = {"input_ids": self.token, "labels": IGNORED}
        if self.masked:
            examples = [{**example, "attention_mask": torch.ones_like(example["input_ids"])} for example in examples]
        batch: dict[str, Tensor] = {}
        for name in examples[0]:
            values = [example[name] for example in examples]
            scalar = values[0].ndim == 0
            batch[name] = torch.stack(values) if scalar else pad_sequence(values, True, fill.get(name, 0))
        return batch


def check_vocabulary(largest: int, model: LoadedModel) -> None:
    """Raise a ModelError if the largest token id of a tokenizer is not in the model's vocabulary."""
    network: Any = model.model
    known = network.get_input_embeddings().num_embeddings
    if largest >= known:
        raise ModelError(
            f"the tokenizer gives token {largest} and the model knows {known}: "
            f"'{model.name}' has a tokenizer that is not its own"
        )


def word_labels(words: Sequence[Sequence[int | None]], labels: Sequence[Sequence[int]]) -> Tensor:
    """Token labels from word labels: the first token of a word has its label, the others none, as taggers are trained.

    `words` has the word that each token of a text belongs to, None for special tokens and padding; `labels` has the
    class of each word. (B, T) int64 come out, `IGNORED` where there is no label.

    Example:
        >>> word_labels([[None, 0, 0, 1, None]], [[4, 7]]).tolist()
        [[-100, 4, -100, 7, -100]]
    """
    return torch.tensor(
        [
            [
                IGNORED if word is None or word == before else classes[word]
                for before, word in zip([None, *token_words], token_words, strict=False)
            ]
            for token_words, classes in zip(words, labels, strict=True)
        ]
    )


def pixel_input(model: LoadedModel) -> tuple[str, torch.dtype]:
    """The name of the pixels among the parameters of a model's forward, and their dtype."""
    parameters = list(inspect.signature(model.model.forward).parameters)
    name = "pixel_values" if "pixel_values" in parameters else parameters[0]
    return name, next((p.dtype for p in model.model.parameters() if p.is_floating_point()), torch.float32)


def images_of(rows: Rows, indices: Sequence[int], data: LoadedData) -> list[Image.Image]:
    """The images of some rows; raises a DataError with the file or row of one that cannot be read."""
    column = data.columns.image
    assert column is not None  # `batches` asks for it
    return [_read_image(value, data, index) for index, value in zip(indices, rows[column], strict=True)]


def _read_image(value: Any, data: LoadedData, index: int) -> Image.Image:
    try:
        return _decode_image(value, local_path(data.name).parent)
    except Exception as error:  # PIL's decoders raise anything from OSError to struct.error at a broken file
        path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        what = f"'{path}' in {data.where(index)}" if path else f"the image in {data.where(index)}"
        raise DataError(f"{what} cannot be read: {error or type(error).__name__}") from error


def _decode_image(value: Any, folder: Path) -> Image.Image:
    """An image from a value of a column: bytes or a path as `datasets` keeps them, a path, or an array of pixels."""
    import datasets

    if value is None:
        raise ValueError("it is missing")
    if isinstance(value, str):
        value = {"path": str(folder / value), "bytes": (folder / value).read_bytes()}
    if isinstance(value, dict):
        if value["bytes"] is None and Path(value["path"]).is_file():  # `datasets` would leave a broken file open
            value = value | {"bytes": Path(value["path"]).read_bytes()}
        image: Image.Image = datasets.Image().decode_example(value)
        return image
    array = np.asarray(value)
    if array.min() < 0 or array.max() > 255 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"its pixels go from {array.min()} to {array.max()}, expected integers from 0 to 255")
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(array.astype(np.uint8))

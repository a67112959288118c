"""Data and models of the four tasks. What is held out never depends on the seed; what is drawn depends on it alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from settings import CONTEXT, CONTEXTS_HELD_OUT, LENGTH, SCREENED, TASKS, VOCABULARY, Size, Stage
from torch import Tensor, nn

from anydepth.assets.registry import path

Batch = dict[str, Tensor]


class Samples(Protocol):
    """Rows that batches are made of."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> Batch:
        """These rows as the model takes them, with "labels"."""
        ...

    def length(self, row: int) -> int:
        """Of a row, in tokens: rows of like lengths are put into a batch."""
        ...


@dataclass(frozen=True)
class Images:
    """Grey images: bytes of shape (n, 28, 28)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(rows)
        pixels = self.pixels[chosen, None].float() / 127.5 - 1
        return {"pixel_values": pixels, "labels": self.labels[chosen]}

    def length(self, row: int) -> int:
        return 1


@dataclass(frozen=True)
class Sentences:
    """Token ids and labels; 0 pads."""

    tokens: list[list[int]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int]) -> Batch:
        chosen = [torch.tensor(self.tokens[row]) for row in rows]
        ids = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        lengths = torch.tensor([len(one) for one in chosen])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([self.labels[row] for row in rows])}

    def length(self, row: int) -> int:
        return len(self.tokens[row])

    def rows(self, start: int, stop: int) -> Sentences:
        return Sentences(self.tokens[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Contexts:
    """Pieces of documents, all of one length: (n, T) token ids."""

    ids: Tensor
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int]) -> Batch:
        ids = self.ids[torch.as_tensor(rows)]
        return {"input_ids": ids, "labels": ids}

    def length(self, row: int) -> int:
        return 1


@dataclass(frozen=True)
class Data:
    """What a run trains on and is judged on.

    Attributes:
        train: all that may be drawn from.
        held_out: what quality is measured on.
        unit: (n,) which independent unit each held-out row belongs to: itself, or its document.
    """

    train: Samples
    held_out: Samples
    unit: np.ndarray


@cache
def data_of(task: str, stage: Stage) -> Data:
    """The data of a task, read once a process.

    Raises:
        AssetError: something is not in the cache; the message says which command fetches it.
    """
    size = TASKS[task].sizes[stage]
    if task == "vit":
        held_out = _images("test", size.held_out) if stage == "full" else _images("train", -size.held_out)
        return Data(_images("train", 50_000), held_out, np.arange(len(held_out)))
    if task == "minilm":
        return _reviews(size, stage)
    split = "test" if stage == "full" else "validation"
    contexts = _contexts(split, size.held_out, CONTEXTS_HELD_OUT)
    return Data(_contexts("train", None, None), contexts, contexts.document)


def _reviews(size: Size, stage: Stage) -> Data:
    train = _sentences("train")
    if stage == "screen":
        held_out = _sentences("validation").rows(0, size.held_out)
        return Data(train.rows(0, SCREENED), held_out, np.arange(len(held_out)))
    test = _sentences("test")
    more = train.rows(size.train, size.train + size.held_out - len(test))  # training rows that are never drawn
    held_out = Sentences(test.tokens + more.tokens, test.labels + more.labels)
    return Data(train.rows(0, size.train), held_out, np.arange(len(held_out)))


@cache
def _images(split: str, count: int) -> Images:
    """The first `count` images of a split, or the last, if it is negative."""
    import io

    import pandas
    from PIL import Image

    table = pandas.read_parquet(path("fashion-mnist") / f"{split}.parquet")
    table = table[:count] if count > 0 else table[count:]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]])
    return Images(torch.from_numpy(pixels), torch.tensor(table["label"].to_numpy()))


@cache
def _sentences(split: str) -> Sentences:
    import pandas
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path("minilm"))
    table = pandas.read_csv(path("mr") / f"{split}.csv", keep_default_na=False)
    tokens = tokenizer(table["text"].tolist(), truncation=True, max_length=LENGTH)["input_ids"]
    return Sentences(tokens, table["label"].tolist())


def _documents(split: str) -> list[str]:
    lines = (path("brown") / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@cache
def _tokenizer() -> Any:
    """Byte-level BPE of the training documents; the same at every run, since ties are broken by the pairs' order."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(_documents("train"), vocab_size=VOCABULARY, show_progress=False)
    return tokenizer


@cache
def _contexts(split: str, documents: int | None, most: int | None) -> Contexts:
    """The first `most` contexts of each of the first `documents`; what is left of a document is not used."""
    pieces, document = [], []
    for number, encoded in enumerate(_tokenizer().encode_batch(_documents(split)[:documents])):
        ids = torch.tensor(encoded.ids)
        whole = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:most]
        pieces.append(whole)
        document += [number] * len(whole)
    return Contexts(torch.cat(pieces), np.array(document))


def groups_of(task: str, stage: Stage, seed: int) -> list[list[int]]:
    """The rows of every step's batch: a function of task, stage and seed, the same for all objectives."""
    settings, size = TASKS[task], TASKS[task].sizes[stage]
    samples = data_of(task, stage).train
    generator = torch.Generator().manual_seed(seed)
    start = 0
    if settings.base is not None:  # goes on where the base stopped, in the base's order: what it has not seen
        start = TASKS[settings.base].sizes[stage].train
    drawn = torch.randperm(len(samples), generator=generator)[start : start + size.train].tolist()
    if len(drawn) < size.train:
        raise ValueError(f"{task} has {len(drawn)} samples to draw, {size.train} are wanted: see settings.py")
    groups: list[list[int]] = []
    for _ in range(size.epochs):
        order = [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()]
        groups += _alike(order, samples, size.batch, generator)
    return groups


def _alike(order: list[int], samples: Samples, batch: int, generator: torch.Generator) -> list[list[int]]:
    """Batches of rows of like lengths, out of pools of twenty batches, in a drawn order; the last may be smaller."""
    pools = (order[i : i + 20 * batch] for i in range(0, len(order), 20 * batch))
    rows = [row for pool in pools for row in sorted(pool, key=samples.length)]
    groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]


def model_of(task: str, seed: int) -> nn.Module:
    """A model whose initial weights depend on the seed alone; a tuned one gets its base's weights afterwards."""
    torch.manual_seed(seed)
    if task == "vit":
        return _vit()
    return _minilm() if task == "minilm" else _gpt()


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        intermediate_size=256,
        num_labels=10,
        initializer_range=0.1,  # the usual 0.02 is meant for a width of 768; 1 / sqrt(width) is 0.125 here
    )
    return ViTForImageClassification(config)


def _minilm() -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(path("minilm"), num_labels=2)


def _gpt() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=8,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)

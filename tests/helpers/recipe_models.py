"""Tiny models of the architectures, and data of the columns, that recipes name: no hub, no assets."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import datasets
import numpy as np
import transformers
from PIL import Image

ROWS = 24
CLASSES = [f"class {number}" for number in range(10)]


def deit(folder: Path, *, blocks: int = 12, channels: int = 3) -> None:
    """A ViT of as many blocks, since recipes look at some by number; grey ones without an image processor."""
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=blocks, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_channels=channels, num_labels=10, initializer_range=0.5,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    if channels == 3:
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def bert(folder: Path, *, head: str = "Model") -> None:
    """A BERT that takes the 256 tokens recipes cut at."""
    checkpoints.bert(folder, head, max_position_embeddings=256)


def llama(folder: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(checkpoints.VOCABULARY), max_position_embeddings=256, bos_token_id=3, eos_token_id=3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    checkpoints.tokenizer(encoder=False).save_pretrained(folder)


def gpt2(folder: Path) -> None:
    checkpoints.gpt2(folder, n_positions=256)
    checkpoints.tokenizer(encoder=False).save_pretrained(folder)  # as the small scale's has: one that can pad


def pictures(folder: Path, image: str = "image", *labels: str, splits: tuple[str, str] = ("train", "test")) -> None:
    """Coloured images and one column of labels, or several."""
    rng, parts = np.random.default_rng(0), {}
    for split in splits:
        columns: dict[str, Any] = {image: [_picture(rng) for _ in range(ROWS)]}
        features: dict[str, Any] = {image: datasets.Image()}
        for label in labels or ("label",):
            columns[label] = [row % 10 for row in range(ROWS)]
            features[label] = datasets.ClassLabel(names=CLASSES)
        parts[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict(parts).save_to_disk(folder)


def _picture(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8))


def texts(folder: Path, *columns: str, splits: tuple[str, str] = ("train", "validation"), classes: int = 2) -> None:
    """Texts in as many columns, and labels; none with no classes."""
    rng, parts = np.random.default_rng(0), {}
    for split in splits:
        rows: dict[str, Any] = {name: [words(rng, 3, 9) for _ in range(ROWS)] for name in columns}
        features: dict[str, Any] = {name: datasets.Value("string") for name in columns}
        if classes:
            rows["label"] = [row % classes for row in range(ROWS)]
            features["label"] = datasets.ClassLabel(names=[f"answer {number}" for number in range(classes)])
        parts[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict(parts).save_to_disk(folder)


def corpus(folder: Path) -> None:
    """Documents long enough to go on from."""
    rng = np.random.default_rng(0)
    parts = {
        split: datasets.Dataset.from_dict({"text": [words(rng, 170, 190) for _ in range(8)]})
        for split in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(folder)


def words(rng: np.random.Generator, least: int, most: int) -> str:
    return " ".join(rng.choice(checkpoints.WORDS, size=rng.integers(least, most)))


_GLUE = {
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
MAKERS: Mapping[str, Callable[[Path], Any]] = {
    "facebook/deit-small-patch16-224": deit,
    "made:deit-s-6": partial(deit, blocks=6),
    "made:deit-s-9": partial(deit, blocks=9),
    "uoft-cs/cifar10": lambda folder: pictures(folder, "img"),
    "uoft-cs/cifar100": lambda folder: pictures(folder, "img", "fine_label", "coarse_label"),
    "ILSVRC/imagenet-1k": lambda folder: pictures(folder, splits=("train", "validation")),
    "google-bert/bert-base-uncased": partial(bert, head="ForMaskedLM"),
    **{f"nyu-mll/glue:{name}": lambda folder, of=of: texts(folder, *of) for name, of in _GLUE.items()},
    "nyu-mll/glue:mnli": lambda folder: texts(
        folder, "premise", "hypothesis", splits=("train", "validation_matched"), classes=3
    ),
    "openai-community/gpt2": gpt2,
    "meta-llama/Meta-Llama-3-8B": llama,
    "Salesforce/wikitext:wikitext-103-raw-v1": corpus,
    "princeton-nlp/sup-simcse-roberta-large": bert,
    "made:vit-12": partial(deit, channels=1),
    "asset:fashion-mnist": pictures,
}
"""What stands in for each model and data set, by the name a recipe has for it."""


def use(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Stand-ins for these names under `root`; names of data that are always there are left alone."""
    found = {}
    for name in names:
        if name in MAKERS:
            folder = root / name.replace("/", "-").replace(":", "-")
            if not folder.is_dir():
                MAKERS[name](folder)
            found[name] = str(folder)
    return found

"""The models and data of the small scale that no package brings: made here, the same every time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anydepth.assets.registry import path

SIDE, PATCH, WIDTH, HEADS = 28, 7, 64, 4
"""Of the small vision transformers: 16 patches of Fashion-MNIST's 28 x 28 pixels."""
VOCABULARY, CONTEXT = 2048, 128
"""Of the small language models: byte-level BPE of Brown's training documents."""
DINO_SIDE = 56
"""Pixels DINOv2-S sees at the small scale: 16 patches of 14."""
CAPTIONS = (
    "this is a photo of a {}",
    "a photo of a {}",
    "a picture of one {}",
    "here you see a {}",
    "a small grey {} on black",
    "the {} in this image",
    "an image that shows a {}",
    "a {} for sale",
)
"""What the small CLIP is told of an image: the first asks it, as the paper does; all of them train it."""


def vit(folder: Path, *, blocks: int) -> None:
    """The config of a ViT for Fashion-MNIST, and the transform of its images."""
    from transformers import ViTConfig

    config = ViTConfig(
        image_size=SIDE,
        patch_size=PATCH,
        num_channels=1,
        hidden_size=WIDTH,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        initializer_range=0.1,  # the usual 0.02 is meant for a width of 768; 1 / sqrt(width) is 0.125 here
        architectures=["ViTForImageClassification"],
    )
    config.save_pretrained(folder)


def deit_s(folder: Path, *, blocks: int) -> None:
    """The config of a DeiT-S of fewer blocks, and the transform of its images."""
    from transformers import DeiTImageProcessor, ViTConfig

    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=blocks,
        num_attention_heads=6,
        intermediate_size=1536,
        architectures=["ViTForImageClassification"],
    )
    _save(folder, config, DeiTImageProcessor())


def dinov2(folder: Path) -> None:
    """DINOv2-S for small images: its weights, and a transform to 56 x 56 pixels."""
    source = path("dinov2-s")
    for file in source.glob("*"):
        if file.suffix in (".json", ".safetensors"):
            shutil.copy(file, folder / file.name)
    settings = json.loads((source / "preprocessor_config.json").read_text())
    size = {"height": DINO_SIDE, "width": DINO_SIDE}
    settings |= {"size": {"shortest_edge": DINO_SIDE}, "crop_size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))


def gpt2(folder: Path) -> None:
    """The config of a GPT-2 of 8 blocks and width 128, and its tokenizer."""
    from transformers import GPT2Config

    tokenizer = _tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=8,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["GPT2LMHeadModel"],
    )
    _save(folder, config, tokenizer)


def llama(folder: Path) -> None:
    """The config of a Llama of 12 blocks and width 192: the larger of the small language models."""
    from transformers import LlamaConfig

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
    )
    _save(folder, config, tokenizer)


def clip(folder: Path) -> None:
    """A CLIP of two towers of 6 blocks for Fashion-MNIST, its words, and the transform of its images."""
    from transformers import CLIPConfig, CLIPImageProcessor

    tokenizer = _words_of_captions()
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": HEADS,
        "initializer_factor": 1.0,
    }
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(
        text_config={**tower, **words},
        vision_config={**tower, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=WIDTH // 2,
        architectures=["CLIPModel"],
    )
    size = {"height": SIDE, "width": SIDE}
    pixels = CLIPImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    _save(folder, config, tokenizer, pixels)


def _words_of_captions() -> Any:
    """One token a word, in the order of their first appearance."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from anydepth.data import load

    names = load(str(path("fashion-mnist")), split="test", limit=1).label_names
    lower, split = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    texts = [lower.normalize_str(caption.format(name)) for caption in CAPTIONS for name in names]
    words = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(text))
    start, end, pad, unknown = special = ("<start>", "<end>", "<pad>", "<unknown>")
    vocabulary = {word: index for index, word in enumerate((*special, *words))}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    found.normalizer, found.pre_tokenizer = lower, split
    found.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(one, vocabulary[one]) for one in (start, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token=start, eos_token=end, pad_token=pad, unk_token=unknown, model_max_length=24
    )


def _save(folder: Path, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(folder)


def _tokenizer() -> Any:
    """The same at every run, since ties are broken by the pairs' order."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    found = ByteLevelBPETokenizer()
    end = "<|endoftext|>"
    found.train_from_iterator(
        [one["text"] for one in brown("train")], vocab_size=VOCABULARY, special_tokens=[end], show_progress=False
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=found._tokenizer, eos_token=end, bos_token=end, pad_token=end)
    wrapped.model_max_length = CONTEXT
    return wrapped


def brown(split: str) -> list[dict[str, Any]]:
    """The documents of a split of the Brown corpus, as its file has them."""
    lines = (path("brown") / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


FICTION = ("adventure", "fiction", "humor", "mystery", "romance", "science_fiction")
"""The genres of imaginative prose."""
SENTENCE = range(8, 41)
"""Words of a sentence that is used."""


def fiction(folder: Path) -> None:
    """Sentences of the Brown corpus, and whether they are imaginative prose; as many of each."""
    for split in ("train", "test"):
        rows: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
        for document in brown(split):
            label = int(document["genre"] in FICTION)
            rows[label] += [{"text": one, "label": label} for one in sentences(document)]
        _table(folder / f"{split}.csv", rows)


def follows(folder: Path) -> None:
    """Pairs of sentences of the Brown corpus: the second follows the first, or is of another document."""
    for split in ("train", "test"):
        documents = [sentences(one) for one in brown(split)]
        rows: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
        for number, own in enumerate(documents):
            other = documents[(number + 7) % len(documents)]  # not a neighbour: those are of one genre
            for first, second, strange in zip(own[::2], own[1::2], other[1::2], strict=False):
                rows[1].append({"first": first, "second": second, "label": 1})
                rows[0].append({"first": first, "second": strange, "label": 0})
        _table(folder / f"{split}.csv", rows)


def sentences(document: Mapping[str, Any]) -> list[str]:
    """The sentences of a document of the Brown corpus, but for very short and very long ones."""
    return [line.strip() for line in document["text"].splitlines() if len(line.split()) in SENTENCE]


def _table(path: Path, rows: Mapping[int, list[dict[str, Any]]]) -> None:
    """As many rows of each label, label after label in turn; what is drawn of them is drawn at random later."""
    import pandas

    even = [row for pair in zip(*rows.values(), strict=False) for row in pair]
    pandas.DataFrame(even).to_csv(path, index=False)


MADE: Mapping[str, Callable[[Path], None]] = {
    "vit-6": lambda folder: vit(folder, blocks=6),
    "vit-9": lambda folder: vit(folder, blocks=9),
    "vit-12": lambda folder: vit(folder, blocks=12),
    "deit-s-6": lambda folder: deit_s(folder, blocks=6),
    "deit-s-9": lambda folder: deit_s(folder, blocks=9),
    "dinov2-s": dinov2,
    "gpt2": gpt2,
    "llama": llama,
    "clip": clip,
    "fiction": fiction,
    "follows": follows,
}
"""What `made:NAME` stands for: each fills an empty folder."""

"""The models and data of the small scale that no package brings: made here, the same every time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
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
    _save_config(
        folder,
        "ViTForImageClassification",
        image_size=SIDE,
        patch_size=PATCH,
        num_channels=1,
        hidden_size=WIDTH,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        initializer_range=0.1,  # the usual 0.02 is meant for a width of 768; 1 / sqrt(width) is 0.125 here
    )


def deit_s(folder: Path, *, blocks: int) -> None:
    """The config of a DeiT-S of fewer blocks, and the transform of its images."""
    from transformers import DeiTImageProcessor

    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    _save_config(folder, "ViTForImageClassification", DeiTImageProcessor(), num_hidden_layers=blocks, **shape)


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
    tokenizer = _tokenizer()
    _save_config(
        folder,
        "GPT2LMHeadModel",
        tokenizer,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=8,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_tokens(tokenizer),
    )


def llama(folder: Path) -> None:
    """The config of a Llama of 12 blocks and width 192: the larger of the small language models."""
    tokenizer = _tokenizer()
    _save_config(
        folder,
        "LlamaForCausalLM",
        tokenizer,
        max_position_embeddings=CONTEXT,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        **_tokens(tokenizer),
    )


def clip(folder: Path) -> None:
    """A CLIP of two towers of 6 blocks for Fashion-MNIST, its words, and the transform of its images."""
    from transformers import CLIPImageProcessor

    tokenizer, size = _words_of_captions(), {"height": SIDE, "width": SIDE}
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": HEADS,
        "initializer_factor": 1.0,
    }
    words = {"max_position_embeddings": tokenizer.model_max_length, "pad_token_id": tokenizer.pad_token_id}
    _save_config(
        folder,
        "CLIPModel",
        tokenizer,
        CLIPImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        text_config={**tower, **words, **_tokens(tokenizer)},
        vision_config={**tower, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=WIDTH // 2,
    )


def _save_config(folder: Path, model_class: str, *processors: Any, **settings: Any) -> None:
    """Write the config of a model class of transformers, beside a tokenizer or a transform of images."""
    import transformers

    config = getattr(transformers, model_class).config_class(architectures=[model_class], **settings)
    for part in (config, *processors):
        part.save_pretrained(folder)


def _tokens(tokenizer: Any) -> dict[str, int]:
    """Settings of a config that follow from the tokenizer."""
    size, start, end = len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id
    return {"vocab_size": size, "bos_token_id": start, "eos_token_id": end}


def _words_of_captions() -> Any:
    """One token a word, in the order of their first appearance."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from anydepth.data import load

    names = load(str(path("fashion-mnist")), split="test", limit=1).label_names
    lower, split = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    texts = [lower.normalize_str(caption.format(name)) for caption in CAPTIONS for name in names]
    own = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(text))
    start, end, pad, unknown = special = ("<start>", "<end>", "<pad>", "<unknown>")
    vocabulary = {word: index for index, word in enumerate((*special, *own))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    words.normalizer, words.pre_tokenizer = lower, split
    words.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, vocabulary[token]) for token in (start, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=24,
    )


def _tokenizer() -> Any:
    """The same at every run, since ties are broken by the pairs' order."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe, end = ByteLevelBPETokenizer(), "<|endoftext|>"
    texts = [document["text"] for document in brown("train")]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[end], show_progress=False)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, bos_token=end, pad_token=end)
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
            rows[label] += [{"text": sentence, "label": label} for sentence in sentences(document)]
        _table(folder / f"{split}.csv", rows)


def follows(folder: Path) -> None:
    """Pairs of sentences of the Brown corpus: the second follows the first, or is of another document."""
    for split in ("train", "test"):
        documents = [sentences(document) for document in brown(split)]
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
    **{f"vit-{blocks}": partial(vit, blocks=blocks) for blocks in (6, 9, 12)},
    **{f"deit-s-{blocks}": partial(deit_s, blocks=blocks) for blocks in (6, 9)},
    "dinov2-s": dinov2,
    "gpt2": gpt2,
    "llama": llama,
    "clip": clip,
    "fiction": fiction,
    "follows": follows,
}
"""What `made:NAME` stands for: each fills an empty folder."""

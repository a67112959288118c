"""Tiny checkpoints on disk, with tokenizers made on the spot: what a hub would give, without one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["the", "a", "film", "was", "good", "bad", "great", "dull", "plot", "cast", "and", "but", "very", "not"]
VOCABULARY = {token: index for index, token in enumerate([*SPECIAL, *WORDS])}
_SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tokenizer(*, encoder: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """One word, one token; with [CLS] and [SEP] around the text as encoders have them, or bare as decoders do."""
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if encoder:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    if pad:
        names |= {"pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def bert(folder: Path, head: str = "ForSequenceClassification", **settings: Any) -> Path:
    """A BERT with a head, and its tokenizer."""
    given = _SIZE | {"vocab_size": len(VOCABULARY), "max_position_embeddings": 32} | settings
    config = transformers.BertConfig(**given)
    getattr(transformers, f"Bert{head}")(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def gpt2(folder: Path, head: str = "LMHeadModel", **settings: Any) -> Path:
    """A GPT-2 with a head, and a tokenizer without a padding token."""
    ends = {"bos_token_id": 3, "eos_token_id": 3}
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": len(VOCABULARY), "n_positions": 64}
    config = transformers.GPT2Config(**size | ends | settings)
    getattr(transformers, f"GPT2{head}")(config).save_pretrained(folder)
    tokenizer(encoder=False, pad=False).save_pretrained(folder)
    return folder


def vit(folder: Path, head: str = "ForImageClassification", *, channels: int = 1, **settings: Any) -> Path:
    """A ViT for 8 × 8 images, without an image processor."""
    config = transformers.ViTConfig(**_SIZE, image_size=8, patch_size=4, num_channels=channels, **settings)
    getattr(transformers, f"ViT{head}")(config).save_pretrained(folder)
    return folder


def swin(folder: Path, **settings: Any) -> Path:
    """A Swin with two stages for 8 × 8 images, without an image processor."""
    size = {"image_size": 8, "patch_size": 1, "num_channels": 1, "embed_dim": 8, "window_size": 4}
    config = transformers.SwinConfig(**size, depths=[1, 2], num_heads=[1, 2], **settings)
    transformers.SwinForImageClassification(config).save_pretrained(folder)
    return folder


def bart(folder: Path, **settings: Any) -> Path:
    """A BART that classifies texts, and its tokenizer."""
    side = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
    sides = {f"{side_name}_{name}": size for side_name in ("encoder", "decoder") for name, size in side.items()}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    config = transformers.BartConfig(vocab_size=len(VOCABULARY), d_model=16, **sides, **special, **settings)
    transformers.BartForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def to_train(root: Path) -> list[str]:
    """A config of an image model, a BERT without a classifier, a GPT-2, and texts for them; returns the texts."""
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    transformers.ViTConfig(**size, image_size=8, patch_size=4, num_channels=1).save_pretrained(root / "vit")
    bert(root / "bert", "ForMaskedLM")
    gpt2(root / "gpt2")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 9))) for _ in range(60)]
    rows = [f"{text},{('dull', 'great')[index % 2]}" for index, text in enumerate(texts)]
    (root / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (root / "corpus.txt").write_text("\n".join(texts) + "\n")
    return texts

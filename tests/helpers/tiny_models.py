"""Tiny random models of every architecture we promise, each with a batch that has padding where it is text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, CLASSES, BLOCKS, WIDTH = 99, 5, 4, 32
Case = tuple[nn.Module, Any]

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4}
_USUAL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
}
_GROUPED = {"num_key_value_heads": 2}
_WINDOWED = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
_GPT2 = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}
_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS}
_IMAGE |= {"num_attention_heads": 4, "intermediate_size": 48}

ENCODERS = {
    "bert": _USUAL,
    "roberta": _USUAL,
    "electra": _USUAL | {"embedding_size": 16},
    "distilbert": {"dim": WIDTH, "n_layers": BLOCKS, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCABULARY},
    "deberta-v2": _USUAL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "modernbert": _USUAL | {"local_attention": 4},
    "xlm-roberta": _USUAL,
    "mpnet": _USUAL,
}
DECODERS = {
    "gpt2": _GPT2,
    "gpt_neox": _USUAL,
    "opt": {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "vocab_size": VOCABULARY,
        "word_embed_proj_dim": WIDTH,
    },
    "bloom": {"hidden_size": WIDTH, "n_layer": BLOCKS, "n_head": 4, "vocab_size": VOCABULARY},
    "llama": _USUAL | _GROUPED,
    "mistral": _USUAL | _GROUPED,
    "qwen2": _USUAL | _GROUPED,
    "qwen3": _USUAL | _GROUPED,
    "gemma2": _USUAL | _WINDOWED,
    "gemma3_text": _USUAL | _WINDOWED,
    "cohere": _USUAL | _GROUPED | {"logit_scale": 0.25},
    "granite": _USUAL | _GROUPED | {"logits_scaling": 3.0, "residual_multiplier": 0.7},
    "phi3": _USUAL | _GROUPED,
    "olmo2": _USUAL | _GROUPED,
    "smollm3": _USUAL | _GROUPED,
    "mixtral": _USUAL | _GROUPED | {"num_local_experts": 3},
}
IMAGES = {"vit": _IMAGE, "deit": _IMAGE, "dinov2": _IMAGE | {"mlp_ratio": 2}, "beit": _IMAGE}


def text(*, left: bool = False) -> dict[str, Tensor]:
    """Three sentences of 12, 7 and 4 tokens."""
    ids = torch.randint(5, VOCABULARY, (3, 12))
    mask = torch.ones_like(ids)
    for row, length in ((1, 7), (2, 4)):
        mask[row, slice(None, 12 - length) if left else slice(length, None)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def images(channels: int = 3, size: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(3, channels, size, size)}


def _text_config(name: str, settings: dict[str, Any]) -> Any:
    return transformers.AutoConfig.for_model(name, **settings, **_SPECIAL, num_labels=CLASSES)


def encoder(name: str) -> Case:
    model = transformers.AutoModelForSequenceClassification.from_config(_text_config(name, ENCODERS[name]))
    return model, text()


def decoder(name: str) -> Case:
    return transformers.AutoModelForCausalLM.from_config(_text_config(name, DECODERS[name])), text(left=True)


def image(name: str) -> Case:
    config = transformers.AutoConfig.for_model(name, **IMAGES[name], num_labels=CLASSES)
    config.architectures = [f"{name.capitalize().replace('Vit', 'ViT').replace('Deit', 'DeiT')}ForImageClassification"]
    return transformers.AutoModelForImageClassification.from_config(config), images()


def distilled() -> Case:
    config = transformers.DeiTConfig(**_IMAGE, num_labels=CLASSES)
    return transformers.DeiTForImageClassificationWithTeacher(config), images()


def clip_text() -> Case:
    config = transformers.CLIPTextConfig(**_USUAL, **_SPECIAL | {"eos_token_id": VOCABULARY - 1}, projection_dim=16)
    batch = text()
    batch["input_ids"].clamp_(max=VOCABULARY - 2)
    batch["input_ids"][torch.arange(3), batch["attention_mask"].sum(1) - 1] = VOCABULARY - 1  # [EOS] ends each text
    return transformers.CLIPTextModelWithProjection(config), batch


def clip_vision() -> Case:
    config = transformers.CLIPVisionConfig(**_IMAGE, projection_dim=16)
    return transformers.CLIPVisionModelWithProjection(config), images()


def decoder_classifier() -> Case:
    config = _text_config("llama", DECODERS["llama"])
    return transformers.LlamaForSequenceClassification(config), text()


def gpt2_classifier() -> Case:
    return transformers.GPT2ForSequenceClassification(_text_config("gpt2", DECODERS["gpt2"])), text()


def tagger() -> Case:
    return transformers.BertForTokenClassification(_text_config("bert", ENCODERS["bert"])), text()


def headless() -> Case:
    return transformers.BertModel(_text_config("bert", ENCODERS["bert"])), text()


def timm_vit(name: str = "vit_tiny_patch16_224") -> Case:
    import timm

    settings = {"img_size": 8, "patch_size": 4, "embed_dim": WIDTH, "depth": BLOCKS, "num_heads": 4}
    return timm.create_model(name, num_classes=CLASSES, **settings), torch.rand(3, 3, 8, 8)


class PlainEncoder(nn.Module):
    """`nn.TransformerEncoder` with a head, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, BLOCKS, norm=nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        encoded = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.head(encoded[:, 0])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mix(x))


class Nobodys(nn.Module):
    """A residual network that no library knows: vectors in, no tokens."""

    def __init__(self, width: int = 16, depth: int = 5, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.trunk = nn.ModuleList(Block(width) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.trunk:
            x = block(x)
        return self.last(x)


def seq2seq() -> tuple[nn.Module, dict[str, Tensor]]:
    """In float64, with labels of which two do not count."""
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_layers": 3}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.BartConfig(vocab_size=50, d_model=16, max_position_embeddings=32, **sizes, **special)
    labels = torch.randint(3, 50, (3, 6))
    labels[1, 4:] = -100
    model = transformers.BartForConditionalGeneration(config).double().eval()
    return model, {"input_ids": torch.randint(3, 50, (3, 8)), "labels": labels}


CASES: dict[str, Callable[[], Case]] = {
    **{name: lambda name=name: encoder(name) for name in ENCODERS},
    **{name: lambda name=name: decoder(name) for name in DECODERS},
    **{name: lambda name=name: image(name) for name in IMAGES},
    "deit distilled": distilled,
    "clip text": clip_text,
    "clip vision": clip_vision,
    "llama classifier": decoder_classifier,
    "gpt2 classifier": gpt2_classifier,
    "bert tagger": tagger,
    "bert without a head": headless,
    "timm vit": timm_vit,
    "timm deit": lambda: timm_vit("deit_tiny_patch16_224"),
    "timm deit distilled": lambda: timm_vit("deit_tiny_distilled_patch16_224"),
    "nn.TransformerEncoder": lambda: (PlainEncoder(), text()),
    "nobody's": lambda: (Nobodys(), torch.randn(3, 8)),
}


def build(name: str, seed: int = 0) -> Case:
    """A fresh model in eval mode, its weights moved off their near-zero start so that depths really differ."""
    torch.manual_seed(seed)
    model, batch = CASES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), batch

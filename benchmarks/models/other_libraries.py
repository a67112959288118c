"""Tiny models of torch, torchvision, open_clip, sentence-transformers, x-transformers and vit-pytorch."""

from __future__ import annotations

import importlib
import inspect
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from made_inputs import SAMPLES
from shrunken_configs import BLOCKS, CLASSES, VOCABULARY, WIDTH
from sweep_cases import Case, Made, images
from torch import Tensor, nn


def other_cases() -> Iterator[Case]:
    for library, makers in (
        ("torch", _TORCH),
        ("torchvision", _TORCHVISION),
        ("open_clip", _OPEN_CLIP),
        ("sentence-transformers", _SENTENCES),
        ("x-transformers", _X_TRANSFORMERS),
        ("vit-pytorch", _VIT_PYTORCH),
    ):
        for name, (kind, make) in makers.items():
            yield Case(name, library, kind, Made(make, kind))


# --- torch ------------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """`nn.TransformerEncoder` with a head, samples in front or (torch's default) second."""

    def __init__(self, *, batch_first: bool, head: str = "first") -> None:
        super().__init__()
        self.batch_first, self.head_at = batch_first, head
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, BLOCKS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=batch_first)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        embedded = self.embed(input_ids)
        embedded = embedded if self.batch_first else embedded.transpose(0, 1)
        padding = None if attention_mask is None else attention_mask == 0
        encoded = self.encoder(embedded, src_key_padding_mask=padding)
        encoded = encoded if self.batch_first else encoded.transpose(0, 1)
        return self.head(encoded[:, 0] if self.head_at == "first" else encoded)


class InPlacePositions(nn.Module):
    """Adds positions to the embedding's output in place, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.positions = nn.Parameter(torch.randn(6, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True)
        self.blocks = nn.ModuleList([layer, *(_again(layer) for _ in range(BLOCKS - 1))])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x += self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def _again(layer: nn.Module) -> nn.Module:
    import copy

    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    return other


class InAttributes(nn.Module):
    """Blocks in attributes of their own, in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        for number in range(BLOCKS):
            setattr(self, f"block{number}", nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for number in range(BLOCKS):
            x = getattr(self, f"block{number}")(x)
        return self.head(x.mean(1))


class Universal(nn.Module):
    """One block, used at every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(BLOCKS):
            x = self.block(x)
        return self.head(x.mean(1))


class Sequence2Sequence(nn.Module):
    """`nn.Transformer` with embeddings and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.Transformer(WIDTH, 4, BLOCKS, BLOCKS, 48, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        target = self.embed(decoder_input_ids)
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        padding = attention_mask == 0
        out = self.transformer(
            self.embed(input_ids),
            target,
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.head(out)


def _text() -> dict[str, Tensor]:
    ids = torch.randint(8, VOCABULARY, (SAMPLES, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[2, 4:] = 0, 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def _two_texts() -> dict[str, Tensor]:
    return _text() | {"decoder_input_ids": torch.randint(8, VOCABULARY, (SAMPLES, 10))}


def _vectors() -> Tensor:
    return torch.randn(SAMPLES, 6, 8)


_TORCH: dict[str, tuple[str, Any]] = {
    "TransformerEncoder, batch_first": ("text classification", lambda: (Encoder(batch_first=True), _text)),
    "TransformerEncoder, batch second": ("text classification", lambda: (Encoder(batch_first=False), _text)),
    "TransformerEncoder, batch second, no mask": (
        "text classification",
        lambda: (Encoder(batch_first=False), lambda: {"input_ids": _text()["input_ids"]}),
    ),
    "TransformerEncoder, batch second, tagging": (
        "tagging",
        lambda: (Encoder(batch_first=False, head="each"), _text),
    ),
    "Transformer": ("encoder-decoder", lambda: (Sequence2Sequence(), _two_texts)),
    "positions added in place": ("text classification", lambda: (InPlacePositions(), _vectors)),
    "blocks in attributes": ("text classification", lambda: (InAttributes(), _vectors)),
    "one block at all depths": ("text classification", lambda: (Universal(), _vectors)),
}


# --- torchvision ------------------------------------------------------------------------------------------------------


def _vision(name: str, **settings: Any) -> Callable[[], tuple[nn.Module, Callable[[], Any]]]:
    def make() -> tuple[nn.Module, Callable[[], Any]]:
        from torchvision import models

        return getattr(models, name)(num_classes=CLASSES, **settings), images(64)

    return make


def _vit() -> tuple[nn.Module, Callable[[], Any]]:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, BLOCKS, 4, WIDTH, 48, num_classes=CLASSES), images()


def _swin(*, second: bool) -> Callable[[], tuple[nn.Module, Callable[[], Any]]]:
    def make() -> tuple[nn.Module, Callable[[], Any]]:
        from torchvision.models import SwinTransformer, swin_transformer

        more = {"downsample_layer": swin_transformer.PatchMergingV2, "block": swin_transformer.SwinTransformerBlockV2}
        sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}
        return SwinTransformer(**sizes, num_classes=CLASSES, **(more if second else {})), images()

    return make


def _maxvit() -> tuple[nn.Module, Callable[[], Any]]:
    from torchvision.models import MaxVit

    sizes = {"stem_channels": 16, "block_channels": [16, 32], "block_layers": [2, 2], "head_dim": 8}
    return MaxVit((32, 32), partition_size=4, stochastic_depth_prob=0.0, num_classes=CLASSES, **sizes), images()


_TORCHVISION: dict[str, tuple[str, Any]] = {
    "VisionTransformer": ("image classification", _vit),
    "SwinTransformer": ("image classification", _swin(second=False)),
    "SwinTransformer v2": ("image classification", _swin(second=True)),
    "MaxVit": ("image classification", _maxvit),
    "ResNet": ("image classification", _vision("resnet18")),
    "ConvNeXt": ("image classification", _vision("convnext_tiny")),
}


# --- open_clip, sentence-transformers ---------------------------------------------------------------------------------


def _open_clip(kind: str) -> Callable[[], tuple[nn.Module, Callable[[], Any]]]:
    def make() -> tuple[nn.Module, Callable[[], Any]]:
        import open_clip

        vision = {"image_size": 32, "layers": BLOCKS, "width": WIDTH, "head_width": 8, "patch_size": 8}
        text = {"context_length": 12, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 4, "layers": BLOCKS}
        coca = {"multimodal_cfg": {**text, "n_queries": 6}} if kind == "CoCa" else {}
        model = getattr(open_clip, kind)(embed_dim=16, vision_cfg=vision, text_cfg=text, **coca)

        def batch() -> dict[str, Tensor]:
            return {"image": torch.rand(SAMPLES, 3, 32, 32), "text": torch.randint(1, VOCABULARY, (SAMPLES, 12))}

        return model, batch

    return make


def _open_clip_tower(part: str) -> Callable[[], tuple[nn.Module, Callable[[], Any]]]:
    def make() -> tuple[nn.Module, Callable[[], Any]]:
        model: Any = _open_clip("CustomTextCLIP")()[0]
        if part == "visual":
            return model.visual, images()
        return model.text, lambda: torch.randint(1, VOCABULARY, (SAMPLES, 12))

    return make


_OPEN_CLIP: dict[str, tuple[str, Any]] = {
    "CLIP": ("CLIP-like", _open_clip("CLIP")),
    "CustomTextCLIP": ("CLIP-like", _open_clip("CustomTextCLIP")),
    "CoCa": ("CLIP-like", _open_clip("CoCa")),
    "VisionTransformer": ("embedding", _open_clip_tower("visual")),
    "TextTransformer": ("embedding", _open_clip_tower("text")),
}


def _sentences(kind: str, words: str, *rest: tuple[str, dict[str, Any]]) -> Callable[[], Any]:
    """A maker of a model of sentence-transformers: its class, the class of its words, and what comes after them."""

    def make() -> tuple[nn.Module, Callable[[], Any]]:
        import transformers

        library: Any = importlib.import_module("sentence_transformers")
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "intermediate_size": 48}
        config = transformers.BertConfig(vocab_size=VOCABULARY, num_labels=CLASSES, **sizes)
        with tempfile.TemporaryDirectory() as folder:
            getattr(transformers, words)(config).save_pretrained(folder)
            if kind == "CrossEncoder":
                return library.CrossEncoder(folder), _text
            first = library.base.modules.Transformer(folder, transformer_task=_TASKS[words])
        parts = (library.sentence_transformer.modules, library.sparse_encoder.modules, library.base.modules)
        after = [
            next(getattr(part, name) for part in parts if hasattr(part, name))(**settings) for name, settings in rest
        ]
        return getattr(library, kind)(modules=[first, *after]), _text

    return make


_TASKS = {"BertModel": "feature-extraction", "BertForMaskedLM": "fill-mask"}
_SENTENCES: dict[str, tuple[str, Any]] = {
    "SentenceTransformer": (
        "embedding",
        _sentences("SentenceTransformer", "BertModel", ("Pooling", {"embedding_dimension": WIDTH})),
    ),
    "SentenceTransformer, first token, dense, normalised": (
        "embedding",
        _sentences(
            "SentenceTransformer",
            "BertModel",
            ("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": "cls"}),
            ("Dense", {"in_features": WIDTH, "out_features": 16}),
            ("Normalize", {}),
        ),
    ),
    "SparseEncoder": ("embedding", _sentences("SparseEncoder", "BertForMaskedLM", ("SpladePooling", {}))),
    "CrossEncoder": ("text classification", _sentences("CrossEncoder", "BertForSequenceClassification")),
}


# --- x-transformers, vit-pytorch --------------------------------------------------------------------------------------


def _x_language(**settings: Any) -> Callable[[], tuple[nn.Module, Callable[[], Any]]]:
    def make() -> tuple[nn.Module, Callable[[], Any]]:
        from x_transformers import Decoder, TransformerWrapper

        layers = Decoder(dim=WIDTH, depth=BLOCKS, heads=4, attn_dim_head=8, **settings)
        model = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=16, attn_layers=layers)
        return model, lambda: torch.randint(8, VOCABULARY, (SAMPLES, 12))

    return make


def _x_encoder() -> tuple[nn.Module, Callable[[], Any]]:
    from x_transformers import Encoder as Layers
    from x_transformers import TransformerWrapper

    layers = Layers(dim=WIDTH, depth=BLOCKS, heads=4, attn_dim_head=8)
    model = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=16, attn_layers=layers)
    return model, lambda: torch.randint(8, VOCABULARY, (SAMPLES, 12))


def _x_images() -> tuple[nn.Module, Callable[[], Any]]:
    from x_transformers import Encoder as Layers
    from x_transformers import ViTransformerWrapper

    layers = Layers(dim=WIDTH, depth=BLOCKS, heads=4, attn_dim_head=8)
    return ViTransformerWrapper(image_size=32, patch_size=8, num_classes=CLASSES, attn_layers=layers), images()


_X_TRANSFORMERS: dict[str, tuple[str, Any]] = {
    "Decoder": ("masked LM", _x_language()),
    "Decoder, rotary": ("masked LM", _x_language(rotary_pos_emb=True)),
    "Decoder, ALiBi": ("masked LM", _x_language(alibi_pos_bias=True)),
    "Decoder, T5 bias": ("masked LM", _x_language(rel_pos_bias=True)),
    "Encoder": ("masked LM", _x_encoder),
    "ViTransformerWrapper": ("image classification", _x_images),
}

_VIT_SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": CLASSES,
    "dim": WIDTH,
    "depth": BLOCKS,
    "heads": 4,
    "mlp_dim": 48,
}


def _vit_pytorch(module: str, name: str, **settings: Any) -> Callable[[], tuple[nn.Module, Callable[[], Any]]]:
    def make() -> tuple[nn.Module, Callable[[], Any]]:
        import importlib

        kind = getattr(importlib.import_module(f"vit_pytorch{module}"), name)
        takes = inspect.signature(kind).parameters
        sizes = {key: value for key, value in _VIT_SIZES.items() if key in takes}
        return kind(**(sizes | settings)), images()

    return make


_VIT_PYTORCH: dict[str, tuple[str, Any]] = {
    "ViT": ("image classification", _vit_pytorch("", "ViT")),
    "SimpleViT": ("image classification", _vit_pytorch(".simple_vit", "SimpleViT")),
    "DeepViT": ("image classification", _vit_pytorch(".deepvit", "DeepViT")),
    "CaiT": ("image classification", _vit_pytorch(".cait", "CaiT", cls_depth=2, dim_head=8)),
    "ViT, small data": ("image classification", _vit_pytorch(".vit_for_small_dataset", "ViT")),
    "ViT, patch merger": (
        "image classification",
        _vit_pytorch(".vit_with_patch_merger", "ViT", patch_merge_layer=2, patch_merge_num_tokens=4),
    ),
    "ParallelViT": ("image classification", _vit_pytorch(".parallel_vit", "ViT")),
    "PiT": ("image classification", _vit_pytorch(".pit", "PiT", depth=(2, 2), heads=(2, 4))),
    "T2TViT": (
        "image classification",
        _vit_pytorch(".t2t", "T2TViT", t2t_layers=((7, 4), (3, 2))),
    ),
    "CrossViT": (
        "image classification",
        _vit_pytorch(".cross_vit", "CrossViT", sm_dim=WIDTH, lg_dim=WIDTH, sm_enc_depth=1, lg_enc_depth=2),
    ),
    "MobileViT": (
        "image classification",
        _vit_pytorch(
            ".mobile_vit",
            "MobileViT",
            image_size=(32, 32),
            dims=[16, 24, 32],
            channels=[16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16],
        ),
    ),
    "SimpleViT, registers": (
        "image classification",
        _vit_pytorch(".simple_vit_with_register_tokens", "SimpleViT"),
    ),
    "NaViT-like (qk norm)": ("image classification", _vit_pytorch(".simple_vit_with_qk_norm", "SimpleViT")),
    "XCiT": ("image classification", _vit_pytorch(".xcit", "XCiT", cls_depth=2, dim_head=8)),
}

"""Made-up batches for any model of transformers, by the names of its forward's arguments.

Three samples in a batch, and no other axis is three long: the axis of samples can be told from the others. Texts are
padded to differing lengths, on the left for models that generate.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from shrunken_configs import FIRST_PLACEHOLDER, IMAGE_SIDE, SPECIAL
from torch import Tensor, nn

SAMPLES = 3
LENGTHS, DECODER_LENGTHS = (12, 7, 4), (10, 6, 5)
FRAMES, WAVE = 32, 4000
_ORDINARY = 8  # tokens below are special


def candidates(model: nn.Module, kind: str, seed: int, writes: bool) -> Iterator[dict[str, Any]]:
    """Batches to try, from the one with most inputs to plain text; the first that the model takes is the one to use."""
    generator = torch.Generator().manual_seed(seed)
    names = set(inspect.signature(model.forward).parameters)
    for media in _media(model, names, generator):
        if media and not media.keys() & names:
            continue
        for tokens in _tokens(model, names if writes else names - {"decoder_input_ids"}, kind, media, generator):
            yield {name: value for name, value in (tokens | media).items() if name in names}


def _tokens(
    model: nn.Module, names: set[str], kind: str, media: dict[str, Any], generator: torch.Generator
) -> Iterator[dict[str, Any]]:
    decoder = _decoder(model, names, generator)
    if "input_ids" not in names:
        yield decoder
        return
    if kind == "multiple choice":
        texts = [_text(LENGTHS, generator, left=False, end=None) for _ in range(2)]
        yield {name: torch.stack([text[name] for text in texts], dim=1) for name in texts[0]}
        return
    left = kind in ("causal LM", "vision-language", "audio-language")
    text = _text(LENGTHS, generator, left=left, end=_end_token(model))
    extra: dict[str, Any] = {}
    if "bbox" in names:
        corners = torch.randint(0, 50, (SAMPLES, max(LENGTHS), 2), generator=generator)
        extra["bbox"] = torch.cat([corners, corners + 20], dim=-1)
    for name in ("input_ids", "attention_mask"):
        if f"qformer_{name}" in names:
            extra[f"qformer_{name}"] = text[name]
    if media:
        for count in _placeholder_counts(model, media):
            tokens = _with_placeholders(model, text, count, media)
            if "mm_token_type_ids" in names:
                image = getattr(model.config, "image_token_id", None)
                kinds = (tokens["input_ids"] == (-1 if image is None else image)).long()
                tokens = tokens | {"mm_token_type_ids": kinds}
            yield tokens | extra | decoder
    yield text | extra | decoder
    yield {"input_ids": text["input_ids"]} | extra | decoder


def _decoder(model: nn.Module, names: set[str], generator: torch.Generator) -> dict[str, Any]:
    if "decoder_input_ids" not in names or not getattr(model.config, "is_encoder_decoder", True):
        return {}
    text = _text(DECODER_LENGTHS, generator, left=False, end=None)
    batch = {"decoder_input_ids": text["input_ids"]}
    if "decoder_attention_mask" in names:
        batch["decoder_attention_mask"] = text["attention_mask"]
    return batch


def _text(lengths: tuple[int, ...], generator: torch.Generator, *, left: bool, end: int | None) -> dict[str, Tensor]:
    longest = max(lengths)
    ids = torch.randint(_ORDINARY, FIRST_PLACEHOLDER - 10, (SAMPLES, longest), generator=generator)
    mask = torch.zeros(SAMPLES, longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, longest - length :] = 1 if left else 0
        mask[row, :length] = mask[row, :length] if left else 1
        if end is not None:
            ids[row, longest - 1 if left else length - 1] = end
    return {"input_ids": ids * mask + (1 - mask) * SPECIAL["pad_token_id"], "attention_mask": mask}


def _end_token(model: nn.Module) -> int | None:
    """The token that must end a text: a few models read its position out."""
    pools_at_end = getattr(model.config, "model_type", "") in (
        "bart",
        "mbart",
        "plbart",
        "led",
        "bigbird_pegasus",
        "mvp",
        "t5",
        "mt5",
        "umt5",
    )
    text = getattr(model.config, "text_config", None)
    clip = getattr(text, "model_type", "") in ("clip_text_model", "chinese_clip_text_model", "altclip_text_model")
    return SPECIAL["eos_token_id"] if pools_at_end or clip else None


# --- images, videos, sound --------------------------------------------------------------------------------------------


def _media(model: nn.Module, names: set[str], generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Images, videos and sound that the model may take, each alone; nothing last."""
    config = model.config
    if {"pixel_values", "spatial_shapes"} <= names or "flattened_patches" in names:
        yield from _patches_in_rows(config, generator)
    if {"pixel_values", "image_grid_thw"} <= names:
        yield from _flat_patches(config, generator)
    if names & {"pixel_values", "pixel_values_videos"}:
        yield from _images(config, generator)
    if "input_features" in names:
        yield from _spectra(config, generator)
    if "input_values" in names:
        yield from _waves(config, generator)
    yield {}


def _images(config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    side, channels = _stated(config, "image_size", IMAGE_SIDE), _stated(config, "num_channels", 3)
    side = side if isinstance(side, int) else side[0]
    frames = _stated(config, "num_frames", _stated(config, "frames_per_clip", 4))
    sizes = {"image_sizes": torch.tensor([[side, side]] * SAMPLES)}
    for colours in dict.fromkeys((channels, 3)):
        # detectors make an image smaller by 64, and normalize what is left over its height and width
        levels = (4 * IMAGE_SIDE,) if hasattr(config, "num_feature_levels") else ()
        for length in dict.fromkeys((*levels, side, IMAGE_SIDE, 2 * IMAGE_SIDE)):
            yield {"pixel_values": _random(generator, colours, length, length)}
    yield {"pixel_values": _random(generator, frames, channels, side, side)}
    for count in (1, 2):
        yield {"pixel_values": _random(generator, count, channels, side, side)} | sizes
    yield {"pixel_values_videos": _random(generator, frames, channels, side, side)}


def _spectra(config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    bins = _stated(config, "num_mel_bins", _stated(config, "feature_size", _stated(config, "input_dim", 16)))
    bins = _stated(config, "input_feat_per_channel", bins)
    for shape in ((bins, FRAMES), (FRAMES, bins), (1, FRAMES, bins), (bins, 2 * FRAMES), (FRAMES, 160)):
        yield {"input_features": _random(generator, *shape)}


def _waves(config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    yield {"input_values": _random(generator, WAVE) - 0.5}
    yield {
        "input_values": _random(generator, _stated(config, "max_length", FRAMES), _stated(config, "num_mel_bins", 16))
    }
    yield {"input_values": _random(generator, 1, WAVE) - 0.5}


def _patches_in_rows(config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Sixteen patches of each sample in a row, with what tells their places."""
    patches = _random(generator, 16, 3 * _stated(config, "patch_size", 8) ** 2)
    shapes, present = torch.tensor([[4, 4]] * SAMPLES), torch.ones(SAMPLES, 16, dtype=torch.long)
    yield {"pixel_values": patches, "spatial_shapes": shapes, "pixel_attention_mask": present}
    places = torch.tensor([[row + 1.0, column + 1.0] for row in range(4) for column in range(4)])
    yield {"flattened_patches": torch.cat([places.expand(SAMPLES, 16, 2), patches], dim=-1)}


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(SAMPLES, *shape, generator=generator)


def _flat_patches(config: Any, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Patches of all images in one row, with a grid for each image (Qwen-VL and what follows it)."""
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", 8)
    for frames in (getattr(vision, "temporal_patch_size", 1), 1):
        width = _stated(vision, "in_channels", _stated(vision, "num_channels", 3)) * frames * patch * patch
        grid = torch.tensor([[1, 4, 4]] * SAMPLES)
        yield {"pixel_values": torch.rand(SAMPLES * 16, width, generator=generator), "image_grid_thw": grid}


def _stated(config: Any, name: str, default: Any) -> Any:
    """An entry of a config or of the first config in it that has one."""
    for entry in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        value = getattr(entry, name, None)
        if value is not None:
            return value
        if entry is not config and (deeper := _stated(entry, name, None)) is not None:
            return deeper
    return default


def _placeholder_counts(model: nn.Module, media: dict[str, Any]) -> list[int]:
    """How many tokens stand for one image or sound, as the model itself counts them."""
    for name in ("get_image_features", "get_audio_features"):
        get = getattr(model, name, None)
        if get is None:
            continue
        takes = inspect.signature(get).parameters
        try:
            with torch.no_grad():
                features = get(**{key: value for key, value in media.items() if key in takes})
        except Exception:
            continue
        return [_rows(features) // SAMPLES]
    return [0, 1, 4, 16]


def _rows(features: Any) -> int:
    features = getattr(features, "pooler_output", None) if hasattr(features, "pooler_output") else features
    if features is None:
        return 0
    if isinstance(features, Tensor):
        return features.shape[:-1].numel()
    return sum(_rows(part) for part in features)


def _with_placeholders(
    model: nn.Module, text: dict[str, Tensor], count: int, media: dict[str, Any]
) -> dict[str, Tensor]:
    names = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index", "media_token_id")
    if "pixel_values" not in media:
        names = names[2:]
    token = next((value for name in names if isinstance(value := getattr(model.config, name, None), int)), None)
    if token is None or not count:
        return text
    # before the text, which is padded on the left: padding goes further left
    ids, mask = text["input_ids"], text["attention_mask"]
    rows, masks = [], []
    for row, keep in zip(ids, mask, strict=True):
        length = int(keep.sum())
        padding = len(row) - length
        rows.append(torch.cat([row[:padding], torch.full((count,), token), row[padding:]]))
        masks.append(torch.cat([keep[:padding], torch.ones(count, dtype=torch.long), keep[padding:]]))
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks)}

"""Pixel tensors of PIL images, by the transform of an image model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL.Image import Image, Resampling, fromarray
from torch import Tensor

from anydepth.errors import DataError, ModelError

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Pixels:
    """Transform of images to a tensor: grey to colour or back, then the model's own transform.

    Attributes:
        channels: number of channels the model takes, 1 or 3.
        transform: from images, all in the mode for `channels`, to `(B, channels, H, W)`. No closure: workers that
            decode in parallel are sent a copy.
        processor: the image processor of transformers, if there is one, to be saved with the model.
    """

    channels: int
    transform: Callable[[list[Image]], Tensor]
    processor: Any = None

    def __post_init__(self) -> None:
        if self.channels not in _MODES:
            raise ModelError(f"the model takes {self.channels} channels; images here have 1 (grey) or 3 (RGB)")

    def __call__(self, images: Sequence[Image]) -> Float[Tensor, "batch channels height width"]:
        """Convert and transform; an image in floating point or more than 16 bits has no known range: a `DataError`."""
        pixels = self.transform([_in_mode(image, _MODES[self.channels]) for image in images])
        if pixels.shape[1] != self.channels:
            raise ModelError(
                f"the model takes {self.channels} channel(s), its image processor gives {pixels.shape[1]}: "
                "save a processor that fits beside the model"
            )
        return pixels


def has_16_bits(image: Image) -> bool:
    """Whether an image is grey in 16 bits, from 0 for black to 65,535 for white, as PNG and TIFF have it."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _in_mode(image: Image, mode: str) -> Image:
    if has_16_bits(image):
        grey = np.asarray(image, dtype=np.float64) / 257  # 65,535 becomes 255
        image = fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.mode[0] in "IF":
        raise DataError(
            f"an image has mode {image.mode}, whose range is unknown, expected 8 or 16 bits a channel: "
            f"convert it to {mode} first"
        )
    return image if image.mode == mode else image.convert(mode)


def plain(size: tuple[int, int], channels: int) -> Pixels:
    """Transform for a model without an image processor: resize (bilinear), scale to [0, 1], then (x - 0.5) / 0.5.

    `size` is height and width in pixels; there are 1 or 3 channels.

    Example:
        >>> from PIL import Image
        >>> pixels = plain((2, 2), channels=1)([Image.new("RGB", (4, 4), (255, 255, 255))])
        >>> pixels.shape, pixels.unique().tolist()
        (torch.Size([1, 1, 2, 2]), [1.0])
    """
    return Pixels(channels, partial(_plain, size=size, channels=channels))


def _plain(images: list[Image], size: tuple[int, int], channels: int) -> Tensor:
    height, width = size

    def array(image: Image) -> Float32[np.ndarray, "channels height width"]:
        if image.size != (width, height):
            image = image.resize((width, height), Resampling.BILINEAR)
        return np.asarray(image, dtype=np.float32).reshape(height, width, channels).transpose(2, 0, 1)

    return torch.from_numpy(np.stack([array(image) for image in images]) / 127.5 - 1.0)


def from_transformers(processor: Any, channels: int) -> Pixels:
    """The transform of an image processor of transformers."""
    return Pixels(channels, partial(_processed, processor=processor, channels=channels), processor)


def _processed(images: list[Image], processor: Any, channels: int) -> Tensor:
    try:
        output = processor(images=images, return_tensors="pt")
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"the model's image processor fails on {len(images)} image(s) of {channels} channel(s): {error}"
        ) from error
    pixels: Tensor = output["pixel_values"]
    if not torch.as_tensor(output.get("pixel_mask", 1)).all():
        raise ModelError(
            f"{len(images)} images differ in size, and the model's image processor pads them: expected images of one "
            "size, or a batch size of 1"
        )
    return pixels


def from_function(transform: Callable[[Image], Tensor], channels: int) -> Pixels:
    """The transform of a function of one image."""
    return Pixels(channels, partial(_one_by_one, transform=transform))


def from_timm(model: torch.nn.Module) -> Pixels:
    """The evaluation transform of a timm model: resize, centre crop, normalise."""
    import timm.data

    config = timm.data.resolve_model_data_config(model)
    # older releases name the size of the checkpoint that the architecture was made for, not this model's
    if size := getattr(getattr(model, "patch_embed", None), "img_size", None):
        config["input_size"] = (config["input_size"][0], *size)
    transform = timm.data.create_transform(**config, is_training=False)
    return from_function(transform, config["input_size"][0])


def _one_by_one(images: list[Image], transform: Callable[[Image], Tensor]) -> Tensor:
    return torch.stack([transform(image) for image in images])

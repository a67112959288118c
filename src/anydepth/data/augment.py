"""Data augmentation of images: random rotation, shift and mirroring."""

from __future__ import annotations

import torch
from PIL.Image import Image, Resampling, Transpose

DEGREES = 15.0
"""Maximum rotation to either side."""
SHIFT = 0.125
"""Maximum shift as a share of the size, as of crops of a padded image: 4 of 32 pixels."""


def augmented(image: Image) -> Image:
    """A randomly rotated, shifted and mirrored image of the same size and mode, on a black background.

    Torch's generator draws, so that a training's seed decides, and a resumed one goes on with its draws.

    Example:
        >>> from PIL import Image
        >>> augmented(Image.new("L", (28, 20), 255)).size
        (28, 20)
    """
    turn, across, down, mirror = torch.rand(4).tolist()
    view = image.transpose(Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else image
    moved = tuple(round((2 * share - 1) * SHIFT * side) for share, side in zip((across, down), image.size, strict=True))
    return view.rotate((2 * turn - 1) * DEGREES, resample=Resampling.BILINEAR, translate=moved)

"""A tiny model of each family of timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from made_inputs import SAMPLES
from shrunken_configs import BLOCKS, WIDTH
from sweep_cases import Case, Made, NotBuilt, images
from torch import nn

_SIDES = (64, 96, 128, 224)
_SLOW = 60_000_000  # a family whose smallest member has more parameters takes too long


def timm_cases() -> Iterator[Case]:
    import timm

    for family in timm.list_modules():
        names = timm.list_models(module=family)
        if names:
            yield Case(family, "timm", "timm", Made(_timm_maker(sorted(names, key=_likely_size)), "timm"))


def _likely_size(name: str) -> tuple[int, int, str]:
    """Names of small variants first: `atto` to `tiny`, then `small`; then the shorter name."""
    words = (
        "test",
        "atto",
        "femto",
        "pico",
        "zepto",
        "nano",
        "tiny",
        "xxs",
        "xs",
        "small",
        "_s",
        "t0",
        "b0",
        "s0",
        "18",
    )
    rank = next((index for index, word in enumerate(words) if word in name), len(words))
    return rank, len(name), name


def _timm_maker(names: list[str]) -> Callable[[], tuple[nn.Module, Callable[[], Any]]]:
    """Builds the smallest model of a family, smaller still where its constructor takes the sizes of a plain ViT."""

    def make() -> tuple[nn.Module, Callable[[], Any]]:
        problem: Exception = NotBuilt("no size")
        plain: dict[str, Any] = {"depth": BLOCKS, "embed_dim": WIDTH, "num_heads": 4}
        for side in _SIDES:
            for settings in ({"img_size": side} | plain, plain, {"img_size": side}, {}):
                try:
                    return _timm_model(names[0], side, settings), images(side)
                except Exception as error:  # it takes no such size; the last one is told
                    problem = error
        raise problem

    return make


def _timm_model(name: str, side: int, settings: dict[str, Any]) -> nn.Module:
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=10, **settings).eval()
    _smaller(model)
    with torch.no_grad():
        model(torch.rand(SAMPLES, 3, side, side))
    return model


def _smaller(model: nn.Module) -> None:
    """Refuse what would take minutes."""
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > _SLOW:
        raise NotBuilt(f"its smallest member has {count:,} parameters")

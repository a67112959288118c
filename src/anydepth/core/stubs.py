"""`Stub`: a module in the place of another."""

from __future__ import annotations

from typing import Any

from torch import nn


class Stub(nn.Module):
    """Module in the place of a block. Other attributes are the block's: Gemma-2 reads each one's attention type."""

    def __init__(self, block: nn.Module, call: Any) -> None:
        super().__init__()
        # past nn.Module.__setattr__: the block must not become a child
        self.__dict__["_stands_for"], self.__dict__["_answer"] = block, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer with the replacement instead of running the block."""
        return self.__dict__["_answer"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stands_for"], name)

"""Blocks that are lists of parts, which a loop in their owner's forward calls one by one.

In `for attend, feed in self.layers: x = x + attend(x); x = x + feed(x)` no module takes a state to the next. The
owner's own forward does, with fewer members in its list. With a single one, followed by parts that only take what they
are given, it is that block; with none, it is what comes after the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from anydepth.core.model_io import call_with, input_state
from anydepth.core.overrides import Override
from anydepth.core.stubs import Stub
from anydepth.errors import UnknownArchitecture


class Loop:
    """The loop of a module's forward over a list of lists.

    Args:
        owner: whose forward has the loop; it is given the first state first.
        members: the list, an attribute of the owner.

    Example:
        >>> import torch
        >>> class Pairs(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.pairs = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), nn.Tanh()]) for _ in range(3))
        ...     def forward(self, x):
        ...         for map, bend in self.pairs:
        ...             x = x + bend(map(x))
        ...         return x.sum(-1)
        >>> model = Pairs()
        >>> loop, x = Loop(model, model.pairs), torch.randn(2, 4)
        >>> torch.equal(loop.blocks[1](x), x + model.pairs[1][0](x).tanh())
        True
        >>> torch.equal(loop.through(loop.blocks)(x), model(x))
        True
    """

    def __init__(self, owner: nn.Module, members: nn.ModuleList) -> None:
        self._owner, self._list, self._forward = owner, members, owner.forward
        self._members = tuple(members._modules.values())
        self.blocks = tuple(Round(self, place, member) for place, member in enumerate(members))

    @contextmanager
    def over(self, places: Sequence[int], end: nn.Module | None = None) -> Iterator[None]:
        """Context manager: the list has these of its members alone, and what is as long as it in the owner likewise.

        Args:
            places: of the members; one may be there twice.
            end: stands for the last of them.
        """
        members = [self._members[place] for place in places]
        with ExitStack() as undo:
            undo.enter_context(Override(self._list, "_modules", _numbered([*members[:-1], end] if end else members)))
            for name, value in vars(self._owner).items():
                if type(value) in (list, tuple) and len(value) == len(self._members):
                    numbers = list(value) == list(range(len(value)))
                    values = range(len(places)) if numbers else (value[place] for place in places)
                    undo.enter_context(Override(self._owner, name, type(value)(values)))
            for child in self._owner.children():
                if isinstance(child, nn.ModuleList) and child is not self._list and len(child) == len(self._members):
                    beside = list(child._modules.values())
                    undo.enter_context(Override(child, "_modules", _numbered([beside[place] for place in places])))
            yield

    def through(self, modules: Sequence[nn.Module]) -> Callable[..., Any]:
        """The owner's forward with these modules as its blocks."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            state = input_state(args, kwargs)
            for module in modules:
                state = call_with(module, state, args, kwargs)
            with self.over(()):
                return call_with(self._forward, state, args, kwargs)

        return forward

    def round(self, place: int, end: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The state after the parts of the member at a place, for the owner's arguments with the state before them."""
        with self.over((place, place), end):
            try:
                self._forward(*args, **kwargs)
            except _NextReached as reached:
                return reached.state
        raise UnknownArchitecture(
            f"{type(self._owner).__name__} has a list of lists, and does not call the parts of each in turn"
        )


class Round(nn.Module):
    """A member of a list of lists as a block: one round of the loop."""

    def __init__(self, loop: Loop, place: int, parts: nn.Module) -> None:
        super().__init__()
        self.parts = parts
        # past nn.Module.__setattr__: no children
        self.__dict__["_loop"], self.__dict__["_place"], self.__dict__["_end"] = loop, place, _ended(parts)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The state after it, for the arguments of the loop's owner."""
        own = self.__dict__
        state: Tensor = own["_loop"].round(own["_place"], own["_end"], args, kwargs)
        return state


class _NextReached(BaseException):
    """Ends a forward at the first part of the next member; no error, so that no model takes it for one."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


def _ended(part: nn.Module) -> nn.Module:
    """A member with the same structure, whose parts end the forward with what they are given."""
    if not isinstance(part, nn.ModuleList | nn.ModuleDict):
        return Stub(part, _end)
    copied = type(part)()
    for name, child in part._modules.items():
        copied.register_module(name, child and _ended(child))  # some parts are None
    return copied


def _end(*args: Any, **kwargs: Any) -> Any:
    raise _NextReached(input_state(args, kwargs))


def _numbered(modules: Sequence[nn.Module | None]) -> dict[str, nn.Module | None]:
    return {str(place): module for place, module in enumerate(modules)}

"""What every option of the command line is held to before a verb runs: its range, and whether it has an effect."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from anydepth.errors import OptionError

_LARGEST = 2**31 - 1
"""Of whole numbers: what torch and numpy take everywhere."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that an option may be.

    Attributes:
        least: the smallest.
        most: the largest.
        above: whether it has to be above `least`.
    """

    least: int | float = -_LARGEST
    most: int | float = _LARGEST
    above: bool = False

    def holds(self, value: int | float) -> bool:
        """Whether a number lies in it; neither NaN nor an infinity does."""
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        low = f"a number above {self.least:g}" if self.above else f"a number from {self.least:g}"
        return low if self.most == _LARGEST else f"{low} to {int(self.most) if self.most > 1e6 else f'{self.most:g}'}"


_ANY = Range()
# Those with a range of their own; the others have to be finite, and no larger than any library takes.
RANGES = {
    "seed": Range(least=0, most=2**32 - 1),
    "temperature": Range(least=0, above=True),
    "top_p": Range(least=0, above=True, most=1),
    "share": Range(least=0, most=1),
    "permutations": Range(least=0, most=1_000_000),
}


@dataclass(frozen=True, kw_only=True)
class Effect:
    """When options have an effect.

    Attributes:
        options: names of parameters of a verb.
        when: whether they have one beside all others.
        instead: what to do if not.
    """

    options: tuple[str, ...]
    when: Callable[[Mapping[str, Any]], bool]
    instead: str


_PICK = ("split", "limit", "batch_size", "text_column", "label_column", "image_column")
EFFECTS: dict[str, tuple[Effect, ...]] = {
    "trace": (
        Effect(options=("label_column",), when=lambda o: o["labels"], instead="leave out --no-labels"),
        Effect(
            options=("positions",),
            when=lambda o: o["tokens"] in (None, "each"),
            instead="give --tokens each, of which --positions are drawn",
        ),
    ),
    "align": (
        Effect(
            options=("num_train_epochs",),
            when=lambda o: o["max_steps"] < 1,
            instead="give it, or --max-steps, which goes before",
        ),
        Effect(
            options=("warmup_steps",),
            when=lambda o: o["lr_scheduler_type"] != "constant",
            instead="give --lr-scheduler-type constant_with_warmup",
        ),
    ),
    "generate": (
        Effect(options=("temperature", "top_k", "top_p"), when=lambda o: o["sample"], instead="give --sample too"),
        Effect(
            options=("draft_length",), when=lambda o: o["draft_depth"] is not None, instead="give --draft-depth too"
        ),
        Effect(
            options=("blocks",),
            when=lambda o: (o["depth"], o["draft_depth"]) != (None, None),
            instead="give --depth or --draft-depth too",
        ),
    ),
    "truncate": (
        Effect(options=_PICK, when=lambda o: o["data"] is not None, instead="give --data too"),
        Effect(
            options=("tolerance", "confidence", "against"),
            when=lambda o: o["depth"] == "auto",
            instead="give --depth auto, which chooses by them",
        ),
    ),
    "reproduce": (
        Effect(
            options=("scale", "steps", "as_printed", "use", "device"),
            when=lambda o: not (o["list_all"] or o["verdict"]),
            instead="leave out --list and --verdict",
        ),
        Effect(options=("seeds",), when=lambda o: not o["verdict"], instead="leave out --verdict"),
    ),
}


def checked(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that refuses options out of range, and those that have no effect, before it does anything.

    Args:
        verb: a function whose parameters are annotated as `anydepth.cli.options` has them.

    Example:
        >>> def generate(*, temperature: float = 1.0, sample: bool = False) -> None: ...
        >>> checked(generate)(temperature=float("nan"), sample=True)
        Traceback (most recent call last):
        anydepth.errors.OptionError: --temperature is nan, expected a number above 0
    """
    defaults = {name: one.default for name, one in inspect.signature(verb).parameters.items()}

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        asked = [name for name, value in given.items() if value is not None and value != defaults[name]]
        for name in asked:
            _require_range(verb, name, given[name])
        for effect in EFFECTS.get(verb.__name__, ()):
            for name in effect.options:
                if name in asked and not effect.when(given):
                    raise OptionError(f"{flag_of(verb, name)} has no effect here: leave it out, or {effect.instead}")
        verb(**given)

    return run


def _require_range(verb: Callable[..., None], name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    allowed = RANGES.get(name, _ANY)
    if not allowed.holds(value):
        what = str(allowed) if name in RANGES or not math.isfinite(value) else f"at most {_LARGEST:,}"
        raise OptionError(
            f"{flag_of(verb, name)} is {value}, expected {'a finite number' if what == str(_ANY) else what}"
        )


def flag_of(verb: Callable[..., None], name: str) -> str:
    """How an option of a verb is written on the command line."""
    for note in getattr(get_type_hints(verb, include_extras=True)[name], "__metadata__", ()):
        # typer takes the first name that is given for a default, if one stands beside it in the signature
        for written in (getattr(note, "default", None), *(getattr(note, "param_decls", None) or ())):
            if isinstance(written, str) and written.startswith("--"):
                return str(written).partition("/")[0]
    return "--" + name.replace("_", "-")

"""Checks of every option before a command runs (its range, whether it has an effect), and how options are written."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from anydepth.errors import OptionError

_LARGEST = 2**31 - 1
"""The largest whole number that torch and numpy take everywhere."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `least` to `most` that an option may be; `least` itself only unless `above`."""

    least: int | float = -_LARGEST
    most: int | float = _LARGEST
    above: bool = False

    def holds(self, value: int | float) -> bool:
        """Whether a number lies in the range; neither NaN nor an infinity does."""
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
    """Options (parameters of a command) that have an effect only `when` the others say so, and what to do `instead`."""

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


def checked(command: Callable[..., None]) -> Callable[..., None]:
    """A command that first refuses options out of range, and those that have no effect.

    Args:
        command: a function whose parameters are annotated as `anydepth.cli.options` has them.

    Example:
        >>> def generate(*, temperature: float = 1.0, sample: bool = False) -> None: ...
        >>> checked(generate)(temperature=float("nan"), sample=True)
        Traceback (most recent call last):
        anydepth.errors.OptionError: --temperature is nan, expected a number above 0
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        changed = [name for name, value in values.items() if value is not None and value != defaults[name]]
        for name in changed:
            _require_range(command, name, values[name])
        for effect in EFFECTS.get(command.__name__, ()):
            for name in effect.options:
                if name in changed and not effect.when(values):
                    raise OptionError(f"{flag_of(command, name)} has no effect here: leave it out, or {effect.instead}")
        command(**values)

    return run


def _require_range(command: Callable[..., None], name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    allowed = RANGES.get(name, _ANY)
    if not allowed.holds(value):
        expected = f"at most {_LARGEST:,}" if math.isfinite(value) else "a finite number"
        raise OptionError(f"{flag_of(command, name)} is {value}, expected {allowed if name in RANGES else expected}")


def flag_of(command: Callable[..., None], name: str) -> str:
    """How an option of a command is written on the command line."""
    return _declaration(command, name).partition("/")[0]


def _declaration(command: Callable[..., None], name: str) -> str:
    """An option as it is declared: "--seed", or "--labels/--no-labels"."""
    for note in getattr(get_type_hints(command, include_extras=True)[name], "__metadata__", ()):
        # typer takes the first name that is given for a default, if one stands beside it in the signature
        for declared in (getattr(note, "default", None), *(getattr(note, "param_decls", None) or ())):
            if isinstance(declared, str) and declared.startswith("--"):
                return str(declared)
    return "--" + name.replace("_", "-")


# What the library calls options that have another name there.
_ARGUMENT_OF = {
    "text_column": "text",
    "label_column": "label",
    "image_column": "image",
    "id_column": "id",
    "eval_data": "eval_source",
    "max_new_tokens": "new_tokens",
    "sample": "sampled",
    "restart": "resume=False",
}
# An argument in a message: name=value, a name with an underscore, or names alone in brackets.
_ARGUMENT = re.compile(
    r"(?<![\w'./-])(?P<name>[a-z]\w*)=\[?(?P<value>\w+|'[^']*')\]?"
    r"|(?<![\w'./-])(?P<bare>[a-z]+_\w+)(?![\w'./(-])"
    r"|(?<=\()(?P<list>[a-z]\w*(?:, [a-z]\w*)*)(?=\))"
)


def with_flags(message: str, command: Callable[..., None]) -> str:
    """A message of the library, with options of a command in the place of the arguments it names.

    Args:
        message: it writes an argument as `name=value`, as a name with an underscore, or alone in brackets.
        command: arguments that it has no option for stay as they are.

    Example:
        >>> def trace(*, tokens: str = "each", keep_states: bool = False, out: str | None = None) -> None: ...
        >>> with_flags("give tokens='mean', keep_states=True, or another folder (out)", trace)
        'give --tokens mean, --keep-states, or another folder (--out)'
    """
    flags: dict[str, str] = {}
    for option in inspect.signature(command).parameters:
        flag, _, negative = _declaration(command, option).partition("/")
        for name in (option, flag.lstrip("-").replace("-", "_"), _ARGUMENT_OF.get(option, option)):
            flags |= {name: flag, f"{name}=True": flag} | ({f"{name}=False": negative} if negative else {})

    def written(match: re.Match[str]) -> str:
        if match["list"]:
            names = match["list"].split(", ")
            return ", ".join(flags[name] for name in names) if set(names) <= set(flags) else match[0]
        name, value = match["bare"] or match["name"], match["value"]
        switch = value in ("True", "False")
        flag = flags.get(f"{name}={value}" if switch else name)
        if flag is None or flag in message:
            return match[0]
        return flag if switch or value is None else f"{flag} {value.replace(chr(39), '').lower()}"

    return _ARGUMENT.sub(written, message)

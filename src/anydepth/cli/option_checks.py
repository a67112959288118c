"""Options that have no effect beside the others are refused; arguments in messages are written as options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anydepth.cli.command import Call, Command, flag_of, flags_of
from anydepth.errors import OptionError
from anydepth.jobs.options import Settings


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Options (parameters of a command) that have an effect only `when` the others say so, and what to do `instead`."""

    options: tuple[str, ...]
    when: Callable[[Mapping[str, Any]], bool]
    instead: str


_PICK = ("split", "limit", "batch_size", "text_column", "label_column", "image_column")
EFFECTS: dict[str, tuple[Effect, ...]] = {
    "trace": (
        Effect(
            options=("label_column",),
            when=lambda o: o["labels"] or o["labels_as_texts"],
            instead="leave out --no-labels",
        ),
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
            when=lambda o: not (o["list"] or o["verdict"]),
            instead="leave out --list and --verdict",
        ),
        Effect(options=("seeds",), when=lambda o: not o["verdict"], instead="leave out --verdict"),
    ),
}


def check_effects(command: Command, settings: Settings, call: Call) -> None:
    """Refuse options that have no effect here.

    Raises:
        OptionError: one differs from its default, and the others leave it no effect.
    """
    values = {setting.name: getattr(settings, setting.name, None) for setting in command.settings}
    values |= {name: getattr(call, name) for name in values if hasattr(call, name)}
    flags = {setting.name: flag_of(setting) for setting in command.settings}
    for effect in EFFECTS.get(command.name, ()):
        for name in effect.options:
            if name in settings.changed() and not effect.when(values):
                raise OptionError(f"{flags[name]} has no effect here: leave it out, or {effect.instead}")


# What the library calls options that have another name there.
_ARGUMENT_OF = {
    "text_column": "text",
    "label_column": "label",
    "image_column": "image",
    "id_column": "id",
    "eval_data": "eval_source",
    "max_new_tokens": "new_tokens",
    "restart": "resume=False",
}
# An argument in a message: name=value, a name with an underscore, or names alone in brackets.
_ARGUMENT = re.compile(
    r"(?<![\w'./-])(?P<name>[a-z]\w*)=\[?(?P<value>\w+|'[^']*')\]?"
    r"|(?<![\w'./-])(?P<bare>[a-z]+_\w+)(?![\w'./(-])"
    r"|(?<=\()(?P<list>[a-z]\w*(?:, [a-z]\w*)*)(?=\))"
)


def with_flags(message: str, command: Command) -> str:
    """A message of the library, with options of a command in the place of the arguments it names.

    Args:
        message: it writes an argument as `name=value`, as a name with an underscore, or alone in brackets.
        command: arguments that it has no option for stay as they are.

    Example:
        >>> from anydepth.cli.commands import trace
        >>> command = Command(name="trace", function=trace)
        >>> with_flags("give tokens='mean', keep_states=True, or another folder (out)", command)
        'give --tokens mean, --keep-states, or another folder (--out)'
    """
    flags: dict[str, str] = {}
    for setting in command.settings:
        flag, *negatives = flags_of(setting)
        for name in (setting.name, _ARGUMENT_OF.get(setting.name, setting.name)):
            flags |= {name: flag, f"{name}=True": flag} | {f"{name}=False": negative for negative in negatives}

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

"""The help: of all commands, and of one. It loads neither cyclopts nor rich, and so comes at once."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any

from anydepth.cli.command import Command, flags_of, written
from anydepth.jobs.options import Setting

ABOUT = "Show what every depth of a transformer knows, and train one classifier to work at all of them."
_ROOT = {
    "--help, -h": "Show this help, or after a command its own.",
    "--version": "Show the version.",
    "--install-completion SHELL": "Install completion of commands and options for bash, zsh or fish.",
}
_NARROWEST = 30
"""Characters of a line of a description, in which it stands beside its option and not below it."""


def overview(commands: Mapping[str, Command], width: int) -> str:
    """The help of all commands, in lines of at most `width` characters."""
    entries = {name: command.function.__doc__ or "" for name, command in commands.items()}
    parts = [["Usage: anydepth COMMAND"], _wrapped(ABOUT, width)]
    parts += [["Commands:", *_entries(entries, width)], ["Options:", *_entries(_ROOT, width)]]
    return "\n\n".join("\n".join(lines) for lines in parts)


def page(command: Command, width: int) -> str:
    """The help of a command, in lines of at most `width` characters where no option is longer."""
    required = [written(setting) for setting in command.settings if setting.default is MISSING]
    parts = [
        _wrapped(f"Usage: anydepth {command.name} {' '.join(required)} [OPTIONS]", width, indent=7),
        _wrapped(command.function.__doc__ or "", width),
    ]
    for title, settings in command.groups.items():
        entries = {_head(setting): _about(setting) for setting in settings}
        parts.append([*_wrapped(f"{title}:", width), *_entries(entries, width)])
    parts.append(_wrapped(f"Example: anydepth {command.name} {command.example}", width, indent=9))
    variables = f"Options may also be set by variables ({command.variable('option')}) and by a file (--config)."
    return "\n\n".join("\n".join(lines) for lines in [*parts, _wrapped(variables, width)])


def _head(setting: Setting) -> str:
    return ", ".join((written(setting), *flags_of(setting)[1:]))


def _about(setting: Setting) -> str:
    if setting.default is MISSING:
        return f"{setting.help} [required]"
    default = _default(setting.default)
    return f"{setting.help} [default: {default}]" if default else setting.help


def _default(default: Any) -> str:
    """A default in the help; nothing where it says nothing."""
    if default is None or isinstance(default, bool) or default in ((), ""):
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _entries(entries: Mapping[str, str], width: int) -> Iterator[str]:
    """Names with a description each, beside or, where the terminal is narrow, below them."""
    start = max(map(len, entries)) + 4
    beside = width - start >= _NARROWEST
    for name, about in entries.items():
        lines = _wrapped(about, width - (start if beside else 6))
        if not beside:
            yield f"  {name}"
        for place, line in enumerate(lines):
            yield f"{f'  {name}' if beside and not place else '':<{start if beside else 6}}{line}"


def _wrapped(text: str, width: int, *, indent: int = 0) -> list[str]:
    lines = textwrap.TextWrapper(
        max(width, 1), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return lines.wrap(" ".join(text.split()))

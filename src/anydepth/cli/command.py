"""Commands out of settings: the fields of a job's settings, and of a call, are the options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from anydepth.cli import terminal
from anydepth.errors import AnydepthError, OptionError, suggestion
from anydepth.jobs.options import Option, Setting, Settings, settings_of

_METAVARS: dict[Any, str] = {int: "N", float: "X"}
_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class Call(Settings):
    """How a command is called, beside the settings of its job."""

    title = "Run"
    config: Annotated[
        str | None, "Read settings from a file; the options given here go before them.", Option(metavar="FILE")
    ] = None
    json: Annotated[bool, "Print JSON for machines instead of tables."] = False
    debug: Annotated[bool, "Show the traceback of an error."] = False

    def answered(self) -> bool:
        """Whether the call was a question that needs no settings, and was answered."""
        return False


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the command line.

    Attributes:
        name: how it is called.
        function: what it does with `settings` and `call`, whose annotations say which classes these are.
        example: what may stand after its name.
    """

    name: str
    function: Callable[[Any, Any], None]
    example: str = ""

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of its job, and those of a call."""
        return tuple(setting for kind in self._kinds for setting in settings_of(kind))

    @cached_property
    def _kinds(self) -> tuple[type[Settings], type[Call]]:
        hints = get_type_hints(self.function)
        return hints["settings"], hints["call"]

    @property
    def positional(self) -> list[str]:
        """The names of the settings that are given without a flag, in their order."""
        return [setting.name for setting in self.settings if setting.option.positional]

    @property
    def groups(self) -> dict[str, list[Setting]]:
        """The settings under their titles: the job's own first, then what it shares with others, and how it is run."""
        of_job, of_call = self._kinds
        titles = ["Arguments", of_job.title, *(setting.owner.title for setting in self.settings), of_call.title]
        order = [title for place, title in enumerate(titles) if title not in titles[:place]]
        if of_call.title in order[:-1]:
            order.append(order.pop(order.index(of_call.title)))
        groups: dict[str, list[Setting]] = {title: [] for title in order}
        for setting in self.settings:
            groups["Arguments" if setting.option.positional else setting.owner.title].append(setting)
        return {title: settings for title, settings in groups.items() if settings}

    def variable(self, name: str) -> str:
        """The environment variable of a setting."""
        return f"ANYDEPTH_{self.name}_{name}".upper()

    def from_environment(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """Values of settings by name, out of variables; an empty one is as if it were not there.

        Raises:
            OptionError: a variable begins as those of this command, and is none of them; or its value is wrong.
        """
        known = {self.variable(setting.name): setting for setting in self.settings}
        values = {}
        for variable in sorted(environment):
            if variable.startswith(self.variable("")) and environment[variable]:
                if variable not in known:
                    raise OptionError(f"{variable} is no option of anydepth {self.name}{suggestion(variable, known)}")
                values[known[variable].name] = _from_text(known[variable], environment[variable], variable)
        return values

    def read(self, given: Mapping[str, Any]) -> tuple[Settings, Call] | None:
        """The settings and the call out of values by name; None for a call that is answered without.

        What is given goes before variables, these before the settings file, and this before the defaults.

        Raises:
            OptionError: a value is missing, of another type or out of range.
        """
        of_job, of_call = self._kinds
        names = {setting.name for setting in settings_of(of_call)}
        given = self.from_environment(os.environ) | dict(given)
        call = of_call(**{name: value for name, value in given.items() if name in names})
        if call.answered():
            return None
        values = of_job.read(call.config) if call.config is not None else {}
        values |= {name: value for name, value in given.items() if name not in names}
        for setting in settings_of(of_job):
            if setting.default is MISSING and setting.name not in values:
                raise OptionError(f"{flag_of(setting)} is missing: give it, or a settings file that has it (--config)")
        return of_job(**values), call

    def in_flags(self, error: OptionError) -> str:
        """The message of an error about a setting, which it begins with, with the setting as a flag."""
        name, verb, rest = str(error).partition(" is ")
        flags = {setting.name: flag_of(setting) for setting in self.settings}
        return f"{flags.get(name, name)}{verb}{rest}"

    def runner(self, check: Callable[[Command, Settings, Call], None]) -> Callable[..., None]:
        """What cyclopts is to run: a function whose parameters are the settings.

        Args:
            check: called with settings before the command runs; it may refuse them.
        """

        def run(*values: Any, **given: Any) -> None:
            try:
                read = self.read(dict(zip(self.positional, values, strict=False)) | given)
            except OptionError as error:
                raise OptionError(self.in_flags(error)) from error
            if read is not None:
                check(self, *read)
                terminal.quiet_libraries()
                self.function(*read)

        ordered = sorted(self.settings, key=lambda setting: not setting.option.positional)
        parameters = [self._parameter(setting) for setting in ordered]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = self.function.__doc__
        return run

    def with_values(self, arguments: Sequence[str]) -> list[str]:
        """Arguments with a value after every option that is given without one and has one for that (`Option.bare`)."""
        bare = {flag_of(setting): setting.option.bare for setting in self.settings}
        written = []
        for word, following in zip(arguments, [*arguments[1:], "--"], strict=True):
            value = bare.get(word)
            written += [word] if value is None or not following.startswith("-") else [word, value]
        return written

    def _parameter(self, setting: Setting) -> inspect.Parameter:
        """A setting as cyclopts takes it: as text, which is converted and checked by the setting itself."""
        from cyclopts import Parameter

        option, repeated = setting.option, _is_repeated(setting)
        kind: Any = bool if setting.hint is bool else tuple[str, ...] if repeated else str
        about = Parameter(
            name=flag_of(setting),
            help=setting.help,
            negative=None if _has_negative(setting) else (),
            choices=_choices(setting.hint),
            allow_leading_hyphen=not option.positional,
            allow_repeating=True,
        )
        return inspect.Parameter(
            setting.name,
            inspect.Parameter.POSITIONAL_ONLY if option.positional else inspect.Parameter.KEYWORD_ONLY,
            default=None if setting.default is MISSING else setting.default,
            annotation=Annotated[kind, about],
        )


def _from_text(setting: Setting, text: str, variable: str) -> Any:
    """The value of a setting in a variable; where an option may be given again, each line is a value."""
    value: Any = text
    if setting.hint is bool:
        value = _SWITCHES.get(text.lower(), text)
    elif _is_repeated(setting):
        value = text.splitlines()
    try:
        return setting.checked(value)
    except AnydepthError as error:
        name, verb, rest = str(error).partition(" is ")
        raise OptionError(f"{variable}{verb}{rest}" if name == setting.name else f"{variable}: {error}") from error


def flag_of(setting: Setting) -> str:
    """How a setting is written on the command line."""
    return setting.option.metavar if setting.option.positional else f"--{setting.name.replace('_', '-')}"


def flags_of(setting: Setting) -> tuple[str, ...]:
    """All the ways a setting is written on the command line: `--labels`, and `--no-labels`."""
    return flag_of(setting), *([f"--no-{setting.name.replace('_', '-')}"] if _has_negative(setting) else [])


def _has_negative(setting: Setting) -> bool:
    return setting.default is True or setting.option.negatable


def written(setting: Setting) -> str:
    """How a setting is written with a value."""
    if setting.option.positional or setting.hint is bool:
        return flag_of(setting)
    return f"{flag_of(setting)} {setting.option.metavar or _metavar(setting.hint)}"


def _is_repeated(setting: Setting) -> bool:
    return get_origin(setting.hint) is tuple and setting.option.parse is None


def _choices(hint: Any) -> tuple[str, ...] | None:
    return get_args(hint) if get_origin(hint) is Literal else None


def _metavar(hint: Any) -> str:
    named = "NAME" if get_origin(hint) is Literal else "TEXT"
    return next((_METAVARS[kind] for kind in (hint, *get_args(hint)) if kind in _METAVARS), named)

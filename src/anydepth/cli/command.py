"""Commands out of settings: the fields of a job's settings, and of a call, are the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter

from anydepth.cli import terminal
from anydepth.errors import OptionError
from anydepth.jobs.options import Option, Setting, Settings, settings_of

_METAVARS: dict[Any, str] = {int: "N", float: "X"}


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
    """

    name: str
    function: Callable[[Any, Any], None]

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

    def read(self, given: Mapping[str, Any]) -> tuple[Settings, Call] | None:
        """The settings and the call out of values by name; None for a call that is answered without.

        Raises:
            OptionError: a value is missing, of another type or out of range.
        """
        of_job, of_call = self._kinds
        names = {setting.name for setting in settings_of(of_call)}
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

    def usage(self) -> str:
        """The line of the help that says what has to be given."""
        required = (_written(setting) for setting in self.settings if setting.default is MISSING)
        return f"Usage: anydepth {self.name} {' '.join(required)} [OPTIONS]"

    def _parameter(self, setting: Setting) -> inspect.Parameter:
        """A setting as cyclopts takes it: as text, which is converted and checked by the setting itself."""
        option, repeated = setting.option, _is_repeated(setting)
        kind: Any = bool if setting.hint is bool else tuple[str, ...] if repeated else str
        required = setting.default is MISSING
        panel: dict[str, Any] = {} if option.positional else {"group": self._groups[setting.owner.title]}
        about = Parameter(
            name=option.metavar if option.positional else flag_of(setting),
            help=f"{setting.help} [required]" if required else setting.help,
            metavar=None if kind is bool else option.metavar or _metavar(setting.hint),
            negative=None if setting.default is True else (),
            show_default=_shown(setting.default) or False,
            choices=_choices(setting.hint),
            show_choices=False,
            allow_leading_hyphen=not option.positional,
            allow_repeating=True,
            **panel,
        )
        return inspect.Parameter(
            setting.name,
            inspect.Parameter.POSITIONAL_ONLY if option.positional else inspect.Parameter.KEYWORD_ONLY,
            default=None if required else setting.default,
            annotation=Annotated[kind, about],
        )

    @cached_property
    def _groups(self) -> dict[str, Group]:
        """The panels of the help: the job's own, what it shares with others, and how it is run."""
        last = self._kinds[1].title
        titles = dict.fromkeys([self._kinds[0].title, *(setting.owner.title for setting in self.settings)])
        titles.pop(last, None)
        return {
            title: Group(title, sort_key=place, help_formatter=_print_panel)
            for place, title in enumerate([*titles, last])
        }


def _print_panel(console: Any, options: Any, panel: Any) -> None:
    """A panel of the help, where no name of an option is broken into two lines."""
    from cyclopts.help import ColumnSpec, DefaultFormatter, DescriptionRenderer, NameRenderer

    names = ColumnSpec(renderer=NameRenderer(), style="cyclopts.name", no_wrap=True)
    about = ColumnSpec(renderer=DescriptionRenderer(), overflow="fold")
    DefaultFormatter(column_specs=(names, about))(console, options, panel)


def flag_of(setting: Setting) -> str:
    """How a setting is written on the command line."""
    return setting.option.metavar if setting.option.positional else f"--{setting.name.replace('_', '-')}"


def flags_of(setting: Setting) -> tuple[str, ...]:
    """All the ways a setting is written on the command line: `--labels`, and `--no-labels`."""
    return flag_of(setting), *([f"--no-{setting.name.replace('_', '-')}"] if setting.default is True else [])


def _written(setting: Setting) -> str:
    value = setting.option.metavar or _metavar(setting.hint)
    return value if setting.option.positional else f"{flag_of(setting)} {value}"


def _is_repeated(setting: Setting) -> bool:
    return get_origin(setting.hint) is tuple and setting.option.parse is None


def _choices(hint: Any) -> tuple[str, ...] | None:
    return get_args(hint) if get_origin(hint) is Literal else None


def _metavar(hint: Any) -> str:
    return next((_METAVARS[kind] for kind in (hint, *get_args(hint)) if kind in _METAVARS), "TEXT")


def _shown(default: Any) -> str:
    """A default in the help; nothing where it says nothing."""
    if default is MISSING or default is None or isinstance(default, bool) or default == ():
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)

"""What a field of settings is: a type, a default, a range and one line of help; checked, and saved to a file.

The command line, settings files and Python read the same fields. Nothing here, nor in `anydepth.jobs.settings`, imports
torch.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from anydepth.errors import OptionError, suggestion

FORMAT = 1
"""Of settings files; a newer one is refused."""
LARGEST = 2**31 - 1
"""The largest whole number that torch and numpy take everywhere."""
_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_NUMBERS: dict[Any, Any] = {int: Integral | str, float: Real | str}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `least` to `most` that a setting may be; `least` itself only unless `above`."""

    least: int | float = -LARGEST
    most: int | float = LARGEST
    above: bool = False

    def require(self, name: str, value: int | float) -> None:
        """Raise `OptionError` for a number out of the range; NaN and infinities are out of every range.

        Example:
            >>> Range(least=0, above=True).require("temperature", 0)
            Traceback (most recent call last):
            anydepth.errors.OptionError: temperature is 0, expected a number above 0
        """
        if self.least <= value <= self.most and not (self.above and value == self.least):
            return
        expected = f"at most {LARGEST:,}" if abs(value) > LARGEST and self.most == LARGEST else str(self)
        raise OptionError(f"{name} is {value}, expected {expected if math.isfinite(value) else 'a finite number'}")

    def __str__(self) -> str:
        low = f"a number above {self.least:g}" if self.above else f"a number from {self.least:g}"
        if self.most != LARGEST:
            return f"{low} to {self.most if isinstance(self.most, int) else f'{self.most:g}'}"
        return low if self.above else f"at least {self.least:g}"


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a field of settings is written, and which numbers it may be.

    Attributes:
        metavar: what stands for the value in the help.
        range: of a number.
        parse: of a value that is written as text, such as "2,4,6".
        positional: whether the command line takes it without a flag.
        bare: what the flag means where the command line gives it without a value; None where it needs one.
        negatable: whether a flag that is off by default may be written with `--no-`, too.
    """

    metavar: str = ""
    range: Range = Range()
    parse: Callable[[str], Any] | None = None
    positional: bool = False
    bare: str | None = None
    negatable: bool = False


_PLAIN = Option()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of settings, declared as `name: Annotated[hint, help, Option(...)] = default`.

    Attributes:
        default: `MISSING` where there is none.
        owner: the class that has the field first.
    """

    name: str
    hint: Any
    help: str
    option: Option
    default: Any
    owner: type[Settings]

    def checked(self, value: Any) -> Any:
        """The value as its type has it: a number out of text, a tuple out of a list.

        Raises:
            OptionError: it has another type, or is out of range.
        """
        if isinstance(value, str) and self.option.parse is not None:
            value = self.option.parse(value)
        try:
            converted = _converted(value, self.hint)
        except ValueError:
            raise OptionError(f"{self.name} is {value!r:.80}, expected {_in_words(self.hint)}") from None
        if isinstance(converted, int | float) and not isinstance(converted, bool):
            self.option.range.require(self.name, converted)
        return converted


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a job or of a run of it: frozen, and every field checked for its type and range.

    Attributes:
        job: the command's name, which its settings files carry.
        title: over these fields in the help.
    """

    job: ClassVar[str] = ""
    title: ClassVar[str] = "Options"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            OptionError: one has a wrong type, or is out of range.
        """
        for setting in settings_of(type(self)):
            object.__setattr__(self, setting.name, setting.checked(getattr(self, setting.name)))

    def changed(self) -> set[str]:
        """The names of settings that differ from their defaults."""
        values = {setting.name: getattr(self, setting.name) for setting in settings_of(type(self))}
        same = {s.name for s in settings_of(type(self)) if not is_object(v := values[s.name]) and v == s.default}
        return set(values) - same

    def save(self, folder: Path) -> None:
        """Write `settings.yaml` into a folder: `anydepth JOB --config FOLDER/settings.yaml` runs the job again.

        Objects of Python have no place in it: whoever runs it again names what takes their place.
        """
        import yaml  # type: ignore[import-untyped]

        from anydepth.storage.disk import atomic_write
        from anydepth.storage.output_folder import SETTINGS

        values = {setting.name: getattr(self, setting.name) for setting in settings_of(type(self))}
        objects = {name: value for name, value in values.items() if is_object(value)}
        left_out = "".join(f"# {name}: an object ({type(value).__name__})\n" for name, value in objects.items())
        plain = {name: _plain(value) for name, value in values.items() if name not in objects}
        text = yaml.safe_dump({"job": self.job, "format": FORMAT, **plain}, sort_keys=False)
        with atomic_write(folder / SETTINGS) as beside:
            beside.write_text(f"# anydepth {self.job} --config {SETTINGS}\n{left_out}{text}", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> dict[str, Any]:
        """The settings in a file by name, all of them or some, not yet checked for their values.

        Raises:
            OptionError: it is no settings file, of another job, of a newer format, or has an unknown setting.
        """
        values = _mapping_in(path)
        job, version = values.pop("job", cls.job), values.pop("format", FORMAT)
        if job != cls.job:
            raise OptionError(f"'{path}' has settings of anydepth {job}, expected those of anydepth {cls.job}")
        if not isinstance(version, int) or version > FORMAT:
            raise OptionError(f"'{path}' has format {version!r}, expected at most {FORMAT}: use a newer anydepth")
        names = [setting.name for setting in settings_of(cls)]
        for name in values:
            if name not in names:
                raise OptionError(f"'{path}' has an unknown setting {name!r}{suggestion(str(name), names)}")
        return values


def settings_of(cls: type[Settings]) -> tuple[Setting, ...]:
    """The fields of settings, in the order of their definition."""
    return _settings_of(cls)  # type: ignore[arg-type]  # mypy takes a class with __hash__ for one that has none


@functools.cache
def _settings_of(cls: type[Settings]) -> tuple[Setting, ...]:
    hints = get_type_hints(cls, include_extras=True)
    owners = {name: base for base in cls.__mro__ for name in inspect.get_annotations(base)}
    return tuple(_setting(field, *get_args(hints[field.name]), owner=owners[field.name]) for field in fields(cls))


def _setting(field: Field[Any], hint: Any, about: str, option: Option = _PLAIN, *, owner: type[Settings]) -> Setting:
    return Setting(name=field.name, hint=hint, help=about, option=option, default=field.default, owner=owner)


def _mapping_in(path: str | Path) -> dict[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        where = getattr(getattr(error, "problem_mark", None), "line", None)
        line = "" if where is None else f" (line {where + 1})"
        raise OptionError(f"'{path}' is no settings file, expected YAML{line}: {type(error).__name__}") from error
    if not isinstance(values, Mapping):
        raise OptionError(f"'{path}' holds {type(values).__name__}, expected settings by name")
    return dict(values)


def is_object(value: Any) -> bool:
    """Whether a setting's value is an object of Python: nothing that a settings file could hold.

    Example:
        >>> is_object("gpt2"), is_object(("a", 1)), is_object(["a text"]), is_object((object(),))
        (False, False, True, True)
    """
    if isinstance(value, tuple):
        return any(map(is_object, value))
    return not (value is None or isinstance(value, str | Path | int | float))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _converted(value: Any, hint: Any) -> Any:
    """A value as one of the types of a hint; raises `ValueError` if it is none of them."""
    for kind in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        with suppress(ValueError, OverflowError):
            return _as_kind(value, kind)
    raise ValueError(value)


def _as_kind(value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_converted(entry, get_args(kind)[0]) for entry in value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind in (NoneType, bool) and isinstance(value, kind):
        return value
    if kind in (int, float) and type(value) is not bool and isinstance(value, _NUMBERS[kind]):
        return kind(value)
    if kind in (str, Path) and isinstance(value, str | os.PathLike):
        return kind(os.fspath(value))
    if kind is Any and (is_object(value) or isinstance(value, tuple)):
        return value
    raise ValueError(value)


def _in_words(hint: Any) -> str:
    """The values that a type allows, for a message.

    Example:
        >>> _in_words(int | Literal["auto"] | None), _in_words(tuple[int, ...])
        ('a whole number, or auto', 'a list: a whole number each')
    """
    if get_origin(hint) is tuple:
        return f"a list: {_in_words(get_args(hint)[0])} each"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join(_in_words(kind) for kind in get_args(hint) if kind not in (NoneType, Any))
    return _WORDS[hint]

"""Jobs as functions: the fields of a job's settings are keyword arguments of its function."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, TypeVar, cast

from anydepth.jobs.options import Setting, Settings, settings_of
from anydepth.progress import reporting

F = TypeVar("F", bound=Callable[..., Any])
_FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")


def takes(kind: type[Settings], *, without: str = "") -> Callable[[F], F]:
    """Decorator: a function with `**settings` states the fields of its settings in their place, with their help.

    Fields that the function has as arguments of its own are left as they are, and that `without` which its other
    arguments make. Its `progress` may also be True or False; see `anydepth.progress.reporting`.

    Example:
        >>> from anydepth.jobs.settings import DemoSettings
        >>> @takes(DemoSettings)
        ... def demo(out: str, **settings: Any) -> None:
        ...     '''Train a model.
        ...
        ...     Args:
        ...         out: the folder.
        ...         **settings: of the job.
        ...     '''
        >>> str(inspect.signature(demo)), demo.__doc__.splitlines()[-1].strip()
        ("(out: 'str', *, seed: int = 0, epochs: int = 20) -> 'None'", 'epochs: Passes over the training images.')
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {without, *(parameter.name for parameter in own)}
        others = [setting for setting in settings_of(kind) if setting.name not in names]
        parameters = [*own, *map(_parameter, others)]

        @functools.wraps(function)
        def job(*args: Any, **keywords: Any) -> Any:
            if "progress" not in names:
                return function(*args, **keywords)
            with reporting(keywords.pop("progress", None)) as progress:
                return function(*args, **keywords, progress=progress)

        job.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        job.__doc__ = _explained(inspect.getdoc(function) or "", others)
        return cast(F, job)

    return decorate


def _parameter(setting: Setting) -> inspect.Parameter:
    default = inspect.Parameter.empty if setting.default is MISSING else setting.default
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=setting.hint)


def _explained(text: str, settings: list[Setting]) -> str:
    """A docstring with the settings in the place of `**settings`, and arguments in the place of flags."""
    helps = (_FLAG.sub(lambda flag: flag[1].replace("-", "_"), setting.help) for setting in settings)
    entries = "\n".join(f"    {setting.name}: {about}" for setting, about in zip(settings, helps, strict=True))
    return re.sub(r"^    \*\*settings: .*$", lambda _: entries, text, flags=re.MULTILINE)

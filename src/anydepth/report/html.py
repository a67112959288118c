"""The shell of every HTML report: Vega inlined once, data escaped, no network; the pages are in `report/pages/`."""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from anydepth.report import theme
from anydepth.storage.disk import atomic_write

_FOLDER = files("anydepth.report")


@cache
def _bundle() -> str:
    import vl_convert

    # With Vega and Vega-Lite in it: 0.9 MB, and 1.5 s to put together.
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


@cache
def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_function"] = _strict_json
    return environment


def _strict_json(value: object, **options: Any) -> str:
    """JSON without NaN, which browsers refuse. Jinja's `tojson` then escapes <, >, & and ' in it."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))


def _policy(scripts: tuple[str, ...]) -> str:
    """Content security policy: only these scripts run, and nothing is fetched or sent."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def page(**context: Any) -> str:
    """HTML of a page of sections, with the chart colours of both schemes."""
    return render("page.html.j2", themes={"light": theme.config(), "dark": theme.config(dark=True)}, **context)


def save(content: str, path: Path) -> Path:
    """Write a page; an existing file is replaced at once or not at all."""
    with atomic_write(path) as temporary:
        # Names of files may hold bytes that are no text: those are escaped.
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    return path


def render(template: str, **context: Any) -> str:
    """HTML from a template of this folder, with Vega, the style sheet and the drawing script inlined."""
    scripts = (_bundle(), _FOLDER.joinpath("page.js").read_text("utf-8"))
    return (
        _environment()
        .from_string(_FOLDER.joinpath(template).read_text("utf-8"))
        .render(
            policy=_policy(scripts),
            scripts=[Markup(text) for text in scripts],  # our own; a test checks that they hold no closing tag
            style=Markup(_FOLDER.joinpath("page.css").read_text("utf-8")),
            **context,
        )
    )

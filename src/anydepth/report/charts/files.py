"""Save a chart as a picture, a page of its own, or its specification."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any, Literal

import altair as alt

from anydepth.errors import TraceFileError
from anydepth.report import html
from anydepth.safe_text import printable
from anydepth.storage.disk import atomic_write

_TEXTS: dict[str, Literal["svg", "json"]] = {".svg": "svg", ".json": "json"}
_PICTURES: dict[str, tuple[Literal["png", "pdf"], int]] = {".png": ("png", 2), ".pdf": ("pdf", 1)}
FORMATS = (*_PICTURES, *_TEXTS, ".html")


def save(chart: alt.TopLevelMixin, path: str | Path) -> Path:
    """Write a chart; the name's ending says how. No browser is needed, and the HTML works offline.

    Args:
        chart: from `anydepth.report.charts.trace.plot`.
        path: ends in .png (twice the size, for sharp print), .svg, .pdf, .html or .json (the Vega-Lite specification).

    Raises:
        TraceFileError: another ending, or the file cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind not in FORMATS:
        raise TraceFileError(f"cannot save a chart as {Path(path).name!r}: end the name in one of {', '.join(FORMATS)}")
    content = _rendered(chart, kind)
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def picture(chart: alt.TopLevelMixin, description: str) -> str:
    """A chart as an image that HTML can hold, on white: a notebook may be dark."""
    from PIL import Image

    drawn = Image.open(io.BytesIO(_rendered(chart, ".png"))).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    small = io.BytesIO()  # a table of colours instead of four bytes a pixel
    Image.alpha_composite(white, drawn).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
    return f'<img width="{drawn.width // _PICTURES[".png"][1]}" alt="{escape(description)}" src="{source}">'


def _cleaned(value: Any) -> Any:
    """A specification with control characters spelled out: on those the renderer ends the whole process."""
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _rendered(chart: alt.TopLevelMixin, kind: str) -> bytes:
    of_its_type: Any = type(chart)
    chart = of_its_type.from_dict(_cleaned(chart.to_dict(validate=False)), validate=False)
    if kind in _PICTURES:
        form, scale = _PICTURES[kind]
        picture = io.BytesIO()
        chart.save(picture, format=form, scale_factor=scale)
        return picture.getvalue()
    if kind in _TEXTS:
        text = io.StringIO()
        chart.save(text, format=_TEXTS[kind])
        return text.getvalue().encode()
    # The chart brings its own colours: those of the page would be laid under them.
    themes: dict[str, object] = {"light": {}, "dark": {}}
    return html.render("chart.html.j2", title="anydepth", spec=chart.to_dict(validate=False), themes=themes).encode()

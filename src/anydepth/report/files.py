"""Files that are whole or not there, and charts as pictures."""

import contextlib
import io
import secrets
from pathlib import Path
from typing import Literal

import altair as alt

from anydepth.errors import TraceFileError
from anydepth.report import html

_TEXTS: dict[str, Literal["svg", "json"]] = {".svg": "svg", ".json": "json"}
_PICTURES: dict[str, tuple[Literal["png", "pdf"], int]] = {".png": ("png", 2), ".pdf": ("pdf", 1)}
FORMATS = (*_PICTURES, *_TEXTS, ".html")


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file so that the old one or the whole new one is there, whatever happens meanwhile.

    Raises:
        TraceFileError: it cannot be written; nothing is left behind.
    """
    target = Path(path)
    # In the same folder: only there is the replacement one step.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        raise TraceFileError(
            f"cannot write {target}: {error.strerror or error}; choose a folder that exists, is writable and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return target


def save(chart: alt.TopLevelMixin, path: str | Path) -> Path:
    """Write a chart; the name's ending says how. No browser is needed, and the HTML works offline.

    Args:
        chart: from `anydepth.report.charts.plot`.
        path: ends in .png (twice the size, for sharp print), .svg, .pdf, .html or .json (the Vega-Lite specification).

    Raises:
        TraceFileError: another ending, or the file cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind not in FORMATS:
        raise TraceFileError(f"cannot save a chart as {Path(path).name!r}: end the name in one of {', '.join(FORMATS)}")
    return write_whole(path, _rendered(chart, kind))


def _rendered(chart: alt.TopLevelMixin, kind: str) -> bytes:
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
    return html.render("chart.html.j2", title="anydepth", spec=chart.to_dict(), themes=themes).encode()

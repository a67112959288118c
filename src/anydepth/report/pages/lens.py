"""A lens as tables on a page: positions side by side, depths one above the other, the deepest on top."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from markupsafe import Markup

from anydepth.report import html, theme
from anydepth.report.formats import percent
from anydepth.report.pages.sections import Section, flat
from anydepth.report.protocols import LensSource
from anydepth.report.sentences import Finding

ACROSS = 12
"""Positions side by side. More of them go below, as lines of a text do: nothing has to be scrolled, and it prints."""

Parts = tuple[tuple[str, bool], ...]
"""A text in pieces, each with whether it stands for something that can't be seen."""

_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}
_HIDDEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")  # Unicode's kinds of characters that leave nothing to see
_LEVELS = len(theme.HEAT_STOPS)


@dataclass(frozen=True)
class Lines(Section):
    """A section that brings its own HTML, which stands where others have their figures."""

    body: Markup = field(default=Markup(""))


@dataclass(frozen=True)
class Cell:
    """What the model would say at one depth and position."""

    parts: Parts
    share: str
    level: int
    """Place of its colour among `theme.HEAT_STOPS`."""
    settles: bool
    """Whether the answer is the final one from this depth on, and was not before."""
    right: bool
    """Whether it is the target."""
    told: str
    """All of it in words, for the pointer."""


@dataclass(frozen=True)
class Strip:
    """Some positions side by side."""

    title: str
    tokens: tuple[Parts, ...]
    targets: tuple[Parts | None, ...]
    rows: tuple[tuple[int, tuple[Cell, ...]], ...]
    """Depth and cells, the deepest first."""


def section(lens: LensSource, tag: str = "") -> Lines:
    """The lens as a section of a page.

    Args:
        lens: what to show.
        tag: told behind the heading.
    """
    body = html.render(
        "lens.html.j2",
        strips=list(strips(lens)),
        findings=findings(lens),
        levels=_LEVELS,
        target=_target(lens),
        next_token=lens.next_token,
        final_norm=lens.provenance.get("readout") != "raw",
    )
    return Lines(f"What it would say at every depth{tag}", (), body=Markup(body))  # escaped by the template


def write(lens: LensSource, path: str | Path) -> Path:
    """Write the page of a lens by itself.

    Args:
        lens: what to show.
        path: where to; an existing file is replaced at once or not at all.

    Returns:
        The path.

    Raises:
        TraceFileError: the file cannot be written; nothing is left behind.
    """
    found = section(lens)
    content = html.render(
        "lens_page.html.j2",
        title=_name(lens),
        what=_what(lens),
        section=found,
        notes=lens.notes,
        provenance=dict(flat(lens.provenance)),
    )
    return html.save(content, Path(path))


def findings(lens: LensSource) -> list[Finding]:
    """What the numbers of a lens say, in sentences."""
    found = [_settling(lens)]
    if (right := _right(lens)) is not None:
        found.append(right)
    return found


def _settling(lens: LensSource) -> Finding:
    """By which depth half of the positions have their final answer."""
    last, count = lens.depth, len(lens.tokens)
    settled = np.array([(lens.saturation <= depth).mean() for depth in range(last + 1)])
    half = int(np.argmax(settled >= 0.5))
    before = f"{percent(float(settled[-2]))} before the last block"
    if half == last:
        claim = f"Most of the {count} positions get their final answer only at the last depth."
        return Finding(claim, f"It is settled for {before}.")
    claim = f"Half of the {count} positions have their final answer by depth {half} of {last}."
    return Finding(claim, f"It is settled for {percent(float(settled[half]))} by depth {half}, for {before}.")


def _right(lens: LensSource) -> Finding | None:
    """How often the target is on top, and how probable the targets are."""
    have = np.array([target is not None for target in lens.targets])
    count = int(have.sum())
    if not count:
        return None
    right = (lens.top_id == lens.target_id)[:, have].sum(1)
    shown = dict.fromkeys((lens.depth, (lens.depth + 1) // 2, 0))
    told = "; ".join(f"{_number(lens.perplexity[k])} at depth {k}, where {right[k]} are on top" for k in shown)
    claim = f"At the last depth, {_target(lens)} is the most probable one at {right[-1]} of {count} positions."
    return Finding(claim, f"Perplexity of these {count} tokens: {told}.")


def strips(lens: LensSource) -> Iterator[Strip]:
    """The lens cut into pieces of `ACROSS` positions."""
    tokens = [visible(token) for token in lens.tokens]
    targets = [None if target is None else visible(target) for target in lens.targets]
    count = len(tokens)
    for start in range(0, count, ACROSS):
        here = range(start, min(start + ACROSS, count))
        rows = tuple((k, tuple(_cell(lens, k, t) for t in here)) for k in reversed(range(lens.depth + 1)))
        title = f"Positions {start} to {here[-1]} of {count}" if len(here) > 1 else f"Position {start} of {count}"
        yield Strip(title, tuple(tokens[t] for t in here), tuple(targets[t] for t in here), rows)


def _cell(lens: LensSource, depth: int, position: int) -> Cell:
    share = float(lens.probability[depth, position])
    settled = int(lens.saturation[position])
    return Cell(
        parts=visible(lens.top[depth][position]),
        share=_share(share),
        level=round(share * (_LEVELS - 1)),
        settles=depth == settled,
        right=int(lens.top_id[depth, position]) == int(lens.target_id[position]),
        told=_told(lens, depth, position, settled),
    )


def _told(lens: LensSource, depth: int, position: int, settled: int) -> str:
    top, target = lens.top[depth][position], lens.targets[position]
    said = (
        f"Depth {depth}, position {position}: {_plain(top)} with {percent(float(lens.probability[depth, position]))}, "
        f"entropy {lens.entropy[depth, position]:.2f} nats."
    )
    if target is not None:
        share = percent(float(lens.target_probability[depth, position]))
        said += f" The target {_plain(target)}: {share}, rank {lens.target_rank[depth, position]:,}."
    return said + (" Its final answer, from here on." if depth == settled else "")


def visible(token: str) -> Parts:
    r"""A token so that all of it is seen: spaces, line ends, and characters that would leave nothing or turn the line.

    Example:
        >>> visible(" the"), visible("a\u202e")
        ((('␣', True), ('the', False)), (('a', False), ('U+202E', True)))
        >>> visible("")
        (('∅', True),)
    """
    pieces = [_seen(character) for character in token] or [("∅", True)]
    joined = groupby(pieces, key=lambda piece: piece[1])
    return tuple(("".join(text for text, _ in group), marks) for marks, group in joined)


def _seen(character: str) -> tuple[str, bool]:
    if character in _MARKS:
        return _MARKS[character], True
    if unicodedata.category(character) not in _HIDDEN:
        return character, False
    return f"U+{ord(character):04X}", True


def _plain(token: str) -> str:
    return "".join(text for text, _ in visible(token))


def _share(value: float) -> str:
    """A probability in as little room as a cell has.

    Example:
        >>> _share(0.9994), _share(0.004), _share(0.5)
        ('>99%', '<1%', '50%')
    """
    if 0.995 <= value < 1:
        return ">99%"
    return "<1%" if 0 < value < 0.01 else f"{100 * value:.0f}%"


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "∞"
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def _target(lens: LensSource) -> str:
    return "the token that follows" if lens.next_token else "the token that stands there"


def _name(lens: LensSource) -> str:
    model = lens.provenance.get("model")
    return str(model["name"]) if isinstance(model, dict) and model.get("name") else "A language model"


def _what(lens: LensSource) -> str:
    says = "What it would say next" if lens.next_token else "What it would put there"
    where = f"at {len(lens.tokens)} positions of a text"
    return f"{says} {where}: read from the embedding, and after each of {lens.depth} blocks."

"""Logit lens as tables on a page: positions side by side, depths one above the other, the deepest on top."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from markupsafe import Markup

from anydepth.report import html, theme
from anydepth.report.formats import percent
from anydepth.report.lens_source import LensSource
from anydepth.report.pages.sections import Section, flat
from anydepth.report.sentences import Finding, saturation

ACROSS = 12
"""Positions side by side. More of them go below, as lines of a text do, so that nothing is scrolled and it prints."""

Parts = tuple[tuple[str, bool], ...]
"""A text in pieces, each with whether it is a mark for something invisible."""

_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}
_INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")  # Unicode categories
_LEVELS = len(theme.HEAT_STOPS)


@dataclass(frozen=True, kw_only=True)
class HtmlSection(Section):
    """A section with HTML of its own, which stands where others have their figures."""

    body: Markup = field(default=Markup(""))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The most probable token at one depth and position.

    Attributes:
        parts: its text.
        share: its probability as text.
        level: place of its colour among `theme.HEAT_STOPS`.
        saturates: whether it is the final one from this depth on, and was not before.
        right: whether it is the target.
        description: all of it in words, for the pointer.
    """

    parts: Parts
    share: str
    level: int
    saturates: bool
    right: bool
    description: str


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Positions side by side."""

    title: str
    tokens: tuple[Parts, ...]
    targets: tuple[Parts | None, ...]
    rows: tuple[tuple[int, tuple[Cell, ...]], ...]
    """Depth and cells, the deepest first."""


def section(lens: LensSource) -> HtmlSection:
    """The lens as a section of a page."""
    body = html.render(
        "lens.html.j2",
        strips=list(strips(lens)),
        findings=findings(lens),
        levels=_LEVELS,
        target=_target(lens),
        next_token=lens.next_token,
        final_norm=lens.provenance.get("readout") != "raw",
    )
    return HtmlSection(title="Logit lens: the most probable token at every depth", body=Markup(body))  # escaped there


def write(lens: LensSource, path: str | Path) -> Path:
    """Write the page of a lens by itself, and return its path; an existing file is replaced at once or not at all.

    Raises:
        TraceFileError: the file cannot be written; nothing is left behind.
    """
    content = html.render(
        "lens_page.html.j2",
        title=_name(lens),
        what=_what(lens),
        section=section(lens),
        notes=lens.notes,
        provenance=dict(flat(lens.provenance)),
    )
    return html.save(content, Path(path))


def findings(lens: LensSource) -> list[Finding]:
    """Sentences on saturation, and on how probable the targets are."""
    shares = np.array([(lens.saturation <= depth).mean() for depth in range(lens.depth + 1)])
    of_targets = _right(lens)
    return [saturation(shares, f"{len(lens.tokens)} positions"), *([of_targets] if of_targets else [])]


def _right(lens: LensSource) -> Finding | None:
    """How often the target is on top, and how probable the targets are."""
    have = np.array([target is not None for target in lens.targets])
    count = int(have.sum())
    if not count:
        return None
    right = (lens.top_id == lens.target_id)[:, have].sum(1)
    depths = dict.fromkeys((lens.depth, (lens.depth + 1) // 2, 0))
    values = "; ".join(f"{_number(lens.perplexity[k])} at depth {k}, where {right[k]} are on top" for k in depths)
    claim = f"At the last depth, {_target(lens)} is the most probable one at {right[-1]} of {count} positions."
    return Finding(claim, f"Perplexity of these {count} tokens: {values}.")


def strips(lens: LensSource) -> Iterator[Strip]:
    """The lens cut into pieces of `ACROSS` positions."""
    tokens = [visible(token) for token in lens.tokens]
    targets = [None if target is None else visible(target) for target in lens.targets]
    count = len(tokens)
    for start in range(0, count, ACROSS):
        here = range(start, min(start + ACROSS, count))
        rows = tuple((k, tuple(_cell(lens, k, t) for t in here)) for k in reversed(range(lens.depth + 1)))
        title = f"Positions {start} to {here[-1]} of {count}" if len(here) > 1 else f"Position {start} of {count}"
        here_tokens, here_targets = tuple(tokens[t] for t in here), tuple(targets[t] for t in here)
        yield Strip(title=title, tokens=here_tokens, targets=here_targets, rows=rows)


def _cell(lens: LensSource, depth: int, position: int) -> Cell:
    share = float(lens.probability[depth, position])
    return Cell(
        parts=visible(lens.top[depth][position]),
        share=_share(share),
        level=round(share * (_LEVELS - 1)),
        saturates=depth == int(lens.saturation[position]),
        right=int(lens.top_id[depth, position]) == int(lens.target_id[position]),
        description=_description(lens, depth, position),
    )


def _description(lens: LensSource, depth: int, position: int) -> str:
    top, target = lens.top[depth][position], lens.targets[position]
    text = (
        f"Depth {depth}, position {position}: {_plain(top)} with {percent(float(lens.probability[depth, position]))}, "
        f"entropy {lens.entropy[depth, position]:.2f} nats."
    )
    if target is not None:
        share = percent(float(lens.target_probability[depth, position]))
        text += f" The target {_plain(target)}: {share}, rank {lens.target_rank[depth, position]:,}."
    return text + (" Saturated: its final token from here on." if depth == int(lens.saturation[position]) else "")


def visible(token: str) -> Parts:
    r"""A token so that all of it is seen: spaces, line ends, and characters that would leave nothing or turn the line.

    Example:
        >>> visible(" the"), visible("a\u202e")
        ((('␣', True), ('the', False)), (('a', False), ('U+202E', True)))
        >>> visible("")
        (('∅', True),)
    """
    pieces = [_visible_character(character) for character in token] or [("∅", True)]
    joined = groupby(pieces, key=lambda piece: piece[1])
    return tuple(("".join(text for text, _ in group), marks) for marks, group in joined)


def _visible_character(character: str) -> tuple[str, bool]:
    if character in _MARKS:
        return _MARKS[character], True
    if unicodedata.category(character) not in _INVISIBLE:
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
    token = "next token" if lens.next_token else "token in each place"
    where = f"at {len(lens.tokens)} positions of a text"
    return f"The most probable {token} {where}: read from the embedding, and after each of {lens.depth} blocks."

"""The verdict page: what of the paper holds here, from the results in a folder and the recipes' own words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anydepth.errors import ReproduceError
from anydepth.reproduce.claims import ABSTRACT, Claim
from anydepth.reproduce.figures import FIGURES, SUFFIXES, figure_paths
from anydepth.reproduce.listing import cost, kept
from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.recipes import RECIPES
from anydepth.reproduce.results import RecipeResults
from anydepth.reproduce.runner import results_path
from anydepth.reproduce.subjects import Scale
from anydepth.storage.disk import atomic_write, write_errors

PAGE = "verdict.md"
_SCALES = {"cpu": "small", "full": "full"}
_GENERAL = (
    "One seed, no intervals, no clock, and no sweep of the exit threshold.",
    "Two figures of the same model come from different checkpoints.",
    "One classifier for all exits is called a first; CALM, LayerSkip, the auxiliary losses of DETR and the early-exit "
    "loss of torchtune share a head as well. New are the analysis, and the practice for classifiers.",
    "Theorem 2.1: the printed derivative is wrong, the result holds; it needs a straight line, and a random walk is "
    "monotone without one.",
    "Theorem 2.2 needs that a block's update leaves all other classes alone, too; `anydepth trace --theory` counts how "
    "often that is so.",
)
"""What is wrong with no experiment in particular."""
_MISSED = 0.025
"""The share of 95 % intervals that lie wholly on one side of what they are of."""


@dataclass(frozen=True)
class _Judged:
    """Results, and what they say of each claim."""

    recipe: Recipe
    found: RecipeResults
    claims: Sequence[Claim]


def write(out: Path) -> Path:
    """Write the verdict page of the results in a folder.

    Returns:
        Where it lies.

    Raises:
        ReproduceError: some of the results are none of these recipes'.
        TraceFileError: some are corrupt, or the page cannot be written.
    """
    page = render(out)
    path = out / PAGE
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def require_own(out: Path, recipe: Recipe, scale: Scale, steps: int | None = None) -> None:
    """See, before the work, that the page and the figures to be written take the places of nothing but earlier ones.

    Raises:
        ReproduceError: something else is there.
    """
    results = results_path(out, recipe, scale, steps)
    name = results.name.removesuffix(results.suffix)
    figures = [results.parents[1] / FIGURES / f"{name}{suffix}" for suffix in SUFFIXES]
    others = [path for path in figures if path.exists() and not results.exists()]
    page = out / PAGE
    if steps is None and page.exists() and not _is_page(page):
        others.append(page)
    if others:
        raise ReproduceError(f"'{others[0]}' is none of `anydepth reproduce`: move it away, or give another --out")


def _is_page(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8").splitlines()[:1] == [next(_head([]))]
    except (OSError, ValueError):
        return False


def render(out: Path) -> str:
    """The verdict page as GitHub's Markdown: the same bytes from the same results.

    Raises:
        ReproduceError: some of the results are none of these recipes'.
        TraceFileError: some are corrupt.
    """
    judged = [_Judged(recipe, found, recipe.claims(found)) for recipe, found in kept(out)]
    lines = [*_head(judged), *_abstract(judged)]
    for recipe in RECIPES.values():
        lines += _section(recipe, [one for one in judged if one.recipe is recipe])
    return "\n".join([*lines, *_wrong()]).rstrip() + "\n"


# --- the top ----------------------------------------------------------------------------------------------------------


def _head(judged: Sequence[_Judged]) -> Iterator[str]:
    claims = [one for each in judged for one in each.claims]
    intervals = sum(bool(np.isfinite(one.interval).all()) and not one.certain for one in claims)
    run = len({each.recipe.name for each in judged})
    yield "# What of the paper holds"
    yield ""
    yield (
        "The experiments of *Tracing Representation Progression* "
        "([arXiv:2406.14479](https://arxiv.org/abs/2406.14479)), run again by `anydepth reproduce NAME`. "
        "`anydepth reproduce --verdict` makes this page and its figures from the numbers in `results/` and nothing "
        f"else; `--out` names this folder to both. {run} of {len(RECIPES)} experiments have results here: of "
        f"{_many(len(claims), 'claim')}, {_counted(claims)}."
    )
    yield ""
    yield (
        "A claim is one number held against a bound. It *holds* where the whole 95 % interval is on the side the "
        "paper says, it *does not hold* where all of it is on the other side, and it is *undecided* where the bound "
        "lies within, or where there is one seed only. Intervals are Student's t over seeds: they cover the draw of "
        "weights, order and training rows, not other data sets, other models or other held-out rows. Of three seeds "
        "they are wide, 2.5 standard deviations to each side, so that *undecided* often means too few seeds. What is "
        "counted, not drawn, has no interval; where all seeds give the same number the interval has no width, and the "
        "verdict rests on their agreement alone."
    )
    yield ""
    yield (
        f"Many claims are tested, {intervals} of them by an interval. At 95 %, chance alone is expected to turn at "
        f"most {intervals * _MISSED:.2g} of their verdicts wrong, and it cannot be told which. At the small scale, "
        "small models on small data stand in for the paper's: what does not hold there may hold at the full one, and "
        "the other way round."
    )
    yield ""


def _abstract(judged: Sequence[_Judged]) -> Iterator[str]:
    yield "## The claims of the abstract"
    yield ""
    yield from _row("claim", "experiments that speak to it", "overall")
    yield from _row("---", "---", "---")
    for about, words in ABSTRACT.items():
        spoken = [(each, one) for each in judged for one in each.claims if one.about == about]
        told = [
            f"**{one.verdict}**: {one.told()}, {one.measured} ([{each.recipe.name}](#{each.recipe.name}), "
            f"{one.where}{', full scale' if each.found.scale == 'full' else ''})"
            for each, one in spoken
        ]
        yield from _row(words, "<br>".join(told) or "none so far", _counted([one for _, one in spoken]))
    yield ""


# --- one experiment ---------------------------------------------------------------------------------------------------


def _section(recipe: Recipe, judged: Sequence[_Judged]) -> Iterator[str]:
    yield f"## {recipe.name}"
    yield ""
    yield f"**{recipe.title}** ({', '.join(recipe.figures)}). {recipe.shows}"
    yield ""
    for one in judged:
        yield from _results(one)
    missing = [scale for scale in recipe.plans if scale not in [one.found.scale for one in judged]]
    for scale in missing:
        yield from _not_run(recipe, scale)
    for note in (*recipe.notes, *recipe.ours):
        yield f"- {_line(note)}"
    if recipe.notes or recipe.ours:
        yield ""


def _not_run(recipe: Recipe, scale: Scale) -> Iterator[str]:
    command = f"anydepth reproduce {recipe.name}" + (" --scale full" if scale == "full" else "")
    seeds = 3 if recipe.seeded else 1
    estimate = "" if recipe.plans[scale].unit == "CPU minutes" else ", estimated and not tried"
    yield (
        f"Not run at the {_SCALES[scale]} scale: `{command}` does, in about {cost(recipe, scale, seeds)} for "
        f"{_many(seeds, 'seed')}{estimate}."
    )
    yield ""


def _results(judged: _Judged) -> Iterator[str]:
    recipe, found = judged.recipe, judged.found
    plan = recipe.plans[found.scale]
    subjects = [str(one["title"]) for one in found.settings["subjects"].values()]
    spent = float(np.mean([seed.cpu_seconds for seed in found.seeds.values()])) / 60
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in seed.provenance.get("versions", {}).items())
        for seed in found.seeds.values()
    )
    yield f"**Run at the {_SCALES[found.scale]} scale.** " + " ".join(
        [
            *([f"{'; '.join(subjects)}."] if subjects else []),
            *(["With the settings as the paper prints them."] if found.settings.get("as_printed") else []),
            f"{_many(len(found.seeds), 'seed')}, {_minutes(spent)} a seed as measured "
            f"({plan.cost:g} {plan.unit} stated);",
            f"{'; '.join(versions)}.",
            *plan.notes,
        ]
    )
    yield ""
    yield from _row("where", "the paper", "measured", "verdict")
    yield from _row("---", "---", "---", "---")
    for one in judged.claims:
        measured = f"{one.measured}<br>**{one.told()}**, asked: {one.sense} {one.bound:g}"
        yield from _row(one.where, one.paper, measured, f"**{one.verdict}**")
    yield ""
    if not recipe.panels(found):
        yield from _numbers(found)
    for path in figure_paths(recipe, found, Path())[:1]:
        yield f"![{recipe.title}]({FIGURES}/{path.name})"
        yield ""


def _numbers(found: RecipeResults) -> Iterator[str]:
    """The single numbers of a recipe that has no figure: a line for each variant."""
    first = found.seeds[min(found.seeds)].values
    names = list(dict.fromkeys(name for values in first.values() for name, one in values.items() if np.ndim(one) == 0))
    yield from _row("", *names)
    yield from _row(*["---"] * (1 + len(names)))
    for variant in found.variants:
        means = [found.mean(variant, name).value if found.has(variant, name) else np.nan for name in names]
        yield from _row(variant, *(_number(float(mean)) for mean in means))
    yield ""


# --- what is wrong with the paper -------------------------------------------------------------------------------------


def _wrong() -> Iterator[str]:
    yield "## What the paper gets wrong or leaves open"
    yield ""
    for note in _GENERAL:
        yield f"- {note}"
    for recipe in RECIPES.values():
        for note in recipe.notes:
            yield f"- [{recipe.name}](#{recipe.name}): {_line(note)}"
    yield ""
    changed: dict[tuple[str, str, str], list[str]] = {}
    for recipe in RECIPES.values():
        for row in _implausible(recipe):
            changed.setdefault(row, []).append(f"[{recipe.name}](#{recipe.name})")
    if changed:
        yield "Settings that the paper prints and that are not plausible; `--as-printed` trains with them:"
        yield ""
        yield from _row("setting", "as printed", "here", "in")
        yield from _row("---", "---", "---", "---")
        for (name, printed, here), recipes in changed.items():
            yield from _row(f"`{name}`", printed, here, ", ".join(recipes))


def _implausible(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Settings that the paper prints for a subject and that are not plausible: which, as printed, and here."""
    rows = [
        (name, str(value), str(subject.training.get(name, "the library's default")))
        for plan in recipe.plans.values()
        for subject in plan.subjects.values()
        for name, value in subject.printed.items()
    ]
    return list(dict.fromkeys(rows))


# --- words ------------------------------------------------------------------------------------------------------------


def _counted(claims: Sequence[Claim]) -> str:
    """How many there are of each verdict.

    Example:
        >>> from anydepth.reproduce.claims import claim
        >>> _counted([claim("", "Fig. 1", "", "", [1, 1]), claim("", "Fig. 1", "", "", [-1, 1])])
        '1 holds, 1 undecided'
    """
    of: Counter[str] = Counter(one.verdict for one in claims)
    words = (("holds", "hold"), ("does not hold", "do not hold"), ("undecided", "undecided"))
    counts = zip(("holds", "does not hold", "undecided"), words, strict=True)
    told = [f"{of[name]} {one if of[name] == 1 else several}" for name, (one, several) in counts if of[name]]
    return ", ".join(told) or "no results"


def _minutes(spent: float) -> str:
    return "under 0.1 CPU minutes" if spent < 0.1 else f"{spent:,.1f} CPU minutes"


def _number(value: float) -> str:
    """A count in full, anything else to four digits.

    Example:
        >>> _number(86567656.0), _number(0.12345), _number(float("nan"))
        ('86,567,656', '0.1235', '')
    """
    if np.isnan(value):
        return ""
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _row(*cells: str) -> Iterator[str]:
    r"""A line of a table.

    Example:
        >>> list(_row("P(a | b)", "two\nlines"))
        ['| P(a \\| b) | two lines |']
    """
    yield "| " + " | ".join(_line(cell).replace("|", r"\|") for cell in cells) + " |"


def _line(text: str) -> str:
    return " ".join(text.split())

"""The verdict page: which claims of the paper hold, from the results in a folder and the texts of the recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anydepth.errors import ReproduceError
from anydepth.reproduce.claims import ABSTRACT, Claim
from anydepth.reproduce.figures import FIGURES, SUFFIXES, figure_paths
from anydepth.reproduce.listing import cost, load_results
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
"""Problems of the paper that belong to no experiment in particular."""
_MISSED = 0.025
"""The share of 95 % intervals that lie wholly on one side of what they are of."""


@dataclass(frozen=True)
class _Evaluation:
    """A recipe, its results, and its claims with their verdicts."""

    recipe: Recipe
    results: RecipeResults
    claims: Sequence[Claim]


def write(out: Path) -> Path:
    """Write the verdict page of the results in a folder, and return its path.

    Raises:
        ReproduceError: some of the results are none of these recipes'.
        TraceFileError: some are corrupt, or the page cannot be written.
    """
    page = render(out)
    path = out / PAGE
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def require_own(out: Path, recipe: Recipe, scale: Scale, steps: int | None = None) -> None:
    """Check, before the work, that the page and the figures to be written replace nothing but earlier ones.

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
    evaluations = [_Evaluation(recipe, results, recipe.claims(results)) for recipe, results in load_results(out)]
    blocks = [*_head(evaluations), *_abstract(evaluations)]
    for recipe in RECIPES.values():
        blocks += _section(recipe, [evaluation for evaluation in evaluations if evaluation.recipe is recipe])
    return "\n\n".join([*blocks, *_problems()]) + "\n"


# --- the top ----------------------------------------------------------------------------------------------------------


def _head(evaluations: Sequence[_Evaluation]) -> Iterator[str]:
    claims = [claim for evaluation in evaluations for claim in evaluation.claims]
    intervals = sum(bool(np.isfinite(claim.interval).all()) and not claim.certain for claim in claims)
    run = len({evaluation.recipe.name for evaluation in evaluations})
    yield "# What of the paper holds"
    yield (
        "The experiments of *Tracing Representation Progression* "
        "([arXiv:2406.14479](https://arxiv.org/abs/2406.14479)), run again by `anydepth reproduce NAME`. "
        "`anydepth reproduce --verdict` makes this page and its figures from the numbers in `results/` and nothing "
        f"else; `--out` names this folder to both. {run} of {len(RECIPES)} experiments have results here: of "
        f"{_many(len(claims), 'claim')}, {_counted(claims)}."
    )
    yield (
        "A claim is one number held against a bound. It *holds* where the whole 95 % interval is on the side the "
        "paper says, it *does not hold* where all of it is on the other side, and it is *undecided* where the bound "
        "lies within, or where there is one seed only. Intervals are Student's t over seeds: they cover the draw of "
        "weights, order and training rows, not other data sets, other models or other held-out rows. Of three seeds "
        "they are wide, 2.5 standard deviations to each side, so that *undecided* often means too few seeds. What is "
        "counted, not drawn, has no interval; where all seeds give the same number the interval has no width, and the "
        "verdict rests on their agreement alone."
    )
    yield (
        f"Many claims are tested, {intervals} of them by an interval. At 95 %, chance alone is expected to turn at "
        f"most {intervals * _MISSED:.2g} of their verdicts wrong, and it cannot be told which. At the small scale, "
        "small models on small data stand in for the paper's: what does not hold there may hold at the full one, and "
        "the other way round."
    )


def _abstract(evaluations: Sequence[_Evaluation]) -> Iterator[str]:
    yield "## The claims of the abstract"
    rows = []
    for about, words in ABSTRACT.items():
        claims = [(of, claim) for of in evaluations for claim in of.claims if claim.about == about]
        verdicts = [
            f"**{claim.verdict}**: {claim.describe()}, {claim.measured} ([{of.recipe.name}](#{of.recipe.name}), "
            f"{claim.where}{', full scale' if of.results.scale == 'full' else ''})"
            for of, claim in claims
        ]
        rows.append((words, "<br>".join(verdicts) or "none so far", _counted([claim for _, claim in claims])))
    yield _table(("claim", "experiments that speak to it", "overall"), rows)


# --- one experiment ---------------------------------------------------------------------------------------------------


def _section(recipe: Recipe, evaluations: Sequence[_Evaluation]) -> Iterator[str]:
    yield f"## {recipe.name}"
    yield f"**{recipe.title}** ({', '.join(recipe.figures)}). {recipe.shows}"
    for evaluation in evaluations:
        yield from _results(evaluation)
    scales = [evaluation.results.scale for evaluation in evaluations]
    yield from (_not_run(recipe, scale) for scale in recipe.plans if scale not in scales)
    if recipe.notes or recipe.ours:
        yield "\n".join(f"- {_one_line(note)}" for note in (*recipe.notes, *recipe.ours))


def _not_run(recipe: Recipe, scale: Scale) -> str:
    command = f"anydepth reproduce {recipe.name}" + (" --scale full" if scale == "full" else "")
    seeds = 3 if recipe.seeded else 1
    estimate = "" if recipe.plans[scale].unit == "CPU minutes" else ", estimated and not tried"
    return (
        f"Not run at the {_SCALES[scale]} scale: `{command}` does, in about {cost(recipe, scale, seeds)} for "
        f"{_many(seeds, 'seed')}{estimate}."
    )


def _results(evaluation: _Evaluation) -> Iterator[str]:
    recipe, results = evaluation.recipe, evaluation.results
    plan = recipe.plans[results.scale]
    subjects = [str(subject["title"]) for subject in results.settings["subjects"].values()]
    minutes = float(np.mean([seed.cpu_seconds for seed in results.seeds.values()])) / 60
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in seed.provenance.get("versions", {}).items())
        for seed in results.seeds.values()
    )
    yield " ".join(
        [
            f"**Run at the {_SCALES[results.scale]} scale.**",
            *([f"{'; '.join(subjects)}."] if subjects else []),
            *(["With the settings as the paper prints them."] if results.settings.get("as_printed") else []),
            f"{_many(len(results.seeds), 'seed')}, {_minutes(minutes)} a seed as measured "
            f"({plan.cost:g} {plan.unit} stated);",
            f"{'; '.join(versions)}.",
            *plan.notes,
        ]
    )
    rows = []
    for claim in evaluation.claims:
        measured = f"{claim.measured}<br>**{claim.describe()}**, asked: {claim.sense} {claim.bound:g}"
        rows.append((claim.where, claim.paper, measured, f"**{claim.verdict}**"))
    yield _table(("where", "the paper", "measured", "verdict"), rows)
    if not recipe.panels(results):
        yield _numbers(results)
    for path in figure_paths(recipe, results, Path())[:1]:
        yield f"![{recipe.title}]({FIGURES}/{path.name})"


def _numbers(results: RecipeResults) -> str:
    """Table of the single numbers of a recipe that has no figure: a row for each variant."""
    first = results.seeds[min(results.seeds)].values
    names = dict.fromkeys(name for values in first.values() for name, value in values.items() if np.ndim(value) == 0)
    rows = []
    for variant in results.variants:
        means = [results.mean(variant, name).value if results.has(variant, name) else np.nan for name in names]
        rows.append((variant, *(_number(float(mean)) for mean in means)))
    return _table(("", *names), rows)


# --- what is wrong with the paper -------------------------------------------------------------------------------------


def _problems() -> Iterator[str]:
    yield "## What the paper gets wrong or leaves open"
    notes = [f"[{of.name}](#{of.name}): {_one_line(note)}" for of in RECIPES.values() for note in of.notes]
    yield "\n".join(f"- {note}" for note in (*_GENERAL, *notes))
    changed: dict[tuple[str, str, str], list[str]] = {}
    for recipe in RECIPES.values():
        for setting in _implausible(recipe):
            changed.setdefault(setting, []).append(f"[{recipe.name}](#{recipe.name})")
    if changed:
        yield "Settings that the paper prints and that are not plausible; `--as-printed` trains with them:"
        rows = [(f"`{name}`", printed, here, ", ".join(names)) for (name, printed, here), names in changed.items()]
        yield _table(("setting", "as printed", "here", "in"), rows)


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
        >>> seeds = ([1.0, 1.0], [-1.0, 1.0])
        >>> _counted([Claim(where="Fig. 1", paper="", measured="", values=values) for values in seeds])
        '1 holds, 1 undecided'
    """
    counts = Counter[str](claim.verdict for claim in claims)
    plurals = {"holds": "hold", "does not hold": "do not hold", "undecided": "undecided"}
    words = [f"{n} {name if n == 1 else plural}" for name, plural in plurals.items() if (n := counts[name])]
    return ", ".join(words) or "no results"


def _minutes(value: float) -> str:
    return "under 0.1 CPU minutes" if value < 0.1 else f"{value:,.1f} CPU minutes"


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


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table in GitHub's Markdown.

    Example:
        >>> print(_table(("a", "b"), [("P(a | b)", "two\nlines")]))
        | a | b |
        | --- | --- |
        | P(a \| b) | two lines |
    """
    lines = (columns, ["---"] * len(columns), *rows)
    return "\n".join("| " + " | ".join(_one_line(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())

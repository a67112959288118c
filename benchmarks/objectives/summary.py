"""The tables and the figure, from whatever runs are finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from comparing import Finished, compare, finished
from paired import at_every_depth
from settings import MARGIN_TEXT, TASKS, Score, Stage

REFERENCE, RIVAL = "standard", "heads"
HOW = f"""\
Intervals and verdicts. The held-out units (images, sentences, documents) are the same for all objectives, and so are
the seeds: every difference is taken on the same unit and seed. The interval in brackets holds 95 % and speaks of these
models on other units: all seeds of a unit are one draw. A verdict is *non-inferior* where that interval ends within
the margin ({MARGIN_TEXT["accuracy"]} of accuracy, {MARGIN_TEXT["perplexity"]} of perplexity), *inferior* where it
begins beyond, else *undecided*. "Trained again" is the verdict of the wider interval that takes the seeds, too, for a
sample: with three of them it is seldom decided, and says how little three can say."""


def summarize(results: Path, figures: Path) -> None:
    """Write results/summary.md and the figure, and print the tables."""
    parts = ["# Objectives compared", ""]
    full, screen = finished(results, "full"), finished(results, "screen")
    if full:
        parts += ["## The full comparison: test data", "", *_stage(full, "full"), *_verdicts(full), *_inside(full)]
    if screen:
        parts += ["## The screen: validation data, one seed, small", "", *_stage(screen, "screen")]
    page = "\n".join([*parts, *([HOW] if full else [])]) + "\n"
    (results / "summary.md").write_text(page)
    print(page)
    if full:
        from figure import draw

        for path in draw(full, figures):
            print(path)


def _stage(tasks: dict[str, dict[str, Finished]], stage: Stage) -> list[str]:
    lines: list[str] = []
    for task, found in tasks.items():
        settings, size = TASKS[task], TASKS[task].sizes[stage]
        any_one = next(iter(found.values()))
        depth, score = any_one.depth, settings.score
        what = "Accuracy in %" if score == "accuracy" else "Perplexity"
        seeds = max(len(one.results) for one in found.values())
        interval = f"At depth {depth} with the 95 % interval over seeds. " if seeds > 1 else ""
        lines += [
            f"### {settings.title}",
            "",
            f"{what} by depth on {len(any_one.counts):,} {_units(task)}; {size.train:,} samples × {size.epochs}, "
            f"{_count(seeds, 'seed')}. {interval}Time: CPU seconds of a step beside `{REFERENCE}`.",
            "",
            f"| objective | {' | '.join(map(str, range(1, depth + 1)))} | time |",
            "|---|" + "---|" * (depth + 1),
        ]
        lines += [_quality_row(one, found.get(REFERENCE)) for one in found.values()] + [""]
    return lines


def _quality_row(one: Finished, reference: Finished | None) -> str:
    mean, low, high = one.quality()
    cells = [_number(value, one.score) for value in mean]
    if not np.isnan(low[-1]):
        cells[-1] += f" ({_number(low[-1], one.score)}–{_number(high[-1], one.score)})"
    time = "" if reference is None else f"{one.step() / reference.step():.2f} ×"
    count = len(one.results)
    seeds = "" if reference is None or count == len(reference.results) else f" ({count} seed{'s' * (count > 1)})"
    return f"| `{one.objective}`{seeds} | {' | '.join(cells)} | {time} |"


def _verdicts(tasks: dict[str, dict[str, Finished]]) -> list[str]:
    lines = [
        f"### At the last depth, against `{REFERENCE}`",
        "",
        "| task | objective | difference | verdict | trained again |",
        "|---|---|---|---|---|",
    ]
    for task, found in tasks.items():
        if REFERENCE in found:
            for name, one in found.items():
                if name != REFERENCE:
                    at = compare(one, found[REFERENCE], one.depth)
                    lines.append(f"| {task} | `{name}` | {at.in_words()} | {at.over_units} | {at.over_seeds} |")
    lines += [
        "",
        f"### At every depth, against `{RIVAL}`",
        "",
        "| task | objective | difference at each depth | worst | at every depth | trained again |",
        "|---|---|---|---|---|---|",
    ]
    for task, found in tasks.items():
        if RIVAL in found:
            lines += [_against_rival(task, one, found[RIVAL]) for name, one in found.items() if name != RIVAL]
    return [*lines, ""]


def _against_rival(task: str, one: Finished, rival: Finished) -> str:
    found = {depth: compare(one, rival, depth) for depth in range(1, one.depth + 1)}
    worst = max(found, key=lambda depth: found[depth].loss.mean)
    cells = ", ".join(f"{at.shown(at.loss.mean):+.1f}" for at in found.values())
    verdicts = [at_every_depth([getattr(at, of) for at in found.values()]) for of in ("over_units", "over_seeds")]
    where = f"depth {worst}: {found[worst].in_words()}"
    return f"| {task} | `{one.objective}` | {cells} | {where} | {verdicts[0]} | {verdicts[1]} |"


def _inside(tasks: dict[str, dict[str, Finished]]) -> list[str]:
    lines = [
        "### Inside: similarity to the last depth, and where answers settle",
        "",
        "Debiased CKA and centred cosine to depth L, and the share of answers that are final from a depth on, at the "
        "depths 1 to L - 1; means over seeds.",
        "",
        "| task | objective | CKA | cosine | settled |",
        "|---|---|---|---|---|",
    ]
    for task, found in tasks.items():
        for name, one in found.items():
            cells = [*(one.similarity(measure) for measure in ("cka", "cosine")), one.settled()]
            texts = (" ".join(_short(value) for value in cell[:-1]) for cell in cells)
            lines.append(f"| {task} | `{name}` | {' | '.join(texts)} |")
    return [*lines, ""]


def _short(value: Any) -> str:
    """A share without its leading zero: a row of them stays readable."""
    return f"{value:.2f}".replace("0.", ".", 1)


def _number(value: float, score: Score) -> str:
    return f"{100 * value:.1f}" if score == "accuracy" else f"{value:.1f}"


def _units(task: str) -> str:
    return {"vit": "images", "minilm": "sentences"}.get(task, "documents")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")

"""What was found, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from commands import MEASURED, compared, neighbours, trace_of, with_class, with_input
from models import MODELS, full
from parts import INPUT, Part, label, levels

from anydepth.report.formats import measure_title


def shown(value: float, low: float = np.nan, high: float = np.nan, *, signed: bool = False) -> str:
    """A number of at most 1 without its zero, with its interval."""

    def short(one: float) -> str:
        text = f"{one + 0.0:+.3f}" if signed else f"{one + 0.0:.3f}"
        text = text.replace("0.", ".", 1).replace("-", "−")
        return ".000" if text in ("−.000", "+.000") else text

    if not np.isfinite(value):
        return "–"
    return short(value) + (f" ({short(low)} to {short(high)})" if np.isfinite(low) and np.isfinite(high) else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def by_depth(part: Part) -> list[str]:
    lines: list[str] = []
    for name in part.models:
        trace = trace_of(name)
        accuracy, ends = trace.accuracy, trace.interval("accuracy")
        cells = []
        for depth in range(1, trace.depth + 1):
            to_last = [
                shown(trace.similarity[one][depth, -1], *trace.similarity_intervals[one][:, depth, -1])
                for one in ("cosine", "cka")
            ]
            cells.append([str(depth), shown(accuracy[depth], *ends[:, depth]), *to_last])
        head = ("depth", "accuracy", "cosine to the last", "CKA to the last")
        lines += [f"{full(name)}, {len(trace.ids):,} samples:", "", *table(head, cells)]
    return lines


def best_matches(part: Part) -> list[str]:
    """For each depth of the one model the most alike of the other, by every measure."""
    lines: list[str] = []
    for pair in part.maps:
        found = compared(*pair)
        names = [name for name in MEASURED if np.isfinite(found.similarity[name]).any()]
        matched = {name: found.matches(name) for name in names}
        rows = []
        for depth in range(len(found.similarity["cka"])):
            match = matched["cka"][depth]
            if match is None:
                continue
            value = shown(match.value, *found.similarity_intervals["cka"][:, depth, match.depth])
            others = ", ".join(map(str, match.others)) or "none"
            cells = [f"{m.depth}: {shown(m.value)}" for name in names if name != "cka" and (m := matched[name][depth])]
            rows.append([str(depth), f"{match.depth}: {value}", others, *cells])
        head = [
            "depth",
            "by CKA",
            "may be as much alike",
            *(f"by {measure_title(one)}" for one in names if one != "cka"),
        ]
        lines += [f"The depths of {full(pair[1])} that are most like those of {full(pair[0])}:", "", *table(head, rows)]
    return lines


def begins(part: Part) -> list[str]:
    """Whether training moved a depth by more than the block beside it does."""
    if not part.tuned:
        return []
    frozen, *others = part.tuned[:3]
    own, own_ends, which = neighbours(frozen)
    rows = []
    for depth in range(1, len(own)):
        cells = [str(depth), f"{which[depth]}: {shown(own[depth], *own_ends[:, depth])}"]
        for other in others:
            found = compared(frozen, other)
            value, (low, high) = (
                found.similarity["cka"][depth, depth],
                found.similarity_intervals["cka"][:, depth, depth],
            )
            apart = low > own_ends[1, depth] or high < own_ends[0, depth]
            verdict = ("less than a block" if value > own[depth] else "more than a block") if apart else "undecided"
            cells.append(f"{shown(value, low, high)}, {verdict}")
        rows.append(cells)
    head = ["depth", "the block beside it, CKA", *(f"{label(other, part)}, same depth" for other in others)]
    return [f"How far training moved each depth, beside what a block of {full(frozen)} does:", "", *table(head, rows)]


def differing(part: Part) -> list[str]:
    lines: list[str] = []
    for pair in part.differences:
        found = compared(*pair)
        rows = []
        for place, (depth, other) in enumerate(found.depths):
            cells = [str(depth) if depth == other else f"{depth} and {other}"]
            for name in ("accuracy", "settled", "cosine_to_last"):
                one = found.differences[name]
                # the cosine of a last depth with itself is 1, but for rounding
                known = np.isfinite(one.value[place]) and (name != "cosine_to_last" or place < len(found.depths) - 1)
                value = shown(one.value[place], one.low_all[place], one.high_all[place], signed=True)
                cells += [value, one.verdicts[place]] if known else ["–", "–"]
            rows.append(cells)
        head = ("depth", "accuracy", "so it is", "final answers", "so they are", "cosine to the last", "so it is")
        title = f"{full(pair[1])} less {full(pair[0])}, with the bands that hold for all depths:"
        lines += [title, "", *table(head, rows)]
    return lines


def level_table(part: Part) -> list[str]:
    found = levels(part)
    rows = []
    for name in MEASURED:
        known = [by[name] if np.isfinite(by[name].value).any() else None for by in found.values()]
        rows.append([measure_title(name), *("–" if one is None else shown(*one.best_over_depths()) for one in known)])
    title = (
        f"By measure, how alike the most alike depth of another model is to a depth of {full(part.models[0])}: mean "
        "over its depths, least and greatest. Chance and shuffled: with the samples in another order."
    )
    return [title, "", *table(("measure", *found), rows)]


def floor(part: Part) -> list[str]:
    found = {what: by["cka"] for what, by in levels(part).items()}
    depths = range(1, trace_of(part.models[0]).depth + 1)
    rows = [[str(depth), *(shown(*alike.best(depth)) for alike in found.values())] for depth in depths]
    title = f"By depth of {full(part.models[0])}, the CKA of the most alike depth of others:"
    return [title, "", *table(("depth", *found), rows)]


def given(part: Part) -> list[str]:
    """How much of the arrangement of samples is what went in, and how much the class."""
    lines: list[str] = []
    data = MODELS[part.models[0]].data
    for what, of in ((INPUT[data], lambda name: with_input(name)["cka"]), ("the true class", with_class)):
        found = [of(name) for name in part.models]
        depths = range(1, max(len(alike.value) for alike in found))
        rows = [
            [str(depth), *(shown(*alike.best(depth)) if depth < len(alike.value) else "" for alike in found)]
            for depth in depths
        ]
        lines += [f"CKA with {what}:", "", *table(("depth", *(full(name) for name in part.models)), rows)]
    return lines


def agreements(part: Part) -> list[str]:
    found = {name: trace_of(name).measure_agreement() for name in part.models}
    pairs = next(iter(found.values()))
    rows = [
        [
            f"{measure_title(one)} and {measure_title(other)}",
            *(shown(*by[one, other].spearman) for by in found.values()),
        ]
        for one, other in pairs
    ]
    counts = ", ".join(str(next(iter(by.values())).pairs) for by in found.values())
    title = f"Spearman's correlation of measures over pairs of depths of one model ({counts} pairs):"
    return [title, "", *table(("measures", *(full(name) for name in found)), rows)]


SECTIONS = (by_depth, best_matches, begins, differing, level_table, floor, given, agreements)

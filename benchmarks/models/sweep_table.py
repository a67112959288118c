"""The sweep as text: kinds by categories, steps by kinds, refusals by reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from categories import CATEGORIES, CRASH, NOT_BUILT, USELESS, WRONG

_STEPS = ("trace", "align", "exit", "truncate", "generate")


def table(findings: Sequence[dict[str, Any]]) -> str:
    """Kinds by categories, as a table in Markdown; models of other libraries than transformers by library."""
    shown = [category for category in CATEGORIES if category != NOT_BUILT]
    lines = [f"| kind | ran | {' | '.join(shown)} | not built |", "|---" * (len(shown) + 3) + "|"]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for finding in findings:
        groups[_group(finding)].append(finding)
    for name, group in [*groups.items(), ("**all**", list(findings))]:
        counts = Counter(finding["category"] for finding in group)
        ran = len(group) - counts[NOT_BUILT]
        lines.append(f"| {name} | {ran} | {' | '.join(str(counts[c]) for c in shown)} | {counts[NOT_BUILT]} |")
    return "\n".join(lines)


def _group(finding: dict[str, Any]) -> str:
    return finding["kind"] if finding["library"] == "transformers" else finding["library"]


def steps_table(findings: Sequence[dict[str, Any]]) -> str:
    """For each step, how many models it is right for, refused, wrong, crashed, or without a meaning."""
    results = ("ok", "refused", "wrong", "crash", "n/a")
    lines = [f"| step | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name in _STEPS:
        counts = Counter(finding["steps"][name]["result"] for finding in findings if name in finding["steps"])
        lines.append(f"| {name} | {' | '.join(str(counts[result]) for result in results)} |")
    return "\n".join(lines)


def reasons(findings: Iterable[dict[str, Any]]) -> str:
    """What is not exact, grouped by category and reason, each with the models' names."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for finding in findings:
        if finding["category"] != CATEGORIES[0]:
            groups[finding["category"], _general(finding["reason"])].append(_name(finding))
    order = {category: index for index, category in enumerate((WRONG, CRASH, USELESS, *CATEGORIES[1:3], NOT_BUILT))}
    lines = []
    for (category, reason), names in sorted(groups.items(), key=lambda item: (order[item[0][0]], -len(item[1]))):
        lines.append(f"{category} · {len(names)} · {reason}\n    {', '.join(names)}")
    return "\n".join(lines)


def _name(finding: dict[str, Any]) -> str:
    name = finding["name"] if finding["library"] == "transformers" else f"{finding['library']}/{finding['name']}"
    return f"{name} [{finding['blocks']}]" if finding["blocks"] else name


def _general(reason: str) -> str:
    """A reason without what differs from model to model."""
    reason = re.sub(r"^(\w+: )?[A-Z]\w+(?= (states|is an|has several|has no|answers|cut))", r"\1MODEL", reason)
    reason = re.sub(r"[A-Z]\w+(?=: the \w+ law)", "MODEL", reason)
    reason = re.sub(r"'[\w.]+'", "'...'", reason)
    reason = re.sub(
        r"(of blocks|two stacks in one|but has)(:?) .*?([:;] (name one|blocks that))", r"\1\2 ...\3", reason
    )
    reason = re.sub(r"\b\d[\d.e+-]*\b", "#", reason)
    reason = re.sub(r"\((#, )*#,?\)", "(#)", reason)
    return reason[:260]


def report(findings: Sequence[dict[str, Any]]) -> str:
    return f"{table(findings)}\n\n{steps_table(findings)}\n\n{reasons(findings)}\n"

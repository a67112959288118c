"""What comparing models shows, on real ones: a text model and two of images, each beside random weights.

    python benchmarks/comparisons

Models are taken from what `benchmarks/objectives --full` and `anydepth align` left in runs/, or made; then they are
traced and compared by commands, which are printed as they are run. What is there is used as it is: remove a folder of
runs/comparisons to have it made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import numpy as np
import torch
from commands import compared, likeness, trace_of, traced
from figures import draw
from models import MODELS, ROOT, Missing
from parts import PARTS, Part, levels
from tables import SECTIONS

from anydepth.errors import AssetError
from anydepth.storage.files import plain

RESULTS = ROOT / "benchmarks" / "results"


def summarize() -> None:
    """Write the tables and the figures."""
    versions = trace_of("minilm-plain").provenance["versions"]
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# What comparisons show",
        "",
        f"`python benchmarks/comparisons`, told in docs/comparisons.md. {told}.",
        "",
    ]
    for part in PARTS:
        lines += [f"## {part.title}", ""]
        for section in SECTIONS:
            lines += section(part)
        draw(part)
    (RESULTS / "comparisons.md").write_text("\n".join(lines).rstrip() + "\n")
    record = {"versions": versions} | {part.name: _rounded(plain(numbers(part))) for part in PARTS}
    (RESULTS / "comparisons.json").write_text(json.dumps(record, allow_nan=False) + "\n")


def numbers(part: Part) -> dict[str, Any]:
    """What the tables were made of."""
    return {
        "accuracy": {name: trace_of(name).accuracy for name in part.models},
        "differences": {
            " and ".join(pair): {
                name: {key: getattr(one, key) for key in ("value", "low_all", "high_all", "verdicts")}
                for name, one in compared(*pair).differences.items()
            }
            for pair in part.differences
        },
        "similarity": {
            " and ".join(pair): {name: vars(alike) for name, alike in likeness(*pair).items()} for pair in part.maps
        },
        "levels": {
            what: {name: alike.best_over_depths() for name, alike in by.items() if np.isfinite(alike.value).any()}
            for what, by in levels(part).items()
        },
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    try:
        for name in MODELS:
            traced(name)
        summarize()
    except (AssetError, Missing) as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

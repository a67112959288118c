"""What texts are like that small language models write at each depth: the paper's diversity, repetition and coherence.

    python benchmarks/passages.py [--models DIR ...] [--depths 1 2 4 6 8]

Prefixes of 32 tokens from held-out documents of the Brown corpus, 96 tokens after each (the models take 128; the paper
has 128 after 32), nucleus sampling with p = 0.95, the same seed at every depth; coherence by MiniLM. Beside it what the
documents themselves go on with, and, for coherence, how another document goes on. 95 % intervals by bootstrap over
prefixes. Results go to benchmarks/results/passages.md and .json. The models come from `generation.py --save`.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import processor

from anydepth.assets.registry import path
from anydepth.generation.continuations import Passages, continuing, text_metrics
from anydepth.models import loading as models
from anydepth.storage.files import plain

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
MODELS = ("runs/gpt-standard", "runs/gpt-aligned")
PREFIX, CONTINUATION = 32, 96


def measure(name: str, depths: list[int]) -> Any:
    loaded = models.load(str(ROOT / name))
    rows = (path("brown") / "test.jsonl").read_text().splitlines()
    texts = [json.loads(one)["text"] for one in rows]
    passages = Passages.of(texts, loaded.processor, prefix=PREFIX, continuation=CONTINUATION)
    return text_metrics(
        passages, continuing(loaded, passages, tokens=CONTINUATION), depths, encoder=str(path("minilm"))
    )


def page(found: dict[str, Any]) -> str:
    lines = []
    for name, metrics in found.items():
        titles = list(metrics.values)
        lines += [f"**{name}**, {metrics.count} prefixes:", "", f"| depth | {' | '.join(titles)} |"]
        lines.append("|---" * (len(titles) + 1) + "|")
        for place, row in enumerate(metrics.names):
            cells = []
            for title in titles:
                one = metrics.values[title]
                cells.append(f"{one.value[place]:.3f} ({one.low[place]:.3f}–{one.high[place]:.3f})")
            lines.append(f"| {'the documents' if row == 'text' else row} | {' | '.join(cells)} |")
        other = metrics.unrelated
        if other is not None:
            low, high = (float(end.ravel()[0]) for end in (other.low, other.high))
            lines += ["", f"Coherence of another document's continuation: {float(other.value.ravel()[0]):.3f} "
                      f"({low:.3f}–{high:.3f})."]  # fmt: skip
        lines.append("")
    lines.append(f"{processor()}; torch {version('torch')}, transformers {version('transformers')}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 4, 6, 8])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(name, chosen.depths) for name in chosen.models}
    text = page(found)
    print(text)
    (RESULTS / "passages.json").write_text(json.dumps(plain(found), indent=1) + "\n")
    (RESULTS / "passages.md").write_text(text)


if __name__ == "__main__":
    main()

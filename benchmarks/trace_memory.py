"""What memory a trace of a language model takes beside evaluating it: GPT-2 small (random weights), 4 × 256 tokens.

    python benchmarks/trace_memory.py

A process each, two batches: a plain evaluation (the model's own forward with labels, its loss and logits), and a trace
with readouts at all 13 depths, with the similarities of at most 32 positions a sample and without any. Peak resident
memory of the process, beside what the L + 1 states of a batch take. Results go to benchmarks/results/trace_memory.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import processor

RESULTS = Path(__file__).parent / "results"
BATCH, TOKENS, BATCHES = 4, 256, 2
WITHIN = 1.3
WAYS = {
    "start": "the model and the batches, nothing run",
    "plain": "plain evaluation",
    "trace": "trace, no similarity",
    "similarity": "trace, cosine and CKA of 32 positions a sample",
}


def once(way: str) -> float:
    """The peak of this process, in MB."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import anydepth as ad

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    batches = [{"input_ids": torch.randint(50_257, (BATCH, TOKENS))} for _ in range(BATCHES)]
    if way == "plain":
        with torch.no_grad():
            for batch in batches:
                output = model(**batch, labels=batch["input_ids"])
                output.logits.argmax(-1)
                output.loss.item()
    elif way != "start":
        measures = ["cosine", "cka"] if way == "similarity" else []
        with tempfile.TemporaryDirectory() as folder:
            ad.trace(model, batches, measures=measures, positions=32, tokens="each", sums=False, out=folder)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        print(once(sys.argv[2]))
        return
    found: dict[str, Any] = {}
    for way in WAYS:
        done = subprocess.run([sys.executable, __file__, "--once", way], capture_output=True, text=True, check=True)
        found[way] = float(done.stdout.splitlines()[-1])
        print(f"{WAYS[way]}: {found[way]:.0f} MB", flush=True)
    states = 13 * BATCH * TOKENS * 768 * 4 / 1e6
    allowed = WITHIN * found["plain"] + states
    lines = ["| | peak MB | beside plain evaluation |", "|---|--:|--:|"]
    lines += [f"| {WAYS[way]} | {peak:,.0f} | {peak / found['plain']:.2f} × |" for way, peak in found.items()]
    held = all(found[way] <= allowed for way in ("trace", "similarity"))
    lines += [
        "",
        f"Asked: at most {WITHIN} × plain evaluation and the {states:.0f} MB of a batch's states, {allowed:,.0f} MB: "
        f"{'held' if held else 'not held'}.",
        "",
        f"{processor()}; torch {version('torch')}, transformers {version('transformers')}.",
    ]
    print("\n".join(lines))
    (RESULTS / "trace_memory.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "trace_memory.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What memory and time a trace of a language model takes beside its plain forward and the usual lens.

    python benchmarks/trace_memory.py                       # memory at six sizes, then time
    python benchmarks/trace_memory.py --only memory --rows 512x50k --ways plain trace

Memory: GPT-2 of 4 blocks of width 256 with random weights, one batch of B texts of T tokens and a vocabulary of V, a
process for each figure. The peak of resident memory above that of the model with everything imported and warm, for a
plain forward of the batch, the trace (readouts at all 5 depths, default similarities), and the usual lens
(`output_hidden_states`, final norm, head, log-softmax at each depth).

Time: GPT-2 small (12 blocks of width 768, V = 50,257), batches of 4 x 64 tokens, in turn and in one process, CPU
seconds of a batch: the trace (from the end of one batch to the end of the next), its floor (the blocks, and the
products with the head's matrix at 13 depths, nothing else), and the usual lens. What the first batch takes above a
later one is the fixed cost of a trace, in forwards of a batch. Results go to benchmarks/results/trace_memory.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import processor

RESULTS = Path(__file__).parent / "results"
VOCABULARY = {"50k": 50_257, "152k": 151_936}
SIZES = ((512, "50k"), (2048, "50k"), (2048, "152k"))
ROWS = [f"{tokens}x{size}x{batch}" for tokens, size in SIZES for batch in (1, 8)]
WAYS = {"plain": "a plain forward", "trace": "trace", "lens": "the usual lens"}
WITHIN, PIECES = 1.3, 256


def build(width: int, blocks: int, vocabulary: int, positions: int) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": width, "n_layer": blocks, "n_head": width // 64, "n_positions": positions}
    return GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=vocabulary)).eval()


def lens(model: Any, batch: dict[str, Any]) -> None:
    """The logit lens as it is mostly written."""
    import torch

    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        for depth, state in enumerate(states):
            normed = state if depth == len(states) - 1 else model.transformer.ln_f(state)
            model.lm_head(normed).log_softmax(-1).max(-1)


def floor(model: Any, batch: dict[str, Any]) -> None:
    """Blocks and heads alone, these in pieces that run at full speed."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        state = model.transformer(**batch, use_cache=False).last_hidden_state.flatten(0, 1)
        for _ in range(len(model.transformer.h) + 1):
            for rows in state.split(333):
                functional.linear(rows, model.lm_head.weight)


def run(way: str, model: Any, batches: list[dict[str, Any]], progress: Any = None) -> None:
    import torch

    import anydepth as ad

    if way == "trace":
        ad.trace(model, batches, progress=progress)
        return
    for batch in batches:
        if way == "lens":
            lens(model, batch)
        else:
            with torch.no_grad():
                model(**batch)


def status(name: str) -> float:
    """Resident memory (VmRSS) or its peak (VmHWM), in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def peak(row: str, way: str) -> float:
    """The peak of this process above what it holds before, in MB."""
    import torch

    torch.set_num_threads(1)
    tokens, size, count = row.split("x")
    model = build(256, 4, VOCABULARY[size], int(tokens))
    run("trace", build(64, 2, 10, 8), [{"input_ids": torch.randint(10, (2, 8))}])  # everything is imported, and warm
    batch = {"input_ids": torch.randint(VOCABULARY[size], (int(count), int(tokens)))}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    run(way, model, [batch])
    return status("VmHWM") - before


def memory(rows: list[str], ways: list[str]) -> dict[str, dict[str, float | None]]:
    peaks: dict[str, dict[str, float | None]] = {}
    for row in rows:
        for way in ways:
            command = [sys.executable, __file__, "--once", row, way]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode not in (0, -9, 137):
                sys.exit(done.stderr)
            peaks.setdefault(row, {})[way] = None if done.returncode else float(done.stdout.splitlines()[-1])
            print(f"{row} {way}: {peaks[row][way]} MB", flush=True)
    return peaks


def times(repeats: int) -> dict[str, list[float]]:
    """CPU seconds of a batch by each way, and the fixed cost of a trace in forwards."""
    import torch

    torch.set_num_threads(1)
    model = build(768, 12, VOCABULARY["50k"], 1024)
    batches = [{"input_ids": torch.randint(VOCABULARY["50k"], (4, 64))} for _ in range(2)]
    seconds: dict[str, list[float]] = {way: [] for way in ("plain", "floor", "trace", "lens", "first")}

    def timed(way: str, work: Any) -> None:
        start = time.process_time()
        work()
        seconds[way].append(time.process_time() - start)

    run("plain", model, batches)
    floor(model, batches[0])
    ends: list[float] = []
    for _ in range(repeats):
        ends.clear()
        timed("floor", lambda: floor(model, batches[0]))
        start = time.process_time()
        run("trace", model, batches, lambda done, total, what: ends.append(time.process_time()))
        seconds["first"].append(ends[0] - start)
        seconds["trace"].append(ends[1] - ends[0])
        timed("lens", lambda: lens(model, batches[0]))
        timed("plain", lambda: run("plain", model, batches[:1]))
        print({way: round(values[-1], 2) for way, values in seconds.items()}, flush=True)
    return seconds


def memory_table(peaks: dict[str, dict[str, float | None]]) -> list[str]:
    lines = [
        "| T | V | B | plain forward, MB | trace | the usual lens | allowed | |",
        "|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row, found in peaks.items():
        plain, traced, usual = (found.get(way) for way in WAYS)
        allowed = None if plain is None else WITHIN * plain + PIECES
        held = "" if traced is None or allowed is None else "held" if traced <= allowed else "not held"
        figures = ["–" if value is None else f"{value:,.0f}" for value in (plain, traced, usual, allowed)]
        lines.append(f"| {' | '.join([*row.split('x'), *figures, held])} |")
    return lines


def time_table(seconds: dict[str, list[float]]) -> list[str]:
    def ratio(way: str, other: str) -> str:
        return f"{statistics.median(a / b for a, b in zip(seconds[way], seconds[other], strict=True)):.2f} ×"

    medians = {way: statistics.median(values) for way, values in seconds.items()}
    fixed = [(a - b) / c for a, b, c in zip(seconds["first"], seconds["trace"], seconds["plain"], strict=True)]
    return [
        "| a batch | CPU s, median | beside the floor | beside the usual lens |",
        "|---|--:|--:|--:|",
        *(
            f"| {name} | {medians[way]:.2f} | {ratio(way, 'floor')} | {ratio(way, 'lens')} |"
            for way, name in (("floor", "blocks and 13 heads alone"), ("trace", "trace"), ("lens", "the usual lens"))
        ),
        "",
        f"What the first batch of a trace takes more: {statistics.median(fixed):.2f} forwards of a batch.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("memory", "time"))
    parser.add_argument("--rows", nargs="*", default=ROWS, help="TxVxB, as 512x50kx1")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(peak(*chosen.once))
        return
    results: dict[str, Any] = {}
    file = RESULTS / "trace_memory.json"
    if chosen.only and file.exists():
        results = json.loads(file.read_text())  # the other half as it was measured before
    if chosen.only != "time":
        results["memory"] = memory(chosen.rows, chosen.ways)
    if chosen.only != "memory":
        results["time"] = times(chosen.repeats)
    lines = [
        *(memory_table(results["memory"]) if "memory" in results else []),
        "",
        f"MB above the model's own. Allowed: {WITHIN} × a plain forward, and {PIECES} MB of pieces.",
        "",
        *(time_table(results["time"]) if "time" in results else []),
        "",
        f"{processor()}; torch {version('torch')}, transformers {version('transformers')}.",
    ]
    print("\n".join(lines))
    (RESULTS / "trace_memory.md").write_text("\n".join(lines) + "\n")
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

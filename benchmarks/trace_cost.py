"""What a full trace costs beside the bare forward pass: DINOv2-S with a head, on Fashion-MNIST at 98 pixels.

    python benchmarks/trace_cost.py [MODEL_FOLDER] [--samples 1000] [--repeats 3]

Both are run on the same batches, made once and kept in memory, in turn and in one process each; CPU seconds, medians.
The trace is what the command line does by default with cosine, debiased CKA and the readout statistics, from the first
batch to the saved folder with its report.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from anydepth.assets.registry import path
from anydepth.errors import AssetError

RESULTS = Path(__file__).parent / "results"
WAYS = ("forward", "trace", "trace without report")


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def once(way: str, model: str, samples: int) -> None:
    """One measurement, in this process; prints the CPU seconds and what they were spent on as JSON."""
    import torch

    import anydepth as ad
    from anydepth import data
    from anydepth.models import loading as models

    torch.set_num_threads(1)
    loaded = models.load(model, device="cpu")
    rows = data.load(str(path("fashion-mnist")), limit=samples)
    batches = list(data.batches(rows, loaded, batch_size=32))
    inputs = [{"pixel_values": batch["pixel_values"]} for batch in batches]
    with torch.no_grad():
        loaded.model(**inputs[0])  # what is set up on the first call is nobody's cost
    start = cpu_seconds()
    if way == "forward":
        with torch.no_grad():
            for batch in inputs:
                loaded.model(**batch)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = ad.trace(loaded.model, batches, measures=("cosine", "cka"), out=None)
            if way == "trace":
                found.save(folder)
    print(json.dumps({"cpu_seconds": cpu_seconds() - start}))


def measure(way: str, model: str, samples: int) -> float:
    command = [sys.executable, __file__, model, "--samples", str(samples), "--once", way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return float(found["cpu_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="runs/dinov2s-fashion", help="what examples/train_head.py wrote")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        once(chosen.once, chosen.model, chosen.samples)
        return
    try:
        path("fashion-mnist")
    except AssetError as missing:
        print(f"skipped: {missing}")
        return
    if not (Path(chosen.model) / "config.json").exists():
        print(f"skipped: no model in {chosen.model}; python examples/train_head.py --out {chosen.model}")
        return
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(chosen.repeats):  # in turn, so that a machine that slows down slows all of them
        for way in WAYS:
            runs[way].append(measure(way, chosen.model, chosen.samples))
            print(f"{way}: {runs[way][-1]:.1f} CPU s", flush=True)
    medians = {way: statistics.median(found) for way, found in runs.items()}
    lines = [
        "| | CPU s, median | beside the forward pass |",
        "|---|---|---|",
        *(f"| {way} | {medians[way]:.1f} | {medians[way] / medians['forward']:.3f} |" for way in WAYS),
    ]
    RESULTS.mkdir(exist_ok=True)
    record = {"samples": chosen.samples, "processor": platform.processor(), "runs": runs}
    (RESULTS / "trace_cost.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "trace_cost.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""What `import anydepth` adds to `import torch`: CPU seconds of fresh processes, in turn, medians.

python benchmarks/import_time.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WAYS = {"import torch": "import torch", "import torch, anydepth": "import torch, anydepth"}


def cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    for code in WAYS.values():
        cpu_seconds(code)  # the first run reads the files from disk
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, code in WAYS.items():
            runs[way].append(cpu_seconds(code))
    medians = {way: statistics.median(found) for way, found in runs.items()}
    alone, with_anydepth = medians.values()
    lines = ["| | CPU s, median |", "|---|---|", *(f"| {way} | {seconds:.2f} |" for way, seconds in medians.items())]
    lines.append(f"| what anydepth adds | {with_anydepth - alone:.3f} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "import_time.json").write_text(json.dumps(runs, indent=1) + "\n")
    (RESULTS / "import_time.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

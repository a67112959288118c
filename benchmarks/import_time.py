"""What `import anydepth` adds to `import torch`, and what the help adds to `python -c pass`: CPU seconds, medians.

Fresh processes, in turn, so that all are measured while the machine is as busy.

python benchmarks/import_time.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "python -c pass": ["-c", "pass"],
    "import rich, cyclopts": ["-c", "import rich.console, rich.table, rich.panel, cyclopts"],
    "anydepth --help": ["-m", "anydepth", "--help"],
    "anydepth trace --help": ["-m", "anydepth", "trace", "--help"],
    "import torch": ["-c", "import torch"],
    "import torch, anydepth": ["-c", "import torch, anydepth"],
}
# what the first takes beside the second
DIFFERENCES = {
    "anydepth --help": "python -c pass",
    "anydepth trace --help": "python -c pass",
    "import rich, cyclopts": "python -c pass",
    "import torch, anydepth": "import torch",
}


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    for arguments in WAYS.values():
        cpu_seconds(arguments)  # the first run reads the files from disk
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, arguments in WAYS.items():
            runs[way].append(cpu_seconds(arguments))
    medians = {way: statistics.median(seconds) for way, seconds in runs.items()}
    lines = ["| | CPU s, median | beside | more |", "|---|---|---|---|"]
    for way, seconds in medians.items():
        beside = DIFFERENCES.get(way, "")
        more = f"{seconds - medians[beside]:.3f}" if beside else ""
        lines.append(f"| {way} | {seconds:.3f} | {beside} | {more} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "import_time.json").write_text(json.dumps(runs, indent=1) + "\n")
    (RESULTS / "import_time.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

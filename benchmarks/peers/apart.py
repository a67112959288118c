"""A measurement in a process of its own: CPU seconds, and memory above what was held before."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

INSTALL = "pip install --target .cache/peers --no-deps -r benchmarks/peers.txt"
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}

T = TypeVar("T")


@dataclass(frozen=True)
class Cost(Generic[T]):
    """What came out, and what it took.

    Attributes:
        value: what was computed.
        cpu_seconds: of user and system together.
        megabytes: the most that the process held from before its preparation on, above what it held then.
    """

    value: T
    cpu_seconds: float
    megabytes: float


def cost(prepare: Callable[[], Callable[[], T]]) -> Cost[T]:
    """The cost of what `prepare` gives; its own time is nobody's, its memory counts."""
    before = held_megabytes()
    run = prepare()
    start = cpu_seconds()
    value = run()
    return Cost(value, cpu_seconds() - start, peak_megabytes() - before)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_megabytes() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage would begin with the peak of the process that started this one
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def held_megabytes() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def in_a_process(script: str, arguments: Sequence[str], peers: Path) -> dict[str, Any]:
    """What `script` prints on its last line, as JSON; or {"failed": the last line of its error}."""
    # Our environment goes first: the peers are to run on the same torch and numpy.
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(peers.resolve())) if path]
    done = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def missing(module: str | None, peers: Path) -> str | None:
    """Why a peer cannot be measured here: it is neither among the peers nor in the environment."""
    if module is None or (peers / module).is_dir() or importlib.util.find_spec(module) is not None:
        return None
    return f"not installed: `{INSTALL}`"


def too_large(needed: float, what: str) -> str | None:
    """Why something of so many bytes cannot be measured here."""
    import psutil

    free = psutil.virtual_memory().available
    return f"not run: {what} take {needed / 1e9:.0f} GB" if needed > 0.6 * free else None

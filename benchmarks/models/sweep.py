"""Which models anydepth is exact for: every class of transformers and a model of each timm family, built tiny.

    python benchmarks/models/sweep.py                        # all, in about 20 minutes of one core
    python benchmarks/models/sweep.py --only 'Bert|Llama'    # some, by a pattern of their names
    python benchmarks/models/sweep.py --library timm --kind 'timm'
    python benchmarks/models/sweep.py --again 'wrong|crash'  # those that came out so, once more
    python benchmarks/models/sweep.py --table                # print what is there

Each model is checked against a slow reference in a process that checks many, under a time limit; findings are appended
to a file as they come, and a run that was stopped goes on from it. `--fresh` starts over.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "results" / "sweep.json"
CHUNK = 250
HARD_LIMIT = 90.0
STARTED = "started"


def main() -> None:
    chosen = _arguments()
    log = chosen.out.with_suffix(".jsonl")
    if chosen.chunk is not None:
        check_chunk(chosen.chunk, log)
        return
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    cases = [case for case in _cases(chosen)]
    if not chosen.table:
        if chosen.fresh or chosen.again:
            forget(log, {case.key for case in cases}, chosen.again or "")
        _run(cases, log)
        write(cases, log, chosen.out, merge=bool(chosen.only or chosen.library or chosen.kind))
    from sweep_table import report

    keys = {case.key for case in cases}
    findings = [f for f in json.loads(chosen.out.read_text("utf-8"))["models"] if f"{f['library']}/{f['name']}" in keys]
    text = report(findings)
    print(text)
    if not (chosen.only or chosen.library or chosen.kind):
        chosen.out.with_suffix(".txt").write_text(text, "utf-8")
    if chosen.page is not None:
        from sweep_page import page

        chosen.page.write_text(page(json.loads(chosen.out.read_text("utf-8"))), "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="a pattern of the names to check")
    parser.add_argument("--library", help="transformers, timm, torch, torchvision, open_clip, ...")
    parser.add_argument("--kind", help="a pattern of the kinds to check, such as 'causal LM'")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--fresh", action="store_true", help="check again what was checked before")
    parser.add_argument("--again", help="a pattern of the categories to check again, such as 'wrong|crash|refused'")
    parser.add_argument("--table", action="store_true", help="print what is there, check nothing")
    parser.add_argument("--page", type=Path, help="where to write the page for users, such as docs/models.md")
    parser.add_argument("--chunk", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _cases(chosen: argparse.Namespace) -> list[Any]:
    from all_cases import all_cases

    return [
        case
        for case in all_cases()
        if (not chosen.only or re.search(chosen.only, case.name))
        and (not chosen.library or case.library == chosen.library)
        and (not chosen.kind or re.search(chosen.kind, case.kind))
    ]


def _run(cases: list[Any], log: Path) -> None:
    """Check in processes of `CHUNK` models each; what takes its process with it is a crash."""
    from sweep_verdicts import crashed

    while True:
        done = read(log)
        remaining = [case for case in cases if case.key not in done]
        if not remaining:
            return
        work = log.with_suffix(".chunk")
        work.write_text(json.dumps([case.key for case in remaining[:CHUNK]]), "utf-8")
        command = [sys.executable, str(HERE / "sweep.py"), "--chunk", str(work), "--out", str(log.with_suffix(".json"))]
        status = _watched(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}), log)
        work.unlink()
        if status < 0 or status not in (0, 130):
            begun = [key for key, finding in read(log, started=True).items() if finding == STARTED]
            for case in cases:
                if case.key in begun:
                    append(log, case.key, crashed(case, f"its process ended with status {status}").as_json())
            if not begun:
                raise SystemExit(f"a chunk ended with status {status} before its first model")
        elif status:
            raise SystemExit(status)


def _watched(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for a chunk; kill it where one model takes `HARD_LIMIT` CPU seconds: some calls cannot be interrupted."""
    import psutil

    usage, size, since = psutil.Process(process.pid), -1, 0.0
    while process.poll() is None:
        time.sleep(1.0)
        now = log.stat().st_size if log.exists() else 0
        try:
            seconds = usage.cpu_times().user + usage.cpu_times().system
        except psutil.NoSuchProcess:
            break
        if now != size:
            size, since = now, seconds
        if seconds - since > HARD_LIMIT:
            process.kill()
    return process.wait()


def check_chunk(work: Path, log: Path) -> None:
    """Check the models of one chunk in this process."""
    import gc
    import logging
    import warnings

    import torch
    import transformers
    from all_cases import all_cases
    from sweep_verdicts import judge, problem_of

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    keys = set(json.loads(work.read_text("utf-8")))
    for case in all_cases():
        if case.key in keys:
            append(log, case.key, STARTED)
            try:
                finding = judge(case)
            except Exception as error:  # of the sweep itself: it is listed, and the others go on
                finding = problem_of(case, error)
            append(log, case.key, finding.as_json())
            print(f"{case.key}: {finding.category} ({finding.seconds} s) {finding.reason[:150]}", flush=True)
            gc.collect()


def append(log: Path, key: str, finding: Any) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "finding": finding}) + "\n")


def read(log: Path, *, started: bool = False) -> dict[str, Any]:
    """The last entry of each model; with `started`, also of those that were begun and not finished."""
    if not log.exists():
        return {}
    entries = (json.loads(line) for line in log.read_text("utf-8").splitlines() if line.endswith("}"))
    last = {entry["key"]: entry["finding"] for entry in entries}
    return {key: finding for key, finding in last.items() if started or finding != STARTED}


def forget(log: Path, keys: set[str], categories: str) -> None:
    """Remove the findings on some models, of categories that fit a pattern."""
    kept = {
        key: finding
        for key, finding in read(log).items()
        if key not in keys or not re.search(categories, finding["category"])
    }
    log.unlink(missing_ok=True)
    for key, finding in kept.items():
        append(log, key, finding)


def write(cases: list[Any], log: Path, out: Path, *, merge: bool) -> None:
    """Write the findings; with `merge`, beside those that are there of other models."""
    from anydepth.core.provenance import versions

    done = read(log)
    before = json.loads(out.read_text("utf-8")) if merge and out.exists() else {"listed": len(cases), "models": []}
    models = {f"{finding['library']}/{finding['name']}": finding for finding in before["models"]}
    models |= {case.key: done[case.key] for case in cases if case.key in done}
    listed = max(before["listed"], len(models))
    record = {"versions": versions(), "listed": listed, "models": list(models.values())}
    out.write_text(json.dumps(record, indent=0) + "\n", "utf-8")


if __name__ == "__main__":
    main()

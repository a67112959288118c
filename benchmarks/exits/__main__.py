"""What early exit saves, with which promise: three tasks, three objectives; and whether the promise is kept.

    OMP_NUM_THREADS=1 python benchmarks/exits                look, calibrate, draw (what was looked at is kept)
    OMP_NUM_THREADS=1 python benchmarks/exits --rivals       train the rivals without exits: 2, 4, 6 blocks
    OMP_NUM_THREADS=1 python benchmarks/exits --guarantee    1,000 calibrations simulated on what real models show

The models are those of `benchmarks/objectives --full`, seed 0, and DINOv2-S trained by `anydepth align` (docs/exit.md
has the lines). Every sample was held out from training. Time is wall time of the plain model and of early exit in
turn, on the same batches, medians; one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import models
import numpy as np
from guarantee import CONFIDENCE, SIZES, TOLERANCES, just_above, simulate
from machine import processor
from models import OBJECTIVES, SHALLOW, TITLES, WORK, Missing, Subject, subject

from anydepth import Confidence, EarlyExit
from anydepth.early_exit.curve import ExitCurve, curve_of, relative_time
from anydepth.exits.calibration import parted
from anydepth.exits.costs import measure_costs
from anydepth.exits.exit_scores import PolicyInputs
from anydepth.storage.files import write_json

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE.parents[1] / "docs" / "figures"
TOLERANCE = 0.01
TIMED = 4
SEEDS = (0, 1, 2)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def looked_at(name: str, one: Subject) -> PolicyInputs:
    """What a model shows of its samples; kept, since it is what takes long."""
    file = WORK / f"{name}.npz"
    if file.exists():
        with np.load(file) as kept:
            return PolicyInputs(
                depths=tuple(kept["depths"].tolist()),
                seen=kept["seen"],
                predictions=kept["predictions"],
                labels=kept["labels"],
            )
    found = EarlyExit(one.stack, Confidence(0.5)).look(one.batches, labels=True, out=WORK / name)
    np.savez(file, depths=found.depths, seen=found.seen, predictions=found.predictions, labels=found.labels)
    return found


def table_row(task: str, objective: str) -> dict[str, Any]:
    """Calibrate one model, against the full model and against the labels, and see what it does on the third part."""
    one = subject(task, objective)
    looked = looked_at(f"{task}-{objective}", one)
    count = len(one.batches)
    spread = set(np.linspace(0, count - 1, TIMED).round().astype(int).tolist())
    timed = [batch for index, batch in enumerate(one.batches) if index in spread]
    costs = measure_costs(one.stack, timed[0])
    found: dict[str, Any] = {"task": task, "objective": objective, "samples": len(looked), "last": one.stack.depth}
    found["readout_in_blocks"] = costs.readout_in_blocks
    for against in ("model", "labels"):
        exits = EarlyExit(one.stack, Confidence(0.5)).calibrate(
            looked, tolerance=TOLERANCE, confidence=CONFIDENCE, against=against, costs=costs
        )
        calibration = exits.calibration
        assert calibration is not None
        row: dict[str, Any] = {"calibration": asdict(calibration), "policy": repr(exits.policy)}
        drawn = exits if calibration.level is not None else EarlyExit(one.stack, Confidence(0.5))
        shown = parted(looked, 0)[2].under(drawn.policy)
        level = np.inf if calibration.level is None else calibration.level
        depth, answers = shown.depth_of(level), shown.answers(level)
        row |= {
            "depth": float(depth.mean()),
            "accuracy": float((answers == shown.labels).mean()),
            "full_accuracy": float((shown.predictions[:, -1] == shown.labels).mean()),
            "agreement": float((answers == shown.predictions[:, -1]).mean()),
            "predicted": costs.share(depth, exits.tested),
            "measured": relative_time(exits, timed) if calibration.level is not None else 1.0,
        }
        found[against] = row
    plain = EarlyExit(one.stack, Confidence(0.5))
    shown = parted(looked, 0)[2].under(plain.policy)
    found["curve"] = curve_of(plain, shown, timed, costs=costs, timed=4).as_plain()
    say(f"{task} {objective}: mean depth {found['model']['depth']:.2f}, time {found['model']['measured']:.2f}")
    return found


def rivals() -> None:
    file = RESULTS / "rivals.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for seed, depth in product(SEEDS, SHALLOW):
        name = f"{depth} blocks, seed {seed}"
        if name not in known:
            known[name] = models.shallow(depth, seed, lambda text, name=name: say(f"{name}: {text}"))
            write_json(file, known)
            say(f"{name}: accuracy {known[name]:.4f}")


def guarantee(draws: int) -> None:
    """Real logits of every model that was looked at, and one policy just above the tolerance."""
    file = RESULTS / "guarantee.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"confidence": CONFIDENCE}
    for task, objective in (("vit", "aligned"), ("minilm", "aligned"), ("dinov2-s", "aligned"), ("vit", "standard")):
        if f"{task} {objective}" in found:
            continue
        pool = looked_at(f"{task}-{objective}", subject(task, objective))
        rows = []
        for tolerance, size in product(TOLERANCES, SIZES):
            rows.append(simulate(pool, Confidence(0.5), size=size, tolerance=tolerance, draws=draws, seed=size))
            say(f"{task} {objective}: {rows[-1]}")
        wrong = [
            just_above(pool, Confidence(0.5), size=size, tolerance=tolerance, draws=draws, seed=size)
            for tolerance, size in ((0.01, 1_000), (0.05, 250), (0.05, 5_000))
        ]
        found[f"{task} {objective}"] = {"calibrations": rows, "just_above": wrong}
        write_json(file, found)
    print("\n".join(guarantee_page(found)))
    (RESULTS / "guarantee.md").write_text("\n".join(guarantee_page(found)) + "\n")


def guarantee_page(found: dict[str, Any]) -> list[str]:
    from scipy.stats import binomtest

    lines = [
        "| model | tolerance | samples | calibrations | violations | p (more than 5 %) | of the oracle's saving |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    above = [
        "| model | tolerance | samples | true share | certified | p (more than 5 %) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, one in found.items():
        if name == "confidence":
            continue
        for row in one["calibrations"]:
            shown = f"| {name} | {row['tolerance']:.0%} | {row['size']:,} |"
            if not row["draws"]:
                lines.append(f"{shown} – | – | – | too few to certify anything |")
                continue
            p = binomtest(int(row["broken"]), int(row["draws"]), 0.05, alternative="greater").pvalue
            lines.append(f"{shown} {row['draws']:,} | {row['broken']:,} | {p:.2g} | {row['kept']:.0%} |")
        for row in one["just_above"]:
            p = binomtest(int(row["certified"]), int(row["draws"]), 0.05, alternative="greater").pvalue
            above.append(
                f"| {name} | {row['tolerance']:.0%} | {row['size']:,} | {row['truth']:.2%} | "
                f"{row['certified']:,} of {row['draws']:,} | {p:.2g} |"
            )
    return [*lines, "", "A level that fails just too often, tested by itself:", "", *above]


def table(rows: list[dict[str, Any]], against: str) -> list[str]:
    lines = [
        "| task | objective | certificate | mean depth | accuracy, full → exit | speed-up | predicted | blocks |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        one = row[against]
        certificate = one["calibration"]["certificate"]
        told = "nothing certified"
        if certificate:
            told = f"{certificate['failures']:,} of {certificate['samples']:,} failed, p = {certificate['p_value']:.2g}"
        times = [f"{1 / one['measured']:.2f} ×", f"{1 / one['predicted']:.2f} ×", f"{row['last'] / one['depth']:.2f} ×"]
        lines.append(
            f"| {TITLES[row['task']]} | {row['objective']} | {told} | {one['depth']:.2f} of {row['last']} | "
            f"{one['full_accuracy']:.3f} → {one['accuracy']:.3f} | {' | '.join(times)} |"
        )
    return lines


def figure(rows: list[dict[str, Any]]) -> None:
    """The curves of each task side by side; with the ViT, the rivals that never had more blocks."""
    import altair as alt

    from anydepth.report import theme
    from anydepth.report.charts.files import save
    from anydepth.report.pages import exits as charts
    from anydepth.stats.intervals import t_interval

    panels = []
    for task in dict.fromkeys(row["task"] for row in rows):
        curves = {row["objective"]: ExitCurve.from_plain(row["curve"]) for row in rows if row["task"] == task}
        others = []
        file = RESULTS / "rivals.json"
        if task == "vit" and file.exists():
            known = json.loads(file.read_text())
            for depth in SHALLOW:
                values = np.array([value for name, value in known.items() if name.startswith(f"{depth} blocks")])
                low, high = t_interval(values[:, None])[:, 0]
                quality, (low, high) = float(values.mean()), (float(low), float(high))
                others.append(charts.Rival(name="trained shallow", depth=depth, quality=quality, low=low, high=high))
        for against in ("depth", "time"):
            chart = charts.tradeoff(curves, against, rivals=others if against == "depth" else ())
            panels.append(chart.properties(width=330, height=240, title=f"{TITLES[task]}: against {against}"))
    whole = alt.concat(*panels, columns=2, spacing=36).resolve_scale(color="shared")
    whole.config = theme.config()
    for kind in ("png", "svg"):
        save(whole, FIGURES / f"exits.{kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--guarantee", action="store_true")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--tasks", nargs="+", choices=TITLES, default=list(TITLES))
    chosen = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        if chosen.rivals:
            rivals()
        elif chosen.guarantee:
            guarantee(chosen.draws)
        else:
            run(chosen.tasks)
    except Missing as missing:
        raise SystemExit(f"skipped: {missing}") from None


def run(tasks: list[str]) -> None:
    file = RESULTS / "exits.json"
    known = {
        (row["task"], row["objective"]): row for row in (json.loads(file.read_text())["rows"] if file.exists() else [])
    }
    for task, objective in product(tasks, OBJECTIVES):
        known[task, objective] = table_row(task, objective)
        rows = [known[key] for key in product(TITLES, OBJECTIVES) if key in known]
        machine = f"{processor()}, one thread; torch {version('torch')}, transformers {version('transformers')}"
        write_json(file, {"machine": machine, "rows": rows})
    page = [f"Tolerance {TOLERANCE:.0%} at {CONFIDENCE:.0%}, batches of {models.BATCH}.", ""]
    for against, title in (
        ("model", "A failure is another answer than the full model's:"),
        ("labels", "A failure is wrong where the full model is right:"),
    ):
        page += [title, "", *table(rows, against), ""]
    areas = ["| task | " + " | ".join(OBJECTIVES) + " |", "|---|" + "--:|" * len(OBJECTIVES)]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = {row["objective"]: ExitCurve.from_plain(row["curve"]).area for row in rows if row["task"] == task}
        areas.append(f"| {TITLES[task]} | " + " | ".join(f"{own[one]:.3f}" for one in OBJECTIVES if one in own) + " |")
    page += ["Area under accuracy against mean depth (mean accuracy over all depths):", "", *areas, "", f"{machine}."]
    (RESULTS / "exits.md").write_text("\n".join(page) + "\n")
    print("\n".join(page))
    figure(rows)


if __name__ == "__main__":
    main()

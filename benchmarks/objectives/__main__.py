"""What each objective gives at every depth, and what it costs at the last: four tasks, trained from the same seeds.

    python benchmarks/objectives --screen           every objective, small, one seed, judged on validation data
    python benchmarks/objectives --full             the references and the candidates, three seeds, judged on test data
    python benchmarks/objectives --state            what is finished, and how far the rest is
    python benchmarks/objectives --summary          tables (results/summary.md) and the figure, from what is finished

A finished run is skipped, one that was interrupted goes on from its checkpoint, and several processes share the work:
each run is locked by whoever trains it. Sizes and settings are in settings.py.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import settings
from settings import TASKS, Stage
from training import Run, Training, steps_done

from anydepth.errors import AssetError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORK = HERE.parents[1] / "runs" / "objectives"


def wanted(stage: Stage, tasks: list[str], objectives: list[str] | None, seeds: list[int] | None) -> list[Run]:
    """The runs of a stage, ordered so that whole comparisons of one seed come first."""
    if objectives is None:
        from anydepth.training.objectives import OBJECTIVES

        objectives = list(OBJECTIVES) if stage == "screen" else [*settings.REFERENCES, *settings.CANDIDATES]
    return [
        Run(stage, task, objective, seed)
        for seed in (seeds or settings.SEEDS[stage])
        for task in tasks
        for objective in objectives
    ]


def is_finished(run: Run) -> bool:
    return (RESULTS / f"{run.name}.json").exists()


@contextmanager
def locked(run: Run, *, wait: bool) -> Iterator[bool]:
    """Whether this process, and no other, has the run; the system lets go of it when the process ends."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / f"{run.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def say(run: Run, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {run.name}: {text}", flush=True)


def trained(run: Run) -> Training:
    """The run's training, brought to its end; its base's first, where that is missing."""
    if run.base is not None:
        with locked(run.base, wait=True):
            trained(run.base)
    training = Training(run, WORK)
    if training.progress.step < training.steps:
        say(run, f"from step {training.progress.step} of {training.steps}")
        training.finish(partial(say, run))
    return training


def execute(run: Run) -> None:
    from measuring import measure, write

    result, units = measure(trained(run))
    write(result, units, RESULTS, run.name)
    last = result["accuracy" if TASKS[run.task].score == "accuracy" else "cross_entropy"]
    spent = result["cpu_seconds"]
    say(run, f"{last[0]:.4f} ... {last[-1]:.4f}, {spent['training']:.0f} + {spent['evaluation']:.0f} CPU s")


def work_off(runs: list[Run]) -> None:
    """Execute what nobody has finished and nobody else is at, in order."""
    for run in runs:
        if is_finished(run):
            continue
        with locked(run, wait=False) as mine:
            if mine and not is_finished(run):
                execute(run)


def show_state(runs: list[Run]) -> None:
    from tasks import groups_of

    for run in runs:
        if is_finished(run):
            print(f"{run.name}: finished")
        elif done := steps_done(run, WORK):
            print(f"{run.name}: {done} of {len(groups_of(run.task, run.stage, run.seed))} steps at the last checkpoint")
        else:
            print(f"{run.name}: not begun")


def one_quiet_thread() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verb = parser.add_mutually_exclusive_group(required=True)
    for name in ("screen", "full", "state", "summary"):
        verb.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--objectives", nargs="+", help="(default: all, or the references and candidates)")
    parser.add_argument("--seeds", nargs="+", type=int)
    chosen = parser.parse_args()
    if chosen.summary:
        from summary import summarize

        summarize(RESULTS, HERE.parents[1] / "docs" / "figures")
        return 0
    stages: tuple[Stage, ...] = ("screen", "full") if chosen.state else ("screen",) if chosen.screen else ("full",)
    runs = [run for stage in stages for run in wanted(stage, chosen.tasks, chosen.objectives, chosen.seeds)]
    if chosen.state:
        show_state(runs)
        return 0
    one_quiet_thread()
    try:
        work_off(runs)
    except AssetError as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The commands: each takes the settings of its job and of the call, runs the job, and prints its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anydepth.cli import terminal
from anydepth.cli.command import Call
from anydepth.cli.default_folder import default_folder
from anydepth.jobs.options import Option
from anydepth.jobs.settings import (
    AlignSettings,
    CalibrateSettings,
    CompareSettings,
    DemoSettings,
    ExportSettings,
    GenerateSettings,
    PredictSettings,
    TraceSettings,
    TruncateSettings,
)


@dataclass(frozen=True, kw_only=True)
class FolderCall(Call):
    """A call of a command that writes a folder."""

    out: Annotated[Path | None, "Output folder; default in runs/, named after the inputs.", Option(metavar="DIR")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class TraceCall(FolderCall):
    """A call of `anydepth trace`."""

    restart: Annotated[bool, "Start over instead of resuming an interrupted trace."] = False
    list_measures: Annotated[bool, "Show the measures of similarity and exit."] = False

    def answered(self) -> bool:
        """Show the measures, if that is asked for."""
        if self.list_measures:
            from anydepth.measures.similarity import MEASURES

            _print_list("measure", {name: measure.about for name, measure in MEASURES.items()})
        return self.list_measures


@dataclass(frozen=True, kw_only=True)
class AlignCall(FolderCall):
    """A call of `anydepth align`."""

    resume: Annotated[bool, "Go on with the newest checkpoint in DIR, if there is one."] = False
    restart: Annotated[bool, "Train anew in the place of what is in DIR."] = False
    keep_checkpoints: Annotated[bool, "Leave them when the model is finished."] = False
    list_objectives: Annotated[bool, "Show the objectives and exit."] = False

    def answered(self) -> bool:
        """Show the objectives, if that is asked for."""
        if self.list_objectives:
            from anydepth.training.objectives import OBJECTIVES

            _print_list("objective", {name: objective.purpose for name, objective in OBJECTIVES.items()})
        return self.list_objectives


@dataclass(frozen=True, kw_only=True)
class DemoCall(Call):
    """A call of `anydepth demo`."""

    out: Annotated[Path, "Output folder.", Option(metavar="DIR")] = Path("runs/demo")


@dataclass(frozen=True, kw_only=True)
class GenerateCall(Call):
    """A call of `anydepth generate`."""

    stats: Annotated[bool, "Print statistics: time, blocks, accepted drafts."] = False


def _print_list(head: str, purposes: dict[str, str]) -> None:
    """Print names, and what each is for."""
    from anydepth.cli.render import print_table
    from anydepth.results.tables import Column, Table

    names = Column(head=head, cells=tuple(purposes), kind="text")
    about = Column(head="what it is for", cells=tuple(purposes.values()), kind="sentence")
    print_table(Table(title="", columns=(names, about)))


def trace(settings: TraceSettings, call: TraceCall) -> None:
    """Trace MODEL on DATA: similarity between depths, and the accuracy of the model's own readout at each."""
    from anydepth.cli.render import show_trace
    from anydepth.distributed import leave, rank_and_count
    from anydepth.jobs.trace import trace as run_trace

    out = call.out or default_folder(settings.model, settings.data)
    with terminal.bars(enabled=not call.json, lines=settings.keep_states) as progress:
        result = run_trace(**vars(settings), out=out, resume=not call.restart, progress=progress)
    if rank_and_count()[0] == 0:
        show_trace(result, out, as_json=call.json)
    leave()


def align(settings: AlignSettings, call: AlignCall) -> None:
    """Train MODEL on DATA so that its classifier works at every depth; the result is a plain model."""
    from anydepth.cli.render import show_aligned
    from anydepth.distributed import check_launcher, leave, rank_and_count
    from anydepth.jobs.align import align as run_align

    check_launcher()
    with terminal.bars(enabled=not call.json, lines=True) as progress:
        summary = run_align(
            **vars(settings),
            out=call.out or default_folder(settings.model, settings.data, suffix=f"-{settings.objective}"),
            resume=call.resume,
            restart=call.restart,
            keep_checkpoints=call.keep_checkpoints,
            progress=progress,
            say=terminal.say,
        )
    if rank_and_count()[0] == 0:
        show_aligned(summary, as_json=call.json)
    leave()


def compare(settings: CompareSettings, call: FolderCall) -> None:
    """Compare traces of the same data: what differs by depth, and which depths of two models are alike."""
    from anydepth.cli.render import show_compared
    from anydepth.jobs.compare import compare as run_compare

    out = call.out or default_folder(*settings.traces, suffix="-compare")
    with terminal.bars(enabled=not call.json) as progress:
        traces, others = settings.traces, {**vars(settings)}
        del others["traces"]
        result = run_compare(*traces, **others, out=out, progress=progress)
    show_compared(result, out, as_json=call.json)


def exit_early(settings: CalibrateSettings, call: FolderCall) -> None:
    """Calibrate MODEL on DATA to stop early with a guarantee; DIR then holds the model, its policy and a report."""
    from anydepth.cli.render import show_calibrated
    from anydepth.jobs.calibrate import calibrate as run_calibrate
    from anydepth.jobs.calibrate_lm import LmCalibrateResult

    out = call.out or default_folder(settings.model, settings.data, suffix="-exit")
    with terminal.bars(enabled=not call.json) as progress:
        result = run_calibrate(**vars(settings), out=out, progress=progress)
    if not isinstance(result, LmCalibrateResult) and {"prompt_tokens", "new_tokens", "share"} & settings.changed():
        terminal.say("anydepth: --prompt-tokens, --new-tokens and --share had no effect: the model generates no text")
    show_calibrated(result, out, as_json=call.json)


def predict(settings: PredictSettings, call: FolderCall) -> None:
    """Predict DATA with the calibrated model in DIR; predictions.csv has the exit depth of each sample."""
    from anydepth.cli.render import show_predicted
    from anydepth.jobs.predict import predict as run_predict

    out = call.out or default_folder(settings.model, settings.data, suffix="-predictions")
    with terminal.bars(enabled=not call.json) as progress:
        result = run_predict(**vars(settings), out=out, progress=progress)
    show_predicted(result, out, as_json=call.json)


def generate(settings: GenerateSettings, call: GenerateCall) -> None:
    """Continue a prompt with the language model MODEL: at a depth, with drafts of its own, or with early exit."""
    from anydepth.cli.render import show_generated
    from anydepth.jobs.generate import generate as run_generate

    with terminal.bars(enabled=False):
        result = run_generate(**vars(settings), say=None if call.json else terminal.write)
    show_generated(result, stats=call.stats, as_json=call.json)


def truncate(settings: TruncateSettings, call: FolderCall) -> None:
    """Cut MODEL after depth K; the result is a plain model of the same class with fewer blocks."""
    from anydepth.cli.render import show_cut
    from anydepth.jobs.truncate import truncate as run_truncate

    out = call.out or default_folder(settings.model, suffix=f"-depth-{settings.depth}")
    with terminal.bars(enabled=not call.json) as progress:
        result = run_truncate(**vars(settings), out=out, progress=progress)
    show_cut(result, as_json=call.json)


def export(settings: ExportSettings, call: FolderCall) -> None:
    """Write MODEL as ONNX graphs between which samples may exit; anydepth.onnx.router runs them without torch."""
    from anydepth.cli.render import show_exported
    from anydepth.jobs.export import export as run_export

    out = call.out or default_folder(settings.model, suffix="-onnx")
    with terminal.bars(enabled=not call.json) as progress:
        result = run_export(**vars(settings), out=out, progress=progress)
    show_exported(result, as_json=call.json)


def demo(settings: DemoSettings, call: DemoCall) -> None:
    """Train a small vision transformer on real digits in two ways, and trace both. Needs no download."""
    from anydepth.cli.render import show_demo
    from anydepth.jobs.demo import run_demo

    with terminal.bars(enabled=not call.json) as progress:
        result = run_demo(settings, call.out, progress=progress)
    show_demo(result, as_json=call.json)

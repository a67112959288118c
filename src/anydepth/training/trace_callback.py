"""Tracing while a model is trained: how each depth comes to know what it knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from anydepth.core.heads import ATTACHED
from anydepth.core.stack import Stack
from anydepth.distributed import rank_and_count
from anydepth.errors import TrainingError
from anydepth.tracing.run import DEFAULT_MEASURES, trace
from anydepth.tracing.trace import Trace
from anydepth.training.checkpoints import randomness_kept

_MOST_IN_REPORT = 8  # curves that can still be told apart in one chart


class TraceCallback(TrainerCallback):  # type: ignore[misc]
    """Traces the model during training, and ends with one report that lays the traces over each other.

    Each trace is an ordinary one, in `folder/step-000100`, without the sums that only merging needs. The report,
    `folder/report.html`, shows up to eight of them, evenly spread and the last among them; an earlier run's, if it was
    resumed, too. The training goes on as if it had not been looked at: mode and randomness are put back.

    With several processes each traces its share of the data, and `folder` must be one that all of them see. A model
    that FSDP or DeepSpeed has cut up cannot be traced: its processes would have to keep step.

    Args:
        data: what `anydepth.trace` takes. It is read once for each trace, so no iterator that is used up.
        folder: where to.
        every: trace each time so many optimizer steps are done; None: at each evaluation.
        measures: as of `anydepth.trace`.
        tokens: as of `anydepth.trace`.
        blocks: the dotted name of the list of blocks, for a model that has several.

    Raises:
        TrainingError: `every` is less than 1.

    Example:
        >>> TraceCallback([], "traces", every=0)
        Traceback (most recent call last):
        anydepth.errors.TrainingError: every is 0, expected a number of steps from 1 on, or None for each evaluation
    """

    def __init__(
        self,
        data: Iterable[Any],
        folder: str | Path,
        *,
        every: int | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
        tokens: str | None = None,
        blocks: str | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise TrainingError(f"every is {every}, expected a number of steps from 1 on, or None for each evaluation")
        self.data, self.folder, self.every = data, Path(folder), every
        self.measures, self.tokens, self.blocks = tuple(measures), tokens, blocks
        self._traced: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Trace, if it is time to."""
        if self.every is not None and state.global_step % self.every == 0:
            self._trace(args, state.global_step, model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Trace, once for each step however many data sets are evaluated."""
        if self.every is None and state.global_step != self._traced:
            self._trace(args, state.global_step, model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the report."""
        from anydepth.report.pages.trace import write

        found = sorted(path.parent for path in self.folder.glob("step-*/trace.json"))
        if not found or rank_and_count()[0] != 0:
            return
        gaps = max(1, min(_MOST_IN_REPORT, len(found)) - 1)
        shown = sorted({round(index * (len(found) - 1) / gaps) for index in range(gaps + 1)})
        labels = [f"step {int(found[index].name.removeprefix('step-'))}" for index in shown]
        write([Trace.load(found[index]) for index in shown], self.folder / "report.html", labels)

    def _trace(self, args: Any, step: int, model: nn.Module) -> None:
        self._traced = step
        stack = Stack(model, blocks=self.blocks, heads=getattr(model, ATTACHED, None))
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        # accelerate casts only what the model's own forward calls; blocks are also called one by one
        with randomness_kept(), torch.autocast(args.device.type, dtype=dtype, enabled=args.bf16 or args.fp16):
            trace(
                stack,
                self.data,
                measures=self.measures,
                tokens=self.tokens,
                out=self.folder / f"step-{step:06d}",
                sums=False,
                describe={"model": f"{name} at step {step}"},
            )

"""What a training tells while it runs, and how Ctrl-C ends it."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from anydepth.distributed import largest, rank_and_count
from anydepth.progress import Progress
from anydepth.signals import Stopped, handling


def three_depths(depth: int) -> tuple[int, ...]:
    """A shallow depth, a middle one, and the last.

    Example:
        >>> three_depths(12), three_depths(3), three_depths(2)
        ((1, 6, 12), (1, 2, 3), (1, 2))
    """
    return tuple(sorted({1, (depth + 1) // 2, depth}))


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Tells steps done, and what a shallow, the middle and the last depth are worth by the latest log.

    Args:
        progress: called with what is done, how much there is, and what it is.
        depth: L.
        language_model: whether to tell perplexity rather than accuracy.
    """

    def __init__(self, progress: Progress, depth: int, *, language_model: bool) -> None:
        self._progress, self._depths = progress, three_depths(depth)
        self._name = "perplexity" if language_model else "accuracy"
        self._latest: dict[int, float] = {}
        self._evaluated = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An optimizer step is done."""
        self._progress(state.global_step, state.max_steps, self._words("training", self._latest))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """Take the latest numbers; a depth that was not looked at keeps its last ones."""
        logs = logs or {}
        for depth in self._depths:
            nats, share = logs.get(f"loss_depth_{depth}"), logs.get(f"accuracy_depth_{depth}")
            if nats is not None and share is not None:
                self._latest[depth] = share if self._name == "accuracy" else _perplexity(nats)
        if "loss" in logs:
            self._progress(state.global_step, state.max_steps, self._words("training", self._latest))

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """A batch is evaluated."""
        self._evaluated += 1
        self._progress(self._evaluated, len(eval_dataloader), "evaluating")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        """An evaluation is done."""
        found = {depth: metrics[f"eval_{self._name}_depth_{depth}"] for depth in self._depths}
        self._progress(self._evaluated, self._evaluated, self._words("evaluating", found))
        self._evaluated = 0

    def _words(self, what: str, values: Mapping[int, float]) -> str:
        if not values:
            return what
        digits = 1 if self._name == "perplexity" else 3
        shown = (f"{depth}: {values[depth]:.{digits}f}" for depth in self._depths if depth in values)
        return f"{what}, {self._name} at depth " + ", ".join(shown)


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


class InterruptCallback(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C, SIGTERM or SIGHUP end a training after the step they fall into, with a checkpoint; a second one at once.

    Of several processes it is enough that one gets the signal: after each step they agree on whether to go on.

    Args:
        say: takes one line for the user.
        device: where processes exchange tensors.
    """

    def __init__(self, say: Callable[[str], None], device: torch.device | str = "cpu") -> None:
        self.came: int | None = None
        self._say, self._device = say, device

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Take these signals inside; one that came is raised again at the end, to be handled as before."""

        def come(number: int) -> None:
            if self.came is not None:
                raise Stopped(number) if number != signal.SIGINT else KeyboardInterrupt
            self.came = number
            if rank_and_count()[0] == 0:
                self._say("stopping after this step, with a checkpoint; once more to stop at once")

        with handling(come):
            yield
            number = self._agreed()
        if number:
            signal.raise_signal(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if it came."""
        if self._agreed():
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Nothing more is to be done, if it came."""
        if self._agreed():
            control.should_evaluate = control.should_save = False

    def _agreed(self) -> int:
        """The signal that came to any process, or 0; all of them must ask at the same time.

        What came to another is not noted: a launcher sends the same to all, one by one, and this one's own must not
        seem the second.
        """
        return largest(self.came or 0, self._device)

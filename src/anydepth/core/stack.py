"""The mechanism everything here goes through: a transformer as blocks plus the model's own everything else.

To read out a state, `Stack` runs the model's own forward with each block replaced by a stub that answers with that
state. Final norm, pooler, soft-cap, logit scale, two-token heads, pooling at the rightmost token: all are applied by
the model itself, so nothing here re-implements `head(norm(h))`, and nothing can get it wrong. The same replacement
records states (a stub that runs the block and keeps its answer), cuts the model (stubs that pass their input on) and
records each block's arguments (stubs that pass on and run nothing).

Words: the state `h[0]` is what enters the first block, `h[l]` the raw output of block l = 1..L, before the final norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.blocks import find_blocks
from anydepth.core.heads import Heads
from anydepth.core.model_io import (
    Batch,
    call_model,
    call_with,
    distance,
    first_samples,
    input_state,
    is_known_answer,
    model_output,
    output_state,
)
from anydepth.core.patching import disabled, evaluating, forward_as, interfering_flags, replaced
from anydepth.core.prefix_cache import Answers, Prefix
from anydepth.core.recording import BlockOutput, ModelTraits, RecordedForward
from anydepth.core.segments import Segments
from anydepth.dependencies import require
from anydepth.errors import ReadoutMismatch, UnsupportedHead

# The law compares the same operations on the same numbers, so it holds almost to the last bit; these leave room for
# kernels that round differently from one call to the next. Relative to the largest entry.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def tolerance_of(values: Tensor) -> float:
    """How far apart two computations of these values may lie, relative to the largest of them."""
    return _TOLERANCE.get(values.dtype, 1e-5)


@dataclass(frozen=True)
class Verification:
    """How far the law was from exact on one batch: largest differences, relative to the largest entry."""

    readout: float
    """`readout(h[L])` against the model's own output."""
    cut: float
    """`readout(h[k])` against the model cut after block k."""
    replay: float
    """Block-by-block replay against the recorded states."""
    depth: int
    """The k of the cut."""
    tolerance: float


@dataclass(frozen=True)
class BlockCall:
    """A block, and what the model's own forward gives it beside the state."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool
    """Whether the block may overwrite the state it is given."""

    def __call__(self, state: Tensor) -> Tensor:
        """The block's state after the one given."""
        return output_state(call_with(self.block, state.clone() if self.in_place else state, self.args, self.kwargs))


@dataclass
class Replay:
    """A forward held open before its first block: each block can be run by itself on the model's own arguments."""

    state: Tensor
    """h[0]."""
    calls: list[BlockCall]
    """Of the blocks 1..L."""

    def step(self, state: Tensor, depth: int) -> Tensor:
        """Run block `depth` (1..L) on h[depth - 1]; returns h[depth]."""
        return self.calls[depth - 1](state)


class Stack:
    """A model seen as L blocks, the states between them, and the model's own readout of any state.

    Args:
        model: any transformer: from transformers, timm, PEFT, `nn.TransformerEncoder`, or your own.
        blocks: the dotted name of the list of blocks, for a model that has several.
        heads: one classifier for each depth below L, for a model that was trained with them.

    Raises:
        UnknownArchitecture: no list of blocks is found, several are, or they do not run once each in order.
        ReadoutMismatch: on the first batch, if reading out h[L] is not what the model answers.

    The law is checked on the first batch seen (a few samples of it, in eval mode). Whatever is changed on the model
    is put back before a method returns, also when the model's forward fails.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> stack = Stack(ViTForImageClassification(config).eval())
        >>> batch = {"pixel_values": torch.rand(2, 1, 8, 8)}
        >>> with torch.no_grad():
        ...     states = stack.states(batch)
        ...     early = stack.readout(states[1], batch)
        >>> len(states), tuple(states[1].shape), tuple(early.shape)
        (4, (2, 5, 16), (2, 5))
    """

    def __init__(self, model: nn.Module, *, blocks: str | None = None, heads: Heads | None = None) -> None:
        require("torch")
        if hasattr(model, "peft_config"):
            require("peft")
        # a compiled wrapper has the blocks of the model it wraps, but would run them without the stubs
        self.model = model = getattr(model, "_orig_mod", model)
        self.path, self._list = find_blocks(model, blocks)
        if heads is not None and len(heads) != len(self._list) - 1:
            raise UnsupportedHead(
                f"{len(heads)} heads for {type(model).__name__} of {len(self._list)} blocks, expected "
                f"{len(self._list) - 1}: one for each depth below the last"
            )
        self.heads = heads
        self._learnt: ModelTraits | None = None
        self._prefix = Prefix()
        self._switches = interfering_flags(model)

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self._list)

    def answers_with_logits(self, *, labelled: bool) -> bool:
        """Whether the model's answer are the logits of a classifier; known after the first batch.

        Args:
            labelled: whether the data carry labels. A model that answers with a bare tensor does not say what it is:
                if it states how many classes it has (timm, where 0 is no classifier), that decides, else whether there
                are labels to hold it against.
        """
        if (learnt := self._learnt) is None:
            return False
        if learnt.answer:
            return learnt.answer in ("logits", "logits_per_image")
        classes = getattr(self.model, "num_classes", None)
        return labelled if classes is None else bool(classes)

    @property
    def unnamed_answers(self) -> str:
        """The first of several answers under names that mean nothing here; empty where there are none."""
        name = learnt.answer if (learnt := self._learnt) is not None else ""
        return "" if not name or is_known_answer(name) else name

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm reads the last block's output as it is, so that a readout can leave it out."""
        learnt = self._learnt
        return learnt is not None and bool(learnt.final_norms)

    def classifier(self, batch: Batch) -> nn.Module:
        """The last module with parameters of its own that runs after the blocks: what turns features into classes.

        Raises:
            UnsupportedHead: nothing with parameters runs after the blocks.
        """
        found = self._ensure_verified(batch).classifier
        if found is None:
            raise UnsupportedHead(f"{type(self.model).__name__} has nothing to train after its blocks: no classifier")
        return found

    @property
    def classifier_path(self) -> str | None:
        """The dotted name of the classifier; None before the first batch, and where there is none."""
        learnt = self._learnt
        found = learnt.classifier if learnt else None
        return next((name for name, module in self.model.named_modules() if module is found), None)

    def states(self, batch: Batch) -> list[Tensor]:
        """The states h[0..L] of one forward.

        Args:
            batch: what the model takes.

        Returns:
            L + 1 tensors of one shape, mostly (B, T, D). Gradients flow through them if gradients are on.

        Raises:
            UnknownArchitecture: blocks were skipped, repeated or out of order, or widths differ between depths.
        """
        return self.forward(batch)[0]

    def forward(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The states of one forward, and what that forward answered.

        Returns:
            h[0..L], as `states` gives them, and the model's own answer: to the last bit that of a plain forward.
        """
        self._ensure_verified(batch)
        watched = self._watch(batch, self._prefix)
        return watched.states, watched.answer

    def readout(self, state: Tensor, batch: Batch, *, depth: int | None = None, final_norm: bool = True) -> Tensor:
        """The model's own answer if `state` were the output of its last block.

        Args:
            state: any h[l] of this batch, in the shape `states` gives.
            batch: the batch that `state` belongs to; heads look at its mask and token ids.
            depth: the state's depth, for a model with a head for each: its head takes the place of the classifier.
            final_norm: False skips the final norm. Only to reproduce results of code that forgot it.

        Returns:
            Logits where the model has a classifier, else its embeddings or pooled output.
        """
        learnt = self._ensure_verified(batch)
        with ExitStack() as undo:
            undo.enter_context(self._prefix.replayed(batch))
            if not final_norm:
                for norm in learnt.final_norms:
                    undo.enter_context(forward_as(norm, lambda state, *args, **kwargs: state))
            if self.heads is not None and depth is not None and depth < self.depth:
                undo.enter_context(forward_as(self.classifier(batch), self.heads[depth]))
            return self._run(batch, [lambda *args, _as=shape, **kwargs: _as(state) for shape in learnt.shapes])[1]

    def features(self, state: Tensor, batch: Batch) -> Tensor | None:
        """What enters the classifier if `state` were the output of the last block.

        Returns:
            (B, T, D), such that `linear(features, weight, bias)` of the classifier is the readout: checked with the
            law. None for a model of which that is not so: its head is no linear map for each position, or more
            follows it (a soft-cap, a scale).
        """
        learnt = self._ensure_verified(batch)
        return self.classifier_input(state, batch) if learnt.classifier_is_all else None

    def classifier_input(self, state: Tensor, batch: Batch) -> Tensor:
        """What enters the classifier if `state` were the output of the last block, whatever becomes of it then.

        Raises:
            UnsupportedHead: see `classifier`.
        """
        with forward_as(self.classifier(batch), lambda features: features):
            return self.readout(state, batch)

    def is_linear_head(self, state: Tensor, answer: Tensor, batch: Batch) -> bool:
        """Whether the readout of a state is a linear map of what enters the classifier, and nothing more.

        Args:
            state: any h[l] of this batch.
            answer: its readout.
            batch: the batch that `state` belongs to.
        """
        linear = self._ensure_verified(batch).classifier
        if not isinstance(linear, nn.Linear):
            return False
        try:
            error = distance(functional.linear(self.classifier_input(state, batch), linear.weight, linear.bias), answer)
        except RuntimeError:  # shapes that do not fit: something beside the classifier takes part in the answer
            return False
        return error <= tolerance_of(answer)

    def replay(self, batch: Batch) -> Replay:
        """Record the arguments of every block in one forward that runs no block.

        Returns:
            h[0] and, by `step`, each block on the arguments (masks, rotary tables) the model gives it.
        """
        learnt = self._ensure_verified(batch)
        return self._record(batch, learnt)

    def cached_prefix(self, batch: Batch) -> AbstractContextManager[Answers]:
        """Inside, what the modules answer that run before the first block is kept, if the forward is on this batch."""
        return self._prefix.kept(batch, self._ensure_verified(batch).before)

    @contextmanager
    def cut(self, depth: int, batch: Batch) -> Iterator[None]:
        """Inside, the model ends after a block: the blocks behind it do not run, and its state is read out.

        Args:
            depth: the last block that runs, 1..L.
            batch: to check the law on, if it is the first.
        """
        with replaced(self._list, self._cut_calls(depth, self._ensure_verified(batch).shapes)):
            yield

    def _cut_calls(self, depth: int, shapes: list[BlockOutput]) -> list[Any]:
        return [
            block if number <= depth else (lambda *args, _as=shape, **kwargs: _as(input_state(args, kwargs)))
            for number, (block, shape) in enumerate(zip(self._list, shapes, strict=True), start=1)
        ]

    @contextmanager
    def segments(self, batch: Batch, forward: Callable[[Any], Any] | None = None) -> Iterator[Segments]:
        """Inside, the forward can be run in legs.

        Stubs stay in the places of the blocks for as long: putting them there anew would be a good part of what the
        readout of a single sample costs.

        Args:
            batch: to check the law on, if it is the first.
            forward: how a leg calls the model on what it is given; by default it gives the model's answer to a batch.
        """
        learnt = self._ensure_verified(batch)
        legs = Segments(learnt.shapes, forward or (lambda batch: model_output(call_model(self.model, batch))[1]))
        with ExitStack() as undo:
            undo.enter_context(disabled(self._switches))
            undo.enter_context(replaced(self._list, legs.stubs(self._list)))
            if self.heads is not None:
                undo.enter_context(self._headed(self.heads, self.classifier(batch), legs))
            yield legs

    def _headed(self, heads: Heads, classifier: nn.Module, legs: Segments) -> AbstractContextManager[None]:
        """Inside, each leg is answered by the head of the depth where it ends."""
        own = classifier.forward

        def answer(*args: Any, **kwargs: Any) -> Any:
            return (heads[legs.depth] if legs.depth < self.depth else own)(*args, **kwargs)

        return forward_as(classifier, answer)

    def verify(self, batch: Batch) -> Verification:
        """Check the law on a few samples of `batch`, in eval mode and without gradients.

        `readout(h[L])` must be the model's own answer; for a middle k, `readout(h[k])` that of the model with its
        blocks cut after k; and each block, replayed on the state before it, must give the state after it.

        Raises:
            ReadoutMismatch: with the size of the error.
        """
        return self._verified(batch)[1]

    def _verified(self, batch: Batch) -> tuple[ModelTraits, Verification]:
        few = first_samples(batch, 2)
        # Another Stack on the same model: before the law is known to hold, no thread is to go by what is learnt here.
        trial = copy.copy(self)
        trial._prefix = Prefix()
        try:
            # tensors of inference mode do not tell whether they were written to
            with evaluating(self.model), torch.inference_mode(False), torch.no_grad():
                watched = trial._watch(few, Prefix(), learn=True)
                trial._learnt = learnt = watched.learnt()
                if learnt.in_place:
                    watched = trial._watch(few, Prefix())
                found = trial._check_law(few, watched, learnt)
                is_all = watched.answer.ndim == 3 and trial.is_linear_head(watched.states[-1], watched.answer, few)
        except BaseException:
            self._learnt = None
            raise
        self._learnt = learnt = replace(learnt, classifier_is_all=is_all)
        return learnt, found

    def _ensure_verified(self, batch: Batch) -> ModelTraits:
        return self._learnt or self._verified(batch)[0]

    def _check_law(self, batch: Batch, watched: RecordedForward, learnt: ModelTraits) -> Verification:
        states, answer, k = watched.states, watched.answer, max(1, self.depth // 2)
        replay = self._record(batch, learnt)
        apart = [distance(replay.state, states[0])]
        for depth in range(1, self.depth + 1):
            apart.append(distance(replay.step(states[depth - 1], depth), states[depth]))
        tolerance = tolerance_of(states[0])
        found = Verification(
            readout=distance(self.readout(states[-1], batch), answer),
            cut=distance(self.readout(states[k], batch), self._run(batch, self._cut_calls(k, learnt.shapes))[1]),
            replay=max(apart),
            depth=k,
            tolerance=tolerance,
        )
        for name in ("readout", "cut", "replay"):
            # `not <=` so that a NaN, too, is a broken law
            if not (error := getattr(found, name)) <= tolerance:
                raise ReadoutMismatch(
                    f"{type(self.model).__name__}: the {name} law is broken at {self.path!r}: largest relative "
                    f"difference {error:.2g}, expected at most {tolerance:.0e}; this model passes something between "
                    "or around its blocks that a state does not hold"
                )
        return found

    def _run(self, batch: Batch, calls: list[Any]) -> tuple[str, Tensor]:
        """The model's forward with call l in place of block l; the name and value of its answer."""
        with disabled(self._switches), replaced(self._list, calls):
            return model_output(call_model(self.model, batch))

    def _watch(self, batch: Batch, prefix: Prefix, *, learn: bool = False) -> RecordedForward:
        """One forward in which every block runs and leaves its input and output behind."""
        watched, learnt = RecordedForward(self.model, self.path, self._list), self._learnt
        with ExitStack() as undo:
            if learn:
                undo.enter_context(watched.calls_outside())
            undo.enter_context(prefix.recorded(batch, learnt.before if learnt else []))
            name, answer = self._run(batch, watched.calls(clone=bool(learnt and learnt.in_place)))
        return watched.finish(name, answer)

    def _record(self, batch: Batch, learnt: ModelTraits) -> Replay:
        start: list[Tensor] = []
        calls: list[BlockCall] = []

        def recorder(block: nn.Module, shape: BlockOutput) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start.append(input_state(args, kwargs))
                calls.append(BlockCall(block, args, kwargs, learnt.in_place))
                return shape(start[-1])

            return call

        pairs = zip(self._list, learnt.shapes, strict=True)
        with self._prefix.kept(batch, learnt.before):
            self._run(batch, [recorder(block, shape) for block, shape in pairs])
        return Replay(start[0], calls)

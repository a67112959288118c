"""`Stack`: hidden states of a transformer at every depth, and the model's own readout (logit lens) of each.

To read out a hidden state, `Stack` runs the model's own forward with each block replaced by a stub that returns that
state. Final norm, pooler, soft-cap, logit scale, two-token heads, pooling at the rightmost token: all are applied by
the model itself, and nothing here re-implements `head(norm(h))`. Stubs also record hidden states, cut the model, and
record each block's arguments.

The state `h[0]` is the input of the first block, `h[l]` the raw output of block l = 1..L, before the final norm.
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
    ANSWERS,
    Batch,
    call_model,
    call_with,
    distance,
    first_samples,
    input_state,
    model_output,
    output_state,
)
from anydepth.core.patching import disabled, evaluating, forward_as, interfering_flags, replaced
from anydepth.core.prefix_cache import Answers, Prefix
from anydepth.core.recording import BlockOutput, ModelTraits, RecordedForward
from anydepth.core.segments import Segments
from anydepth.dependencies import require
from anydepth.errors import ReadoutMismatch, UnsupportedHead

# `Stack.verify` compares the same operations on the same numbers. These tolerances, relative to the largest entry, are
# for kernels that round differently from one call to the next.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def tolerance_of(values: Tensor) -> float:
    """Largest difference, relative to the largest entry, at which two computations of these values count as equal."""
    return _TOLERANCE.get(values.dtype, 1e-5)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of `Stack.verify` on one batch: largest differences, relative to the largest entry."""

    readout: float
    """`readout(h[L])` against the model's own output."""
    cut: float
    """`readout(h[k])` against the model cut after block k (`depth`)."""
    replay: float
    """Block-by-block replay against the recorded states."""
    depth: int
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """A block, and the arguments that the model's own forward passes to it."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool
    """Whether the block may overwrite the state it is given."""

    def __call__(self, state: Tensor) -> Tensor:
        """The block's output for a hidden state."""
        return output_state(call_with(self.block, state.clone() if self.in_place else state, self.args, self.kwargs))


@dataclass
class Replay:
    """The recorded inputs of all blocks: each can be run by itself on the model's own arguments."""

    state: Tensor
    """h[0]."""
    calls: list[BlockCall]

    def step(self, state: Tensor, depth: int) -> Tensor:
        """Run block `depth` (1..L) on h[depth - 1]; returns h[depth]."""
        return self.calls[depth - 1](state)


class Stack:
    """A model as L blocks, with the hidden state at every depth and the model's own readout of any state.

    Args:
        model: any transformer: from transformers, timm, PEFT, `nn.TransformerEncoder`, or your own.
        blocks: the dotted name of the list of blocks, for a model that has several.
        heads: one classifier for each depth below L, for a model that was trained with them.

    Raises:
        UnknownArchitecture: no list of blocks is found, several are, or they do not run once each in order.
        ReadoutMismatch: on the first batch, if the readout of h[L] is not the model's own answer; see `verify`.

    All changes to the model are undone before a method returns, also when the model's forward fails.

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
        # a compiled wrapper would run the blocks without the stubs
        self.model = model = getattr(model, "_orig_mod", model)
        self.path, self._blocks = find_blocks(model, blocks)
        if heads is not None and len(heads) != len(self._blocks) - 1:
            raise UnsupportedHead(
                f"{len(heads)} heads for {type(model).__name__} of {len(self._blocks)} blocks, expected "
                f"{len(self._blocks) - 1}: one for each depth below the last"
            )
        self.heads = heads
        self._traits: ModelTraits | None = None
        self._prefix = Prefix()
        self._flags = interfering_flags(model)

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self._blocks)

    def answers_with_logits(self, *, labelled: bool) -> bool:
        """Whether the model's answers are the logits of a classifier; known after the first batch.

        Args:
            labelled: whether the data carry labels. It decides for a model that answers with a bare tensor and does not
                state how many classes it has (as timm's do, where 0 is no classifier).
        """
        if (traits := self._traits) is None:
            return False
        if traits.answer:
            return traits.answer in ("logits", "logits_per_image")
        classes = getattr(self.model, "num_classes", None)
        return labelled if classes is None else bool(classes)

    @property
    def unnamed_answers(self) -> str:
        """The name of the first of several answers with unknown names; empty where there are none."""
        name = self._traits.answer if self._traits is not None else ""
        return "" if name in ANSWERS else name

    @property
    def has_final_norm(self) -> bool:
        """Whether the last block's output enters a norm, which a readout can leave out."""
        return self._traits is not None and bool(self._traits.final_norms)

    def classifier(self, batch: Batch) -> nn.Module:
        """The classifier: the last module with parameters of its own that runs after the blocks.

        Raises:
            UnsupportedHead: nothing with parameters runs after the blocks.
        """
        classifier = self._ensure_verified(batch).classifier
        if classifier is None:
            raise UnsupportedHead(f"{type(self.model).__name__} has nothing to train after its blocks: no classifier")
        return classifier

    @property
    def classifier_path(self) -> str | None:
        """The dotted name of the classifier; None before the first batch, and where there is none."""
        classifier = self._traits.classifier if self._traits else None
        return next((name for name, module in self.model.named_modules() if module is classifier), None)

    def states(self, batch: Batch) -> list[Tensor]:
        """The hidden states h[0..L] of one forward.

        Returns:
            L + 1 tensors of one shape, mostly (B, T, D). Gradients flow through them if gradients are on.

        Raises:
            UnknownArchitecture: blocks were skipped, repeated or out of order, or widths differ between depths.
        """
        return self.forward(batch)[0]

    def forward(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The hidden states h[0..L] of one forward, and its answer: to the last bit that of a plain forward."""
        self._ensure_verified(batch)
        record = self._record_forward(batch, self._prefix)
        return record.states, record.answer

    def readout(self, state: Tensor, batch: Batch, *, depth: int | None = None, final_norm: bool = True) -> Tensor:
        """The model's own head applied to the hidden state at a depth: the logit lens, with final norm and pooler.

        Args:
            state: any h[l] of this batch, in the shape of `states`.
            batch: the batch that `state` belongs to; heads look at its mask and token ids.
            depth: the state's depth, for a model with a head for each: that head is used instead of the classifier.
            final_norm: False skips the final norm. Only to reproduce results of code that forgot it.

        Returns:
            Logits where the model has a classifier, else its embeddings or pooled output.
        """
        traits = self._ensure_verified(batch)
        with ExitStack() as undo:
            undo.enter_context(self._prefix.replayed(batch))
            if not final_norm:
                for norm in traits.final_norms:
                    undo.enter_context(forward_as(norm, lambda state, *args, **kwargs: state))
            if self.heads is not None and depth is not None and depth < self.depth:
                undo.enter_context(forward_as(self.classifier(batch), self.heads[depth]))
            return self._run(batch, [lambda *args, _as=shape, **kwargs: _as(state) for shape in traits.shapes])[1]

    def features(self, state: Tensor, batch: Batch) -> Tensor | None:
        """The classifier's input (B, T, D) for a hidden state, if the readout is `linear(features, weight, bias)`.

        None where it is not: the head is no linear map for each position, or more follows it (a soft-cap, a scale).
        """
        return self.classifier_input(state, batch) if self._ensure_verified(batch).classifier_is_all else None

    def classifier_input(self, state: Tensor, batch: Batch) -> Tensor:
        """The classifier's input in the readout of a hidden state; `UnsupportedHead` without a classifier."""
        with forward_as(self.classifier(batch), lambda features: features):
            return self.readout(state, batch)

    def is_linear_head(self, state: Tensor, answer: Tensor, batch: Batch) -> bool:
        """Whether the readout of a hidden state (`answer`) is a linear map of the classifier's input."""
        linear = self._ensure_verified(batch).classifier
        if not isinstance(linear, nn.Linear):
            return False
        try:
            error = distance(functional.linear(self.classifier_input(state, batch), linear.weight, linear.bias), answer)
        except RuntimeError:  # shapes do not fit: the answer is made of more than the classifier's output
            return False
        return error <= tolerance_of(answer)

    def replay(self, batch: Batch) -> Replay:
        """Record the arguments (masks, rotary tables) of every block in one forward that runs no block."""
        return self._record_calls(batch, self._ensure_verified(batch))

    def cached_prefix(self, batch: Batch) -> AbstractContextManager[Answers]:
        """Context manager: cache the outputs of the modules that run before block 1, for this batch."""
        return self._prefix.kept(batch, self._ensure_verified(batch).before)

    @contextmanager
    def cut(self, depth: int, batch: Batch) -> Iterator[None]:
        """Context manager: the model ends after block `depth` (1..L); later blocks do not run.

        `batch` is for `verify`, if it is the first.
        """
        with replaced(self._blocks, self._cut_calls(depth, self._ensure_verified(batch).shapes)):
            yield

    def _cut_calls(self, depth: int, shapes: list[BlockOutput]) -> list[Any]:
        return [
            block if number <= depth else (lambda *args, _as=shape, **kwargs: _as(input_state(args, kwargs)))
            for number, (block, shape) in enumerate(zip(self._blocks, shapes, strict=True), start=1)
        ]

    @contextmanager
    def segments(self, batch: Batch, forward: Callable[[Any], Any] | None = None) -> Iterator[Segments]:
        """Context manager: run the forward in segments.

        Stubs stay in place of the blocks inside: to place them takes a good part of the readout of a single sample.

        Args:
            batch: for `verify`, if it is the first.
            forward: calls the model in a segment; by default it returns the model's answer to a batch.
        """
        shapes = self._ensure_verified(batch).shapes
        segments = Segments(shapes, forward or (lambda batch: model_output(call_model(self.model, batch))[1]))
        with ExitStack() as undo:
            undo.enter_context(disabled(self._flags))
            undo.enter_context(replaced(self._blocks, segments.stubs(self._blocks)))
            if self.heads is not None:
                undo.enter_context(self._headed(self.heads, self.classifier(batch), segments))
            yield segments

    def _headed(self, heads: Heads, classifier: nn.Module, segments: Segments) -> AbstractContextManager[None]:
        """Context manager: the classifier in each segment is the head of the depth where it ends."""
        classify = classifier.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (heads[segments.depth] if segments.depth < self.depth else classify)(*args, **kwargs)

        return forward_as(classifier, forward)

    def verify(self, batch: Batch) -> Verification:
        """Check readout, cut and replay on two samples of `batch`, in eval mode; done by itself on the first batch.

        `readout(h[L])` must be the model's own answer; for a middle k, `readout(h[k])` that of the model cut after
        block k; and each block, replayed on the hidden state before it, must give the one after it.

        Raises:
            ReadoutMismatch: one of them does not hold; with the size of the error.
        """
        return self._verified(batch)[1]

    def _verified(self, batch: Batch) -> tuple[ModelTraits, Verification]:
        few = first_samples(batch, 2)
        # Another Stack on the same model: no other thread may use these traits before they are verified.
        trial = copy.copy(self)
        trial._prefix = Prefix()
        try:
            # tensors of inference mode have no version that counts writes
            with evaluating(self.model), torch.inference_mode(False), torch.no_grad():
                record = trial._record_forward(few, Prefix(), outside=True)
                trial._traits = traits = record.traits()
                if traits.in_place:
                    record = trial._record_forward(few, Prefix())
                verification = trial._compare(few, record, traits)
                is_all = record.answer.ndim == 3 and trial.is_linear_head(record.states[-1], record.answer, few)
        except BaseException:
            self._traits = None
            raise
        self._traits = traits = replace(traits, classifier_is_all=is_all)
        return traits, verification

    def _ensure_verified(self, batch: Batch) -> ModelTraits:
        return self._traits or self._verified(batch)[0]

    def _compare(self, batch: Batch, record: RecordedForward, traits: ModelTraits) -> Verification:
        states, answer, k = record.states, record.answer, max(1, self.depth // 2)
        replay = self._record_calls(batch, traits)
        steps = [replay.state, *(replay.step(state, depth) for depth, state in enumerate(states[:-1], start=1))]
        tolerance = tolerance_of(states[0])
        verification = Verification(
            readout=distance(self.readout(states[-1], batch), answer),
            cut=distance(self.readout(states[k], batch), self._run(batch, self._cut_calls(k, traits.shapes))[1]),
            replay=max(distance(step, state) for step, state in zip(steps, states, strict=True)),
            depth=k,
            tolerance=tolerance,
        )
        for name in ("readout", "cut", "replay"):
            # `not <=` so that NaN is a mismatch, too
            if not (error := getattr(verification, name)) <= tolerance:
                raise ReadoutMismatch(
                    f"{type(self.model).__name__}: the {name} law is broken at {self.path!r}: largest relative "
                    f"difference {error:.2g}, expected at most {tolerance:.0e}; this model passes something between "
                    "or around its blocks that a state does not hold"
                )
        return verification

    def _run(self, batch: Batch, calls: list[Any]) -> tuple[str, Tensor]:
        """The model's forward with call l in place of block l; the name and value of its answer."""
        with disabled(self._flags), replaced(self._blocks, calls):
            return model_output(call_model(self.model, batch))

    def _record_forward(self, batch: Batch, prefix: Prefix, *, outside: bool = False) -> RecordedForward:
        """Record one forward; with `outside`, also the calls of modules outside the blocks."""
        record, traits = RecordedForward(model=self.model, path=self.path, blocks=self._blocks), self._traits
        with ExitStack() as undo:
            if outside:
                undo.enter_context(record.calls_outside())
            undo.enter_context(prefix.recorded(batch, traits.before if traits else []))
            name, answer = self._run(batch, record.calls(clone=bool(traits and traits.in_place)))
        return record.finish(name, answer)

    def _record_calls(self, batch: Batch, traits: ModelTraits) -> Replay:
        start: list[Tensor] = []
        calls: list[BlockCall] = []

        def recorder(block: nn.Module, shape: BlockOutput) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start.append(input_state(args, kwargs))
                calls.append(BlockCall(block=block, args=args, kwargs=kwargs, in_place=traits.in_place))
                return shape(start[-1])

            return call

        pairs = zip(self._blocks, traits.shapes, strict=True)
        with self._prefix.kept(batch, traits.before):
            self._run(batch, [recorder(block, shape) for block, shape in pairs])
        return Replay(start[0], calls)

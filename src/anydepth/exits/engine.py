"""A forward that lets samples go: blocks run one by one, and who has had enough leaves the batch, mask and all."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from anydepth.calling import Batch, sample_count, samples_of
from anydepth.errors import UnsupportedHead
from anydepth.exits.lanes import Lanes, Selected
from anydepth.exits.policies import Policy
from anydepth.questions import require_one_class, without_labels
from anydepth.stack import Stack
from anydepth.surgery import evaluating
from anydepth.tokens import Policy as Tokens
from anydepth.tokens import default_policy, select, valid_positions


@dataclass(frozen=True)
class Exits:
    """What came out, sample by sample, in the order they went in.

    Attributes:
        logits: of each sample, at the depth where it left.
        depth: that depth, 1..L.
        blocks: how many samples each block was really run on; 0 where all had left before.
        readouts: how many samples were really read out at each depth.
        undecided: at each depth, how many samples had a score that is NaN; they stayed.
    """

    logits: Float[Tensor, "b c"]
    depth: Int64[Tensor, " b"]
    blocks: Int64[Tensor, " l"]
    readouts: Int64[Tensor, " l"]
    undecided: Int64[Tensor, " l"]


class EarlyExit:
    """A model that stops computing, for each sample by itself, as soon as a policy is satisfied.

    Blocks run one by one on the model's own arguments. A sample that leaves takes its state, its mask and everything
    else of its own out of the batch, so the blocks after it really do not run on it. What it answers is what the
    readout of its depth answers, whoever else is in the batch.

    Args:
        model: a classifier that answers once for each sample, or a `Stack` of one; with heads, each depth is read out
            by its own.
        policy: when a sample has had enough. `tested` are the depths at which it asks.
        blocks: the dotted name of the list of blocks, for a model that has several.

    Raises:
        PolicyError: the policy tests a depth beyond L.
        UnsupportedHead: when called, a model that answers for every position, or chooses no class.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from anydepth.exits.policies import AtDepth
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> exits = EarlyExit(ViTForImageClassification(config).eval(), AtDepth(2))
        >>> out = exits({"pixel_values": torch.rand(3, 1, 8, 8)})
        >>> tuple(out.logits.shape), out.depth.tolist(), out.blocks.tolist()
        ((3, 5), [2, 2, 2], [3, 3, 0, 0])
    """

    def __init__(self, model: nn.Module | Stack, policy: Policy, *, blocks: str | None = None) -> None:
        self.stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
        self.policy = policy
        self.tested = policy.tested(self.stack.depth)
        self._lanes = Lanes(self.stack)
        self._tokens: Tokens | None = None

    def __call__(self, batch: Any) -> Exits:
        """Answer a batch; its labels, if it has any, are set aside."""
        inputs, _ = without_labels(batch)
        model = self.stack.model
        self._find_tokens(inputs)
        with evaluating(model) if model.training else nullcontext(), torch.inference_mode():
            return _Flight(self, inputs).run()

    def seen(self, state: Tensor, batch: Batch, logits: Tensor | None) -> Tensor:
        """What the policy looks at.

        Args:
            state: of the samples still there.
            batch: the same samples.
            logits: read out from the state; None if nobody has.
        """
        if self.policy.reads == "logits" and logits is not None:
            return logits
        if self.policy.reads == "nothing":
            return state.flatten(1)
        self._find_tokens(batch)
        assert self._tokens is not None
        return select(state, valid_positions(batch, state), self._tokens)[0]

    def _find_tokens(self, batch: Batch) -> None:
        if self.policy.reads == "state" and self._tokens is None:
            self._tokens = default_policy(self.stack, batch, labels_each=False)


class _Flight:
    """One batch on its way."""

    def __init__(self, exits: EarlyExit, batch: Batch) -> None:
        self._exits, self._stack, self._policy, self._batch = exits, exits.stack, exits.policy, batch
        self._replay = exits.stack.replay(batch)
        self._axes = exits._lanes.axes(self._replay, batch) if exits.tested else []
        self._state = self._replay.state
        count, last, device = sample_count(batch), self._stack.depth, self._state.device
        self._rows = torch.arange(count, device=device)
        self._here, self._lane = batch, Selected(self._replay, self._axes, None)
        self._memory: Tensor | None = None
        self._logits: Tensor | None = None
        self._depth = torch.full((count,), last, device=device)
        self._counts = torch.zeros(3, last, dtype=torch.int64)

    def run(self) -> Exits:
        last = self._stack.depth
        for depth in range(1, last + 1):
            self._state = self._lane.step(self._state, depth)
            self._counts[0, depth - 1] = len(self._rows)
            if depth in self._exits.tested:
                self._test(depth)
                if not len(self._rows):
                    break
        if len(self._rows):
            self._land(self._rows, self._read(self._state, self._here, last), last)
        assert self._logits is not None
        return Exits(self._logits, self._depth, *self._counts)

    def _test(self, depth: int) -> None:
        logits = self._read(self._state, self._here, depth) if self._policy.reads == "logits" else None
        seen = self._exits.seen(self._state, self._here, logits)
        score, self._memory = self._policy.scores(depth, seen, self._memory)
        self._counts[2, depth - 1] = score.isnan().sum()
        leaving = score >= self._policy.level
        if not leaving.any():
            return
        going, staying = leaving.nonzero()[:, 0], (~leaving).nonzero()[:, 0]
        if logits is not None:
            leaving_with = logits[going]
        else:  # nobody else needs to be read out
            leaving_with = self._read(self._state[going], samples_of(self._here, going), depth)
        self._land(self._rows[going], leaving_with, depth)
        self._stay(staying)

    def _stay(self, staying: Int64[Tensor, " n"]) -> None:
        self._rows, self._state = self._rows[staying], self._state[staying]
        self._memory = None if self._memory is None else self._memory[staying]
        self._here = samples_of(self._batch, self._rows)
        self._lane = Selected(self._replay, self._axes, self._rows)

    def _read(self, state: Tensor, batch: Batch, depth: int) -> Tensor:
        logits = self._stack.readout(state, batch, depth=depth)
        self._counts[1, depth - 1] += len(state)
        if logits.ndim != 2:
            raise UnsupportedHead(
                f"{type(self._stack.model).__name__} answers with {tuple(logits.shape)}, expected one answer for each "
                "sample: positions of a text cannot leave one by one"
            )
        require_one_class(self._stack.model, logits, None, "early exit is for classifiers")
        return logits

    def _land(self, rows: Int64[Tensor, " n"], logits: Tensor, depth: int) -> None:
        if self._logits is None:
            self._logits = logits.new_empty(len(self._depth), logits.shape[1])
        self._logits[rows], self._depth[rows] = logits, depth

"""Inputs of a policy from a model's hidden states: logits read out at a depth, or the states of the samples."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from anydepth.core.model_io import Batch, sample_count, samples_of
from anydepth.core.padding import require_tokens, warn_of_padding
from anydepth.core.stack import Stack
from anydepth.core.targets import require_one_class
from anydepth.core.tokens import Policy as Tokens
from anydepth.core.tokens import default_policy, select
from anydepth.errors import UnsupportedHead
from anydepth.exits.policies import Policy, Reads
from anydepth.models.zero_shot import compares


class PolicyReader:
    """Computes what a policy reads from the hidden states of a model; a depth beyond L raises a `PolicyError`."""

    def __init__(self, stack: Stack, policy: Policy) -> None:
        self.stack, self.policy = stack, policy
        self.example: Batch | None = None
        """Up to two samples of the first batch that came."""
        if stack.is_known:
            policy.tested(stack.depth, stack.entry + 1)
        self._tokens: Tokens | None = None
        self._counts_padding: bool | None = None

    @cached_property
    def tested(self) -> tuple[int, ...]:
        """The depths below L at which samples may exit, ascending."""
        return self.policy.tested(self.stack.depth, self.stack.entry + 1)

    def prepare(self, batch: Batch) -> None:
        """Check the padding, and choose the positions that stand for the samples, if the policy reads states.

        Needs gradients allowed; a sample of padding alone raises a `DataError`.
        """
        require_tokens(batch, "the batch")
        self.stack.learn(batch)
        if self.example is None:
            self.example = samples_of(batch, torch.arange(min(2, sample_count(batch))))  # a copy: no view of it all
        if self._counts_padding is None:
            self._counts_padding = warn_of_padding(self.stack, batch)
        if self.policy.reads == Reads.STATE and self._tokens is None:
            tokens = default_policy(self.stack, batch, labels_each=False)
            if self._tokens is None:  # still: another thread may have been sooner
                self._tokens = tokens

    def logits(self, state: Tensor, batch: Batch, depth: int) -> Float[Tensor, "n c"]:
        """Readout at a depth: one row of logits for each sample; see `checked`."""
        return self.checked(self.stack.readout(state, batch, depth=depth))

    def checked(self, logits: Tensor) -> Float[Tensor, "n c"]:
        """The logits of a readout; raises an `UnsupportedHead` unless they choose one class for each sample."""
        model = self.stack.model
        if compares(model):
            raise UnsupportedHead(
                f"{type(model).__name__} compares the images of a batch with its texts: no sample can exit by itself; "
                "make texts its classes (anydepth.zero_shot, --labels-as-texts)"
            )
        # A bare tensor does not say what it is: whoever gives a policy for it takes it for logits.
        if not self.stack.answers_with_logits(labelled=True):
            raise UnsupportedHead(
                f"{type(model).__name__} answers with {tuple(logits.shape)} that are no logits: it has no classifier "
                "to stop early; load it with one, or train one (anydepth align)"
            )
        if logits.ndim != 2:
            raise UnsupportedHead(
                f"{type(model).__name__} answers with {tuple(logits.shape)}, expected one answer for each sample: "
                "positions attend to each other, and cannot exit one by one"
            )
        require_one_class(model, logits, None, "early exit is for classifiers")
        return logits

    def seen(self, state: Tensor, batch: Batch, logits: Tensor | None) -> Float[Tensor, "n m"]:
        """What the policy reads: one row for each sample. `logits` may be None where it does not read them."""
        if self.policy.reads == Reads.LOGITS:
            assert logits is not None
            return logits
        if self.policy.reads == Reads.NOTHING:
            return state.flatten(1)[:, :0]
        assert self._tokens is not None
        return select(state, self.stack.valid_positions(batch, state), self._tokens)[0]

"""Calibrate the early exit of single tokens, with a guarantee over whole sequences.

Tokens of a sequence depend on each other: one that differs changes all that follow. So the samples of the test are
whole sequences, generated under the policy, each compared with what the full model generates from the same prompt. A
sequence fails if more than a stated share of its tokens differ.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from anydepth.core.patching import evaluating
from anydepth.core.provenance import describe_model
from anydepth.core.stack import Stack
from anydepth.errors import CertificateError
from anydepth.exits.policies import Policy, as_plain
from anydepth.generation.dynamic import DynamicExit, dynamic_exit
from anydepth.progress import Progress
from anydepth.stats.certificates import Certificate, certified, passes, repeats, require_samples
from anydepth.storage.disk import atomic_write

_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class ThresholdResult:
    """The test of one threshold: failed sequences, mean exit depth of a token, share of all tokens that differ."""

    threshold: int | float
    failures: int
    depth: float
    differing: float


@dataclass(frozen=True, kw_only=True)
class SequenceGuarantee:
    """The guarantee for sequences that are generated with an exit policy.

    Attributes:
        certificate: of the chosen threshold; None if none could be certified.
        share: of a sequence's tokens that may differ before it counts as failed; 0 for none at all.
        new_tokens: that were generated from each prompt.
        steps: the tested thresholds, from strict to loose.
        passed: how many of them were certified; the next failed, if there is one.
        notes: whether prompts repeat.
    """

    certificate: Certificate | None
    share: float
    new_tokens: int
    steps: tuple[ThresholdResult, ...]
    passed: int
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> ThresholdResult | None:
        """The test of the chosen threshold."""
        return self.steps[self.passed - 1] if self.passed else None

    def __str__(self) -> str:
        certificate, taken = self.certificate, self.taken
        if certificate is None or taken is None:
            return "nothing could be certified: generate with all blocks"
        what = f"more than {self.share:.3g} of" if self.share else "any of"
        return (
            f"certified at {100 * certificate.confidence:.3g} % confidence: P({what} the first {self.new_tokens} "
            f"tokens ≠ full model's) ≤ {100 * certificate.tolerance:.3g} % ({certificate.failures:,} of "
            f"{certificate.samples:,} calibration prompts differ, exact binomial p = {certificate.p_value:.2g}; "
            f"assumes new prompts drawn like these), at a mean depth of {taken.depth:.2f}"
        )


def calibrate(
    model: Any,
    prompts: Sequence[Int64[Tensor, " _"]],
    policy: Policy,
    *,
    tolerance: float = 0.05,
    confidence: float = 0.95,
    new_tokens: int = 64,
    share: float = 0.0,
    thresholds: Sequence[int | float] | None = None,
    padding: int = 0,
    blocks: str | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Policy | None, SequenceGuarantee]:
    """Find the loosest threshold of an exit policy for greedy generation, with a guarantee over sequences.

    Args:
        model: a causal language model, where it is to run.
        prompts: independent, not trained on, drawn like those to come; token ids without padding. One that repeats
            counts once, and the share of all, with their copies, must keep to the tolerance as well.
        policy: of the kind and with the depths wanted; its threshold is ignored.
        tolerance: the largest probability of a sequence that fails, in (0, 1).
        confidence: of the guarantee, over the draw of the prompts, in (0, 1).
        new_tokens: generated from each prompt; fewer where a sequence ends.
        share: of a sequence's tokens that may differ from the full model's; 0 for none at all.
        thresholds: the path, from strict to loose; tested until one fails. None for its `threshold_path`.
        padding: a token to fill shorter prompts with; it is never attended to.
        blocks: see `anydepth.Stack`.
        keep: a folder for the sequences of each threshold: the same call resumes from there after an interrupt.
        progress: called with sequences done, sequences in all, and what is being done.

    Returns:
        The policy with the loosest certified threshold, None if there is none; and the guarantee.

    Raises:
        CertificateError: a level outside (0, 1), a share outside [0, 1), or too few prompts.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from anydepth import Confidence
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40, bos_token_id=1)).eval()
        >>> prompts = torch.randint(40, (30, 4)).unbind()
        >>> policy = Confidence(0.5, depths=(2,))
        >>> policy, guarantee = calibrate(model, prompts, policy, tolerance=0.1, new_tokens=3, thresholds=[1.0])
        >>> policy.threshold, guarantee.certificate.failures
        (1.0, 0)
    """
    if not 0 <= share < 1:
        raise CertificateError(f"share is {share}, expected at least 0 and below 1")
    given = len(prompts)
    prompts, times = _distinct(prompts)
    require_samples(len(prompts), tolerance=tolerance, confidence=confidence, count=given, what="prompts")
    thresholds = policy.threshold_path() if thresholds is None else thresholds
    generator = _Generator(
        model=model,
        prompts=prompts,
        new_tokens=new_tokens,
        padding=padding,
        folder=keep and keep / _key(Stack(model, blocks=blocks), prompts, policy, (new_tokens, padding)),
        progress=progress,
    )
    with evaluating(model), torch.inference_mode():
        texts, _ = generator.generate("the full model")
        steps: list[ThresholdResult] = []

        def failures() -> Iterator[int]:
            for threshold in thresholds:
                mode = dynamic_exit(replace(policy, threshold=threshold, log_odds=None), blocks=blocks)
                early, depths = generator.generate(f"threshold {threshold:g}", mode)
                step, failed = _compare(threshold, early, depths, texts, share)
                steps.append(step)
                # prompts that repeat often may be those that fail
                if not passes(int(times @ failed), given, tolerance=tolerance, confidence=confidence):
                    return
                yield step.failures

        passed = certified(failures(), len(prompts), against="model", tolerance=tolerance, confidence=confidence)
    guarantee = SequenceGuarantee(
        certificate=passed[-1] if passed else None,
        share=share,
        new_tokens=new_tokens,
        steps=tuple(steps),
        passed=len(passed),
        notes=repeats(given - len(prompts), given, "prompts"),
    )
    taken = guarantee.taken
    return (None if taken is None else replace(policy, threshold=taken.threshold, log_odds=None)), guarantee


def _distinct(prompts: Sequence[Tensor]) -> tuple[list[Tensor], Int64[np.ndarray, " n"]]:
    """Each prompt once, and how often it occurs."""
    contents = [tuple(prompt.tolist()) for prompt in prompts]
    distinct, times = dict(zip(contents, prompts, strict=True)), Counter(contents)
    return list(distinct.values()), np.array(list(times.values()), dtype=np.int64)


def _key(stack: Stack, prompts: Sequence[Tensor], policy: Policy, settings: tuple[int, int]) -> str:
    """A hash of all that the sequences depend on, except the threshold."""
    kind = {**as_plain(policy), "threshold": None}
    content = [describe_model(stack)["fingerprint"], [prompt.tolist() for prompt in prompts], kind, settings]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _save(file: Path, texts: list[Tensor], depths: list[Tensor]) -> None:
    each = torch.cat(depths).numpy() if depths else np.empty(0, np.int64)
    lengths = np.array([len(text) for text in texts])
    with atomic_write(file) as beside, beside.open("wb") as opened:
        np.savez(opened, lengths=lengths, texts=torch.cat(texts).numpy(), depths=each)


def _read(file: Path) -> tuple[list[Tensor], list[Tensor]]:
    with np.load(file, allow_pickle=False) as arrays:
        lengths = arrays["lengths"].tolist()
        texts, depths = torch.from_numpy(arrays["texts"]), torch.from_numpy(arrays["depths"])
    return list(torch.split(texts, lengths)), list(torch.split(depths, lengths)) if len(depths) else []


@dataclass(frozen=True, kw_only=True)
class _Generator:
    """Generates from all prompts in batches, and keeps the sequences in a folder, if there is one."""

    model: Any
    prompts: Sequence[Tensor]
    new_tokens: int
    padding: int
    folder: Path | None
    progress: Progress | None

    def generate(self, name: str, mode: DynamicExit | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The tokens generated after each prompt, and the exit depth of each token (empty without a mode)."""
        file = self.folder and self.folder / f"{name}.npz"
        if file is not None and file.is_file():
            return _read(file)
        texts: list[Tensor] = []
        depths: list[Tensor] = []
        for start in range(0, len(self.prompts), _BATCH):
            batch = self.prompts[start : start + _BATCH]
            new = [row[: self._length(row)] for row in self._batch(batch, mode)]
            texts += new
            if mode is not None:
                each = torch.tensor(mode.spent.depths).view(-1, len(batch)).T
                depths += [row[: len(text)] for row, text in zip(each, new, strict=True)]
            if self.progress is not None:
                self.progress(len(texts), len(self.prompts), name)
        if file is not None:
            _save(file, texts, depths)
        return texts, depths

    def _batch(self, prompts: Sequence[Tensor], mode: DynamicExit | None) -> Int64[Tensor, "b t"]:
        """The tokens after each prompt, padded to one length."""
        longest, device = max(len(prompt) for prompt in prompts), self.model.device
        rows = [functional.pad(prompt, (longest - len(prompt), 0), value=self.padding) for prompt in prompts]
        masks = [functional.pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for prompt in prompts]
        output = self.model.generate(
            torch.stack(rows).to(device),
            attention_mask=torch.stack(masks).to(device),
            max_new_tokens=self.new_tokens,
            do_sample=False,
            pad_token_id=self.padding,
            custom_generate=mode,
        )
        new: Tensor = output[:, longest:].cpu()
        return new

    def _length(self, row: Int64[Tensor, " t"]) -> int:
        """Tokens up to the first that ends a sequence, with it."""
        ends = self.model.generation_config.eos_token_id
        ended = torch.isin(row, torch.tensor([] if ends is None else ends)).nonzero()
        return int(ended[0]) + 1 if len(ended) else len(row)


def _compare(
    threshold: int | float, early: list[Tensor], depths: list[Tensor], texts: list[Tensor], share: float
) -> tuple[ThresholdResult, Bool[np.ndarray, " n"]]:
    """The result of a threshold, and which of its sequences fail, by comparison with the full model's texts."""
    shares = [differing(*pair) for pair in zip(early, texts, strict=True)]
    lengths = [max(map(len, pair)) for pair in zip(early, texts, strict=True)]
    failed = np.array(shares) > share
    result = ThresholdResult(
        threshold=threshold,
        failures=int(failed.sum()),
        depth=float(torch.cat(depths).float().mean()),
        differing=sum(part * length for part, length in zip(shares, lengths, strict=True)) / sum(lengths),
    )
    return result, failed


def differing(early: Int64[Tensor, " n"], full: Int64[Tensor, " m"]) -> float:
    """The share of positions where two sequences differ; a position that only one has differs.

    Example:
        >>> differing(torch.tensor([1, 2, 3]), torch.tensor([1, 9, 3, 4]))
        0.5
    """
    both = min(len(early), len(full))
    return 1 - int((early[:both] == full[:both]).sum()) / max(len(early), len(full))

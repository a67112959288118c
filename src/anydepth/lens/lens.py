"""The lens: what a language model would say at every depth and position of one text, by its own tail.

This is the logit lens (nostalgebraist 2020), except that a state is not multiplied by the unembedding: it goes through
all that the model does after its last block.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from anydepth.core.model_io import Batch, device_of, to_device
from anydepth.core.patching import evaluating
from anydepth.core.provenance import describe_model, now, versions
from anydepth.core.stack import Stack
from anydepth.core.targets import predicts_next_token
from anydepth.core.tokens import default_policy
from anydepth.data.decoding import require_text
from anydepth.data.inputs import check_vocabulary
from anydepth.errors import DataError, ModelError, NonFiniteStates, UnsupportedHead
from anydepth.lens.token_text import spelled
from anydepth.measures.readout import PIECE, PIECE_ELSEWHERE, readout_rows, saturation_depth
from anydepth.models.input_length import max_input_length
from anydepth.models.loaded import LoadedModel
from anydepth.models.loading import stack_of

if TYPE_CHECKING:
    import pandas

LONGEST = 128
"""Tokens at which a text is cut unless told otherwise: more than a page shows at a glance."""
NOTHING = -1
"""The target of a position that has none, and its rank."""
_NEEDS = "a lens needs a language model, which answers over its vocabulary at every position"


@dataclass(frozen=True, kw_only=True)
class Lens:
    """What a language model would say at every depth and position of a text. T positions, K = L + 1 depths.

    The **target** of a position is the token it is to give: the one that follows, or, in a model that fills gaps
    (BERT), the one that stands there. At depth 0 the model's tail reads the embedding, which it was never trained to.

    Attributes:
        tokens: (T) the text's tokens, special ones among them, as text.
        targets: (T) the target of each position; None at the end of a text, where nothing follows.
        top: (K)(T) the most probable token; the first of several equal ones.
        top_id: its index in the vocabulary.
        probability: of the top token, in 0..1.
        entropy: of the whole distribution, in nats, 0..log V.
        target_id: index of the target; -1 where there is none.
        target_probability: of the target, in 0..1; NaN where there is none.
        target_rank: 1 + how many tokens are more probable than the target; -1 where there is none.
        next_token: whether targets are the tokens that follow.
        notes: what a reader should know, one sentence each.
        provenance: where the numbers come from.

    Example:
        >>> import torch
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "sat": 2, "?": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> _ = torch.manual_seed(0)
        >>> config = GPT2Config(vocab_size=4, n_embd=8, n_layer=3, n_head=2, bos_token_id=3, eos_token_id=3)
        >>> found = Lens.of(Stack(GPT2LMHeadModel(config).eval()), "the cat sat", tokenizer)
        >>> found.depth, found.probability.shape, found.targets
        (3, (4, 3), (' cat', ' sat', None))
    """

    tokens: tuple[str, ...]
    targets: tuple[str | None, ...]
    top: tuple[tuple[str, ...], ...]
    top_id: Int64[np.ndarray, "k t"]
    probability: Float64[np.ndarray, "k t"]
    entropy: Float64[np.ndarray, "k t"]
    target_id: Int64[np.ndarray, " t"]
    target_probability: Float64[np.ndarray, "k t"]
    target_rank: Int64[np.ndarray, "k t"]
    next_token: bool
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Stack | LoadedModel,
        text: str,
        tokenizer: Any = None,
        *,
        longest: int = LONGEST,
        final_norm: bool = True,
    ) -> Lens:
        """Look at a text.

        All logits of one depth are there at a time, T x V numbers, as in any forward of the model; never those of all.

        Args:
            model: a language model, loaded or as a `Stack`.
            text: any.
            tokenizer: of transformers; a loaded model has its own.
            longest: tokens to look at; what goes beyond, or beyond what the model takes, is cut, and `notes` says so.
            final_norm: False skips the final norm below depth L, to reproduce results of code that forgot it.

        Raises:
            DataError: the text becomes no tokens.
            ModelError: there is no tokenizer, or one that is not the model's.
            NonFiniteStates: a readout holds NaN.
            UnsupportedHead: the model does not answer over a vocabulary at every position.
        """
        loaded = _loaded(model, tokenizer)
        batch, notes = _encoded(text, loaded, longest)
        stack = model if isinstance(model, Stack) else stack_of(loaded, [batch])
        with evaluating(stack.model), torch.no_grad():
            states = _states(stack, batch, loaded)
            ids = (batch if isinstance(batch, Tensor) else batch["input_ids"])[0]
            next_token = _gives_next(stack, batch)
            targets = torch.cat([ids[1:], ids.new_full((1,), NOTHING)]) if next_token else ids

            def read(state: Tensor, depth: int) -> Tensor:
                norm = final_norm or depth == stack.depth
                return stack.readout(state, batch, depth=depth or None, final_norm=norm)[0]

            # no name for the logits: they would stay until those of the next depth are there
            said = [_said(read(state, depth), targets, depth) for depth, state in enumerate(states)]
        arrays = {name: np.stack([one[name] for one in said]) for name in said[0]}
        shown = spelled(loaded.processor, [*ids.tolist(), *arrays["top_id"].ravel().tolist()])
        return cls(
            tokens=tuple(shown[one] for one in ids.tolist()),
            targets=tuple(shown.get(one) for one in targets.tolist()),
            top=tuple(tuple(shown[one] for one in row) for row in arrays["top_id"].tolist()),
            target_id=targets.cpu().numpy(),
            next_token=next_token,
            notes=(*loaded.notes, *notes),
            provenance=_provenance(stack, loaded, final_norm),
            **arrays,
        )

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.top_id) - 1

    @property
    def saturation(self) -> Int64[np.ndarray, " t"]:
        """Of each position, the first depth in 1..L from which on the top token is the final one."""
        return saturation_depth(self.top_id.T)

    @property
    def perplexity(self) -> Float64[np.ndarray, " k"]:
        """Of the targets at each depth: exp of their mean cross-entropy; NaN where the text has no target."""
        have = self.target_id != NOTHING
        if not have.any():
            return np.full(self.depth + 1, np.nan)
        with np.errstate(divide="ignore"):  # a target of probability 0 makes it infinite
            return np.asarray(np.exp(-np.log(self.target_probability[:, have]).mean(1)))

    def to_frame(self) -> pandas.DataFrame:
        """One row for each position and depth; positions count from 0."""
        import pandas

        depths, count = self.top_id.shape
        position, depth = (index.ravel() for index in np.indices((count, depths)))
        found = pandas.DataFrame({"position": position, "depth": depth})
        for name in ("token", "target"):
            found[name] = [text for text in getattr(self, f"{name}s") for _ in range(depths)]
        found["target_id"] = self.target_id[position]
        found["top"] = [self.top[k][t] for t, k in zip(position, depth, strict=True)]
        for name in ("top_id", "probability", "entropy", "target_probability", "target_rank"):
            found[name] = getattr(self, name).T.ravel()
        found["settled"] = self.saturation[position] <= depth
        return found

    def save(self, path: str | Path) -> Path:
        """Write a page of its own: HTML that needs nothing from outside, and runs nothing.

        Args:
            path: where to; an existing file is replaced at once or not at all.

        Raises:
            TraceFileError: the file cannot be written.
        """
        from anydepth.report.pages import lens

        return lens.write(self, path)


def _loaded(model: Stack | LoadedModel, tokenizer: Any) -> LoadedModel:
    """The model with its tokenizer beside it."""
    if isinstance(model, Stack):
        config = getattr(model.model, "config", None)
        name = getattr(config, "_name_or_path", None) or type(model.model).__name__
        if tokenizer is None:
            raise ModelError(f"a Stack of {name} came without a tokenizer: expected Lens.of(stack, text, tokenizer)")
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise UnsupportedHead(f"{name} came with {type(tokenizer).__name__}, which is no tokenizer; {_NEEDS}")
        return LoadedModel(model=model.model, processor=tokenizer, kind="text", task="causal-lm", name=name)
    if model.kind != "text":
        raise UnsupportedHead(f"'{model.name}' takes no text ({model.task}); {_NEEDS}")
    return model


def _encoded(text: str, loaded: LoadedModel, longest: int) -> tuple[Batch, list[str]]:
    """The text as a batch of one, and what was cut."""
    if longest < 1:
        raise DataError(f"a lens of {longest} tokens was asked for, expected at least 1")
    require_text(text, "the text")
    tokenizer, network = loaded.processor, loaded.model
    if not tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
        raise DataError(f"the text {text[:20]!r} becomes no tokens, expected at least one: give a longer text")
    most = min(filter(None, (longest, loaded.max_length, max_input_length(network, tokenizer))))
    whole = len(tokenizer(text, verbose=False)["input_ids"])
    tokens = to_device(tokenizer(text, truncation=True, max_length=most, return_tensors="pt"), device_of(network))
    assert isinstance(tokens, dict)
    if hasattr(network, "get_input_embeddings"):
        check_vocabulary(int(tokens["input_ids"].max()), loaded)
    notes = [f"the text is cut to {most} of its {whole} tokens"] if whole > most else []
    takes = inspect.signature(network.forward).parameters
    if "input_ids" not in takes:
        return tokens["input_ids"], notes
    return {name: tensor for name, tensor in tokens.items() if name in takes}, notes


def _states(stack: Stack, batch: Batch, loaded: LoadedModel) -> list[Tensor]:
    """h[0..L], of a model that answers over the vocabulary at every position."""
    states, answer = stack.forward(batch)
    size = answer.shape[-1]
    if answer.ndim != 3:
        raise UnsupportedHead(f"'{loaded.name}' answers once for a text, with {size} numbers; {_NEEDS}")
    if not stack.answers_with_logits(labelled=True):
        raise UnsupportedHead(f"'{loaded.name}' has no head and answers with {size} features; {_NEEDS}")
    known = getattr(stack.model, "get_input_embeddings", lambda: None)()
    ids = batch if isinstance(batch, Tensor) else batch["input_ids"]
    tokens = max(int(ids.max()) + 1, getattr(known, "num_embeddings", 0))
    if size < tokens:
        raise UnsupportedHead(f"'{loaded.name}' chooses among {size} classes and reads {tokens} tokens; {_NEEDS}")
    return states


def _provenance(stack: Stack, loaded: LoadedModel, final_norm: bool) -> dict[str, Any]:
    model = describe_model(stack, loaded.name)
    del model["classes"]  # a language model's are its vocabulary
    return {
        "model": model,
        "readout": "tail" if final_norm else "raw",
        "versions": versions(),
        "created": now(),
    }


def _gives_next(stack: Stack, batch: Batch) -> bool:
    """Whether the answer at a position is the token after it: so it is in a model that can't see that token."""
    return predicts_next_token(stack.model) or default_policy(stack, batch, labels_each=False) == "last"


def _said(logits: Float[Tensor, "t v"], targets: Int64[Tensor, " t"], depth: int) -> dict[str, np.ndarray]:
    """What is kept of the logits of one depth."""
    have = (targets != NOTHING).cpu()
    label = targets.clamp(min=0).to(logits.device)
    rows = readout_rows(logits, label)
    if rows.confidence.isnan().any():
        raise NonFiniteStates(f"the readout at depth {depth} gives NaN, expected finite numbers: try another dtype")
    assert rows.cross_entropy is not None
    entropy, rank = [], []
    step = max(1, (PIECE if logits.device.type == "cpu" else PIECE_ELSEWHERE) // logits.shape[1])
    for start in range(0, len(logits), step):
        some = logits[start : start + step]
        some = some if some.dtype == torch.float64 else some.float()
        entropy.append(torch.special.entr(some.softmax(1)).sum(1).cpu().double())
        rank.append(1 + (some > some.gather(1, label[start : start + step, None])).sum(1).cpu())
    return {
        "top_id": rows.prediction.numpy(),
        "probability": rows.confidence.numpy(),
        "entropy": torch.cat(entropy).numpy(),
        "target_probability": (-rows.cross_entropy).exp().masked_fill(~have, float("nan")).numpy(),
        "target_rank": torch.cat(rank).masked_fill(~have, NOTHING).numpy(),
    }

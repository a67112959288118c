"""The logit lens (nostalgebraist 2020) of a text: token probabilities at every depth and position.

A hidden state is not multiplied by the unembedding alone: it goes through all that the model does after its last block.
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

from anydepth.core.model_io import Batch, device_of, predicts_next_token, to_device
from anydepth.core.patching import evaluating
from anydepth.core.provenance import describe_model, entry, now, versions
from anydepth.core.stack import Stack
from anydepth.core.tokens import default_policy
from anydepth.data.decoding import require_text
from anydepth.data.inputs import check_vocabulary
from anydepth.errors import DataError, ModelError, NonFiniteStates, UnsupportedHead
from anydepth.lens.token_text import spelled
from anydepth.measures.readout import PIECE, PIECE_ELSEWHERE, readout_rows, saturation_depth
from anydepth.models.input_length import max_input_length
from anydepth.models.loaded import LoadedModel
from anydepth.models.loading import stack_of
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table

if TYPE_CHECKING:
    import pandas

LONGEST = 128
"""Tokens at which a text is cut by default: more than a page shows at a glance."""
NOTHING = -1
"""The target id, and the target's rank, at a position without a target."""
_NEEDS = "a lens needs a language model, which answers over its vocabulary at every position"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Lens(Result):
    """The logit lens of a text: readouts at T positions and K = L + 1 depths.

    The **target** of a position is the token it should predict: the next one, or, in a masked language model (BERT),
    the one at the position. At depth 0 the readout is of the embedding, which the model was never trained for.

    Attributes:
        tokens: (T) the text's tokens as text, with special ones.
        targets: (T) the target of each position; None at the end of a text, where no token follows.
        top: (K)(T) the most probable token; the first of several equal ones.
        top_id: its index in the vocabulary.
        probability: of the top token, in 0..1.
        entropy: of the whole distribution, in nats, 0..log V.
        target_id: index of the target; -1 where there is none.
        target_probability: of the target, in 0..1; NaN where there is none.
        target_rank: 1 + how many tokens are more probable than the target; -1 where there is none.
        next_token: whether targets are the next tokens.
        notes: what was cut, and the model's.
        provenance: model, readout, versions.

    Example:
        >>> import torch
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "sat": 2, "?": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
        >>> _ = torch.manual_seed(0)
        >>> config = GPT2Config(vocab_size=4, n_embd=8, n_layer=3, n_head=2, bos_token_id=3, eos_token_id=3)
        >>> lens = Lens.of(Stack(GPT2LMHeadModel(config).eval()), "the cat sat", tokenizer)
        >>> lens.depth, lens.probability.shape, lens.targets
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

    def line(self) -> str:
        """The size of the lens and the start of its text."""
        start = "".join(self.tokens)[:60]
        return f"{len(self.tokens)} tokens, depths 0 to {self.depth}, of the text that begins {start!r}"

    def tables(self) -> tuple[Table, ...]:
        """The most probable token at each position, at some of the depths."""
        depths = sorted({max(1, round(self.depth * share)) for share in (0, 0.25, 0.5, 0.75, 1)})
        columns = [Column(head="token", cells=tuple(map(repr, self.tokens)), kind="text")]
        for rank, depth in enumerate(reversed(depths)):
            top, sure = self.top[depth], self.probability[depth]
            cells = tuple(f"{token!r} {share:.2f}" for token, share in zip(top, sure, strict=True))
            columns.insert(1, Column(head=f"depth {depth}", cells=cells, kind="text", rank=rank))
        name = entry(self.provenance, "model", "name", default="model")
        return (Table(title=f"{name}: the likeliest token and its probability", columns=tuple(columns)),)

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
        """Read out a text at every position and depth; only one depth's T x V logits are in memory at a time.

        Args:
            model: a language model, loaded or as a `Stack`.
            text: any.
            tokenizer: of transformers; a loaded model has its own.
            longest: the maximum number of tokens; the rest is cut, and `notes` says so.
            final_norm: False skips the final norm below depth L, to reproduce results of code that forgot it.

        Raises:
            DataError: the text has no tokens.
            ModelError: there is no tokenizer, or one that is not the model's.
            NonFiniteStates: a readout holds NaN.
            UnsupportedHead: the model does not answer over a vocabulary at every position.
        """
        loaded = _loaded(model, tokenizer)
        batch, notes = _encoded(text, loaded, longest)
        stack = model if isinstance(model, Stack) else stack_of(loaded, [batch])
        with evaluating(stack.model), torch.no_grad():
            states = _states(stack, batch, loaded)
            stack.require_one_stage("the lens")
            ids = (batch if isinstance(batch, Tensor) else batch["input_ids"])[0]
            # a model that does not see the next token is to predict it
            next_token = predicts_next_token(stack.model) or default_policy(stack, batch, labels_each=False) == "last"
            targets = torch.cat([ids[1:], ids.new_full((1,), NOTHING)]) if next_token else ids

            def read(state: Tensor, depth: int) -> Tensor:
                norm = final_norm or depth == stack.depth
                return stack.readout(state, batch, depth=depth, final_norm=norm)[0]

            # no name for the logits: they would stay in memory beside those of the next depth
            columns = [_columns(read(state, depth), targets, depth) for depth, state in enumerate(states)]
        arrays = {name: np.stack([at_depth[name] for at_depth in columns]) for name in columns[0]}
        text_of = spelled(loaded.processor, [*ids.tolist(), *arrays["top_id"].ravel().tolist()])
        description = describe_model(stack, loaded.name)
        del description["classes"]  # a language model's are its vocabulary
        return cls(
            tokens=tuple(text_of[token] for token in ids.tolist()),
            targets=tuple(text_of.get(token) for token in targets.tolist()),
            top=tuple(tuple(text_of[token] for token in row) for row in arrays["top_id"].tolist()),
            target_id=targets.cpu().numpy(),
            next_token=next_token,
            notes=(*loaded.notes, *notes),
            provenance={
                "model": description,
                "readout": "tail" if final_norm else "raw",
                "versions": versions(),
                "created": now(),
            },
            **arrays,
        )

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.top_id) - 1

    @property
    def saturation(self) -> Int64[np.ndarray, " t"]:
        """Saturation depth of each position: the first in 1..L from which on the top token is the final one."""
        return saturation_depth(self.top_id.T)

    @property
    def perplexity(self) -> Float64[np.ndarray, " k"]:
        """Perplexity at each depth: exp of the targets' mean cross-entropy; NaN where the text has no target."""
        known = self.target_id != NOTHING
        if not known.any():
            return np.full(self.depth + 1, np.nan)
        with np.errstate(divide="ignore"):  # a target of probability 0 makes it infinite
            return np.asarray(np.exp(-np.log(self.target_probability[:, known]).mean(1)))

    def to_frame(self) -> pandas.DataFrame:
        """One row for each position and depth; positions count from 0."""
        import pandas

        depths, count = self.top_id.shape
        position, depth = (index.ravel() for index in np.indices((count, depths)))
        frame = pandas.DataFrame({"position": position, "depth": depth})
        for name in ("token", "target"):
            frame[name] = [text for text in getattr(self, f"{name}s") for _ in range(depths)]
        frame["target_id"] = self.target_id[position]
        frame["top"] = [self.top[k][t] for t, k in zip(position, depth, strict=True)]
        for name in ("top_id", "probability", "entropy", "target_probability", "target_rank"):
            frame[name] = getattr(self, name).T.ravel()
        frame["settled"] = self.saturation[position] <= depth
        return frame

    def save(self, path: str | Path) -> Path:
        """Write an HTML page that needs no other file and runs no script; an existing file is replaced atomically.

        Raises:
            TraceFileError: the file cannot be written.
        """
        from anydepth.report.pages import lens

        return lens.write(self, path)


def _loaded(model: Stack | LoadedModel, tokenizer: Any) -> LoadedModel:
    """The model with its tokenizer."""
    if isinstance(model, Stack):
        config = getattr(model.model, "config", None)
        name = getattr(config, "_name_or_path", None) or type(model.model).__name__
        if tokenizer is None:
            raise ModelError(f"a Stack of {name} came without a tokenizer: expected Lens.of(stack, text, tokenizer)")
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise UnsupportedHead(f"{name} came with {type(tokenizer).__name__}, which is no tokenizer; {_NEEDS}")
        most = max_input_length(model.model, tokenizer)
        return LoadedModel(
            model=model.model, processor=tokenizer, kind="text", task="causal-lm", name=name, max_length=most
        )
    if model.kind != "text":
        raise UnsupportedHead(f"'{model.name}' takes no text ({model.task}); {_NEEDS}")
    return model


def _encoded(text: str, loaded: LoadedModel, longest: int) -> tuple[Batch, list[str]]:
    """The text as a batch of one, and a note of what was cut."""
    if longest < 1:
        raise DataError(f"a lens of {longest} tokens was asked for, expected at least 1")
    require_text(text, "the text")
    tokenizer, network = loaded.processor, loaded.model
    if not tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
        raise DataError(f"the text {text[:20]!r} becomes no tokens, expected at least one: give a longer text")
    most = min(longest, loaded.max_length or longest)
    whole = len(tokenizer(text, verbose=False)["input_ids"])
    tokens = to_device(tokenizer(text, truncation=True, max_length=most, return_tensors="pt"), device_of(network))
    assert isinstance(tokens, dict)
    if hasattr(network, "get_input_embeddings"):
        check_vocabulary(int(tokens["input_ids"].max()), loaded)
    notes = [f"the text is cut to {most} of its {whole} tokens"] if whole > most else []
    accepted = inspect.signature(network.forward).parameters
    if "input_ids" not in accepted:
        return tokens["input_ids"], notes
    return {name: tensor for name, tensor in tokens.items() if name in accepted}, notes


def _states(stack: Stack, batch: Batch, loaded: LoadedModel) -> list[Tensor]:
    """h[0..L], of a model that answers over the vocabulary at every position."""
    states, answer = stack.forward(batch)
    size = answer.shape[-1]
    if answer.ndim != 3:
        raise UnsupportedHead(f"'{loaded.name}' answers once for a text, with {size} numbers; {_NEEDS}")
    if not stack.answers_with_logits(labelled=True):
        raise UnsupportedHead(f"'{loaded.name}' has no head and answers with {size} features; {_NEEDS}")
    embeddings = getattr(stack.model, "get_input_embeddings", lambda: None)()
    ids = batch if isinstance(batch, Tensor) else batch["input_ids"]
    tokens = max(int(ids.max()) + 1, getattr(embeddings, "num_embeddings", 0))
    if size < tokens:
        raise UnsupportedHead(f"'{loaded.name}' chooses among {size} classes and reads {tokens} tokens; {_NEEDS}")
    return states


def _columns(logits: Float[Tensor, "t v"], targets: Int64[Tensor, " t"], depth: int) -> dict[str, np.ndarray]:
    """Top token, probability, entropy, and the target's probability and rank, from the logits of one depth."""
    known = (targets != NOTHING).cpu()
    label = targets.clamp(min=0).to(logits.device)
    rows = readout_rows(logits, label)
    if rows.confidence.isnan().any():
        raise NonFiniteStates(f"the readout at depth {depth} gives NaN, expected finite numbers: try another dtype")
    assert rows.cross_entropy is not None
    entropy, rank = [], []
    step = max(1, (PIECE if logits.device.type == "cpu" else PIECE_ELSEWHERE) // logits.shape[1])
    for start in range(0, len(logits), step):
        part = logits[start : start + step]
        part = part if part.dtype == torch.float64 else part.float()
        entropy.append(torch.special.entr(part.softmax(1)).sum(1).cpu().double())
        rank.append(1 + (part > part.gather(1, label[start : start + step, None])).sum(1).cpu())
    return {
        "top_id": rows.prediction.numpy(),
        "probability": rows.confidence.numpy(),
        "entropy": torch.cat(entropy).numpy(),
        "target_probability": (-rows.cross_entropy).exp().masked_fill(~known, float("nan")).numpy(),
        "target_rank": torch.cat(rank).masked_fill(~known, NOTHING).numpy(),
    }

"""Tiny models whose axes, masks or blocks lie where one would not look, each with a batch and a slow loop over it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tiny_models
import torch
import transformers
from tiny_models import BLOCKS, CLASSES, VOCABULARY, WIDTH, Block, text
from torch import Tensor, nn

# of the encoder and the decoder, by the names that BART, Whisper and FSMT have for it
_SIDE = {"layers": BLOCKS, "attention_heads": 4, "ffn_dim": 48}
SIDES = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIDE.items()}


class SequenceFirst(nn.Module):
    """`nn.TransformerEncoder` as torch has it by default: (T, B, D) inside, samples first outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 48), BLOCKS)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(input_ids).transpose(0, 1)).mean(0))


class WritesToItsEmbedding(tiny_models.Nobodys):
    """Adds positions to what the embedding answered, in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += torch.linspace(-1, 1, x.shape[-1])
        for block in self.trunk:
            x = block(x)
        return self.last(x)


class Grid(nn.Module):
    """States with two axes of positions: (B, H, W, D), or (B, D, H, W)."""

    def __init__(self, *, features_last: bool) -> None:
        super().__init__()
        self.features_last = features_last
        self.embed = nn.Conv2d(3, WIDTH, 2, stride=2)
        mix = nn.Linear(WIDTH, WIDTH) if features_last else nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(copy.deepcopy(mix), nn.Tanh()) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.embed(pixel_values)
        x = x.permute(0, 2, 3, 1) if self.features_last else x
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2) if self.features_last else (2, 3)))


class Held(nn.Module):
    """Blocks in attributes, in a plain list, or one block that is called at every depth."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(8, 16), nn.Linear(16, CLASSES)
        blocks = [Block(16) for _ in range(BLOCKS)]
        if how == "attributes":
            for number, block in enumerate(blocks):
                setattr(self, f"block{number}", block)
        elif how == "plain list":
            self.trunk = blocks
        elif how == "with None":
            self.trunk = nn.ModuleList([blocks[0], *blocks[1:]])
            self.trunk._modules["1"] = None
        else:
            self.block = blocks[0]

    def blocks(self) -> list[nn.Module]:
        if self.how == "attributes":
            return [getattr(self, f"block{number}") for number in range(BLOCKS)]
        if self.how == "shared":
            return [self.block] * BLOCKS
        return [block for block in self.trunk if block is not None]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks():
            x = block(x)
        return self.last(x)


class Mixed(tiny_models.Nobodys):
    """Blocks of two classes in turn."""

    def __init__(self) -> None:
        super().__init__()
        other = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.trunk = nn.ModuleList([Block(16), copy.deepcopy(other), Block(16), other])


class T5Classifier(nn.Module):
    """A T5 encoder with a mean and a head: a position bias goes from block to block beside the state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = transformers.T5EncoderModel(t5_config())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states)
        return self.head((states * weights).sum(1) / weights.sum(1))


def t5_config() -> Any:
    settings = {"d_model": WIDTH, "num_heads": 4, "d_kv": 8, "d_ff": 48, "vocab_size": VOCABULARY}
    return transformers.T5Config(**settings, num_layers=BLOCKS, num_decoder_layers=3, decoder_start_token_id=0)


def bart() -> nn.Module:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.BartConfig(vocab_size=VOCABULARY, d_model=WIDTH, **SIDES, **special)
    return transformers.BartForConditionalGeneration(config)


def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=16,
        **SIDES,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config)


def clip() -> nn.Module:
    towers = {"text_config": tiny_models._USUAL | tiny_models._SPECIAL, "vision_config": tiny_models._IMAGE}
    return transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=16))


def llava() -> nn.Module:
    words = tiny_models._USUAL | tiny_models._GROUPED | tiny_models._SPECIAL
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**words),
        vision_config=transformers.CLIPVisionConfig(**tiny_models._IMAGE),
        image_token_index=VOCABULARY - 1,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return transformers.LlavaForConditionalGeneration(config)


def seen_texts() -> dict[str, Tensor]:
    """Texts that begin with the four places of an image."""
    batch = text()
    batch["input_ids"].clamp_(max=VOCABULARY - 2)
    batch["input_ids"][:, :4] = VOCABULARY - 1
    batch["attention_mask"][:, :5] = 1
    return batch | tiny_models.images()


def spoken() -> dict[str, Tensor]:
    return {"input_features": torch.randn(3, 8, 16), "decoder_input_ids": decoded()["decoder_input_ids"]}


def decoded() -> dict[str, Tensor]:
    """As many places as the encoder's texts have, and fewer of them padding."""
    ids = torch.randint(5, VOCABULARY, (3, 12))
    ids[:, 0] = 2
    mask = torch.ones_like(ids)
    mask[1, 10:] = mask[2, 9:] = 0
    return {"decoder_input_ids": ids * mask, "decoder_attention_mask": mask}


class Frames(tiny_models.Nobodys):
    """Videos (B, K, 8) whose frames are rows of one axis, (B·K, D), in the order of `rows`."""

    rows = "one after the other"

    def forward(self, x: Tensor) -> Tensor:
        frames = self.first(x) if self.rows == "one after the other" else self.first(x).transpose(0, 1)
        rows = frames.flatten(0, 1)
        for block in self.trunk:
            rows = block(rows)
        return self.answer(self.last(rows).unflatten(0, frames.shape[:2]))

    def answer(self, logits: Tensor) -> Tensor:
        return logits.mean(1 if self.rows == "one after the other" else 0)


def choice() -> nn.Module:
    return transformers.BertForMultipleChoice(transformers.BertConfig(**tiny_models._USUAL))


def choices() -> dict[str, Tensor]:
    """Three questions with two texts each to choose from."""
    texts = [text(), text()]
    texts[1] = {name: value.flip(0) for name, value in texts[1].items()}  # of other lengths
    return {name: torch.stack([each[name] for each in texts], dim=1) for name in ("input_ids", "attention_mask")}


def albert() -> nn.Module:
    return transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(**tiny_models._USUAL, embedding_size=16, num_labels=CLASSES)
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, a batch of it, and by hand where its blocks are and what its states look like."""

    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    blocks: Callable[[Any], Sequence[nn.Module]]
    settings: dict[str, str] = field(default_factory=dict)
    standard: Callable[[Tensor], Tensor] = lambda state: state
    valid: Callable[[Any], Tensor] | None = None
    """The places of the states that are not padding; None for all."""


def _mask(batch: Any) -> Tensor:
    return batch["attention_mask"].bool()


def _decoder_mask(batch: Any) -> Tensor:
    return batch["decoder_attention_mask"].bool()


def _both() -> Any:
    return text() | decoded()


CASES = {
    "sequence first": Case(
        build=SequenceFirst,
        batch=lambda: {"input_ids": torch.randint(VOCABULARY, (5, 6))},
        blocks=lambda model: model.encoder.layers,
        standard=lambda state: state.transpose(0, 1),
    ),
    "writes to its embedding": Case(
        build=WritesToItsEmbedding, batch=lambda: torch.randn(3, 8), blocks=lambda model: model.trunk
    ),
    "grid": Case(
        build=lambda: Grid(features_last=True),
        batch=lambda: {"pixel_values": torch.rand(3, 3, 8, 12)},
        blocks=lambda model: model.blocks,
        standard=lambda state: state.flatten(1, 2),
    ),
    "channels first": Case(
        build=lambda: Grid(features_last=False),
        batch=lambda: {"pixel_values": torch.rand(3, 3, 8, 12)},
        blocks=lambda model: model.blocks,
        standard=lambda state: state.flatten(2).transpose(1, 2),
    ),
    **{
        how: Case(build=lambda how=how: Held(how), batch=lambda: torch.randn(3, 8), blocks=lambda model: model.blocks())
        for how in ("attributes", "plain list", "with None", "shared")
    },
    "frames": Case(
        build=Frames,
        batch=lambda: torch.randn(3, 4, 8),
        blocks=lambda model: model.trunk,
        standard=lambda state: state.unflatten(0, (-1, 4)),
    ),
    "choices": Case(
        build=choice,
        batch=choices,
        blocks=lambda model: model.bert.encoder.layer,
        standard=lambda state: state.unflatten(0, (-1, 2)).flatten(1, 2),
        valid=lambda batch: batch["attention_mask"].flatten(1).bool(),
    ),
    "two classes": Case(build=Mixed, batch=lambda: torch.randn(3, 8), blocks=lambda model: model.trunk),
    "one sequential": Case(
        build=lambda: nn.Sequential(nn.Linear(8, 16), *map(Block, [16] * BLOCKS), nn.LayerNorm(16), nn.Linear(16, 4)),
        batch=lambda: torch.randn(3, 8),
        blocks=lambda model: list(model)[1 : BLOCKS + 1],
    ),
    "t5 classifier": Case(
        build=T5Classifier, batch=text, blocks=lambda model: model.encoder.encoder.block, valid=_mask
    ),
    "t5": Case(
        build=lambda: transformers.T5ForConditionalGeneration(t5_config()),
        batch=_both,
        blocks=lambda model: model.decoder.block,
        valid=_decoder_mask,
    ),
    "t5 encoder": Case(
        build=lambda: transformers.T5ForConditionalGeneration(t5_config()),
        batch=_both,
        blocks=lambda model: model.encoder.block,
        settings={"stack": "encoder"},
        valid=_mask,
    ),
    "bart": Case(build=bart, batch=_both, blocks=lambda model: model.model.decoder.layers, valid=_decoder_mask),
    "bart encoder": Case(
        build=bart,
        batch=_both,
        blocks=lambda model: model.model.encoder.layers,
        settings={"stack": "encoder"},
        valid=_mask,
    ),
    "whisper": Case(
        build=whisper,
        batch=spoken,
        blocks=lambda model: model.model.decoder.layers,
        valid=lambda batch: batch["decoder_input_ids"] != 0,
    ),
    "whisper encoder": Case(
        build=whisper,
        batch=spoken,
        blocks=lambda model: model.model.encoder.layers,
        settings={"stack": "encoder"},
    ),
    "clip image": Case(
        build=clip,
        batch=lambda: text() | tiny_models.images(),
        blocks=lambda model: model.vision_model.encoder.layers,
        settings={"stack": "image"},
    ),
    "clip text": Case(
        build=clip,
        batch=lambda: text() | tiny_models.images(),
        blocks=lambda model: model.text_model.encoder.layers,
        settings={"stack": "text"},
        valid=_mask,
    ),
    "llava": Case(build=llava, batch=seen_texts, blocks=lambda model: model.model.language_model.layers, valid=_mask),
    "albert": Case(
        build=albert,
        batch=text,
        blocks=lambda model: list(model.albert.encoder.albert_layer_groups) * BLOCKS,
        valid=_mask,
    ),
}


def build(name: str) -> tuple[nn.Module, Any, Case]:
    """A fresh model in eval mode, its weights moved so that depths differ, with a batch and its case."""
    return *moved(CASES[name]), CASES[name]


def moved(case: Any) -> tuple[nn.Module, Any]:
    """The model of a case in eval mode, its weights moved so that depths differ, and its batch."""
    torch.manual_seed(0)
    model, batch = case.build().eval(), case.batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, batch


def answer(output: Any) -> Tensor:
    """The model's answer, picked by hand."""
    return (
        output if isinstance(output, Tensor) else getattr(output, "logits", getattr(output, "logits_per_image", None))
    )


def run(model: nn.Module, batch: Any) -> Tensor:
    return answer(model(**batch) if isinstance(batch, dict) else model(batch))


@torch.no_grad()
def slow_states(model: nn.Module, batch: Any, case: Case) -> list[Tensor]:
    """h[0..L] by hooks on the blocks, samples first, positions in one axis."""
    model = copy.deepcopy(model)
    states: list[Tensor] = []

    def keep(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        if not states:
            states.append((args[0] if args else kwargs["hidden_states"]).clone())
        states.append((output[0] if isinstance(output, tuple) else output).clone())

    for block in dict.fromkeys(case.blocks(model)):
        block.register_forward_hook(keep, with_kwargs=True)
    run(model, batch)
    return [case.standard(state) for state in states]


@torch.no_grad()
def slow_readout(model: nn.Module, batch: Any, case: Case, depth: int) -> Tensor:
    """The answer of a copy whose blocks after `depth` hand on what they are given."""
    model = copy.deepcopy(model)
    calls = [0]

    def wrap(block: nn.Module) -> None:
        forward = block.forward

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            output = forward(*args, **kwargs)
            if calls[0] <= depth:
                return output
            state = args[0] if args else kwargs["hidden_states"]
            return (state, *output[1:]) if isinstance(output, tuple) else state

        block.forward = hand_on

    for block in dict.fromkeys(case.blocks(model)):
        wrap(block)
    return run(model, batch)

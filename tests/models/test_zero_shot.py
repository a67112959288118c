"""Images read out as texts: against the model's own towers, taken apart by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import anydepth as ad
from anydepth.core.stack import Stack
from anydepth.errors import ModelError, UnsupportedHead
from anydepth.models.zero_shot import ZeroShot

LABELS = ("film", "plot", "cast", "good bad film")
LENGTH, DEPTH = 12, 3


def clip_like(kind: str) -> Any:
    """A model of three image blocks and two text blocks, whose depths differ."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(checkpoints.VOCABULARY)}
    words = {**tower, **ends, "num_hidden_layers": 2, "max_position_embeddings": LENGTH}
    images = {**tower, "num_hidden_layers": DEPTH, "image_size": 8, "patch_size": 4}
    config = getattr(transformers, f"{kind}Config")(text_config=words, vision_config=images)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(template: str, **how: Any) -> dict[str, Tensor]:
    texts = [template.replace("{}", label) for label in LABELS]
    return dict(checkpoints.tokenizer()(texts, return_tensors="pt", **{"padding": True, **how}))


@torch.no_grad()
def by_hand(model: Any, texts: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """The similarity of each image at every depth with each text: hidden states, norm, pooler and projection."""
    hidden = model.vision_model(pixels, output_hidden_states=True).hidden_states
    words = model.get_text_features(**{name: texts[name] for name in ("input_ids", "attention_mask")})
    words = words if isinstance(words, Tensor) else words.pooler_output
    tower, by_depth = model.vision_model, []
    for state in hidden:
        if hasattr(model, "visual_projection"):
            embedded = model.visual_projection(tower.post_layernorm(state[:, 0]))
        else:
            embedded = tower.head(tower.post_layernorm(state))
        cosine = functional.normalize(embedded, dim=-1) @ functional.normalize(words, dim=-1).T
        by_depth.append(cosine * model.logit_scale.exp() + getattr(model, "logit_bias", 0.0))
    return by_depth


@pytest.mark.parametrize(("kind", "how"), [("CLIP", {}), ("Siglip", {"padding": "max_length", "max_length": LENGTH})])
@torch.no_grad()
def test_every_depth_is_the_models_own_similarity_to_the_texts(kind: str, how: dict[str, Any]) -> None:
    model, template = clip_like(kind), "the {} was"
    classifier = ad.zero_shot(model, checkpoints.tokenizer(), LABELS, template=template)
    texts = tokens(template, **how)
    assert classifier.texts["input_ids"].equal(texts["input_ids"]), "padded as it was trained"
    # as many images as texts in one batch, one in another
    for pixels in (images(4), images(1, seed=2), images(7, seed=3)):
        expected, batch = by_hand(model, texts, pixels), {"pixel_values": pixels}
        torch.testing.assert_close(classifier(pixels)["logits"], expected[-1])
        stack = Stack(classifier)
        for state, logits in zip(stack.states(batch), expected, strict=True):
            torch.testing.assert_close(stack.readout(state, batch), logits, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(stack.readout(state[:1], {"pixel_values": pixels[:1]}), logits[:1])


def test_a_trace_counts_what_is_right_at_every_depth() -> None:
    model = clip_like("CLIP")
    classifier = ad.zero_shot(model, checkpoints.tokenizer(), LABELS)
    pixels, labels = images(40), torch.arange(40) % 4
    batches = [{"pixel_values": pixels[i : i + 4], "labels": labels[i : i + 4]} for i in range(0, 40, 4)]
    trace = ad.trace(classifier, batches, measures=[])
    expected = by_hand(model, tokens("a photo of a {}."), pixels)
    for depth, logits in enumerate(expected):
        assert trace.accuracy[depth] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
        assert trace.cross_entropy[depth] == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-4)
    assert trace.provenance["model"]["classes"] == {str(index): label for index, label in enumerate(LABELS)}
    other = ad.zero_shot(model, checkpoints.tokenizer(), LABELS, template="the {}")
    assert (
        ad.trace(other, batches, measures=[]).provenance["model"]["fingerprint"]
        != trace.provenance["model"]["fingerprint"]
    ), "other texts are another classifier"


def test_texts_run_once_and_again_where_weights_change() -> None:
    model, runs = clip_like("CLIP"), []
    classifier = ad.zero_shot(model, checkpoints.tokenizer(), LABELS)
    for block in model.text_model.encoder.layers[:1]:
        block.register_forward_hook(lambda *_: runs.append(1))
    runs.clear()
    stack, batch = Stack(classifier), {"pixel_values": images()}
    with torch.no_grad():
        for _ in range(3):
            for state in stack.states(batch):
                before = stack.readout(state, batch)
    assert 1 <= len(runs) <= 2, "once to see which modules read the texts alone, once to keep what they answer"
    with torch.no_grad():
        model.text_model.encoder.layers[0].mlp.fc1.weight.add_(0.5)
        after = classifier(**batch)["logits"]
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, by_hand(model, classifier.texts, images())[-1])
    classifier(**batch)["logits"].sum().backward()
    assert model.text_projection.weight.grad is not None, "texts are trained with gradients on"
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        twin.model.text_model.final_layer_norm.weight.zero_()
        torch.testing.assert_close(classifier(**batch)["logits"], after)
        assert not torch.allclose(twin(**batch)["logits"], after), "a copy has texts of its own"


def test_samples_exit_and_the_file_keeps_the_texts(tmp_path: Path) -> None:
    model = clip_like("CLIP")
    classifier = ad.zero_shot(model, checkpoints.tokenizer(), LABELS, template="the {}")
    pixels = images(16)
    readouts = torch.stack(by_hand(model, tokens("the {}"), pixels)[1:])
    confidence = readouts.softmax(2).amax(2)
    values = confidence[:-1].max(0).values.sort().values
    threshold = float(values[7:9].mean())  # between two of them
    exits = ad.EarlyExit(classifier, ad.Confidence(threshold))
    out = exits({"pixel_values": pixels})
    expected = [next((d for d in range(DEPTH - 1) if confidence[d, row] >= threshold), DEPTH - 1) for row in range(16)]
    assert len(set(expected)) > 1, "some exit, and some do not"
    assert out.depth.tolist() == [depth + 1 for depth in expected]
    torch.testing.assert_close(out.logits, readouts[expected, range(16)], rtol=1e-5, atol=1e-5)
    exits.save(tmp_path / "exits", processor=transformers.CLIPImageProcessor(size={"height": 8, "width": 8}))
    again = ad.EarlyExit.load(tmp_path / "exits")
    assert isinstance(again.stack.model, ZeroShot)
    assert again.stack.model.template == "the {}"
    torch.testing.assert_close(again({"pixel_values": pixels}).logits, out.logits)


def test_a_cut_model_has_a_shallower_image_tower_and_loads_again(tmp_path: Path) -> None:
    model = clip_like("CLIP")
    classifier = ad.zero_shot(model, checkpoints.tokenizer(), LABELS)
    batch = {"pixel_values": images()}
    cut: Any = ad.truncate(classifier, 2, batch=batch)
    assert not cut.training
    expected = by_hand(model, classifier.texts, images())[2]
    cut.save_pretrained(tmp_path)
    loaded = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    assert loaded.config.vision_config.num_hidden_layers == 2
    assert loaded.config.text_config.num_hidden_layers == 2
    with torch.no_grad():
        torch.testing.assert_close(cut(**batch)["logits"], expected)
        torch.testing.assert_close(loaded(**classifier.texts, **batch).logits_per_image, expected)


def test_aligned_training_lowers_the_loss_at_every_depth() -> None:
    classifier = ad.zero_shot(clip_like("CLIP"), checkpoints.tokenizer(), LABELS)
    stack, objective = Stack(classifier), ad.AlignedLoss()
    batch = {"pixel_values": images(16), "labels": torch.arange(16) % 4}
    stack.verify(batch)  # two towers: a forward shows whose blocks run
    optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
    losses = []
    for step in range(25):
        optimizer.zero_grad()
        result = objective(stack, batch, step=step)
        result.loss.backward()
        optimizer.step()
        losses.append(result.by_depth.detach().clone())
    assert (losses[-1] < 0.9 * losses[0]).all()


class Unrelated(nn.Module):
    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"loss": pixel_values.sum()}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"labels": ["film"]}, r"labels are \['film'\], expected the names of at least two classes"),
        ({"labels": ["film", "film"]}, "labels hold 'film' twice"),
        ({"labels": "film"}, "at least two"),
        ({"template": "a photo"}, r"the template of texts is 'a photo', expected \{\}"),
        (
            {"labels": ["film", "unheard", "unseen"]},
            "'a photo of a unheard.' and 'a photo of a unseen.' become",
        ),
        ({"labels": ["film", "film " * 20]}, f"tokens, and the model takes {LENGTH}: shorten"),
        ({"processor": nn.Identity()}, "processor is Identity, expected the model's processor or its tokenizer"),
        ({"model": nn.Linear(2, 2)}, "Linear takes input, expected a model of images and texts such as CLIP"),
    ],
)
def test_what_is_no_zero_shot_classifier_is_refused_in_a_line(given: dict[str, Any], says: str) -> None:
    usual: dict[str, Any] = {"model": clip_like("CLIP"), "processor": checkpoints.tokenizer(), "labels": LABELS}
    arguments = usual | given
    with pytest.raises(ModelError, match=says) as caught:
        ad.zero_shot(
            arguments["model"],
            arguments["processor"],
            arguments["labels"],
            **{name: arguments[name] for name in ("template",) if name in arguments},
        )
    assert "\n" not in str(caught.value)


def test_a_model_without_similarities_says_what_it_answers() -> None:
    classifier = ad.zero_shot(Unrelated(), checkpoints.tokenizer(), LABELS)
    with pytest.raises(ModelError, match="Unrelated answers with loss, expected logits_per_image"):
        classifier.train()(images())


def test_without_fixed_texts_no_image_exits_by_itself() -> None:
    batch = {**tokens("the {}"), "pixel_values": images()}
    exits = ad.EarlyExit(clip_like("CLIP"), ad.Confidence(0.5), blocks="image")
    with pytest.raises(UnsupportedHead, match="compares the images of a batch with its texts"):
        exits(batch)

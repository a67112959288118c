"""The recipes that train by themselves, or not at all: skip, clip and parameters, on made-up images and tiny models."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.recipes import clip, parameters, skip
from anydepth.reproduce.results import RecipeResults, Seed
from anydepth.reproduce.runner import recipe_named, reproduce
from anydepth.reproduce.settings import ReproduceSettings

NAMES = ("Trouser", "T-shirt/top", "Bag")
CIFAR, RELEASED = "uoft-cs/cifar10", "openai/clip-vit-base-patch32"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 40 images a split, in grey as (image, label) and in colour as (img, label)."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture

    rng = np.random.default_rng(0)
    found = {}
    for column, shape in (("image", (28, 28)), ("img", (32, 32, 3))):
        folder = found[column] = tmp_path_factory.mktemp(column)
        for split in ("train", "test"):
            labels = rng.integers(0, 3, 40)
            pixels = (rng.integers(0, 60, (40, *shape)) + 90 * labels.reshape(-1, *[1] * len(shape))).astype(np.uint8)
            rows = {column: [Picture.fromarray(one) for one in pixels], "label": labels.tolist()}
            features = Features({column: Image(), "label": ClassLabel(names=list(NAMES))})
            Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return found


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    """A CLIP with towers of unlike depth, a tokenizer of single letters, and a transform of images."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {one: index for index, one in enumerate(("<s>", "</s>", "<pad>", *"abcdefghijklmnopqrstuvwxyz-/ "))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Split(Regex("."), "isolated")
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    ends = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    size = {"height": 16, "width": 16}
    torch.manual_seed(0)
    parts = (
        CLIPModel(
            CLIPConfig(
                text_config={**tower, **ends, "num_hidden_layers": 2, "max_position_embeddings": 64},
                vision_config={**tower, "num_hidden_layers": 4, "image_size": 16, "patch_size": 8},
                projection_dim=8,
            )
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=64
        ),
        CLIPImageProcessor(size=size, crop_size=size),
    )
    for part in parts:
        part.save_pretrained(folder)
    return folder


def trial(name, folder, scale, use):
    """Two steps, two seeds; once more from what was kept."""
    order = ReproduceSettings(
        recipe=name,
        out=folder,
        scale=scale,
        seeds=2,
        steps=2,
        use=tuple(f"{one}={path}" for one, path in use.items()),
        device="cpu",
    )
    found = reproduce(order)
    assert set(found.seeds) == {0, 1}
    assert reproduce(order).seeds == RecipeResults.load(next((folder / "trial" / "results").glob("*.json"))).seeds
    assert all(len(one.values) for one in recipe_named(name).claims(found))
    for panel in recipe_named(name).panels(found):
        assert panel.printed or all(found.has(variant, panel.quantity) for variant in panel.variants), panel
    return found


# --- skip ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "data"), [("cpu", "asset:fashion-mnist"), ("full", "ylecun/mnist")])
def test_skip_is_the_same_at_both_scales(scale, data, pictures, tmp_path):
    found = trial("skip", tmp_path, scale, {data: pictures["image"]})
    assert found.variants == ("with skip", "without")
    for variant in found.variants:
        for quantity in ("cosine", "cka", "accuracy"):
            assert found.each(variant, quantity).shape == (2, skip.LAYERS + 1)
    assert not np.array_equal(*found.each("with skip", "cosine")), "seeds differ"


def test_skips_are_all_that_differs():
    torch.manual_seed(0)
    plain = skip.Layer(6, skip=False)
    torch.manual_seed(0)
    skipping = skip.Layer(6, skip=True)
    h = torch.randn(4, 6)
    torch.testing.assert_close(skipping(h), h + plain(h))


def made_up(cosine_with, cosine_without, accuracy_without, seeds=3):
    """What `skip` would find if these were its curves: CKA is high everywhere, and accuracy rises with the skips."""
    noise = np.random.default_rng(0).normal(scale=1e-3, size=(seeds, 4, 10))

    def values(cosine, accuracy, spearman, index, seed):
        return {
            "cosine": np.array(cosine) + noise[seed, index],
            "cka": np.linspace(0.8, 1.0, 10),
            "accuracy": np.array(accuracy) + noise[seed, index + 1],
            "cosine_spearman": spearman + noise[seed, index, 0],
        }

    return RecipeResults(
        recipe="skip",
        version=1,
        scale="cpu",
        settings={},
        seeds={
            seed: Seed(
                {
                    "with skip": values(cosine_with, np.linspace(0.5, 0.9, 10), 0.97, 0, seed),
                    "without": values(cosine_without, accuracy_without, 0.1, 2, seed),
                },
                1.0,
                {},
            )
            for seed in range(seeds)
        },
    )


def test_claims_of_skip_tell_what_the_paper_shows_from_what_it_does_not():
    rising, chance, flat = np.linspace(0.6, 1.0, 10), [*[0.1] * 9, 0.9], [*[0.0] * 9, 1.0]
    as_shown = [one.verdict for one in skip.claims(made_up(rising, flat, chance))]
    assert as_shown == ["holds"] * 5
    alike = [one.verdict for one in skip.claims(made_up(flat[::-1], rising, rising))]
    assert alike == ["holds", "does not hold", "holds", "does not hold", "does not hold"]


# --- clip ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_clip_is_the_same_at_both_scales(scale, pictures, small_clip, tmp_path):
    use = {
        "cpu": {"made:clip": small_clip, "asset:fashion-mnist": pictures["image"]},
        "full": {RELEASED: small_clip, CIFAR: pictures["img"]},
    }[scale]
    found = trial("clip", tmp_path, scale, use)
    assert found.variants == tuple(f"{one}{kind}" for kind in ("", clip.RANDOM) for one in ("image", "text", "across"))
    assert found.each("image", "cosine").shape == (2, 5)
    assert found.each("text", "cosine").shape == (2, 3)
    assert found.each("across", "accuracy").shape == (2, 5)
    assert np.isnan(found.each("image", "cosine")[:, 0]).all(), "the class token has seen nothing yet"
    same = np.array_equal(*found.each("across", "margin"))
    assert same == (scale == "full"), "nothing is trained or drawn of a released model"
    assert not np.array_equal(*found.each(f"across{clip.RANDOM}", "margin"))


def test_across_towers_are_the_models_own_embeddings(pictures, small_clip, tmp_path):
    """At the last depth, the numbers are those of CLIP's own logits."""
    from transformers import CLIPModel

    found = trial("clip", tmp_path, "full", {RELEASED: small_clip, CIFAR: pictures["img"]})
    from anydepth.reproduce.experiment import Experiment

    (subject,) = recipe_named("clip").plans["full"].subjects.values()
    bench = Experiment(
        out=tmp_path,
        scale="full",
        subjects={},
        use={RELEASED: str(small_clip), CIFAR: str(pictures["img"])},
        device="cpu",
    )
    pair = clip.Pair.load(bench, subject, random=False)
    assert pair.classes == NAMES
    model = CLIPModel.from_pretrained(small_clip).eval()
    (batch,) = bench.batches(subject, pair.images)
    with torch.no_grad():
        answer = model(pixel_values=batch["pixel_values"], **pair.captions(clip.CAPTION))
    cosines = (answer.logits_per_image / model.logit_scale.exp()).detach().numpy()
    own = cosines[np.arange(40), batch["labels"].numpy()]
    others = (cosines.sum(1) - own) / 2
    last = {name: found.each("across", name)[0, -1] for name in ("matched", "mismatched", "margin", "accuracy")}
    assert last["matched"] == pytest.approx(own.mean(), rel=1e-4)
    assert last["mismatched"] == pytest.approx(others.mean(), rel=1e-4)
    assert last["margin"] == pytest.approx((own - others).mean(), abs=1e-5)
    assert last["accuracy"] == pytest.approx((cosines.argmax(1) == batch["labels"].numpy()).mean())


def test_the_printed_text_tower_is_not_monotone():
    printed = [np.diff(curve) for curve in clip.PRINTED.values()]
    assert [int((steps > 0).sum()) for steps in printed] == [9, 9]
    assert {len(steps) for steps in printed} == {11}


# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_are_counted_exactly(tmp_path):
    found = reproduce(ReproduceSettings(recipe="parameters", out=tmp_path, seeds=3))
    assert set(found.seeds) == {0}, "nothing is drawn"
    assert found.variants == tuple(parameters.SHAPES)
    assert found.seeds[0].values["GPT-2 small"] | {"share": 0} == {
        "depth": 12,
        "single": 124_439_808,
        "multi": 124_439_808 + 11 * 50257 * 768,
        "share": 0,
        "formula": 11 * 50257 * 768,
        "biases": 0,
    }
    kept = json.loads((tmp_path / "results" / "parameters.json").read_text())
    assert kept["seeds"]["0"]["values"]["Llama-3-8B"]["multi"] == 24_315_695_104
    exact, vocabulary, few = parameters.claims(found)
    assert (exact.values, exact.verdict, exact.describe()) == ((0.0,), "holds", "0")
    assert vocabulary.verdict == "holds"
    assert few.verdict == "does not hold", "with two classes there is next to nothing to save"


def test_a_certain_number_decides_by_itself():
    of_table = partial(Claim, where="Table 1", paper="", measured="")
    assert of_table(values=[2.0], below=1.0, certain=True).verdict == "does not hold"
    assert of_table(values=[2.0], above=1.0, certain=True).verdict == "holds"
    assert of_table(values=[1.0], above=1.0, certain=True).verdict == "undecided"
    assert of_table(values=[2.0], above=1.0).verdict == "undecided", "one draw says nothing of others"

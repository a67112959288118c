"""What MODEL means: every source, every way it fails."""

import json
from pathlib import Path

import checkpoints
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from anydepth.errors import DataError, ModelError
from anydepth.models import loading as models
from anydepth.models import tasks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each kind; read only."""
    root = tmp_path_factory.mktemp("models")
    names = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
    checkpoints.bert(root / "bert", **names)
    checkpoints.bert(root / "tagger", "ForTokenClassification", num_labels=3)
    checkpoints.bert(root / "masked", "ForMaskedLM")
    checkpoints.bert(root / "spans", "ForQuestionAnswering")
    checkpoints.gpt2(root / "gpt2")
    checkpoints.gpt2(root / "gpt2-classifier", "ForSequenceClassification", num_labels=4)
    checkpoints.vit(root / "vit", num_labels=10)
    checkpoints.vit(root / "vit-features", "Model", channels=3)
    return root


@pytest.mark.parametrize(
    ("name", "task", "kind", "classes"),
    [
        ("bert", "text-classification", "text", ("no", "maybe", "yes")),
        ("tagger", "token-classification", "text", ("LABEL_0", "LABEL_1", "LABEL_2")),
        ("gpt2", "causal-lm", "text", ()),
        ("gpt2-classifier", "text-classification", "text", ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
        ("vit", "image-classification", "image", tuple(f"LABEL_{i}" for i in range(10))),
        ("vit-features", "features", "image", ()),
    ],
)
def test_task_is_read_from_the_checkpoint(folders, name, task, kind, classes):
    loaded = models.load(str(folders / name), device="cpu")
    assert (loaded.task, loaded.kind, loaded.classes) == (task, kind, classes)
    assert not loaded.model.training


def test_weights_are_the_checkpoints(folders):
    loaded = models.load(str(folders / "bert"), device="cpu")
    saved = load_file(folders / "bert" / "model.safetensors")
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("name", ["masked", "spans"])
def test_head_that_chooses_no_class_is_read_as_features(folders, name):
    loaded = models.load(str(folders / name), device="cpu")
    assert loaded.task == "features"
    assert type(loaded.model).__name__ == "BertModel"
    assert any("is loaded as features" in note for note in loaded.notes)
    assert any(
        "the checkpoint has no pooler: pooler.dense.bias, pooler.dense.weight are random" in n for n in loaded.notes
    )


def _without(source: Path, target: Path, part: str) -> Path:
    """A copy of a checkpoint that lacks the weights with `part` in their name."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    kept = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if part not in name}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("part", ["classifier", "pooler"])
def test_no_head_is_ever_made_up(folders, tmp_path, part):
    loaded = models.load(str(_without(folders / "bert", tmp_path / "m", part)), device="cpu")
    assert loaded.task == "features"
    assert loaded.classes == ()
    assert any(n.startswith("loaded as features: the checkpoint lacks") and part in n for n in loaded.notes)


def test_head_asked_for_and_missing(folders):
    with pytest.raises(ModelError, match=r"masked' has no trained head for text-classification: its weights lack "):
        models.load(str(folders / "masked"), task="text-classification", device="cpu")


@pytest.mark.parametrize("name", ["bert", "vit-features"])
def test_incomplete_weights(folders, tmp_path, name):
    folder = _without(folders / name, tmp_path / "m", "layer.1.")
    with pytest.raises(ModelError, match=r"is incomplete: its weights lack .*layers?.1.* and \d+ more, and would have"):
        models.load(str(folder), device="cpu")


def test_task_overrides(folders):
    loaded = models.load(str(folders / "bert"), task="features", device="cpu")
    assert loaded.task == "features"
    assert loaded.notes == ()
    assert type(loaded.model).__name__ == "BertModel"


def test_random_weights_are_a_baseline(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "vit" / "config.json").read_bytes())
    torch.manual_seed(0)
    loaded = models.load(str(tmp_path), device="cpu", dtype="bfloat16", pretrained=False)
    assert loaded.notes[0] == "the weights are random, not the checkpoint's"
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    assert len(loaded.classes) == 10


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype(folders, dtype):
    loaded = models.load(str(folders / "bert"), device="cpu", dtype=dtype)
    assert next(loaded.model.parameters()).dtype == getattr(torch, dtype)


def test_auto_dtype_is_the_checkpoints(folders, tmp_path):
    models.load(str(folders / "vit"), device="cpu", dtype="float16").model.save_pretrained(tmp_path)
    assert next(models.load(str(tmp_path), device="cpu").model.parameters()).dtype == torch.float16


def test_padding_token_is_lent_and_stays_off_the_disk(folders):
    before = {f.name: f.read_bytes() for f in (folders / "gpt2-classifier").iterdir()}
    loaded = models.load(str(folders / "gpt2-classifier"), device="cpu")
    assert loaded.processor.pad_token == "[SEP]"
    assert loaded.model.config.pad_token_id == 3
    assert "the tokenizer has no padding token: [SEP] fills, and is masked out" in loaded.notes
    assert {f.name: f.read_bytes() for f in (folders / "gpt2-classifier").iterdir()} == before


def test_max_length_is_what_the_positions_hold(folders, tmp_path):
    assert models.load(str(folders / "bert"), device="cpu").max_length == 32
    config = transformers.RobertaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=len(checkpoints.VOCABULARY),
        max_position_embeddings=34,
        pad_token_id=1,
    )
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    checkpoints.tokenizer().save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), device="cpu")
    assert loaded.max_length == 32  # two of the 34 lie at and below the padding index
    loaded.model(input_ids=torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(input_ids=torch.full((1, 33), 5))


# --- models to be trained -------------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_classifier_is_given_one(folders):
    torch.manual_seed(0)
    loaded = models.load(str(folders / "masked"), task="text-classification", classes=["no", "yes"], device="cpu")
    assert (loaded.task, loaded.classes) == ("text-classification", ("no", "yes"))
    assert loaded.model.config.label2id == {"no": 0, "yes": 1}
    new = "bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias and 1 more"
    assert loaded.notes == (f"new, with random weights: {new}",)
    kept = load_file(folders / "masked" / "model.safetensors")
    own = loaded.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in kept.items() if name in own)
    torch.manual_seed(0)
    again = models.load(str(folders / "masked"), task="text-classification", classes=["no", "yes"], device="cpu")
    assert torch.equal(again.model.classifier.weight, loaded.model.classifier.weight)


def test_another_number_of_classes_means_a_new_classifier(folders):
    loaded = models.load(str(folders / "bert"), task="text-classification", classes=["a", "b", "c", "d"], device="cpu")
    assert loaded.model.classifier.weight.shape == (4, 16)
    assert loaded.classes == ("a", "b", "c", "d")
    assert loaded.notes == ("new, with random weights: classifier.bias, classifier.weight",)


@pytest.mark.parametrize(
    ("classes", "kept", "note"),
    [
        (("yes", "no", "maybe"), ("no", "maybe", "yes"), None),
        (("NO", "Yes"), ("no", "maybe", "yes"), None),
        (("0", "1"), ("no", "maybe", "yes"), None),
        (("x", "y", "z"), ("x", "y", "z"), "no is now x, maybe is now y, yes is now z"),
    ],
)
def test_a_trained_classifier_is_kept_where_it_fits(folders, classes, kept, note):
    loaded = models.load(str(folders / "bert"), task="text-classification", classes=classes, device="cpu")
    assert loaded.classes == kept
    assert loaded.notes == ((f"the classifier goes on from the checkpoint's: {note}",) if note else ())
    saved = load_file(folders / "bert" / "model.safetensors")
    assert torch.equal(loaded.model.classifier.weight, saved["classifier.weight"])


def test_incomplete_weights_are_refused_in_training_too(folders, tmp_path):
    folder = _without(folders / "bert", tmp_path / "m", "layer.1.")
    with pytest.raises(ModelError, match=r"is incomplete: its weights lack .*layers?.1."):
        models.load(str(folder), task="text-classification", classes=["a", "b"], device="cpu")


def test_a_regression_becomes_a_choice(tmp_path):
    checkpoints.bert(tmp_path, num_labels=1, problem_type="regression")
    loaded = models.load(str(tmp_path), task="text-classification", classes=["a", "b"], device="cpu")
    assert loaded.model.config.problem_type is None


def test_random_weights_for_the_classes_of_the_data(folders):
    loaded = models.load(
        str(folders / "vit-features"), task="image-classification", classes=["a", "b"], pretrained=False, device="cpu"
    )
    assert loaded.classes == ("a", "b")
    named = models.load(
        str(folders / "bert"), task="text-classification", classes=["0", "1", "2"], pretrained=False, device="cpu"
    )
    assert named.classes == ("no", "maybe", "yes"), "numbers leave the config its names"


def test_classes_of_what_has_none(folders):
    with pytest.raises(ModelError, match="a classifier of 2 classes is no part of causal-lm: name a task that has one"):
        models.load(str(folders / "gpt2"), classes=["a", "b"], device="cpu")
    with pytest.raises(ModelError, match="is timm's, which makes classifiers itself"):
        models.load("timm:vit_tiny_patch16_224", classes=["a", "b"], pretrained=False)


CONFIGS = {
    "a masked language model": (transformers.BertConfig(architectures=["BertForMaskedLM"]), "text-classification"),
    "a classifier": (transformers.BertConfig(architectures=["BertForTokenClassification"]), "token-classification"),
    "a language model": (transformers.GPT2Config(architectures=["GPT2LMHeadModel"]), "causal-lm"),
    "a config of one": (transformers.GPT2Config(), "causal-lm"),
    "an image model": (transformers.ViTConfig(architectures=["ViTModel"]), "image-classification"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_a_model_can_be_trained_for(kind):
    config, task = CONFIGS[kind]
    assert tasks.trainable_task(config, labelled=True, words=False) == task


def test_what_the_data_decide():
    config = transformers.BertConfig()
    assert tasks.trainable_task(config, labelled=True, words=True) == "token-classification"
    with pytest.raises(
        ModelError, match="a bert learns from labels, and none are known in the data: name their column"
    ):
        tasks.trainable_task(config, labelled=False, words=False)


def test_who_sees_what_is_to_be_predicted():
    assert tasks.fills_masks(transformers.BertConfig())
    assert not tasks.fills_masks(transformers.BertConfig(is_decoder=True))
    assert not tasks.fills_masks(transformers.LlamaConfig())


def test_heads_that_are_not_the_models(folders, tmp_path):
    folder = _without(folders / "bert", tmp_path / "m", "nothing")
    assert models.load(str(folder), device="cpu").heads is None
    save_file({"1.weight": torch.zeros(2, 2)}, folder / "heads.safetensors")
    loaded = models.load(str(folder), device="cpu")
    assert loaded.heads == folder
    assert models.load(str(folder), task="features", device="cpu").heads is None
    batches = [{"input_ids": torch.ones(1, 4, dtype=torch.long)}]
    with pytest.raises(ModelError, match=r"holds no heads for this model of 2 blocks: "):
        models.stack_of(loaded, batches)


def test_heads_alone_are_no_weights(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "bert" / "config.json").read_bytes())
    save_file({"1.weight": torch.zeros(2, 2)}, tmp_path / "heads.safetensors")
    with pytest.raises(ModelError, match=r"holds no weights \(\*\.safetensors\)"):
        models.load(str(tmp_path))


# --- images ---------------------------------------------------------------------------------------------------------


def test_plain_pixels_where_no_processor_is_saved(folders):
    loaded = models.load(str(folders / "vit"), device="cpu")
    assert loaded.notes == (
        "no image processor beside the model: images are resized to 8 × 8, scaled to [0, 1], then (x - 0.5) / 0.5",
    )
    white, black = Image.new("RGB", (8, 8), (255, 255, 255)), Image.new("L", (16, 16), 0)
    assert loaded.processor([white, black]).flatten(1).unique(dim=1).tolist() == [[1.0], [-1.0]]


def test_grey_images_for_a_colour_model(folders):
    loaded = models.load(str(folders / "vit-features"), device="cpu")
    pixels = loaded.processor([Image.new("L", (8, 8), 100)])
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.unique().tolist() == pytest.approx([100 / 127.5 - 1])


def test_saved_processor_is_used(folders, tmp_path):
    checkpoints.vit(tmp_path, channels=3)
    size = {"height": 8, "width": 8}
    transformers.ViTImageProcessor(size=size, image_mean=[0.2] * 3, image_std=[0.1] * 3).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), device="cpu")
    assert loaded.notes == ()
    assert loaded.processor([Image.new("L", (8, 8), 255)]).unique().tolist() == pytest.approx([8.0])


def test_processor_that_does_not_fit(tmp_path):
    checkpoints.vit(tmp_path, channels=1)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), device="cpu")
    with pytest.raises(ModelError, match=r"the model's image processor fails on 1 image\(s\) of 1 channel\(s\): "):
        loaded.processor([Image.new("L", (8, 8))])


def test_processor_with_other_channels(tmp_path):
    pixels = models.pixels.Pixels(1, lambda images: torch.zeros(len(images), 3, 8, 8))
    with pytest.raises(ModelError, match=r"the model takes 1 channel\(s\), its image processor gives 3"):
        pixels([Image.new("L", (8, 8))])


def test_sixteen_bits_are_refused(folders):
    loaded = models.load(str(folders / "vit"), device="cpu")
    with pytest.raises(DataError, match="an image has mode F, whose range is unknown, expected 8 or 16 bits a channel"):
        loaded.processor([Image.new("F", (8, 8))])


def test_channels_no_image_has(tmp_path):
    checkpoints.vit(tmp_path, channels=4)
    with pytest.raises(ModelError, match=r"the model takes 4 channels; images here have 1 \(grey\) or 3 \(RGB\)"):
        models.load(str(tmp_path), device="cpu")


# --- what is refused ------------------------------------------------------------------------------------------------


def test_unknown_settings(folders):
    bert = str(folders / "bert")
    with pytest.raises(ModelError, match="unknown task 'translation', expected one of text-classification, "):
        models.load(bert, task="translation")
    with pytest.raises(ModelError, match="unknown dtype 'int8', expected one of auto, float32, float16, bfloat16"):
        models.load(bert, dtype="int8")
    with pytest.raises(ModelError, match="device 'gpu' cannot be used here: "):
        models.load(bert, device="gpu")
    with pytest.raises(ModelError, match="device 'meta' holds no numbers"):
        models.load(bert, device="meta")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c"])
def test_no_such_folder(name):
    with pytest.raises(ModelError, match=f"no folder '{name}'"):
        models.load(name)


def test_no_name():
    with pytest.raises(ModelError, match="no model named: expected a folder, a hub id or timm:NAME"):
        models.load("")


def test_file_instead_of_a_folder(folders):
    with pytest.raises(
        ModelError, match=r"config.json' is a file, expected the folder of a model, a hub id or timm:NAME"
    ):
        models.load(str(folders / "bert" / "config.json"))


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="is no model: it holds no config.json"):
        models.load(str(tmp_path))


def test_folder_without_weights(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "bert" / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"holds no weights \(\*\.safetensors\)"):
        models.load(str(tmp_path))


def test_pickles_are_refused(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "bert" / "config.json").read_bytes())
    torch.save(load_file(folders / "bert" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"are pickles \(pytorch_model.bin\), which can run code when loaded: save them"
    ):
        models.load(str(tmp_path))


def test_truncated_weights(folders, tmp_path):
    folder = _without(folders / "bert", tmp_path / "m", "nothing")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"the model '.*' cannot be loaded: .*header"):
        models.load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type"', "config.json' cannot be read as JSON: Expecting"),
        ('{"model_type": "zzz"}', "model type `zzz`"),
        ('{"hidden_size": 1}', "Should have a `model_type` key"),
    ],
)
def test_broken_config(folders, tmp_path, config, message):
    folder = _without(folders / "bert", tmp_path / "m", "nothing")
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message) as caught:
        models.load(str(folder))
    assert "\n" not in str(caught.value)


def test_code_of_the_checkpoint_does_not_run(folders, tmp_path):
    folder = _without(folders / "bert", tmp_path / "m", "nothing")
    code = {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(code))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="brings its own Python code: .* allow it \\(trust_remote_code\\)"):
        models.load(str(folder))


def test_model_without_a_tokenizer(folders, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folders / "bert" / file).read_bytes())
    with pytest.raises(ModelError, match="has no tokenizer: save it beside the model with tokenizer.save_pretrained"):
        models.load(str(tmp_path), device="cpu")


def test_hub_out_of_reach():
    with pytest.raises(
        ModelError,
        match=r"'google-bert/bert-base-uncased' is no local path, and the hub that may have this model cannot be "
        r"reached \(HF_HUB_OFFLINE is set\): give a local folder or file, or go online",
    ):
        models.load("google-bert/bert-base-uncased")

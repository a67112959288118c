"""What a model card says, and that nothing in a name can break out of its place."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anydepth.training.model_card import card, code, is_hub_id, plain
from anydepth.training.summary import TrainingSummary

PLAIN = TrainingSummary(
    folder=Path("runs/vit-digits"),
    model="google/vit-base-patch16-224",
    data="org/digits:small",
    task="image-classification",
    objective="aligned",
    purpose="One classifier at every depth.",
    separate_heads=False,
    measure="accuracy",
    values=(0.5, 0.75, 1.0),
    bounds=((0.4, 0.6), (0.65, 0.83), (0.96, 1.0)),
    evaluated="100 rows (test)",
    classes=("cat", "dog"),
    settings={"learning_rate": 5e-05, "lr_scheduler_type": "linear", "bf16": True, "exits": (1, 3)},
    steps=60,
    seconds=1.5,
    notes=("texts are cut at 5 tokens",),
    versions={"anydepth": "0.1.0", "torch": "2.14"},
)
BERT: dict[str, Any] = {"task": "text-classification", "model": "./bert", "data": "reviews.csv"}


def front(text: str) -> dict[str, Any]:
    """The YAML as the hub reads it."""
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_what_the_hub_reads() -> None:
    assert front(card(PLAIN)) == {
        "library_name": "transformers",
        "base_model": "google/vit-base-patch16-224",
        "datasets": ["org/digits"],
        "tags": ["anydepth", "aligned"],
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
    }


def test_what_people_read() -> None:
    text = card(PLAIN)
    assert "# vit-digits\n" in text
    assert (
        "`google/vit-base-patch16-224` trained on `org/digits:small` with the objective **aligned**: One class" in text
    )
    assert "| 1 | 0.500 | 0.400 – 0.600 |\n| 2 | 0.750 | 0.650 – 0.830 |\n| 3 | 1.000 | 0.960 – 1.000 |\n" in text
    assert "on 100 rows (test). Depth 3 is the whole model." in text
    assert 'AutoModelForImageClassification.from_pretrained("FOLDER")' in text
    assert "$ anydepth trace FOLDER --data DATA" in text
    for row in ("| learning rate | `5e-05` |", "| lr scheduler type | `linear` |", "| bf16 | `true` |"):
        assert row in text
    assert "| exits | `[1, 3]` |" in text
    assert "Classes: `cat`, `dog`." in text
    assert "\n- texts are cut at 5 tokens\n" in text
    assert text.endswith("Made with anydepth 0.1.0, torch 2.14.\n")
    assert "heads.safetensors" not in text


def test_a_language_model_has_perplexity_and_no_interval() -> None:
    found = replace(PLAIN, task="causal-lm", measure="perplexity", values=(1234.5, None), bounds=(), classes=())
    text = card(found)
    assert "| depth | perplexity |\n|---:|---:|\n| 1 | 1,234.50 |\n| 2 | – |\n" in text
    assert "Classes" not in text
    assert front(text)["pipeline_tag"] == "text-generation"
    assert front(text)["metrics"] == ["perplexity"]


def test_heads_are_said() -> None:
    text = card(replace(PLAIN, separate_heads=True))
    assert "read out by the classifier of that depth" in text
    assert "`heads.safetensors`; transformers leaves them alone" in text


def test_a_disk_of_ones_own_stays_private(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    found = replace(PLAIN, model=str(tmp_path / "model"), data=str(tmp_path / "reviews.csv"), folder=tmp_path / "out")
    text = card(found)
    assert str(tmp_path) not in text
    assert "`model` trained on `reviews.csv`" in text
    assert not {"base_model", "datasets"} & set(front(text))


def test_many_classes_are_not_all_listed() -> None:
    text = card(replace(PLAIN, classes=tuple(f"class {index}" for index in range(1000))))
    assert "`class 19` and 980 more." in text


NASTY = "a`b | c*d* <script>x</script> [e](f) #g\n---\nlibrary_name: evil\n- h: 'i"


def test_names_stay_in_their_place() -> None:
    found = replace(PLAIN, model=NASTY, data=NASTY, objective=NASTY, purpose=NASTY, evaluated=NASTY, notes=(NASTY,))
    found = replace(found, classes=(NASTY,), settings={"x|y": NASTY}, folder=Path("a*b* <c>"))
    text = card(found)
    assert front(text)["library_name"] == "transformers"
    assert front(text)["tags"] == ["anydepth", NASTY]
    body = text.split("\n---\n", 1)[1]
    assert "\nlibrary_name" not in body
    outside = re.sub(r"(`+) ?.*?[^`]\1(?!`)", "", body)
    assert "<" not in outside
    (row,) = (line for line in body.splitlines() if line.startswith("| x"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3, "two cells"


@given(st.text(max_size=30))
def test_code_shows_the_text_and_ends(text: str) -> None:
    shown = code(text)
    fence = re.match(r"`+", shown)[0] if text.strip() else ""
    assert "\n" not in shown
    if fence:
        inside = shown[len(fence) : -len(fence)]
        assert max(map(len, re.findall("`+", inside)), default=0) < len(fence)
        assert inside.strip() == " ".join(text.split())


@given(st.text(max_size=30))
def test_plain_text_has_no_html_and_one_line(text: str) -> None:
    shown = plain(text)
    assert not set(shown) & set("<>\n")
    assert not re.search(r"(?<!\\)(\\\\)*[*_`|]", shown)


@pytest.mark.parametrize("name", ["digits", "reviews.csv", "a/b/c", "./x", "~/x", "", "a b", "timm:vit", "x.txt"])
def test_what_is_no_hub_id(name: str) -> None:
    assert not is_hub_id(name)


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("imdb")
    assert is_hub_id("google/vit-base")
    (tmp_path / "imdb").mkdir()
    assert not is_hub_id("imdb"), "a folder of that name comes first"


def test_the_result_comes_back_from_json() -> None:
    import json

    found = replace(PLAIN, values=(0.5, None, 1.0))
    again = TrainingSummary.of(PLAIN.folder, json.loads(json.dumps(found.as_plain() | {"files": ["config.json"]})))
    assert again == replace(found, settings={**PLAIN.settings, "exits": [1, 3]})

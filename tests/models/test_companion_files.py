"""What goes along with a cut model, file by file, and what stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anydepth.models.companion_files import carry

GOES = ("LICENSE", "NOTICE.txt", "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
GOES += ("special.model", "chat_template.jinja", "modeling_own.py", "1_Pooling/config.json")
GOES += ("2_Dense/config.json", "2_Dense/model.safetensors")
STAYS = ("optimizer.pt", "trainer_state.json", "training_args.bin", "pytorch_model.bin", "exit.json", "trace.json")
STAYS += ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "onnx/model.onnx", "tf_model.h5")
STAYS += ("heads.safetensors", "checkpoint-5/config.json", ".gitattributes", ".git/config", "diary.docx")
STAYS += ("2_Dense/pytorch_model.bin",)
MODULES = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../elsewhere"}]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder that holds each of these, with its own name in it."""
    folder = tmp_path / "old"
    for name in (*GOES, *STAYS, "README.md", "config.json", "../elsewhere/secret.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(MODULES) if name == "modules.json" else name)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_text("the new one")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_stays_true_goes_along_and_the_rest_is_named(source: Path, target: Path) -> None:
    done = carry(source, target, card="README-old.md")
    assert files(target) == {*GOES, "README-old.md", "config.json"}
    assert (target / "config.json").read_text() == "the new one"
    assert (target / "README-old.md").read_text() == "README.md"
    assert (target / "2_Dense/model.safetensors").read_text() == "2_Dense/model.safetensors"
    assert {name.partition("/")[0] for name in done.others} == {name.partition("/")[0] for name in STAYS}
    assert "2_Dense/pytorch_model.bin" in done.others
    assert files(source) == {*GOES, *STAYS, "README.md", "config.json"}
    assert done.notes[0].startswith("carried over from 'old': 1_Pooling, 2_Dense, LICENSE, NOTICE.txt, README-old.md, ")
    assert done.notes[1].startswith("left in 'old', since they are of the old model or of no known use: ")


def test_of_a_model_for_another_use_the_licence_goes_along(source: Path, target: Path) -> None:
    carry(source, target, card="README-old.md", only_legal=True)
    assert files(target) == {"LICENSE", "NOTICE.txt", "README-old.md", "config.json"}


def test_links(source: Path, target: Path, tmp_path: Path) -> None:
    """As a hub's cache has them: the content of a file, nothing of a folder or of what is gone."""
    (tmp_path / "blob").write_text("terms")
    (source / "LICENSE").unlink()
    (source / "LICENSE").symlink_to(tmp_path / "blob")
    (source / "gone.json").symlink_to(tmp_path / "nowhere")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "1_Pooling/linked").symlink_to(tmp_path / "elsewhere")
    done = carry(source, target, card="README-old.md")
    assert (target / "LICENSE").read_text() == "terms"
    assert not (target / "LICENSE").is_symlink()
    assert {"gone.json", "linked", "1_Pooling/linked"} <= set(done.others)
    assert "secret.json" not in str(files(target))


def test_a_list_of_modules_that_is_none(source: Path, target: Path) -> None:
    for content in ("{", "[1]", '{"path": 3}', '[{"path": null}]'):
        (source / "modules.json").write_text(content)
        assert {"1_Pooling", "2_Dense"} <= set(carry(source, target, card="README-old.md").others)


def test_nothing_to_say(tmp_path: Path, target: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert carry(tmp_path / "bare", target, card="README-old.md").notes == ()


def test_the_card_of_the_model_before_that_gives_way(source: Path, target: Path) -> None:
    (source / "README-old.md").write_text("of the first")
    done = carry(source, target, card="README-old.md")
    assert (target / "README-old.md").read_text() == "README.md"
    assert "README-old.md" in done.others

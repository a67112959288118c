"""Which class a label means: names decide whatever their type, and renaming classes renames the answer."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anydepth import data
from anydepth.data.examples import class_names
from anydepth.data.labels import class_indices
from anydepth.errors import LabelError, ModelError
from anydepth.models.label_names import match_names
from anydepth.models.loading import _fits

GENERIC = ("LABEL_0", "LABEL_1", "LABEL_2")
NAMES = ["cat", "Big Dog", "10", "2", "True", "class 1", "Ärger", "LABEL_7"]


CLASSES = st.permutations(NAMES)
LABELS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(CLASSES, CLASSES, LABELS)
def test_renamed_classes_rename_the_answer(classes, others, labels):
    """A classifier whose classes stand in another order gives each label the class of the same name."""
    for order in (classes, others):
        found, _ = class_indices(labels, order)
        assert [order[index] for index in found] == labels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4), st.integers(2, 6), st.data())
def test_a_constant_added_to_names_and_labels_changes_nothing(first, count, data):
    """Classes called "first", "first + 1", ... and labels that are these numbers, as whichever type."""
    labels = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=9))
    classes = [str(first + index) for index in range(count)]
    for kind in (int, float, str):
        found, _ = class_indices(
            [kind(first + label) if kind is not str else str(first + label) for label in labels], classes
        )
        assert found.tolist() == labels


@settings(max_examples=40, deadline=None)
@given(CLASSES, LABELS, st.sampled_from([str.upper, str.lower, lambda name: f" {name} "]))
def test_case_and_spaces_are_noted(classes, labels, change):
    changed = [change(label) for label in labels]
    found, note = class_indices(changed, classes)
    assert [classes[index] for index in found] == labels
    assert (note is not None and "but for case or spaces" in note) == (not set(changed) <= set(classes))


@pytest.mark.parametrize(
    ("values", "classes", "names", "numbered", "expected"),
    [
        ([True, False], ("True", "False"), (), False, [0, 1]),  # by number it would be the exact complement
        ([True, False], ("false", "true"), (), False, [1, 0]),
        ([1, 4, 2], ("1", "2", "3", "4", "5"), (), False, [0, 3, 1]),  # by number, all would be one too high
        ([1.0, 4.0], ("1", "2", "3", "4", "5"), (), False, [0, 3]),
        (["2", "0"], ("2", "1", "0"), (), False, [0, 2]),
        ([1, 0], ("cat", "dog"), ("dog", "cat"), True, [0, 1]),
        ([2, 1], GENERIC, (), False, [2, 1]),
        ([True, False], GENERIC, (), False, [1, 0]),
        ([1, 0], ("negative", "positive"), (), False, [1, 0]),
        ([2, 10], tuple(map(str, range(12))), ("0", "1", "10", "11", *map(str, range(2, 10))), True, [10, 8]),
        ([0, 1], ("crane", "crane"), ("crane", "crane"), True, [0, 1]),  # two birds, or a bird and a machine
    ],
)  # fmt: skip
def test_names_decide_whatever_their_type(values, classes, names, numbered, expected):
    assert class_indices(values, classes, names=names, numbered=numbered)[0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "classes", "names", "numbered", "note"),
    [
        ([1, 2], ("1", "2"), (), False, "labels are matched to the classifier's classes by name, not by number"),
        ([True, False], ("True", "False"), (), False, "labels are matched to the classifier's classes by name, not by"),
        ([1, 0], ("neg", "pos"), (), False, "labels are taken as numbers of classes: 1 = pos, 0 = neg"),
        (
            [True],
            GENERIC,
            (),
            False,
            "the classifier has no names for its classes, labels go by number: False = LABEL_0",
        ),
    ],
)
def test_what_was_assumed_is_a_note(values, classes, names, numbered, note):
    assert str(class_indices(values, classes, names=names, numbered=numbered)[1]).startswith(note)


@pytest.mark.parametrize(
    ("values", "classes", "names", "numbered", "says"),
    [
        ([0, 1], ("cat", "dog"), ("dog", "horse"), True,
         r"the data's classes \(dog, horse\) are not the classifier's \(cat, dog\), and only .*, not horse: rename"),
        ([0, 1, 2], ("1", "2", "3"), (), False, r"\(0, 1, 2\) are not the classifier's \(1, 2, 3\), .* not 0: rename"),
        (["us"], ("US", "Us"), (), False, r"the data's classes \(us\) are not the classifier's \(US, Us\)"),
        ([0, 1], ("x", "y"), ("a", "b"), True, r"or take them as numbers \(label='NAME:number'\)"),
        ([True, False], ("no", "yes"), (), False, r"\(True, False\) are not the classifier's \(no, yes\)"),
        ([2], ("neg", "pos"), (), False, "the label in row 0 is 2, outside the classifier's 2 classes"),
    ],
)  # fmt: skip
def test_a_partial_match_is_refused_with_both_lists(values, classes, names, numbered, says):
    with pytest.raises(LabelError, match=says):
        class_indices(values, classes, names=names, numbered=numbered)


def test_numbers_that_are_asked_for():
    found, note = class_indices([1, 0], ("x", "y"), names=("a", "b"), numbered=True, by_number=True)
    assert (found.tolist(), note) == ([1, 0], "labels are taken as numbers of classes, as asked for: a = x, b = y")
    assert class_indices([1, 2, 0], ("1", "2", "3"), by_number=True)[0].tolist() == [1, 2, 0]
    with pytest.raises(
        LabelError, match=r"the data's classes \(p, q\) are no numbers, expected some: leave :number out"
    ):
        class_indices(["p", "q"], ("x", "y"), by_number=True)


def test_numbers_are_asked_for_behind_the_column(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,odd:number\nx,1,a\ny,0,b\n")
    loaded = data.load(str(tmp_path / "a.csv"), label="label:number")
    assert (loaded.columns.label, loaded.by_number) == ("label", True)
    literal = data.load(str(tmp_path / "a.csv"), label="odd:number")
    assert (literal.columns.label, literal.by_number) == ("odd:number", False)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([3, 1, 2], ("1", "2", "3")),
        (["3", "1", "2"], ("1", "2", "3")),
        (["10", "2"], ("2", "10")),
        (["class 10", "class 9"], ("class 9", "class 10")),
        ([True, True, False], ("False", "True")),
    ],
)
def test_a_new_classifier_is_named_as_the_data_are(tmp_path, labels, names):
    datasets.Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}).save_to_disk(tmp_path / "d")
    loaded = data.load(str(tmp_path / "d"))
    assert class_names(loaded) == names
    found, _ = class_indices(labels, names, names=loaded.label_names)
    assert [names[index] for index in found] == [str(label) for label in labels]


def test_folders_of_numbers_are_in_the_order_of_numbers(tmp_path):
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        Image.new("L", (8, 8), number).save(tmp_path / str(number) / "a.png")
    loaded = data.load(str(tmp_path))
    assert loaded.label_names == tuple(map(str, range(12)))
    shades = [int(np.asarray(image)[0, 0]) for image in loaded.dataset["image"]]
    assert list(loaded.dataset["label"]) == shades


@pytest.mark.parametrize(
    ("own", "classes", "trained", "goes_on"),
    [
        (("neg", "pos"), ("pos", "neg"), True, True),
        (("1", "2", "3"), ("1", "2"), True, True),
        (("neg", "pos"), ("0", "1"), True, True),
        (GENERIC, ("0", "1"), True, True),
        (GENERIC, ("a", "b", "c"), True, False),
        (("neg", "pos"), ("pos", "neg"), False, False),
    ],
)
def test_a_head_that_has_names_goes_on_with_them(own, classes, trained, goes_on):
    assert _fits(own, classes, trained, "m") is goes_on


def test_a_head_that_has_some_of_the_names_is_refused():
    with pytest.raises(
        ModelError, match=r"'m' tells apart cat, dog, and only some of the data's classes \(dog, horse\)"
    ):
        _fits(("cat", "dog"), ("dog", "horse"), True, "m")


def test_exact_names_come_before_those_that_differ_in_case():
    assert match_names(["US", "us"], ["us", "US"]).table == {"US": 1, "us": 0}

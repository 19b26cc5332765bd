"""Class conditioning: a row of a table, or the index of one."""

import pytest
import torch

from ldmkit.conditioners import ClassIndex, ClassLabel

WRONG_LABELS = {
    "out of range": (torch.tensor([0, 4]), r"\[0, 3\].*\[0, 4\]"),
    "negative": (torch.tensor([-1, 0]), r"\[-1, 0\]"),
    "float": (torch.tensor([0.0, 1.0]), "integers"),
    "bool": (torch.tensor([True, False]), "integers"),
    "of rank 2": (torch.tensor([[0], [1]]), r"\(B,\), got \(2, 1\)"),
    "of rank 0": (torch.tensor(1), r"got \(\)"),
}


@pytest.mark.parametrize("make", [lambda: ClassLabel(4, 6), lambda: ClassIndex(4)], ids=["label", "index"])
@pytest.mark.parametrize("wrong", WRONG_LABELS)
def test_labels_that_are_no_classes_are_refused(make, wrong):
    value, message = WRONG_LABELS[wrong]
    with pytest.raises(ValueError, match=message):
        make()({"label": value})


def test_a_list_is_refused_because_it_is_no_tensor():
    with pytest.raises(TypeError, match="as a tensor, got list"):
        ClassLabel(4, 6)({"label": [1, 2]})


def test_a_class_is_its_row_as_a_token_or_as_a_vector():
    token, vector = ClassLabel(4, 6), ClassLabel(4, 6, slot="vector")
    vector.load_state_dict(token.state_dict())
    batch = {"label": torch.tensor([2, 0])}
    rows = token.embedding.weight[[2, 0]]
    assert torch.equal(token(batch).context, rows[:, None])
    assert torch.equal(vector(batch).vector, rows)


def test_no_class_is_the_last_row():
    conditioner = ClassLabel(4, 6)
    null = conditioner.null({"label": torch.tensor([2, 0])}).context
    assert torch.equal(null, conditioner.embedding.weight[[4, 4]][:, None])


def test_an_index_passes_through_as_int64():
    label = ClassIndex(4)({"label": torch.tensor([3, 1], dtype=torch.uint8)}).label
    assert label.dtype == torch.int64
    assert label.tolist() == [3, 1]


def test_no_class_as_an_index_comes_after_the_classes():
    conditioner = ClassIndex(4)
    assert conditioner.null({"label": torch.tensor([3, 1])}).label.tolist() == [4, 4]
    assert conditioner.provides == {"label": 5}


@pytest.mark.parametrize("conditioner", [ClassLabel(4, 6, null_class=False), ClassIndex(4, null_class=False)])
def test_without_a_null_class_there_is_no_null_and_the_message_says_why(conditioner):
    batch = {"label": torch.tensor([3])}
    assert conditioner(batch).batch_size == 1
    with pytest.raises(ValueError, match="null_class=True"):
        conditioner.null(batch)


def test_without_a_null_class_the_table_has_one_row_per_class():
    assert ClassLabel(4, 6, null_class=False).embedding.weight.shape == (4, 6)
    assert ClassIndex(4, null_class=False).provides == {"label": 4}


@pytest.mark.parametrize(
    "make", [lambda names: ClassLabel(3, 6, names=names), lambda names: ClassIndex(3, names=names)]
)
def test_names_are_one_per_class(make):
    assert make(["cat", "dog", "owl"]).names == ("cat", "dog", "owl")
    with pytest.raises(ValueError, match="3 classes and was given 2 names"):
        make(["cat", "dog"])


def test_a_slot_that_needs_no_table_points_to_the_conditioner_for_it():
    with pytest.raises(ValueError, match="'class-index'"):
        ClassLabel(4, 6, slot="label")


@pytest.mark.parametrize("make", [lambda: ClassLabel(0, 6), lambda: ClassLabel(4, 0), lambda: ClassIndex(0)])
def test_sizes_below_one_are_refused(make):
    with pytest.raises(ValueError, match="at least 1 class"):
        make()

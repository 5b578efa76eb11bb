"""Tests of names of classes: matched with those of a model, and preserved by subsets and unions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_probe.data import (
    ArraySplit,
    DatasetSplit,
    LabelledData,
    impossible_label,
    in_model_order,
    load_data,
    matched_labels,
    ready_batches,
)
from ckpt_probe.errors import DataError


def animals(names: tuple[str, ...] | None, arguments: dict[str, str] | None = None) -> LabelledData:
    inputs, labels = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 2, 1, 0])
    streamed = DatasetSplit(list(zip(inputs, labels.tolist(), strict=True)), labels=labels)
    splits = {"arrays": ArraySplit(inputs, labels), "streamed": streamed}
    return LabelledData("animals", dict(splits), 3, (2,), dict(arguments or {}), names)


def test_labels_are_matched_by_name() -> None:
    assert matched_labels(["cat", "dog"], ["dog", "eel", "cat"]) == [2, 0]
    assert matched_labels(["great_white  shark", "Dog"], ["dog", "Great White-Shark"]) == [1, 0]
    # Upper and lower case count if two classes differ only in them.
    assert matched_labels(["A", "a"], ["a", "A"]) == [1, 0]
    for names, model in (
        (["cat", "cow"], ["dog", "cat"]),
        (["cat", "CAT"], ["cat", "dog"]),
        (["cat"], ["Cat", "CAT"]),
    ):
        with pytest.raises(DataError, match=r"the data's are .*, the model's .*; `data_arguments=.'match': 'order'"):
            matched_labels(names, model)


def test_the_error_lists_names_of_data_and_model_and_is_short() -> None:
    names = [f"n{number:08}" for number in range(1000)]
    with pytest.raises(DataError) as caught:
        matched_labels(names, [f"class {number}" for number in range(1000)])
    assert "n00000000, n00000001, n00000002, n00000003 and 996 more" in str(caught.value)
    assert "class 0, class 1" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("split", ["arrays", "streamed"])
def test_labels_are_renumbered_in_the_order_of_the_model(split: str) -> None:
    data = in_model_order(animals(("ant", "bee", "cat")), ["Cat", "dog", "Bee", "Ant"])
    assert (data.classes, data.class_names) == (4, ("Cat", "dog", "Bee", "Ant"))
    reordered = data.split(split)
    expected = [3, 2, 0, 0, 2, 3]
    assert (reordered.labels.tolist(), len(reordered)) == (expected, 6)
    inputs, labels = reordered.batch(torch.tensor([2, 0]))
    assert (labels.tolist(), torch.as_tensor(inputs).tolist()) == ([0, 3], [[4, 5], [0, 1]])
    with ready_batches(reordered, 4, 5) as batches:
        assert torch.cat([labels for _, labels in batches]).tolist() == expected[:5]


def test_labels_are_not_changed_without_names_on_both_sides() -> None:
    plain = animals(None)
    assert in_model_order(plain, None) is plain
    assert in_model_order(plain, ["LABEL_0", "LABEL_1", "LABEL_2"]) is plain
    named = in_model_order(plain, ["x", "y", "z", "w"])
    assert (named.class_names, named.classes, named.splits) == (("x", "y", "z", "w"), 3, plain.splits)
    with_names = animals(("ant", "bee", "cat"))
    assert in_model_order(with_names, None).class_names == ("ant", "bee", "cat")
    forced = in_model_order(animals(("ant", "bee", "cat"), {"match": "order"}), ["x", "y", "z"])
    assert (forced.class_names, forced.split("arrays").labels.tolist()) == (("x", "y", "z"), [0, 1, 2, 2, 1, 0])


def test_names_of_classes_are_read_from_npz_files_subsets_and_unions(
    study: Callable[[str], str], tmp_path: Path
) -> None:
    x, y = np.zeros((9, 2)), np.arange(9) % 3
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, class_names=np.array(["ant", "bee", "cat"]))
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, class_names=np.array(["dog", "eel", "fox"]))
    assert load_data(f"npz:{tmp_path / 'a.npz'}").class_names == ("ant", "bee", "cat")
    assert load_data(f"npz:{tmp_path / 'a.npz'}", {"classes": [2, 0]}).class_names == ("cat", "ant")
    sources = [{"name": f"npz:{tmp_path / name}"} for name in ("a.npz", "b.npz")]
    union = study("class_count/digits_and_fashion.py:union")
    assert load_data(union, {"sources": sources}).class_names == ("ant", "bee", "cat", "dog", "eel", "fox")
    assert load_data(union, {"sources": [*sources[:1], {"name": "digits"}, *sources[:1]][::2]}).class_names is None
    np.savez(tmp_path / "c.npz", x=x, y=y, class_names=np.zeros(3))
    with pytest.raises(DataError, match=r"class_names must be strings"):
        load_data(f"npz:{tmp_path / 'c.npz'}")


def test_numbered_placeholders_of_data_and_model_are_matched_by_their_numbers() -> None:
    # Sorted as texts, LABEL_10 is before LABEL_2.
    data = in_model_order(animals(("LABEL_0", "LABEL_10", "LABEL_2")), [f"LABEL_{number}" for number in range(11)])
    assert data.split("arrays").labels.tolist() == [0, 10, 2, 2, 10, 0]
    assert (data.classes, len(data.class_names or ())) == (11, 11)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 2, 1], None),
        ([0, 3], "the label of sample 1 is 3, outside 0 … 2"),
        ([-100, 0], "the label of sample 0 is -100, outside 0 … 2"),
        ([[0, -100], [2, 1]], None),
        ([[0, -100], [2, -1]], "the label of sample 1 is -1, outside 0 … 2"),
    ],
)
def test_the_first_label_that_is_no_class_is_named(labels: list[Any], expected: str | None) -> None:
    assert impossible_label(torch.tensor(labels), 3) == expected

"""Tests of CSV and Parquet: columns of numbers, texts and labels, splits, and refused files."""

import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ckpt_probe.data import ModelHints, load_data, notes_of, ready_batches
from ckpt_probe.data.samples import LENGTHS
from ckpt_probe.errors import DataError, UsageError

ROWS = "x,label,y\n1,dog,2.5\n-3,cat,4\n5,dog,1e-3\n"


def write(directory: Path, text: str, name: str = "test.csv") -> str:
    (directory / name).write_text(text, encoding="utf-8")
    return f"csv:{directory / name}"


def test_labels_can_be_texts_beside_columns_of_numbers(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, ROWS))
    assert (list(data.splits), data.classes, data.class_names, data.input_shape) == (["test"], 2, ("cat", "dog"), (2,))
    inputs, labels = data.split("test").batch(slice(None))
    torch.testing.assert_close(inputs, torch.tensor([[1, 2.5], [-3, 4], [5, 1e-3]]))
    assert labels.tolist() == [1, 0, 1]


def test_labels_that_are_numbers_have_no_names(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, "a,labels\n1,2\n2,0\n"))
    assert (data.classes, data.class_names, data.split("test").labels.tolist()) == (3, None, [2, 0])
    data = load_data(write(tmp_path, "a,kind\n1,2.0\n2,0.0\n"), {"label": "kind"})
    assert data.split("test").labels.tolist() == [2, 0]


def test_spaces_around_names_of_columns_do_not_matter(tmp_path: Path) -> None:
    name = write(tmp_path, "x, y, label\n1, 2, 0\n3, 4, 1\n")
    assert load_data(name).split("test").batch(slice(None))[0].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match="test_fraction: expected a number between 0 and 1, found 'half'"):
        load_data(name, {"test_fraction": "half"})
    with pytest.raises(DataError, match="split 'test' is empty"):
        load_data(name, {"test_fraction": 0.4})


def test_columns_shape_and_delimiter_are_read_from_arguments(tmp_path: Path) -> None:
    name = write(tmp_path, "id\ta\tb\tc\td\tlabel\nq7\t1\t2\t3\t4\t0\n", "table.tsv")
    data = load_data(name, {"inputs": "d,a,b,c", "shape": [1, 2, 2]})
    assert data.split("table").batch(slice(None))[0].tolist() == [[[[4, 1], [2, 3]]]]
    assert data.arguments == {"inputs": "d,a,b,c", "shape": [1, 2, 2]}
    data = load_data(write(tmp_path, "a;label\n1;0\n"), {"delimiter": ";"})
    assert data.arguments == {"delimiter": ";"}
    assert load_data(f"csv:{tmp_path / 'test.csv'}", data.arguments).input_shape == (1,)


def test_splits_are_made_by_file_by_column_or_at_random(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path, ROWS if name == "train" else "x,label,y\n1,eel,2\n", f"{name}.csv")
    data = load_data(f"csv:{tmp_path}")
    assert data.class_names == ("cat", "dog", "eel")
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {"test": [2], "train": [1, 0, 1]}
    text = "x,label,part\n" + "".join(f"{row},{row % 2},{'test' if row % 5 == 0 else 'train'}\n" for row in range(20))
    data = load_data(write(tmp_path, text, "parts.csv"), {"split": "part"})
    assert {name: len(split) for name, split in data.splits.items()} == {"test": 4, "train": 16}
    assert data.split("test").batch(slice(None))[0].tolist() == [[0], [5], [10], [15]]
    data = load_data(f"csv:{tmp_path / 'parts.csv'}", {"inputs": "x", "test_fraction": 0.2})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "test": 4}
    assert torch.bincount(data.split("test").labels).tolist() == [2, 2]
    with pytest.raises(UsageError, match="test_fraction: there are splits already"):
        load_data(f"csv:{tmp_path / 'parts.csv'}", {"split": "part", "test_fraction": 0.2})


def test_texts_become_padded_batches_of_tokens_with_their_lengths(tmp_path: Path, tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["a very good film", "bad plot", "good " * 30]
    name = write(tmp_path, "text,label\n" + "".join(f'"{text}",{row}\n' for row, text in enumerate(texts)))
    data = load_data(name, {"tokenizer": str(tokenizer)})
    split = data.split("test")
    assert (data.input_shape, data.classes) == ((), 3)
    assert data.arguments == {"text": "text", "tokenizer": str(tokenizer), "max_length": 16}
    with ready_batches(split, 2) as batches:
        read = list(batches)
    reference = AutoTokenizer.from_pretrained(tokenizer)
    for (inputs, labels), part in zip(read, (texts[:2], texts[2:]), strict=True):
        expected = reference(part, padding=True, truncation=True, max_length=16, return_tensors="pt")
        assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids", LENGTHS}
        assert torch.equal(inputs[LENGTHS], expected["attention_mask"].sum(dim=1))
        assert all(torch.equal(inputs[key], expected[key]) for key in expected)
        assert labels.tolist() == [texts.index(text) for text in part]
    assert notes_of(split) == ("1 of 3 texts were cut at 16 tokens",)
    assert split.batch(torch.tensor([1]))[0]["input_ids"].tolist() == [[2, 6, 8, 3]]


def test_pairs_of_texts_and_numbers_read_as_text_are_encoded(tmp_path: Path, tokenizer: Path) -> None:
    name = write(tmp_path, "one,two,label\n12,good film,0\n7,bad,1\n")
    data = load_data(name, {"text": "one", "text_pair": "two", "tokenizer": str(tokenizer), "max_length": 8})
    inputs, _ = data.split("test").batch(slice(0, 1))
    assert inputs["input_ids"].tolist() == [[2, 1, 3, 5, 7, 3]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
    assert data.arguments["text_pair"] == "two"


def test_a_column_of_text_beside_numbers_must_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"column 'name' has text beside others; choose it by `data_arguments=.'text': 'name'"
    ):
        load_data(write(tmp_path, "name,x,label\nq,1,0\n"))


def test_a_missing_or_invalid_tokenizer_is_refused(tmp_path: Path) -> None:
    name = write(tmp_path, "text,label\ngood,0\n")
    with pytest.raises(
        UsageError, match=r"text needs a tokenizer: name its directory by `data_arguments=.'tokenizer': 'DIR'"
    ):
        load_data(name)
    with pytest.raises(UsageError, match=r"text needs a tokenizer \(no tokenizer in .*/run or nowhere\): name its"):
        load_data(name, hints=ModelHints("hf:nowhere", directory=tmp_path / "run"))
    with pytest.raises(DataError, match=r"no tokenizer in it \(no tokenizer\.json"):
        load_data(name, {"tokenizer": str(tmp_path)})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="its tokenizer cannot be read") as caught:
        load_data(name, {"tokenizer": str(tmp_path)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"which column has the labels\? there are: a, b; choose one by .*'label': 'NAME'"),
        ("x,label\n1,0\n2\n", r"Row #3: Expected 2 columns, got 1"),
        ("x,label\n1,0,5\n", r"Row #2: Expected 2 columns, got 3"),
        ("", "Empty CSV"),
        ("x,label\n", "no row"),
        ("x,label\n1,\n", r"row 1: column 'label' is empty \(1 such\)"),
        ("x,label\n1,0\n,1\n", r"row 2: column 'x' is empty"),
        ("x,label\n1,-1\n", r"label -1 in row 1"),
        ("x,label\n1,0.5\n", r"label 0\.5 in row 1; labels are whole numbers from 0, or texts"),
        ("x,label\nnan,0\n", r"row 1"),
        ("label\n1\n", "no column beside the labels"),
        ('x,label\n1,0\n"' + "open " * 20, "cannot be read as CSV|which column"),
    ],
)
def test_invalid_csv_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, UsageError), match=message) as caught:
        load_data(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_line_that_is_too_long_is_refused_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_probe.data.tables.LONGEST_LINE", 2**20)
    with pytest.raises(DataError, match="a row of more than 1 MiB, or a quote that is never closed"):
        load_data(write(tmp_path, "x,label\n" + "1" * 3 * 2**20))


def test_csv_that_is_not_utf8_and_missing_files_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "test.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"UTF|text"):
        load_data(f"csv:{tmp_path / 'test.csv'}", {"text": "text", "tokenizer": str(tokenizer)})
    with pytest.raises(DataError, match=r"missing\.csv: no such file or directory"):
        load_data(f"csv:{tmp_path / 'missing.csv'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file in it whose name ends in \.csv or \.tsv"):
        load_data(f"csv:{tmp_path / 'empty'}")
    with pytest.raises(UsageError, match="unknown argument width; csv takes delimiter, encoding, inputs, label"):
        load_data(f"csv:{tmp_path / 'test.csv'}", {"width": 3})


FRENCH = "été,label,y\n1,nuit,2\n3,jour,4\n5,été,6\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"])
def test_texts_and_names_are_read_in_the_encoding_of_the_argument(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_bytes(FRENCH.encode(encoding))
    arguments = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    data = load_data(f"csv:{tmp_path / 'test.csv'}", arguments)
    assert (data.class_names, data.arguments) == (("jour", "nuit", "été"), arguments)
    inputs, labels = (
        load_data(f"csv:{tmp_path / 'test.csv'}", {**arguments, "inputs": "été"}).split("test").batch(slice(0, 3))
    )
    assert (inputs.tolist(), labels.tolist()) == ([[1], [3], [5]], [1, 0, 2])


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (
            FRENCH.replace("été,l", "x,l").encode("latin-1"),
            {},
            r"row 3 \(line 4 of the file\): byte 0xe9 is .* utf-8;.*'encoding': 'cp",
        ),
        (
            FRENCH.encode("latin-1"),
            {},
            r"row 0 \(line 1 of the file\): byte 0xe9 is no text in utf-8; .*'encoding': 'cp1252'",
        ),
        (
            FRENCH.encode("utf-16"),
            {},
            r"byte 0xff is no text in utf-8; name .* such as `data_arguments=.'encoding': 'utf-16'",
        ),
        (FRENCH.encode("latin-1"), {"encoding": "shift_jis"}, "byte 0xe9 is no text in shift_jis"),
        (FRENCH.encode("latin-1"), {"encoding": "utf-16"}, "cannot be read as CSV: Unicode(Decode)?Error"),
        (b"x,label\n1,0\n", {"encoding": "base64"}, "encoding: expected one such as utf-8, cp1252 or utf-16"),
        (b"x,label\n1,0\n", {"encoding": 8}, "encoding: expected one such as"),
        (
            b"x;y;label\n1;2;0\n",
            {},
            r"only one column, 'x;y;label'; .* separated by ';', .* `data_arguments=.'delimiter': ';'",
        ),
        (b"x;y;label\n1,5;2,5;0\n", {}, r"Expected 1 columns, got 3: .* by ';', not by ',': .*'delimiter': ';'"),
        (b"x\ty\tlabel\n1\t2\t0\n", {"label": "label"}, r"by '\\t', not by ',': .*'delimiter': '\\t'"),
        (b"x,y,label\n1,2,0\n", {"delimiter": "|"}, "separated by ',', not by '|'"),
        (b"a,b,a,b,label\n1,2,3,4,0\n", {}, "two columns have one name: 'a', 'b'; rename one"),
    ],
)
def test_wrong_encodings_separators_and_names_are_refused(
    content: bytes, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "test.csv").write_bytes(content)
    with pytest.raises((DataError, UsageError), match=message) as caught:
        load_data(f"csv:{tmp_path / 'test.csv'}", arguments)
    assert "\n" not in str(caught.value)


def test_an_index_column_is_not_an_input(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "label": [0, 1]}, index=[5, 7])
    frame.to_csv(tmp_path / "plain.csv")
    pd.read_csv(tmp_path / "plain.csv").to_csv(tmp_path / "twice.csv")
    frame.to_parquet(tmp_path / "plain.parquet")
    frame.rename_axis("number").to_parquet(tmp_path / "named.parquet")
    for name, index in (
        ("csv:plain.csv", "''"),
        ("csv:twice.csv", "'', 'Unnamed: 0'"),
        ("parquet:plain.parquet", "'__index_level_0__'"),
        ("parquet:named.parquet", "'number'"),
    ):
        kind, _, file = name.partition(":")
        data = load_data(f"{kind}:{tmp_path / file}")
        (split,) = data.splits.values()
        assert split.batch(slice(None))[0].tolist() == [[1, 3], [2, 4]]
        assert data.notes == (f"columns without a name, or of an index, are no inputs: {index}",)
    data = load_data(f"parquet:{tmp_path / 'named.parquet'}", {"inputs": "x,number"})
    assert data.split("named").batch(slice(None))[0].tolist() == [[1, 5], [2, 7]]


def parquet(directory: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), directory / "data.parquet", **options)
    return f"parquet:{directory / 'data.parquet'}"


def test_numbers_lists_and_categories_are_read_from_parquet(tmp_path: Path) -> None:
    labels = pa.array(["b", "a", "b"]).dictionary_encode()
    data = load_data(parquet(tmp_path, {"x": [1, 2, 3], "flag": [True, False, True], "label": labels}))
    assert (data.class_names, data.split("data").labels.tolist()) == (("a", "b"), [1, 0, 1])
    assert data.split("data").batch(slice(None))[0].tolist() == [[1, 1], [2, 0], [3, 1]]
    rows = np.arange(6.0).reshape(3, 2).tolist()
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float32(), 2)):
        data = load_data(parquet(tmp_path, {"embedding": pa.array(rows, kind), "label": [0, 1, 0]}))
        assert data.split("data").batch(slice(None))[0].tolist() == rows


@pytest.mark.skipif(not hasattr(pa, "string_view"), reason="pyarrow has no views")
def test_views_decimals_and_nested_lists_are_read_from_parquet(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(2, 3, 2)
    for labels, names in (
        (pa.array(["b", "a"], pa.string_view()), ("a", "b")),
        (pa.array([b"b", b"a"], pa.binary_view()), ("a", "b")),
        (pa.array([b"b", b"a"], pa.binary(1)), ("a", "b")),
        (pa.array([True, False]), None),
    ):
        data = load_data(parquet(tmp_path, {"x": x.tolist(), "label": labels}))
        assert (data.class_names, data.split("data").labels.tolist()) == (names, [1, 0])
        assert data.split("data").batch(slice(None))[0].tolist() == x.tolist()
    columns = {"x": [Decimal("1.25"), Decimal(2)], "y": pa.array([[3], [4]], pa.list_view(pa.int8())), "label": [0, 1]}
    columns["part"] = pa.array(["train", "test"], pa.string_view())
    data = load_data(parquet(tmp_path, columns), {"split": "part"})
    assert data.split("train").batch(slice(None))[0].tolist() == [[1.25, 3]]
    data = load_data(parquet(tmp_path, {"x": x.tolist(), "label": [0, 1]}), {"shape": [1, 6]})
    assert data.split("data").batch(slice(None))[0].shape == (2, 1, 6)


def test_texts_are_read_from_parquet(tmp_path: Path, tokenizer: Path) -> None:
    data = load_data(parquet(tmp_path, {"text": ["good film", "bad"], "label": [1, 0]}), {"tokenizer": str(tokenizer)})
    assert data.split("data").batch(slice(None))[0]["input_ids"].tolist() == [[2, 5, 7, 3], [2, 6, 3, 0]]


def test_bytes_in_parquet_are_decoded(tmp_path: Path, tokenizer: Path) -> None:
    names = pa.array([b"nuit", "été".encode(), b"nuit"])
    for column in (names, names.cast(pa.large_binary()), names.dictionary_encode()):
        data = load_data(parquet(tmp_path, {"x": [1, 2, 3], "label": column}))
        assert (data.class_names, data.split("data").labels.tolist()) == (("nuit", "été"), [0, 1, 0])
    name = parquet(tmp_path, {"x": [1, 2], "label": [b"nuit", "été".encode("latin-1")]})
    with pytest.raises(
        DataError, match=r"row 2: column 'label': byte 0xe9 is no text in utf-8; .*'encoding': 'cp1252'"
    ):
        load_data(name)
    assert load_data(name, {"encoding": "latin-1"}).class_names == ("nuit", "été")
    for column in ([[1], [2]], [Decimal(1), Decimal(2)]):
        with pytest.raises(DataError, match=r"column 'label' has .*; labels are whole numbers or texts"):
            load_data(parquet(tmp_path, {"x": [1, 2], "label": column}))
    data = load_data(
        parquet(tmp_path, {"text": [b"good"], "label": [0]}), {"text": "text", "tokenizer": str(tokenizer)}
    )
    assert data.split("data").batch(slice(None))[0]["input_ids"].tolist() == [[2, 5, 3]]


def test_hidden_files_of_operating_systems_are_not_splits(tmp_path: Path) -> None:
    for name in ("train.csv", "._train.csv"):
        (tmp_path / name).write_bytes(b"x,label\n1,0\n")
    assert list(load_data(f"csv:{tmp_path}").splits) == ["train"]


def test_invalid_parquet_is_refused(tmp_path: Path) -> None:
    name = parquet(tmp_path, {"x": list(range(1000)), "label": [0] * 1000})
    intact = (tmp_path / "data.parquet").read_bytes()
    for content in (
        intact[: len(intact) // 2],
        b"",
        b"PAR1",
        intact[:-20] + b"\0" * 20,
        intact[:8] + b"\0" * 400 + intact[408:],
    ):
        (tmp_path / "data.parquet").write_bytes(content)
        with pytest.raises(DataError, match="no Parquet file, or a damaged one") as caught:
            load_data(name)
        assert "\n" not in str(caught.value)
    for columns, message in (
        ({"x": [[1.0], [1.0, 2.0]], "label": [0, 1]}, "column 'x': rows of different lengths"),
        ({"x": [1.0, None], "label": [0, 1]}, "row 2: column 'x' is empty"),
        ({"x": [b"1", b"2"], "label": [0, 1]}, "column 'x' has binary, no numbers"),
        ({"x": [1.0, float("inf")], "label": [0, 1]}, "row 2: a number is NaN or infinite"),
        ({"x": [1.0, 1e300], "label": [0, 1]}, "row 2: a number is NaN or infinite, also as float32"),
        ({"x": [[[1.0], [2.0]], [[1.0]]], "label": [0, 1]}, "column 'x': rows of different lengths"),
        ({"x": [[], []], "label": [0, 1]}, "column 'x': rows of different lengths, or empty"),
        ({"x": [1.0, 2.0], "label": [0.0, float("nan")]}, "label nan in row 2"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(parquet(tmp_path, columns))


def test_parquet_that_claims_more_than_its_budget_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A million equal values take a few bytes in the file; the claimed size is checked before anything is read.
    name = parquet(tmp_path, {"x": pa.array(np.zeros(10**6, np.int8)), "label": pa.array(np.zeros(10**6, np.int8))})
    assert (tmp_path / "data.parquet").stat().st_size < 10**5
    monkeypatch.setattr("ckpt_probe.budget.MEMORY", 10**6)
    with pytest.raises(DataError, match=r"data\.parquet: unpacks to 3\d,\d+,\d+ bytes or more"):
        load_data(name)


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_parquet_with_one_text_in_many_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Path, as_dictionary: bool
) -> None:
    monkeypatch.setattr("ckpt_probe.budget.MEMORY", 10**6)
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, "i4")), pa.array(["x" * 2000]))
    table = pa.table({"label": pa.array(np.zeros(10_000, "i1")), "text": texts})
    pq.write_table(table, tmp_path / "data.parquet", compression="zstd", store_schema=as_dictionary)
    assert (tmp_path / "data.parquet").stat().st_size < 10_000
    with pytest.raises(
        DataError, match=r"data\.parquet: unpacks to [\d,]+ bytes or more, which .*, save it without compression"
    ):
        load_data(f"parquet:{tmp_path / 'data.parquet'}", {"text": "text", "tokenizer": str(tokenizer)})


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.bz2"])
def test_compressed_csv_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(ROWS.encode()))
    with pytest.raises(DataError, match=rf"{name}: compressed, .*; decompress it first"):
        load_data(f"csv:{tmp_path / name}")


def test_two_tables_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS.replace(",", "\t"), "test.tsv")
    with pytest.raises(DataError, match=r"split test: in test.csv and test.tsv; name one file"):
        load_data(f"csv:{tmp_path}")


def test_a_long_label_takes_no_memory_in_other_rows(tmp_path: Path) -> None:
    # As texts of fixed width, the labels would take 16 GB.
    data = load_data(write(tmp_path, "a,label\n1," + "x" * 200_000 + "\n" + "2,b\n" * 20_000))
    assert torch.bincount(data.split("test").labels).tolist() == [20_000, 1]

"""Tests of tables that fit their width, of footnotes, and of lines that other programs read."""

import csv
import io
import json

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from ckpt_probe.analysis import analyze_features, in_order
from ckpt_probe.analysis.similarity import Similarity
from ckpt_probe.errors import DataError
from ckpt_probe.moments.registry import DEFAULT, DOCUMENTS, LAYERS, METRICS, TRAIN_MEANS
from ckpt_probe.reporting.formats import to_csv, to_json_line
from ckpt_probe.reporting.matrix_tables import Grid, blocks_of_columns, grid_table, similarity_table
from ckpt_probe.reporting.table import footnotes, records_table
from ckpt_probe.reporting.wording import short_number


def records(classes: int = 4) -> list[dict]:
    generator = np.random.default_rng(0)
    labels = np.arange(80) % classes
    weights = generator.normal(size=(classes, 6))
    rows = []
    for step in (0, 500):
        features = weights[labels] + generator.normal(size=(80, 6))
        position = {"checkpoint": f"step-{step:06d}", "step": step, "split": "test"}
        rows.append(in_order({**position, **analyze_features(features, labels, weights)}))
    return rows


def printed_table(rows: list[dict], width: int | None) -> str:
    console = Console(width=width or 10_000, file=io.StringIO())
    console.print(records_table(rows, width=width, hint=" with `width=None`"))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_fits_its_width_and_counts_the_columns_left_out(width: int) -> None:
    text = printed_table(records(), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "more columns with `width=None`" in text
    assert "acc" in text


def test_a_table_with_wide_characters_in_names_fits_and_cuts_none() -> None:
    names = ("検査点" * 6, "第二の" * 6)
    rows = [{**record, "step": 880, "checkpoint": name} for record, name in zip(records(), names, strict=True)]
    text = printed_table(rows, 80)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 80
    assert all(name in text for name in names)
    assert "…" not in text


def test_checkpoints_of_the_same_step_are_shown_by_name() -> None:
    rows = [
        {**record, "step": 880, "checkpoint": name} for record, name in zip(records(), ("dense", "sparse"), strict=True)
    ]
    text = printed_table(rows, 80)
    assert "sparse" in text
    assert "880" not in text
    assert "step-000500" not in printed_table(records(), 80)


def test_wide_shows_every_entry_and_the_values_at_collapse() -> None:
    text = printed_table(records(), None)
    for metric in METRICS:
        sometimes = {LAYERS, DOCUMENTS, TRAIN_MEANS} & set(metric.requires)
        if metric.family in DEFAULT and not metric.of_weights and not sometimes:
            assert metric.label in text
    assert "more columns" not in text
    reference = text.splitlines()[-1]
    assert reference.startswith("at collapse")
    assert "1.099" in reference


def test_values_are_printed_in_their_rows() -> None:
    rows = records()
    lines = printed_table(rows, 120).splitlines()
    assert f"{rows[1]['accuracy']:.4f}" in lines[2]
    assert lines[2].split()[0] == "500"


def many_classes(features: int, **options: int) -> dict:
    """Return the record of 12 classes in `features` dimensions: 7 with ten samples, 3 with one, 2 without samples."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), [10] * 7 + [1] * 3)
    weights = generator.normal(size=(12, features))
    weights[0] = 0
    rows = weights[labels] + generator.normal(size=(len(labels), features))
    return in_order({"step": 1, "split": "test", **analyze_features(rows, labels, weights, **options)})


def test_footnotes_count_the_classes_left_out_by_reason() -> None:
    zero = "1: a class mean or classifier weights of zero length"
    notes = " ".join(footnotes([many_classes(3)]))
    assert f"3 of 12 classes left out (2: no sample, {zero})" in notes
    assert "3 of 10 classes have one sample and so no spread" in notes
    assert "`min_samples=2`" in notes
    few = " ".join(footnotes([many_classes(3, min_samples=2)]))
    assert f"6 of 12 classes left out (2: no sample, 3: fewer samples than `min_samples`, {zero})" in few
    assert "have one sample" not in few
    none = " ".join(footnotes([many_classes(3, min_samples=11)]))
    assert "12 of 12 classes left out (2: no sample, 10: fewer samples than `min_samples`)" in none


def references(*rows: dict) -> dict[str, str]:
    """Return the last row of the table of records, by the label of its column."""
    table = records_table(rows)
    return {str(column.header): str(list(column.cells)[-1]) for column in table.columns}


def test_the_values_at_collapse_are_those_that_exist_for_each_record() -> None:
    simplex, without = many_classes(11), many_classes(3)
    last_row = references(simplex)
    assert (last_row["NC2"], last_row["equiang. μ"], last_row["NC1"]) == ("0", "0", "0")
    assert last_row["H means"] == short_number(np.log(9))
    last_row = references(without)
    assert {last_row[name] for name in ("MIR", "H means", "H weights", "NC2", "equiang. μ", "GNC2 s.d.")} == {"–"}
    assert (last_row["HDR"], last_row["NC1"], last_row["NC3"]) == ("0", "0", "0")
    assert references(simplex, without)["H means"] == "varies"
    # The record of a layer without the metric has no value at collapse, which does not count as a different one.
    assert references(simplex, {"layer": "1", "split": "test"})["H means"] == short_number(np.log(9))
    # A record of an earlier version states the value of a simplex that does not exist.
    assert references({**without, "reference.entropy": 2.197})["H means"] == "–"


def test_footnotes_name_errors_and_biases_that_may_be_wrong() -> None:
    record = {"checkpoint": "a", "nc1.pinv": 1.0, "nc1.pinv_stderr": 0.1, "nc1.pinv_bias": None, "rankme_bias": 0.1}
    missing = "nc1.pinv_stderr: heavy tails; nc1.pinv_bias: no halves; rankme_bias: too few rows"
    notes = footnotes([{**record, "missing": missing}])
    expected = ("standard error of NC1: heavy tails", "no bias of NC1: no halves", "bias of RankMe: too few rows")
    assert [note.partition(" [")[0] for note in notes] == [f"– {text}" for text in expected]


def test_footnotes_state_each_reason_once() -> None:
    rows = records(classes=2)
    for record in rows:
        record["samples_left_out"] = 3
    notes = footnotes(rows)
    assert any(note.startswith("3 of 80 samples left out (zero-length") for note in notes)
    assert any("missing: class.mir" in note for note in notes)
    assert len(notes) == 2
    assert "[step-000000 test, step-000500 test]" in notes[0]
    assert footnotes(records()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (0.12345, "0.1235"), (1.23456, "1.235"), (12.3456, "12.35"), (123.456, "123.5"),
     (12345.6, "12346"), (123456.0, "1.235e+05"), (0.00012, "1.200e-04"), (-0.5, "-0.5000"), (9.99999, "10.000")],
)  # fmt: skip
def test_short_numbers_have_the_stated_digits(value: float, text: str) -> None:
    assert short_number(value) == text


def test_json_lines_have_null_and_never_nan() -> None:
    record = records(classes=2)[0]
    parsed = json.loads(to_json_line(record))
    assert parsed == record
    assert parsed["class.mir"] is None
    with pytest.raises(DataError, match="x is nan, which JSON lacks"):
        to_json_line({"x": float("nan")})


def test_csv_returns_every_number_exactly() -> None:
    rows_of_records = records()
    rows = list(csv.DictReader(io.StringIO(to_csv([*rows_of_records, {"split": "x", "extra": 1}]))))
    assert [float(row["class.mir"]) for row in rows[:2]] == [record["class.mir"] for record in rows_of_records]
    assert rows[2]["class.mir"] == ""
    assert rows[2]["extra"] == "1"


@pytest.mark.parametrize("width", [None, 20, 33, 40, 60, 120])
def test_a_matrix_is_printed_in_blocks_with_every_column(width: int | None) -> None:
    columns = [f"blocks.{index}" for index in range(6)]
    rows = [[name, *(f"{i}.{j:03d}" for j in range(6))] for i, name in enumerate(columns)]
    console = Console(width=width or 10_000, file=io.StringIO())
    console.print(blocks_of_columns(("layer",), columns, rows, width))
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    blocks = [block.split() for block in lines if block.startswith("layer")]
    assert [name for block in blocks for name in block if name != "layer"] == columns
    assert [word for line in lines for word in line.split() if word.startswith("4.")] == rows[4][1:]
    assert all(line.split()[0] in {"layer", *columns} for line in lines)
    if width is None:
        assert len(blocks) == 1
    else:
        assert max(len(line.rstrip()) for line in lines) <= width


def test_grids_of_layers_and_similarities_are_printed_completely() -> None:
    names = tuple(f"layer{index}" for index in range(6))
    values = tuple(tuple(i + j / 8 for j in range(6)) for i in range(6))
    grid = Grid("test", "separation", names, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), names, values)
    matrix = Similarity("layers", "cka", "test", names, names, values, 9)
    for table in (grid_table(grid, 40), similarity_table(matrix.to_record(), 40)):
        console = Console(width=40, file=io.StringIO())
        console.print(table)
        text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "more columns" not in text
        for name in names:
            assert text.count(name) >= 2

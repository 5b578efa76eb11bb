"""Records as pandas frames and Parquet: kinds of columns, missing values, and what makes no column."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ckpt_probe as cp
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.reporting import write_parquet

RECORDS = [
    {"checkpoint": "a", "step": 0, "split": "train", "accuracy": 0.25, "loss": 1, "missing": None, "nc1.pinv": None},
    {"checkpoint": "b", "step": None, "split": "train", "accuracy": None, "loss": 0.5, "missing": None, "own": True},
]


def test_a_row_a_record_and_a_column_a_name() -> None:
    frame = cp.to_dataframe(iter(RECORDS))
    assert list(frame.columns) == ["checkpoint", "step", "split", "accuracy", "loss", "missing", "nc1.pinv", "own"]
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert kinds == {
        "checkpoint": "string",
        "step": "Int64",
        "split": "string",
        "accuracy": "float64",
        "loss": "float64",
        "missing": "string",
        "nc1.pinv": "float64",
        "own": "boolean",
    }
    assert frame["accuracy"].tolist() == pytest.approx([0.25, np.nan], nan_ok=True)
    assert frame["loss"].tolist() == [1.0, 0.5]
    assert frame["step"][1] is pd.NA
    assert frame["nc1.pinv"].isna().all()


def test_a_real_record_goes_through_parquet_to_the_last_digit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    record = cp.analyze_features(rng.normal(size=(60, 5)), np.arange(60) % 3, rng.normal(size=(3, 5)))
    records = [{"step": step, **record} for step in (0, 10)]
    assert write_parquet(records, tmp_path / "r.parquet") == 2
    back = pd.read_parquet(tmp_path / "r.parquet")
    for name, value in record.items():
        found = back[name].tolist()
        assert found == [value, value] or (value is None and back[name].isna().all()), name
    assert back["step"].dtype == "int64"


def test_no_records_are_an_empty_frame() -> None:
    assert cp.to_dataframe([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.5, "a"], "value: some records hold a number, some a text"),
        ([1, True], "value: some records hold a truth value, some a whole number"),
        ([0.5, [1, 2]], "record 1: value is a list"),
        ([2**63, 1], "value: a whole number of more than 64 bits"),
    ],
)
def test_what_makes_no_column_is_told_with_its_name(values: list, told: str) -> None:
    with pytest.raises(DataError, match=told):
        cp.to_dataframe([{"value": value} for value in values])


def test_a_file_that_exists_and_packages_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.parquet").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_parquet(RECORDS, tmp_path / "r.parquet")
    monkeypatch.setitem(sys.modules, "pandas", None)
    for call in (lambda: cp.to_dataframe(RECORDS), lambda: write_parquet(RECORDS, tmp_path / "new.parquet")):
        with pytest.raises(UsageError, match=r'pip install "ckpt-probe\[frames\]"'):
            call()
    assert [file.name for file in tmp_path.iterdir()] == ["r.parquet"]

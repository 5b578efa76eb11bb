"""Expected values for a probe's record: the same model and samples, extracted into a dump and analyzed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import ckpt_probe as cp

Extracted = Callable[..., dict[str, Any]]
NEEDS_ROWS = {"nc4.disagreement", "nearest_mean_accuracy"}
"""Metrics that compare each sample with the class means, which are known only after the last sample."""
PROVENANCE = {"checkpoint", "step", "split", "epoch"}


@pytest.fixture
def extracted(tmp_path: Path) -> Extracted:
    """Return a function that gives the record of `cp.extract` and `cp.analyze` for a model and labelled batches."""

    def extract(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], **options: Any) -> dict[str, Any]:
        cp.extract(model, list(batches), tmp_path / "extracted.h5", device="cpu", overwrite=True, **options)
        return cp.analyze(tmp_path / "extracted.h5")[0]

    return extract


@pytest.fixture
def same() -> Callable[..., None]:
    """Return a function that asserts that a probe's record is the extracted one, except values that need the rows."""

    def check(record: dict[str, Any], expected: dict[str, Any], *, rel: float = 1e-6) -> None:
        for name in expected.keys() - NEEDS_ROWS - PROVENANCE - {"missing"}:
            value = expected[name]
            close = pytest.approx(value, rel=rel, abs=rel * 1e-3) if isinstance(value, float) else value
            assert record[name] == close, name
        for name in NEEDS_ROWS:
            assert record[name] is None
            assert name in record["missing"]

    return check

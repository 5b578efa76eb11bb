"""What a probe's record is checked against: the same model and samples, extracted into a dump and analyzed."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import ckpt_probe as cp

Extracted = Callable[..., dict[str, Any]]
NEEDS_ROWS = {"nc4.disagreement", "nearest_mean_accuracy"}
"""What compares each sample with the class means, which are known only after the last one."""
PLACE = {"checkpoint", "step", "split", "epoch"}


@pytest.fixture
def extracted(tmp_path: Path) -> Extracted:
    """The record of `cp.extract` and `cp.analyze` for a model and batches of inputs and labels."""

    def extract(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], **options: Any) -> dict[str, Any]:
        cp.extract(model, list(batches), tmp_path / "extracted.h5", device="cpu", overwrite=True, **options)
        return cp.analyze(tmp_path / "extracted.h5")[0]

    return extract


@pytest.fixture
def same() -> Callable[..., None]:
    """Asserts that a probe's record is the extracted one, but for what needs the rows."""

    def check(record: dict[str, Any], expected: dict[str, Any], *, rel: float = 1e-6) -> None:
        for name in expected.keys() - NEEDS_ROWS - PLACE - {"missing"}:
            value = expected[name]
            close = pytest.approx(value, rel=rel, abs=rel * 1e-3) if isinstance(value, float) else value
            assert record[name] == close, name
        for name in NEEDS_ROWS:
            assert record[name] is None
            assert name in record["missing"]

    return check

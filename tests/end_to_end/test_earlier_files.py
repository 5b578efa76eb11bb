"""Checks that files of earlier versions can be read and have the numbers that those versions computed."""

import json
from pathlib import Path
from typing import Any

import pytest

import ckpt_probe as cp
from ckpt_probe.cli.app import run

EARLIER = Path(__file__).parent / "earlier"
TEXT = (EARLIER / "records.jsonl").read_text(encoding="utf-8").replace("mir_stderr", "mir_computing_error")
RECORDS = [json.loads(line) for line in TEXT.splitlines()]


def earlier_records(name: str) -> list[dict[str, Any]]:
    records = [record for record in RECORDS if record["checkpoint"] == name]
    assert records
    return records


def assert_same(records: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> None:
    assert [record["split"] for record in records] == [record["split"] for record in earlier]
    for now, then in zip(records, earlier, strict=True):
        numbers = {name: value for name, value in then.items() if isinstance(value, int | float)}
        assert {name: now[name] for name in numbers} == pytest.approx(numbers, rel=1e-9, abs=1e-12)
        assert {name for name in then if then[name] is None} <= {name for name in now if now[name] is None}


@pytest.mark.parametrize("name", ["dump-v1", "dump-v2", "moments-v2"])
def test_dumps_of_earlier_formats_have_the_same_numbers(name: str) -> None:
    assert_same(list(cp.analyze(EARLIER / f"{name}.h5")), earlier_records(name))


def test_a_checkpoint_of_an_earlier_version_has_nearly_the_same_numbers(tmp_path: Path) -> None:
    [checkpoint] = EARLIER.glob("step-*.safetensors")
    assert run(["extract", str(checkpoint), "-o", str(tmp_path), "--device", "cpu"]) == 0
    records = cp.analyze(tmp_path / f"{checkpoint.stem}.h5")
    # On another machine the forward pass in float32 may round differently.
    for now, then in zip(records, earlier_records(checkpoint.stem), strict=True):
        assert now["accuracy"] == then["accuracy"]
        for name in ("loss", "class.mir", "class.hdr", "sample.mir", "sample.hdr", "nc1.pinv", "nc2.etf"):
            assert now[name] == pytest.approx(then[name], rel=1e-4), name

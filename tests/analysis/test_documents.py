"""Tests of metrics per document of a language model, from features and moments, and relative to a reference."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import ckpt_probe as cp
from ckpt_probe.errors import UsageError
from tests.moments.test_documents import mean_angle, skean, wei

pytest.importorskip("transformers")

OPTIONS: dict[str, Any] = {"data_arguments": {"context": 8}, "device": "cpu", "batch_size": 5}
NAMES = ("documents.entropy", "documents.curvature", "erank.documents", "erank.documents_difference")
LETTERS = 26
LENGTHS = (3, 9, 2, 16, 24, 5, 17, 8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write dumps of two GPT-2 with different random weights and of a BERT, on documents of known lengths."""
    directory = tmp_path_factory.mktemp("language")
    save_model = _model_saver()
    draw = np.random.default_rng(1)
    texts = [" ".join(chr(97 + n) for n in draw.integers(0, LETTERS, length)) for length in LENGTHS]
    (directory / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, seed in (("step7", 0), ("fresh", 1)):
        save_model("gpt2", "LMHeadModel", directory / name, seed=seed)
    save_model("bert", "ForMaskedLM", directory / "masked")
    data = f"text:{directory / 'texts.jsonl'}"
    cp.extract_series(directory / "step7", directory / "dumps", data=data, layers="all", **OPTIONS)
    cp.extract_series(directory / "fresh", directory / "fresh-dumps", data=data, layers="all", **OPTIONS)
    cp.extract_series(directory / "step7", directory / "moments", data=data, store="moments", layers="all", **OPTIONS)
    cp.extract_series(directory / "step7", directory / "some", data=data, max_rows=20, **OPTIONS)
    cp.extract_series(directory / "masked", directory / "masked-dumps", data=data, **OPTIONS)
    return directory


def _model_saver() -> Callable[..., Any]:
    from tests.extraction.conftest import save_model

    return save_model.__wrapped__()  # pyright: ignore[reportFunctionMemberAccess]


def penultimate_record(path: Path, **options: Any) -> dict[str, Any]:
    return cp.analyze(path, cache=False, **options)[-1]


def test_rows_have_the_index_of_their_document_and_their_position(directory: Path) -> None:
    with cp.open_dump(directory / "dumps" / "model.h5") as dump:
        view = dump["texts"]
        lengths = np.array(LENGTHS) - 1
        assert view.documents[:].tolist() == np.repeat(np.arange(len(LENGTHS)), lengths).tolist()
        assert view.positions[:].tolist() == np.concatenate([np.arange(length) for length in lengths]).tolist()
        split = np.split(view.features[:].astype(float), np.cumsum(lengths)[:-1])
    record = penultimate_record(directory / "dumps")
    assert record["documents"] == len(LENGTHS)
    assert record["documents.entropy"] == pytest.approx(np.mean([skean(rows) for rows in split]), abs=1e-6)
    ranks = [wei(rows) for rows in split if len(rows) > 1]
    assert record["erank.documents"] == pytest.approx(math.exp(np.mean(ranks)), rel=1e-6)
    angles = [mean_angle(rows) for rows in split if len(rows) > 2]
    assert record["documents.curvature"] == pytest.approx(np.mean(angles), abs=1e-6)
    assert NAMES[3] not in record


def test_moments_and_ranges_give_the_numbers_of_the_features(directory: Path) -> None:
    features, moments = cp.analyze(directory / "dumps", cache=False), cp.analyze(directory / "moments", cache=False)
    ranges = cp.analyze(directory / "dumps", cache=False, rows_per_task=10)
    assert len(features) == len(moments) == 4
    for name in (*NAMES[:3], "documents"):
        expected = [record[name] for record in features]
        assert [record[name] for record in moments] == pytest.approx(expected), name
        assert [record[name] for record in ranges] == pytest.approx(expected), name
    assert penultimate_record(directory / "some")["erank.documents"] == pytest.approx(features[-1]["erank.documents"])


def test_the_difference_is_that_from_the_reference(directory: Path) -> None:
    reference = directory / "fresh-dumps" / "model.h5"
    fresh = cp.analyze(reference, cache=False)
    for record, random_record in zip(
        cp.analyze(directory / "dumps", cache=False, reference=reference), fresh, strict=True
    ):
        assert record[NAMES[3]] == pytest.approx(random_record["erank.documents"] - record["erank.documents"])
    assert penultimate_record(directory / "dumps", reference=directory / "dumps" / "model.h5")[NAMES[3]] == 0
    masked = penultimate_record(directory / "masked-dumps", reference=reference)
    assert masked[NAMES[3]] is None
    assert f"{NAMES[3]}: model.h5: {fresh[0]['samples']} rows, but" in masked["missing"]
    with pytest.raises(UsageError, match="expected the dump of a model with random weights, one"):
        penultimate_record(directory / "dumps", reference=directory)


def test_masked_positions_are_not_successive(directory: Path) -> None:
    with cp.open_dump(directory / "masked-dumps" / "model.h5") as dump:
        documents, positions = dump["texts"].documents[:], dump["texts"].positions[:]
        features = dump["texts"].features[:].astype(float)
    angles = []
    for document in np.unique(documents):
        indices, rows = positions[documents == document], features[documents == document]
        ends = [i for i in range(len(indices) - 2) if indices[i + 2] - indices[i] == 2]
        angles += [np.mean([mean_angle(rows[i : i + 3]) for i in ends])] if ends else []
    value = penultimate_record(directory / "masked-dumps")["documents.curvature"]
    assert value == (pytest.approx(np.mean(angles)) if angles else None)


def test_dumps_without_documents_have_no_document_metrics_unless_requested(directory: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["test/features"] = np.random.default_rng(0).normal(size=(30, 4))
        file["test/labels"] = np.arange(30) % 3
    assert not set(NAMES) & penultimate_record(tmp_path / "plain.h5").keys()
    requested = penultimate_record(tmp_path / "plain.h5", only="documents")
    assert requested["documents.entropy"] is None
    assert "documents.entropy" in requested["missing"]
    assert "no document and position of each row is stored" in requested["missing"]

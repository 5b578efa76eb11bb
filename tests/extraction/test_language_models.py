"""Tests of language models: rows are positions, as the framework computes them for each text alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ckpt_probe as cp
from ckpt_probe.data import load_data
from ckpt_probe.data.arguments import ModelHints
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments import quality
from ckpt_probe.progress import NullProgress

pytest.importorskip("transformers")

CAUSAL = {
    "gpt2": "LMHeadModel",
    **dict.fromkeys(("gpt_neox", "llama", "qwen2", "gemma2", "cohere", "granite"), "ForCausalLM"),
}
SCALES = {"cohere": 0.5, "granite": 1 / 3}
"""Factors by which these models multiply the output of their last layer."""


class Messages(NullProgress):
    """Progress that collects its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def one_by_one(model: Any, documents: Path, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, logits and next tokens of each text alone, in windows without padding."""
    directory = model.name_or_path
    tokens = [torch.tensor(ids) for ids in tokenized(directory, documents)]
    states, logits, labels = [], [], []
    with torch.no_grad():
        for ids in tokens:
            for start in range(0, len(ids) - 1, context):
                part, following = ids[start : start + context], ids[start + 1 : start + context + 1]
                outputs = model(input_ids=part[None], output_hidden_states=True)
                # The last hidden state is the output of the final norm.
                states.append(outputs.hidden_states[-1][0, : len(following)])
                logits.append(outputs.logits[0, : len(following)])
                labels.append(following)
    return torch.cat(states), torch.cat(logits), torch.cat(labels)


def tokenized(directory: str, documents: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer(json.loads(line)["text"])["input_ids"] for line in documents.read_text().splitlines()]


@pytest.mark.parametrize("name", CAUSAL)
def test_rows_equal_those_of_the_framework_for_each_text_alone(
    name: str, save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    model = save_model(name, CAUSAL[name], tmp_path / "step7")
    model.name_or_path = str(tmp_path / "step7")
    progress = Messages()
    cp.extract_series(
        tmp_path / "step7",
        tmp_path / "dumps",
        data=f"text:{documents}",
        data_arguments={"context": 8},
        batch_size=5,
        device="cpu",
        progress=progress,
    )
    states, logits, labels = one_by_one(model, documents, 8)
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        view = dump["texts"]
        assert view.logits is None
        np.testing.assert_allclose(view.features[:], states, rtol=1e-4, atol=1e-5)
        assert view.labels[:].tolist() == labels.tolist()
        assert view.prediction is not None
        assert view.loss is not None
        assert view.prediction[:].tolist() == logits.argmax(dim=1).tolist()
        expected = F.cross_entropy(logits, labels, reduction="none")
        np.testing.assert_allclose(view.loss[:], expected, rtol=1e-4, atol=1e-5)
        weights, bias = dump.weights, dump.bias
        assert bias is None
        assert weights is not None
        head = model.get_output_embeddings().weight.detach().double()
        np.testing.assert_allclose(weights, head * SCALES.get(name, 1), rtol=2e-6 if name in SCALES else 0)
        assert dump.class_names is not None
        assert dump.class_names[3:5] == ("a", "b")
    [record] = cp.analyze(tmp_path / "dumps", cache=False)
    assert record["samples"] == len(labels)
    assert record["loss"] == pytest.approx(float(expected.double().mean()), rel=1e-5)
    assert record["accuracy"] == pytest.approx(float((logits.argmax(dim=1) == labels).double().mean()))
    assert record["nc4.disagreement"] is not None
    assert any("positions are padding, or labelled -100, and left out" in line for line in progress.messages)


def test_logits_of_all_positions_are_never_in_memory(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the head does not run, and that losses are computed from few rows and few classes at a time."""
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    monkeypatch.setattr(quality, "FEW_CLASSES", 7)
    monkeypatch.setattr(quality, "LOGITS_AT_ONCE", 3 * 7)
    row_counts: list[int] = []
    linear = F.linear

    def counted(rows: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        row_counts.extend([len(rows)] if weights.shape == (7, 12) else [])
        assert weights.shape != (29, 12) or len(rows) <= 2, "the head ran"
        return linear(rows, weights, bias)

    monkeypatch.setattr(F, "linear", counted)
    cp.extract_series(
        tmp_path / "model", tmp_path / "dumps", data=f"text:{documents}", batch_size=4, device="cpu"
    )  # fmt: skip
    assert max(row_counts) == 3
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        assert sum(row_counts) == 4 * dump["texts"].samples  # 29 classes are four parts of 7 and one of 1


def test_rows_of_a_masked_language_model_are_the_masked_tokens(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    for name in ("bert", "distilbert"):
        model = save_model(name, "ForMaskedLM", tmp_path / name)
        arguments = {"context": 8, "masked_fraction": 0.4}
        cp.extract_series(
            tmp_path / name, tmp_path / "dumps" / name, data=f"text:{documents}", data_arguments=arguments, device="cpu"
        )
        hints = ModelHints(f"hf:{tmp_path / name}")
        inputs, labels = load_data(f"text:{documents}", arguments, hints=hints).splits["texts"].batch(slice(None))
        with torch.no_grad():
            logits = model(**inputs).logits[labels != -100]
        with cp.open_dump(tmp_path / "dumps" / name / "model.h5") as dump:
            view = dump["texts"]
            assert view.prediction is not None
            assert view.prediction[:].tolist() == logits.argmax(dim=1).tolist()
            assert view.labels[:].tolist() == labels[labels != -100].tolist()
            products = torch.as_tensor(view.features[:]).double() @ torch.as_tensor(dump.weights).T
            np.testing.assert_allclose(products + torch.as_tensor(dump.bias), logits, rtol=1e-3, atol=1e-4)


def test_moments_and_random_rows_agree_with_all_rows(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    options: dict[str, Any] = {"data": f"text:{documents}", "device": "cpu", "batch_size": 3}
    cp.extract_series(tmp_path / "model", tmp_path / "all", **options)
    cp.extract_series(tmp_path / "model", tmp_path / "moments", store="moments", **options)
    cp.extract_series(tmp_path / "model", tmp_path / "some", max_rows=40, rows_seed=3, **options)
    [full], [moments] = (list(cp.analyze(tmp_path / name, cache=False)) for name in ("all", "moments"))
    for name in ("accuracy", "loss", "nc1.cdnv", "class.mir", "sample.entropy_features", "gnc2.uniformity"):
        assert moments[name] == pytest.approx(full[name], rel=1e-9), name
    # Rows of an untrained layer norm sum to zero up to rounding, so moments cannot resolve this direction.
    assert (moments["nc1.pinv"], full["nc1.pinv"] is None) == (None, False)
    assert "nc1.pinv, separation: along the class means the spread is below the rounding of Σ_W" in moments["missing"]
    with cp.open_dump(tmp_path / "all" / "model.h5") as every, cp.open_dump(tmp_path / "some" / "model.h5") as some:
        rows, sampled = every["texts"], some["texts"]
        assert (sampled.samples, sampled.not_stored) == (40, rows.samples - 40)
        chosen = np.sort(np.random.default_rng(3).choice(rows.samples, 40, replace=False, shuffle=False))
        for name in ("features", "labels", "prediction", "loss"):
            np.testing.assert_array_equal(getattr(sampled, name)[:], getattr(rows, name)[:][chosen])
    [record] = cp.analyze(tmp_path / "some", cache=False)
    assert (record["samples"], record["samples_not_stored"]) == (40, rows.samples - 40)
    with pytest.raises(UsageError, match=r"another provenance .*max_rows None / 12"):
        cp.extract_series(tmp_path / "model", tmp_path / "all", max_rows=12, **options)


def test_moments_of_many_classes_contain_only_the_total(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    # These are more rows than fit into the moments unreduced.
    (tmp_path / "long.jsonl").write_text(3 * documents.read_text())
    options: dict[str, Any] = {"data": f"text:{tmp_path / 'long.jsonl'}", "device": "cpu", "store": "moments"}
    progress = Messages()
    cp.extract_series(tmp_path / "model", tmp_path / "dumps", memory=6000, progress=progress, **options)
    assert any(
        "only that of all rows is stored, and within-class entropies are missing" in line for line in progress.messages
    )
    with cp.open_dump(tmp_path / "dumps" / "model.h5") as dump:
        arrays = dump["long"].arrays()
    assert "moments/total" in arrays
    assert "moments/second" not in arrays
    [record] = cp.analyze(tmp_path / "dumps", cache=False)
    assert record["within.entropy_mean"] is None
    assert record["sample.entropy_features"] is not None
    with pytest.raises(UsageError, match="raise `memory=`, or store features"):
        cp.extract_series(tmp_path / "model", tmp_path / "more", memory=100, **options)


def test_a_series_has_differences_of_effective_rank_from_its_first_checkpoint(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    for seed, step in enumerate((0, 20, 100)):
        save_model("llama", "ForCausalLM", tmp_path / "run" / f"step{step}", seed=seed)
    cp.extract_series(tmp_path / "run", tmp_path / "dumps", data=f"text:{documents}", device="cpu")
    records = list(cp.analyze(tmp_path / "dumps", centred=True, cache=False))
    assert [record["step"] for record in records] == [0, 20, 100]
    features = []
    for step in (0, 20, 100):
        with cp.open_dump(tmp_path / "dumps" / f"step{step}.h5") as dump:
            features.append(dump["texts"].features[:])
    for record, rows in zip(records, features, strict=True):
        expected = cp.erank_difference(features[0].astype(np.float64), rows.astype(np.float64))
        assert record["erank.difference"] == pytest.approx(expected, rel=1e-7, abs=1e-7)
    assert records[0]["erank.difference"] == 0
    [alone] = cp.analyze(tmp_path / "dumps" / "step20.h5", centred=True)
    assert "erank.difference" not in alone


def test_labels_that_leave_no_row_are_refused(save_model: Callable[..., Any], tmp_path: Path) -> None:
    model = save_model("gpt2", "LMHeadModel", tmp_path / "model")
    inputs = {"input_ids": torch.full((2, 4), 5)}
    with pytest.raises(DataError, match="split data: no row: every label is -100"):
        cp.extract(model, [(inputs, torch.full((2, 4), -100))], tmp_path / "a.h5", device="cpu")
    assert not (tmp_path / "a.h5").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    save_model("gpt2", "LMHeadModel", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "vocab_size": 12}))
    with pytest.raises(DataError, match="its tokenizer has 29 tokens, the model 12: it is another model's"):
        cp.extract_series(tmp_path / "model", tmp_path / "dumps", data=f"text:{documents}", device="cpu")


def test_the_end_of_a_path_has_the_record_of_its_checkpoint(
    save_model: Callable[..., Any], documents: Path, tmp_path: Path
) -> None:
    ends = [tmp_path / f"step{seed}" for seed in (0, 1)]
    for seed, directory in enumerate(ends):
        save_model("gpt2", "LMHeadModel", directory, seed=seed)
    options: dict[str, Any] = {"data": f"text:{documents}", "device": "cpu"}
    cp.evaluate_path(
        *(end / "model.safetensors" for end in ends),
        tmp_path / "path",
        points=3,
        keep_dumps=True,
        errors=True,
        **options,
    )
    records = [json.loads(line) for line in (tmp_path / "path" / "points.jsonl").read_text().splitlines()]
    cp.extract_series(ends[0], tmp_path / "dumps", **options)
    [record] = cp.analyze(tmp_path / "dumps", cache=False, errors=True)
    assert records[0]["alpha"] == 0
    # Errors are computed from documents, as rows of a document are dependent.
    for name in ("loss", "accuracy", "nc1.pinv", "samples", "loss_stderr", "sample.entropy_features_stderr"):
        assert records[0][name] == pytest.approx(record[name], rel=1e-6), name
    with cp.open_dump(next((tmp_path / "path").rglob("*.h5"))) as dump:
        assert dump["texts"].loss is not None

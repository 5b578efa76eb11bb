"""Tests of errors of centred metrics: derivatives through the mean, halves with their own means, and ranges of rows."""

from typing import Any

import pytest
import torch

from ckpt_probe.analysis import analyze_features
from ckpt_probe.moments.entropies import levels as entropies

NAMES = ("centred.mir", "centred.hdr", "centred.effective_rank")
CLASSES, SAMPLES, FEATURES = 4, 60, 6
GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = torch.randn(CLASSES, FEATURES, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.arange(SAMPLES) % CLASSES
ROWS = WEIGHTS[LABELS] + torch.randn(SAMPLES, FEATURES, generator=GENERATOR, dtype=torch.float64) + 1


def record_of(rows: torch.Tensor, labels: torch.Tensor, **options) -> Any:
    return analyze_features(rows, labels, WEIGHTS, only="centred", **options)


def test_influences_include_the_effect_of_a_row_on_the_mean() -> None:
    record, plain, copies = record_of(ROWS, LABELS, errors=True), record_of(ROWS, LABELS), 400
    assert set(record.influences) == set(NAMES)
    for row in (0, 7, 33):
        # One extra row among 400 copies of all rows is a small change of this row's weight.
        rows = torch.cat([ROWS.repeat(copies, 1), ROWS[row][None]])
        changed = record_of(rows, torch.cat([LABELS.repeat(copies), LABELS[row][None]]))
        for name in NAMES:
            change = (changed[name] - plain[name]) * len(rows)
            scale = float(record.influences[name].abs().max())
            assert change == pytest.approx(float(record.influences[name][row]), abs=0.01 * scale)


def test_halves_are_centred_by_their_own_means() -> None:
    record = record_of(ROWS, LABELS, errors=True)
    order = torch.argsort(LABELS, stable=True).reshape(CLASSES, -1)
    halves = [record_of(ROWS[order[:, half::2].flatten()], LABELS[order[:, half::2].flatten()]) for half in (0, 1)]
    for name in NAMES:
        expected = (halves[0][name] + halves[1][name]) / 2 - record[name]
        assert record[f"{name}_bias"] == pytest.approx(expected, rel=1e-6)


def test_a_sampled_joint_entropy_has_no_error_of_centred_mir() -> None:
    wide = torch.cat([ROWS, ROWS.roll(7, dims=0)], dim=1).repeat(10, 1) + 1
    labels, weights = LABELS.repeat(10), torch.cat([WEIGHTS, WEIGHTS.flip(0)], dim=1)
    wide = wide + 0.5 * torch.randn(wide.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    record = analyze_features(wide, labels, weights, only="centred", errors=True, exact_limit=16)
    assert record["centred.effective_rank_stderr"] > 0
    assert record["centred.mir_stderr"] is None
    assert "centred.mir_stderr" in record["missing"]


def test_rows_are_centred_again_for_sampling_if_their_moments_exceed_the_memory() -> None:
    generator, labels = torch.Generator().manual_seed(1), torch.arange(240) % CLASSES
    weights = torch.randn(CLASSES, 48, generator=generator, dtype=torch.float64)
    rows = weights[labels] + 0.1 * torch.randn(240, 48, generator=generator, dtype=torch.float64) + 1
    exact = analyze_features(rows, labels, weights, only="centred")
    sampled = analyze_features(rows, labels, weights, only="centred", memory=2**16, tolerance=0.1, probes=16)
    assert sampled["centred.mir"] == pytest.approx(exact["centred.mir"], rel=0.02)
    assert sampled["centred.mir"] != pytest.approx(exact["centred.mir"], rel=1e-9)
    assert sampled["centred.effective_rank"] == pytest.approx(exact["centred.effective_rank"], rel=1e-9)


def test_errors_for_many_eigenvalues_equal_those_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = record_of(ROWS, LABELS, errors=True)
    monkeypatch.setattr(entropies, "MANY_EIGENVECTORS", 4)
    assert record_of(ROWS, LABELS, errors=True)["centred.mir_stderr"] == pytest.approx(exact["centred.mir_stderr"])

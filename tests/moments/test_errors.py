"""Standard errors and biases: influences against closed forms and finite differences, merging, bad input."""

import math

import pytest
import torch
from torch import Tensor

from ckpt_probe.moments import Moments

CLASSES, FEATURES, SAMPLES = 4, 6, 160


def classes_of_gaussians(samples: int = SAMPLES, features: int = FEATURES, seed: int = 0):
    """Return features, labels and weights of Gaussian classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, features, generator=generator, dtype=torch.float64)
    labels = torch.arange(samples) % CLASSES
    rows = centres[labels] + torch.randn(samples, features, generator=generator, dtype=torch.float64)
    weights = centres + 0.3 * torch.randn(CLASSES, features, generator=generator, dtype=torch.float64)
    return rows, labels, weights


def moments_of(rows: Tensor, labels: Tensor, **options) -> Moments:
    moments = Moments(options.pop("classes", CLASSES), **{"halves": True, "subset": 2048} | options)
    moments.update(rows, labels)
    return moments


def test_influence_of_the_entropy_is_its_closed_form() -> None:
    rows, labels, weights = classes_of_gaussians()
    record = moments_of(rows, labels).compute(weights, errors=True)
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(unit.T @ unit / SAMPLES)
    expected = (unit @ vectors).square() @ -values.log() - record["sample.entropy_features"]
    influences = record.influences["sample.entropy_features"]
    assert torch.allclose(influences.double(), expected, atol=1e-6)
    # All classes have equal numbers of rows, so that the means of classes are removed.
    by_class = expected.reshape(-1, CLASSES)
    error = math.sqrt(float(by_class.var(dim=0, correction=1).mean()) / SAMPLES)
    assert record["sample.entropy_features_stderr"] == pytest.approx(error, rel=1e-5)


def weighted_record(rows: Tensor, labels: Tensor, weights: Tensor, row: int, copies: int) -> dict:
    """Return the record with one row added as often as all rows were counted `copies` times less one."""
    repeated = torch.cat([rows.repeat(copies, 1), rows[row][None]])
    moments = Moments(CLASSES)
    moments.update(repeated, torch.cat([labels.repeat(copies), labels[row][None]]))
    return moments.compute(weights, orders=(2,))


@pytest.mark.parametrize("features", [6, 200], ids=["N > D", "N < D"])
def test_influences_are_derivatives_by_the_weight_of_a_row(features: int) -> None:
    rows, labels, weights = classes_of_gaussians(60, features)
    record = moments_of(rows, labels).compute(weights, orders=(2,), errors=True)
    copies = 400
    plain = moments_of(rows, labels, halves=False, subset=0).compute(weights, orders=(2,))
    for row in (0, 7, 33):
        other = weighted_record(rows, labels, weights, row, copies)
        for name, influences in record.influences.items():
            if name == "sample.entropy_normalized" and features > len(rows):
                continue  # its denominator log N changes with the repetition
            assert record[name] == pytest.approx(plain[name], rel=1e-9, abs=1e-12)
            change = (other[name] - plain[name]) * (copies * len(rows) + 1)
            scale = float(influences.abs().max())
            assert change == pytest.approx(float(influences[row]), abs=0.02 * scale), (name, row)

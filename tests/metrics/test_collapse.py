"""Nearest class means, and the shapes that NC1-NC3 cannot be read from."""

import numpy as np
import torch

from ckpt_probe.metrics import nearest_means
from ckpt_probe.metrics.collapse import cdnv, duality, equiangular, equinorm, etf_distance, nc1_pinv


def test_nearest_means_against_a_loop_over_distances() -> None:
    generator = np.random.default_rng(0)
    features, means = generator.normal(size=(200, 5)) + 100, generator.normal(size=(4, 5)) + 100
    nearest = [((z - means) ** 2).sum(axis=1).argmin() for z in features]
    assert nearest_means(torch.tensor(features), torch.tensor(means)).tolist() == nearest


def test_classes_without_a_mean_are_nobodys_nearest() -> None:
    means = torch.tensor([[0.0, 0.0], [torch.nan, torch.nan], [10.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [9.0, 0.0], [9.0, 1.0]])
    assert nearest_means(features, means).tolist() == [0, 2, 2]


def test_coinciding_means_have_no_ratio() -> None:
    zero, within = torch.zeros(3, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    assert nc1_pinv(within, zero) is None
    assert cdnv(torch.ones(3, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)) is None
    assert equinorm(zero) is None
    assert equiangular(zero) is None
    assert etf_distance(zero) is None
    assert duality(zero, torch.ones(3, 4, dtype=torch.float64)) is None

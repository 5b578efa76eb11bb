"""The joint matrix as a linear map: from class moments it has the eigenvalues of the N × N matrix of all rows."""

import pytest
import torch

from ckpt_probe.metrics.gram import directions
from ckpt_probe.moments.grouping import group
from ckpt_probe.moments.levels.joint_operator import MomentsOperator
from ckpt_probe.moments.levels.spectra import factor
from ckpt_probe.moments.unit_moments import UnitMoments


@pytest.mark.parametrize(("classes", "left"), [(4, [0, 1, 2, 3]), (4, [0, 2, 3]), (9, list(range(9)))])
def test_the_moments_operator_against_the_matrix_of_all_rows(classes: int, left: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % classes
    features = torch.randn(120, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(classes, 6, generator=generator, dtype=torch.float64)
    unit = UnitMoments(6, classes, 2**30, torch.device("cpu"))
    unit.update(group(features, labels))
    assert unit.kind == "classes"
    chosen = torch.tensor(left)
    heads, _ = directions(weights[chosen])
    operator = MomentsOperator(unit, chosen, factor(heads))
    matrix = operator(torch.eye(operator.size, dtype=torch.float64))
    assert torch.allclose(matrix, matrix.T, atol=1e-7)

    kept = torch.isin(labels, chosen)
    rows, _ = directions(features[kept])
    of_labels, _ = directions(weights[labels[kept]])
    whole = (rows @ rows.T) * (of_labels @ of_labels.T) / int(kept.sum())
    found, expected = torch.linalg.eigvalsh(matrix), torch.linalg.eigvalsh(whole)
    count = min(len(found), len(expected))
    assert torch.allclose(found[-count:], expected[-count:], atol=1e-6)
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)

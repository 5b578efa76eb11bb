"""The arc between tensors and how far apart checkpoints are, against closed forms."""

import math
from functools import partial

import pytest
import torch

from ckpt_probe.errors import DataError
from ckpt_probe.paths.shapes import distances, length, linear, slerp

A = {"w": torch.tensor([3.0, 0.0]), "n": torch.tensor(4), "same": torch.tensor([1.0, 2.0]), "zero": torch.zeros(2)}
B = {"w": torch.tensor([0.0, 3.0]), "n": torch.tensor(9), "same": torch.tensor([2.0, 4.0]), "zero": torch.ones(2)}


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_a_quarter_circle(alpha: float) -> None:
    found = slerp(A, B, alpha)
    expected = torch.tensor([3 * math.cos(alpha * math.pi / 2), 3 * math.sin(alpha * math.pi / 2)])
    assert torch.allclose(found["w"], expected, atol=1e-6)
    assert torch.allclose(found["same"], A["same"] * (1 + alpha))
    assert torch.allclose(found["zero"], torch.full((2,), alpha))
    assert found["n"] == (9 if alpha == 1 else 4)
    assert found["w"].dtype == torch.float32


def test_opposite_tensors_lie_on_the_line_and_ends_are_exact() -> None:
    a, b = {"w": torch.tensor([1.0, 2.0]).half()}, {"w": torch.tensor([-2.0, -4.0]).half()}
    assert torch.equal(slerp(a, b, 0.5)["w"], linear(a, b, 0.5)["w"])
    assert torch.equal(slerp(a, b, 1.0)["w"], b["w"])
    with pytest.raises(DataError, match="tensor 'w' contains NaN"):
        slerp(a, {"w": torch.tensor([math.nan, 1]).half()}, 0.5)


def test_distances_and_lengths() -> None:
    found = {one["name"]: one for one in distances(A, B)}
    assert set(found) == {"w", "same", "zero"}
    assert found["w"]["distance"] == pytest.approx(3 * math.sqrt(2))
    assert found["w"]["cosine"] == pytest.approx(0)
    assert found["same"]["cosine"] == pytest.approx(1)
    assert found["zero"]["cosine"] is None
    a, b = {"w": A["w"]}, {"w": B["w"]}
    assert length(partial(linear, a, b)) == pytest.approx(3 * math.sqrt(2), rel=1e-6)
    assert length(partial(slerp, a, b)) == pytest.approx(3 * math.pi / 2, rel=1e-3)

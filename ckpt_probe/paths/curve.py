"""Curves that bend over a third point M, and the network whose training finds it (Garipov et al. 2018)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.models import build_model, load_weights, unwrapped
from ckpt_probe.paths.batchnorm import drop_statistics
from ckpt_probe.paths.linear import State, between, exact_dtype, linear, require_finite

Curve = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""One tensor of A, of M and of B, and α → the tensor there."""

MIDDLE = "middle."
"""What stands before the names of M's tensors in a `CurveNet`."""


def bezier(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """(1−α)² A + 2α(1−α) M + α² B, by de Casteljau's lines, which are exact where all three agree."""
    return torch.lerp(torch.lerp(a, middle, alpha), torch.lerp(middle, b, alpha), alpha)


def polychain(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """The line from A to M up to α = 1/2, that from M to B after it."""
    return torch.lerp(a, middle, 2 * alpha) if alpha <= 0.5 else torch.lerp(middle, b, 2 * alpha - 1)


CURVES: dict[str, Curve] = {"bezier": bezier, "polychain": polychain}


def on_curve(curve: str, a: State, middle: State, b: State, alpha: float) -> dict[str, Tensor]:
    """The point at `alpha` of 0 … 1 between state dicts a and b, over that of M; both ends are exact, bit for bit.

    Computed and rounded as `linear`; tensors of whole numbers or booleans are a's, but at α = 1. Raises DataError where
    a number is NaN or infinite, naming the tensor.
    """
    return {name: _bent(name, CURVES[curve], tensor, middle[name], b[name], alpha) for name, tensor in a.items()}


class CurveNet(nn.Module):
    """The network on the curve from A to B over M, whose parameters are M's alone.

    In training every batch is shown to the network at one α ~ U(0, 1), drawn from torch's generator, so that training
    minimises the mean loss along the curve (eq. 2 there, uniform in α); else to the one at α = 1/2.
    """

    def __init__(self, middle: nn.Module, ends: tuple[State, State], curve: str) -> None:
        super().__init__()
        self.middle = middle
        self._curve = CURVES[curve]
        # Not parameters, and not kept: of the ends it is enough that they follow the module to its device.
        for number, (name, parameter) in enumerate(middle.named_parameters()):
            for end, state in zip("ab", ends, strict=True):
                self.register_buffer(f"{end}{number}", state[name].to(parameter.dtype), persistent=False)

    def forward(self, inputs: Tensor) -> Any:
        """The base network's own output."""
        alpha = torch.rand(()).item() if self.training else 0.5
        state = {
            name: self._curve(self.get_buffer(f"a{number}"), parameter, self.get_buffer(f"b{number}"), alpha)
            for number, (name, parameter) in enumerate(self.middle.named_parameters())
        }
        return functional_call(self.middle, state, (inputs,))


def curve_net(model: str, model_arguments: Mapping[str, Any], a: str, b: str, curve: str) -> nn.Module:
    """A `CurveNet` for `build_model`: M begins in the middle of the line between the checkpoints a and b.

    Batch-norm layers take the statistics of each batch; those of M are estimated once it is found.
    """
    middle = build_model(model, model_arguments)
    names = set(middle.state_dict())
    first, last = (_state(Path(end), names) for end in (a, b))
    load_weights(middle, linear(first, last, 0.5), source=f"{a}, {b}")
    drop_statistics(middle)
    return CurveNet(middle, (first, last), curve)


def _state(path: Path, names: set[str]) -> State:
    with open_checkpoint(path) as checkpoint:
        return unwrapped(checkpoint.state_dict(), names)


def _bent(name: str, curve: Curve, a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    require_finite(name, middle)
    if alpha in (0, 1) or not a.is_floating_point():
        return between(name, a, b, alpha)
    require_finite(name, a, b)
    exact = exact_dtype(a)
    return curve(a.to(exact), middle.to(exact), b.to(exact), alpha).to(a.dtype)

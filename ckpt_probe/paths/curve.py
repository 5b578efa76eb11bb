"""The network whose training finds the third point M over which a curve bends (Garipov et al. 2018)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ckpt_probe.checkpoints import State, open_checkpoint
from ckpt_probe.models import build_model, load_weights, unwrapped
from ckpt_probe.paths.batchnorm import drop_statistics
from ckpt_probe.paths.shapes import CURVES, linear

MIDDLE = "middle."
"""What stands before the names of M's tensors in a `CurveNet`."""


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


def curve_net(
    model: str,
    model_arguments: Mapping[str, Any],
    a: str,
    b: str,
    curve: str,
    state_keys: Sequence[str | None] = (None, None),
    base: str | None = None,
) -> nn.Module:
    """A `CurveNet` for `build_model`: M begins in the middle of the line between the checkpoints a and b.

    state_keys (of a and of b) and base are as `open_checkpoint` takes them. Batch-norm layers take the statistics of
    each batch; those of M are estimated once it is found.
    """
    middle = build_model(model, model_arguments)
    names = set(middle.state_dict())
    first, last = (_state(Path(end), key, base, names) for end, key in zip((a, b), state_keys, strict=True))
    load_weights(middle, linear(first, last, 0.5), source=f"{a}, {b}")
    drop_statistics(middle)
    return CurveNet(middle, (first, last), curve)


def _state(path: Path, state_key: str | None, base: str | None, names: set[str]) -> State:
    with open_checkpoint(path, state_key=state_key, base=base) as checkpoint:
        return unwrapped(checkpoint.state_dict(), names)

"""The network whose training computes the third point M of a curve (Garipov et al. 2018)."""

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
from ckpt_probe.remote import resolve

MIDDLE = "middle."
"""Prefix of the names of M's tensors in a `CurveNet`."""


class CurveNet(nn.Module):
    """The network on the curve from A to B over M, with the parameters of M.

    In training mode each batch goes through the network at one α ~ U(0, 1), drawn from torch's generator, so that
    training minimises the mean loss along the curve (eq. 2 there, uniform in α); in evaluation mode, at α = 1/2.
    """

    def __init__(self, middle: nn.Module, ends: tuple[State, State], curve: str) -> None:
        super().__init__()
        self.middle = middle
        self._curve = CURVES[curve]
        # Buffers that are not saved: the ends only have to follow the module to its device.
        for number, (name, parameter) in enumerate(middle.named_parameters()):
            for end, state in zip("ab", ends, strict=True):
                self.register_buffer(f"{end}{number}", state[name].to(parameter.dtype), persistent=False)

    def forward(self, inputs: Tensor) -> Any:
        """Return the output of the base network at α."""
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
    """Build a `CurveNet` in which M starts at the middle of the line between the checkpoints a and b.

    Batch-norm layers use the statistics of each batch; those of M are estimated after training.

    Args:
        model: Name of the base network.
        model_arguments: Its arguments.
        a: Checkpoint at α = 0.
        b: Checkpoint at α = 1.
        curve: Shape of the curve.
        state_keys: `state_key` of `open_checkpoint` for a and for b.
        base: `base` of `open_checkpoint`.
    """
    middle = build_model(model, model_arguments)
    names = set(middle.state_dict())
    first, last = (_state(resolve(end), key, base, names) for end, key in zip((a, b), state_keys, strict=True))
    load_weights(middle, linear(first, last, 0.5), source=f"{a}, {b}")
    drop_statistics(middle)
    return CurveNet(middle, (first, last), curve)


def _state(path: Path, state_key: str | None, base: str | None, names: set[str]) -> State:
    with open_checkpoint(path, state_key=state_key, base=resolve(base)) as checkpoint:
        return unwrapped(checkpoint.state_dict(), names)

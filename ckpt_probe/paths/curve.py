"""The third point M of a curve (Garipov et al. 2018): the network whose training computes it, or a file that has it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from ckpt_probe.checkpoints import CheckpointMetadata, State, open_checkpoint, open_series, save_checkpoint
from ckpt_probe.config import OptimizerSettings, TrainingConfig
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Subject
from ckpt_probe.files import distinct_names
from ckpt_probe.merging.streaming import OF_A_POINT
from ckpt_probe.models import build_model, load_weights, unwrapped
from ckpt_probe.paths.batchnorm import drop_statistics, has_batchnorm, recompute
from ckpt_probe.paths.options import PathOptions
from ckpt_probe.paths.shapes import CURVES, linear
from ckpt_probe.paths.survey import Job
from ckpt_probe.progress import Progress
from ckpt_probe.remote import resolve
from ckpt_probe.training import train

MIDDLE = "middle."
"""Prefix of the names of M's tensors in a `CurveNet`."""

NET = "ckpt_probe.paths.curve:curve_net"
FOREIGN_OPTIMIZER = {"name": "adamw", "learning_rate": 1e-3}
"""Optimizer for checkpoints without a training configuration."""

FOREIGN_BATCH = 64


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


def read_midpoint(path: Path, subject: Subject) -> State:
    """Read M from a file, with the model's names. Raises DataError naming the file if it does not fit the model."""
    state = _state(path, None, None, set(subject.model.state_dict()))
    subject.load(state, str(path))
    return state


def trained_midpoint(
    job: Job[PathOptions], ends: tuple[State, State], subject: Subject, *, overwrite: bool, progress: Progress
) -> State:
    """Train M in the directory curve of the path and write it to midpoint.safetensors, unless that exists.

    An interrupted training continues. The running statistics of M are estimated on the training data.

    Args:
        job: The path from A to B, which may be aligned B.
        ends: Their state dicts.
        subject: Model and data.
        overwrite: Whether to start an interrupted training again.
        progress: Receives messages and bars.

    Returns:
        The state dict of M.
    """
    ledger = job.ledger
    if ledger.midpoint.exists():
        return read_midpoint(ledger.midpoint, subject)
    with job.setup.open(job.files[0]) as checkpoint:
        raw, trained_by = checkpoint.raw_metadata, checkpoint.metadata.config
    config = _configuration(job, subject, trained_by)
    device = str(subject.device)
    train(config, ledger.training, resume=not overwrite, overwrite=overwrite, device=device, progress=progress)
    with open_checkpoint(open_series(ledger.training)[-1].path) as checkpoint:
        middle = {name.removeprefix(MIDDLE): checkpoint.read(name) for name in checkpoint.names}
    subject.load({**linear(*ends, 0.5), **middle}, str(ledger.training))
    if has_batchnorm(subject.model):
        recompute(subject.model, subject.data.split("train"))
    state = {name: tensor.detach().cpu().clone() for name, tensor in subject.model.state_dict().items()}
    names = dict(zip("ab", distinct_names(job.files), strict=True))
    # The metadata of A that hold for other points too.
    shared = {name: value for name, value in raw.items() if name not in OF_A_POINT}
    added = missing_metadata(CheckpointMetadata.from_strings(shared), subject)
    description = json.dumps({**names, "path": job.options.path, "midpoint": True})
    save_checkpoint(ledger.midpoint, state, {**shared, **added, "ckpt_probe.path": description})
    return state


def missing_metadata(metadata: CheckpointMetadata, subject: Subject) -> dict[str, str]:
    """Return model and data if the metadata name none, so that every other command can open the file."""
    stated: dict[str, Any] = {}
    if metadata.model is None:
        stated |= {"model": subject.model_name, "model_arguments": subject.model_arguments}
        stated |= {"classifier": subject.classifier}
    if metadata.data is None:
        stated |= {"data": subject.data.name, "data_arguments": subject.data.arguments}
    return CheckpointMetadata(**stated).to_strings()


def _state(path: Path, state_key: str | None, base: str | None, names: set[str]) -> State:
    with open_checkpoint(path, state_key=state_key, base=resolve(base)) as checkpoint:
        return unwrapped(checkpoint.state_dict(), names)


def _configuration(job: Job[PathOptions], subject: Subject, trained_by: Mapping[str, Any]) -> TrainingConfig:
    options, setup = job.options, job.setup
    optimizer = dict(trained_by.get("optimizer", FOREIGN_OPTIMIZER))
    # A stored configuration contains every default, also those of the other optimizer.
    defaults = {key: field.default for key, field in OptimizerSettings.model_fields.items()}
    optimizer = {key: value for key, value in optimizer.items() if value != defaults.get(key)}
    if options.curve_learning_rate is not None:
        optimizer["learning_rate"] = options.curve_learning_rate
    batch_size = trained_by.get("training", {}).get("batch_size", FOREIGN_BATCH)
    a, b = (str(end.resolve()) for end in job.files)
    net: dict[str, Any] = {
        "model": subject.model_name,
        "model_arguments": subject.model_arguments,
        "curve": options.path,
    }
    if setup.state_key is not None:
        # Aligned B is our own file, without keys.
        net["state_keys"] = [None if end == job.ledger.aligned else setup.state_key for end in job.files]
    if setup.base is not None:
        net["base"] = str(setup.base.resolve())
    values = {
        "data": {"name": subject.data.name, "arguments": subject.data.arguments},
        "model": {"name": NET, "arguments": {**net, "a": a, "b": b}},
        "training": {"epochs": options.curve_epochs, "batch_size": batch_size},
        "optimizer": optimizer,
        "checkpoints": {"steps": []},
    }
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{job.files[0]}: invalid training configuration ({error.errors()[0]['msg']})") from error

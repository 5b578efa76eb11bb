"""The middle point of a curve: trained by the project's own loop, or taken from a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ckpt_probe.checkpoints import State, open_checkpoint, open_series, save_checkpoint
from ckpt_probe.config import OptimizerSettings, TrainingConfig
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Subject
from ckpt_probe.files import distinct_names
from ckpt_probe.models import unwrapped
from ckpt_probe.paths.batchnorm import has_batchnorm, recompute
from ckpt_probe.paths.curve import MIDDLE
from ckpt_probe.paths.ends import Ends, point_metadata
from ckpt_probe.paths.place import PathPlace
from ckpt_probe.paths.shapes import linear
from ckpt_probe.progress import Progress
from ckpt_probe.training import train

NET = "ckpt_probe.paths.curve:curve_net"
FOREIGN_OPTIMIZER = {"name": "adamw", "learning_rate": 1e-3}
"""For checkpoints that do not say how they were trained."""

FOREIGN_BATCH = 64


@dataclass(frozen=True)
class CurveTraining:
    """How M is trained: the curve's shape, passes over the training data, and A's learning rate where None."""

    curve: str
    epochs: float
    learning_rate: float | None


def read_midpoint(path: Path, subject: Subject) -> State:
    """M from a file, with the model's own names. Raises DataError naming the file where it does not fit the model."""
    with open_checkpoint(path) as checkpoint:
        state = unwrapped(checkpoint.state_dict(), set(subject.model.state_dict()))
    subject.load(state, str(path))
    return state


def trained_midpoint(
    place: PathPlace,
    ends: tuple[Path, Path],
    tensors: Ends,
    subject: Subject,
    how: CurveTraining,
    *,
    overwrite: bool,
    progress: Progress,
) -> State:
    """M of the curve between two files, trained in `place`/curve and kept as `place`/midpoint.safetensors.

    What an earlier call has kept is taken as it is; an interrupted training goes on. M has running statistics of its
    own, estimated on the training data.
    """
    if place.midpoint.exists():
        return read_midpoint(place.midpoint, subject)
    with subject.setup.open(ends[0]) as checkpoint:
        raw, trained_by = checkpoint.raw_metadata, checkpoint.metadata.config
    config = _configuration(place, ends, subject, how, trained_by)
    device = str(subject.device)
    train(config, place.training, resume=not overwrite, overwrite=overwrite, device=device, progress=progress)
    with open_checkpoint(open_series(place.training)[-1].path) as checkpoint:
        found = {name.removeprefix(MIDDLE): checkpoint.read(name) for name in checkpoint.names}
    subject.load({**linear(*tensors, 0.5), **found}, str(place.training))
    if has_batchnorm(subject.model):
        recompute(subject.model, subject.data.split("train"))
    state = {name: tensor.detach().cpu().clone() for name, tensor in subject.model.state_dict().items()}
    told = {**dict(zip("ab", distinct_names(ends), strict=True)), "path": how.curve, "midpoint": True}
    save_checkpoint(place.midpoint, state, point_metadata(raw, subject, told))
    return state


def _configuration(
    place: PathPlace, ends: tuple[Path, Path], subject: Subject, how: CurveTraining, trained_by: Mapping[str, Any]
) -> TrainingConfig:
    optimizer = dict(trained_by.get("optimizer", FOREIGN_OPTIMIZER))
    # A stored configuration spells every default, also those that belong to the other optimizer only.
    optimizer = {key: value for key, value in optimizer.items() if value != _default(key)}
    if how.learning_rate is not None:
        optimizer["learning_rate"] = how.learning_rate
    batch_size = trained_by.get("training", {}).get("batch_size", FOREIGN_BATCH)
    a, b = (str(end.resolve()) for end in ends)
    net: dict[str, Any] = {"model": subject.model_name, "model_arguments": subject.model_arguments, "curve": how.curve}
    setup = subject.setup
    if setup.state_key is not None:
        # B in A's order is a file of ours, which has no keys.
        net["state_keys"] = [None if end == place.aligned else setup.state_key for end in ends]
    if setup.base is not None:
        net["base"] = str(Path(setup.base).resolve())
    values = {
        "data": {"name": subject.data.name, "arguments": subject.data.arguments},
        "model": {"name": NET, "arguments": {**net, "a": a, "b": b}},
        "training": {"epochs": how.epochs, "batch_size": batch_size},
        "optimizer": optimizer,
        "checkpoints": {"steps": []},
    }
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{ends[0]}: its training configuration cannot be read ({error.errors()[0]['msg']})") from error


def _default(key: str) -> Any:
    field = OptimizerSettings.model_fields.get(key)
    return None if field is None else field.default

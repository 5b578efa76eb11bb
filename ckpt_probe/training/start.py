"""Load the initial weights of a run from a checkpoint, with or without the classifier, with its step and zeros."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.config import StartSettings
from ckpt_probe.errors import DataError
from ckpt_probe.models import find_head, fitting_names, load_weights
from ckpt_probe.remote import resolve
from ckpt_probe.training.pruning import pruned_masks


@dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
        step: First step.
        masks: Masks of pruned tensors by name, False for weights that are held at zero.
    """

    step: int = 0
    masks: Mapping[str, Tensor] = field(default_factory=dict)


def begin(model: nn.Module, settings: StartSettings | None, inputs: Tensor) -> Start:
    """Load initial weights into a new model, in place.

    Args:
        model: Model with random weights.
        settings: Checkpoint and the part of it to load; None to start from the random weights.
        inputs: Inputs (n, …) to find the classifier, whose random weights remain if only the backbone is loaded.

    Returns:
        First step and masks of pruned tensors.

    Raises:
        DataError: If the checkpoint does not fit, or has no step and `keep_step` is set.
    """
    if settings is None:
        return Start()
    fresh = model.state_dict()
    path, base = resolve(settings.checkpoint), None if settings.base is None else resolve(settings.base)
    with open_checkpoint(path, state_key=settings.state_key, base=base) as checkpoint:
        tensors = checkpoint.state_dict()
        step, pruned = checkpoint.metadata.step, checkpoint.metadata.pruned
    try:
        named = pruned_masks(tensors, pruned)
    except DataError as error:
        raise DataError(f"{settings.checkpoint}: {error}") from error
    called = fitting_names(tensors, set(fresh))
    state = {new: tensors[old] for old, new in called.items()}
    masks = {called[name]: mask for name, mask in named.items() if name in called}
    if settings.part == "backbone":
        classifier = tuple(f"{layer}." for layer in find_head(model, inputs).layers)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
        state |= {name: tensor for name, tensor in fresh.items() if name.startswith(classifier)}
        masks = {name: mask for name, mask in masks.items() if not name.startswith(classifier)}
    load_weights(model, state, source=settings.checkpoint)
    if settings.keep_step and step is None:
        raise DataError(f"{settings.checkpoint}: its metadata has no step, which keep_step = true needs")
    return Start(step if settings.keep_step and step is not None else 0, masks)

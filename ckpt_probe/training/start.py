"""Where a run begins: another one's weights, whole or without the classifier, its step, the zeros of a pruned one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.config import StartSettings
from ckpt_probe.errors import DataError
from ckpt_probe.models import find_head, fitting_names, load_weights
from ckpt_probe.training.pruning import pruned_masks


@dataclass(frozen=True)
class Start:
    """The step at which a run begins, and which weights of it are kept at zero: masks by name, True where one lives."""

    step: int = 0
    masks: Mapping[str, Tensor] = field(default_factory=dict)


def begin(model: nn.Module, settings: StartSettings | None, inputs: Tensor) -> Start:
    """Load the weights that `settings` name into a fresh model, in place, and say where the run begins.

    inputs (n, …) serve to find the classifier, whose own fresh weights stay where only the backbone is wanted. Raises
    DataError where the checkpoint does not fit, or names no step and `keep_step` asks for it.
    """
    if settings is None:
        return Start()
    fresh = model.state_dict()
    with open_checkpoint(settings.checkpoint, state_key=settings.state_key, base=settings.base) as checkpoint:
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

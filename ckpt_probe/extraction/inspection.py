"""Describe a checkpoint's model: its head, its layers, and a forward pass of one sample."""

from typing import Any

from torch import nn

from ckpt_probe.checkpoints import Checkpoint
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.extraction.config import Setup
from ckpt_probe.extraction.sources import choose_model, complete_model, shapes_of
from ckpt_probe.extraction.subject import build_subject, fill, find_rows
from ckpt_probe.models import (
    Backbone,
    Batch,
    Head,
    build_model,
    choose_device,
    describe_backbone,
    describe_head,
    describe_layers,
    made_up_inputs,
    on_device,
)


def inspect_model(checkpoint: Checkpoint, setup: Setup) -> dict[str, Any]:
    """Describe a checkpoint's model, with samples of its data or, if none are named, random inputs.

    Args:
        checkpoint: Open checkpoint.
        setup: Model and data.

    Returns:
        Name and arguments of the model, with the entries of `describe_head` and `describe_layers`.

    Raises:
        UsageError: As in `build_subject`.
        DataError: As in `build_subject`.
    """
    path = checkpoint.path
    if setup.data or (setup.model is None and checkpoint.metadata.data):
        subject = build_subject(checkpoint, setup)
        model = {"model": subject.model_name, "model_arguments": subject.model_arguments}
        dtype = next((each.dtype for each in subject.model.parameters() if each.is_floating_point()), None)
        sample = on_device(subject.sample, subject.device, dtype)
        return {**model, "shown": f"data {subject.data.name}", **_facts(subject.head, subject.model, sample)}
    name, arguments = complete_model(checkpoint, setup, choose_model(checkpoint, setup))
    model = build_model(name, arguments, initialised=False, tensors=shapes_of(checkpoint))
    device, dtype, _ = fill(model, checkpoint, choose_device(setup.device))
    try:
        sample = on_device(made_up_inputs(model, arguments), device, dtype)
        head = find_rows(model, sample, setup.classifier or checkpoint.metadata.classifier, setup.pooling)
    except CkptProbeError as error:
        raise type(error)(f"{path}: model {name}: {error}") from error
    description = {"model": name, "model_arguments": arguments, "shown": "random inputs"}
    return {**description, **_facts(head, model, sample)}


def _facts(head: Head | Backbone, model: nn.Module, sample: Batch) -> dict[str, Any]:
    if isinstance(head, Backbone):
        return describe_backbone(head, model, sample)
    return {**describe_head(head, model, sample), **describe_layers(head, model, sample)}

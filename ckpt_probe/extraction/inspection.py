"""Describe a checkpoint's model: its head, its layers, and a forward pass of one sample."""

from typing import Any

from torch import nn

from ckpt_probe.checkpoints import Checkpoint
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.extraction.setup import Setup
from ckpt_probe.extraction.subject import fill, find_rows, model_of, open_subject
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
        UsageError: As in `open_subject`.
        DataError: As in `open_subject`.
    """
    path = checkpoint.path
    if setup.data or (setup.model is None and checkpoint.metadata.data):
        subject = open_subject(path, setup)
        model = {"model": subject.model_name, "model_arguments": subject.model_arguments}
        sample = on_device(subject.sample, subject.device)
        return {**model, "shown": f"data {subject.data.name}", **_facts(subject.head, subject.model, sample)}
    name, arguments = model_of(checkpoint, setup)
    device = choose_device(setup.device)
    model = build_model(name, arguments, initialised=False)
    fill(model, checkpoint)
    model.to(device)
    try:
        sample = on_device(made_up_inputs(model, arguments), device)
        head = find_rows(model, sample, setup.classifier or checkpoint.metadata.classifier, setup.pooling)
    except CkptProbeError as error:
        raise type(error)(f"{path}: model {name}: {error}") from error
    description = {"model": name, "model_arguments": arguments, "shown": "random inputs"}
    return {**description, **_facts(head, model, sample)}


def _facts(head: Head | Backbone, model: nn.Module, sample: Batch) -> dict[str, Any]:
    if isinstance(head, Backbone):
        return describe_backbone(head, model, sample)
    return {**describe_head(head, model, sample), **describe_layers(head, model, sample)}

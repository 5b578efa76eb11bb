"""A model by name, its classifier, and its weights from a checkpoint."""

from ckpt_probe.models.calling import (
    Batch,
    call,
    choose_device,
    evaluating,
    logits_of,
    on_device,
    part_of,
    run_once,
    samples_in,
    unknown_index,
)
from ckpt_probe.models.description import (
    describe_backbone,
    describe_head,
    describe_layers,
    format_head,
    format_layers,
    made_up_inputs,
)
from ckpt_probe.models.external.beside import class_names, model_beside
from ckpt_probe.models.fitting import is_opaque, load_weights, require_classes
from ckpt_probe.models.heads.backbone import HEADLESS, Backbone, backbone_of, is_backbone
from ckpt_probe.models.heads.classifier import find_head
from ckpt_probe.models.heads.head import Head, Part, Rows
from ckpt_probe.models.layers import PENULTIMATE, LayerTap, Taps, choose_taps
from ckpt_probe.models.pooling import POOLINGS, padding_mask
from ckpt_probe.models.sources import (
    arguments_taken,
    assumed_arguments,
    build_model,
    functions_named,
    is_recorded_model,
    model_arguments,
)
from ckpt_probe.wrappers import fitting_names, is_extra_state, unwrapped, wrapper_note

__all__ = [
    "HEADLESS",
    "PENULTIMATE",
    "POOLINGS",
    "Backbone",
    "Batch",
    "Head",
    "LayerTap",
    "Part",
    "Rows",
    "Taps",
    "arguments_taken",
    "assumed_arguments",
    "backbone_of",
    "build_model",
    "call",
    "choose_device",
    "choose_taps",
    "class_names",
    "describe_backbone",
    "describe_head",
    "describe_layers",
    "evaluating",
    "find_head",
    "fitting_names",
    "format_head",
    "format_layers",
    "functions_named",
    "is_backbone",
    "is_extra_state",
    "is_opaque",
    "is_recorded_model",
    "load_weights",
    "logits_of",
    "made_up_inputs",
    "model_arguments",
    "model_beside",
    "on_device",
    "padding_mask",
    "part_of",
    "require_classes",
    "run_once",
    "samples_in",
    "unknown_index",
    "unwrapped",
    "wrapper_note",
]

"""A model by name, its classifier, and its weights from a checkpoint."""

from ckpt_probe.models.calling import (
    Batch,
    as_taken_by,
    call,
    cast_floats,
    choose_device,
    described,
    evaluating,
    logits_of,
    on_device,
    part_of,
    precision_hint,
    rows_entering,
    run_once,
    samples_in,
    unknown_index,
    unsteadiness,
)
from ckpt_probe.models.classifier import find_head, find_rows
from ckpt_probe.models.description import (
    describe_backbone,
    describe_head,
    describe_layers,
    format_head,
    made_up_inputs,
)
from ckpt_probe.models.fitting import fill_model, load_weights
from ckpt_probe.models.head import Head, Part, Rows, head_parameters, is_scored
from ckpt_probe.models.image_models import model_of_script
from ckpt_probe.models.pooling import POOLINGS, Backbone, padding_mask
from ckpt_probe.models.sources import (
    arguments_taken,
    assumed_arguments,
    build_model,
    class_names,
    functions_named,
    is_recorded_model,
    model_arguments,
    model_beside,
)
from ckpt_probe.models.taps import PENULTIMATE, LayerTap, Taps, choose_taps
from ckpt_probe.wrappers import fitting_names, unwrapped

"""Tests of earlier names of data and models: errors name the study's function, and earlier checkpoints still work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.data import load_data
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import build_model

Study = Callable[[str], str]
MODULAR, SHIFTED = "grokking/modular.py:modular_table", "cma/shifted.py:shifted"


@pytest.mark.parametrize(
    ("name", "arguments", "function", "converted"),
    [
        (
            "modular:p=7,op=add,fraction=0.5,seed=1",
            {},
            MODULAR,
            "{'p': 7, 'op': 'add', 'fraction': 0.5, 'split_seed': 1}",
        ),
        ("modular:p=7", {"split_seed": 2}, MODULAR, "{'p': 7, 'split_seed': 2}"),
        ("modular", {"p": 7}, MODULAR, "{'p': 7}"),
        ("union", {"sources": [{"name": "digits"}]}, "class_count/digits_and_fashion.py:union", "{'sources': "),
        (
            "digits",
            {"shift": "invert", "per_class": 9},
            SHIFTED,
            "{'source': 'digits', 'shift': 'invert', 'per_class': 9}",
        ),
    ],
)
def test_an_earlier_name_of_data_is_an_error_with_the_functions_name(
    name: str, arguments: dict, function: str, converted: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_data(name, arguments)
    assert f"`data='sample_configs/{function}'`" in str(caught.value)
    assert f"`data_arguments={converted}" in str(caught.value)


@pytest.mark.parametrize("name", ["grokking/modular.py:modular_mlp", "cma/two_source.py:two_source"])
def test_an_earlier_name_of_a_model_is_an_error_with_the_functions_name(name: str) -> None:
    with pytest.raises(UsageError, match=rf"moved to the studies: name it with `model='sample_configs/{name}'`"):
        build_model(name.rpartition(":")[2])


CAPTIONS = [[f"the digit {number}"] for number in range(10)]


@pytest.mark.parametrize(
    ("model", "model_arguments", "data", "data_arguments", "functions"),
    [
        (
            "modular_mlp",
            {"modulus": 7, "embedding": 4, "hidden": 6},
            "modular:p=7,op=multiply,fraction=0.5",
            {"seed": 1},
            ("grokking/modular.py:modular_mlp", MODULAR, {"p": 7, "op": "multiply", "fraction": 0.5, "split_seed": 1}),
        ),
        (
            "two_source",
            {"captions": CAPTIONS, "channels": [], "features": 12, "input_shape": [1, 8, 8], "classes": 10},
            "digits",
            {"shift": "invert", "per_class": 20, "subset_seed": 3},
            ("cma/two_source.py:two_source", SHIFTED, {"source": "digits", "shift": "invert", "per_class": 20}),
        ),
    ],
)
def test_earlier_checkpoints_are_extracted_with_their_own_arguments(
    study: Study,
    tmp_path: Path,
    model: str,
    model_arguments: dict[str, Any],
    data: str,
    data_arguments: dict[str, Any],
    functions: tuple[str, str, dict[str, Any]],
) -> None:
    model_function, data_function, converted = study(functions[0]), study(functions[1]), functions[2]
    network = build_model(model_function, model_arguments).eval()
    metadata = CheckpointMetadata(
        model=model, model_arguments=model_arguments, data=data, data_arguments=data_arguments, step=1
    )
    path = tmp_path / "step-1.safetensors"
    save_checkpoint(path, network.state_dict(), metadata)
    with pytest.raises(UsageError, match="moved to the studies"):
        extract_series(path, tmp_path / "refused", device="cpu")
    extract_series(path, tmp_path / "dumps", model=model_function, data=data_function, device="cpu", with_logits=True)
    with open_dump(tmp_path / "dumps" / "step-1.h5") as dump, torch.no_grad():
        provenance = dump.provenance
        assert converted.items() <= provenance.data_arguments.items()
        inputs, labels = load_data(data_function, provenance.data_arguments).split("train").batch(slice(None))
        assert dump["train"].labels[:].tolist() == labels.tolist()
        np.testing.assert_allclose(dump["train"].logits[:], network(inputs).numpy(), rtol=1e-4, atol=1e-5)

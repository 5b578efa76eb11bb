"""Tests of tiny models of transformers: their heads, names of tensors, and configurations."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import (
    build_model,
    class_names,
    find_head,
    fitting,
    load_weights,
    model_arguments,
    model_beside,
    run_once,
)
from ckpt_probe.plugins import loaded_by_transformers

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 1, **TINY}
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1, **TINY}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
WAVES = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
CLASSES = 5

MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "vit": ("ViT", IMAGE, "ImageClassification", "classifier"),
    "deit": ("DeiT", IMAGE, "ImageClassification", "classifier"),
    "distilled": ("DeiT", IMAGE, "ImageClassificationWithTeacher", "cls_classifier+distillation_classifier"),
    "resnet": (
        "ResNet",
        {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"},
        "ImageClassification",
        "classifier.1",
    ),
    "bert": ("Bert", TEXT, "SequenceClassification", "classifier"),
    "bert-tokens": ("Bert", TEXT, "TokenClassification", "classifier"),
    "roberta": ("Roberta", TEXT, "SequenceClassification", "classifier.out_proj"),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 32},
        "SequenceClassification",
        "classifier",
    ),
    "deberta-v2": ("DebertaV2", TEXT, "SequenceClassification", "classifier"),
    "gpt2": (
        "GPT2",
        {**GPT2, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2},
        "SequenceClassification",
        "score",
    ),
    "llama": ("Llama", {**TEXT, "num_key_value_heads": 2}, "SequenceClassification", "score"),
    "wav2vec2": (
        "Wav2Vec2",
        {
            **TINY,
            **WAVES,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 12,
        },
        "SequenceClassification",
        "classifier",
    ),
}


def save_model(name: str, directory: Path, **changes: Any) -> Any:
    """Write a model of transformers with random weights by `save_pretrained`, and return it."""
    family, settings, task, _ = MODELS[name]
    config = getattr(transformers, f"{family}Config")(num_labels=CLASSES, **{**settings, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}For{task}")(config).eval()
    model.save_pretrained(directory)
    return model


def batch(name: str) -> Any:
    """Return four samples; texts have different lengths and padding."""
    draw = torch.Generator().manual_seed(0)
    task = MODELS[name][2]
    if task.startswith("Image"):
        side = 16 if name == "resnet" else 8
        return torch.randn(4, 1, side, side, generator=draw)
    if name == "wav2vec2":
        return {"input_values": torch.randn(4, 400, generator=draw)}
    tokens = torch.randint(4, 40, (4, 9), generator=draw)
    mask = torch.ones_like(tokens)
    for row, length in enumerate((9, 4, 7, 1)):
        tokens[row, length:], mask[row, length:] = 1, 0
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Return a function that saves each model once and returns it with its directory."""
    models: dict[str, tuple[Any, Path]] = {}

    def saved_model(name: str) -> tuple[Any, Path]:
        if name not in models:
            folder = tmp_path_factory.mktemp(name)
            models[name] = (save_model(name, folder), folder)
        return models[name]

    return saved_model


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_directory_gives_the_model_that_wrote_it(
    name: str, directories: Callable[[str], tuple[Any, Path]], checked_head: Callable[..., Any]
) -> None:
    original, directory = directories(name)
    configured = model_beside(directory)
    assert configured == (f"hf:{directory}", {})
    with open_checkpoint(directory / "model.safetensors") as checkpoint:
        state = checkpoint.state_dict()
    shapes = {tensor: tuple(value.shape) for tensor, value in state.items()}
    model = build_model(configured[0], model_arguments(configured[0], classes=17, tensors=shapes)).eval()
    assert type(model) is type(original)
    load_weights(model, state, source=str(directory))
    inputs = batch(name)
    assert torch.equal(run_once(model, inputs), run_once(original, inputs))
    head, rows = checked_head(model, inputs)
    assert head.name == MODELS[name][3]
    torch.testing.assert_close(rows.features, expected_features(name, model, inputs), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def expected_features(name: str, model: Any, model_inputs: Any) -> Tensor:
    """Return the classifier's input by transformers' own outputs: hidden states and poolers."""
    inputs = model_inputs if isinstance(model_inputs, dict) else {"pixel_values": model_inputs}
    outputs = model(**inputs, output_hidden_states=True)
    base = model.base_model(**inputs)
    states = base.last_hidden_state
    if name == "distilled":
        return torch.cat([states[:, 0], states[:, 1]], dim=1)
    if name == "resnet":
        return base.pooler_output.flatten(1)
    if name == "bert":
        return base.pooler_output
    if name == "bert-tokens":
        return outputs.hidden_states[-1].flatten(0, 1)
    if name == "roberta":
        return torch.tanh(model.classifier.dense(outputs.hidden_states[-1][:, 0]))
    if name == "distilbert":
        return model.pre_classifier(outputs.hidden_states[-1][:, 0]).relu()
    if name == "deberta-v2":
        return model.pooler(outputs.hidden_states[-1])
    if name in ("gpt2", "llama"):
        return states[torch.arange(4), model_inputs["attention_mask"].sum(dim=1) - 1]
    if name == "wav2vec2":
        return model.projector(outputs.hidden_states[-1]).mean(dim=1)
    return states[:, 0]


def test_the_size_of_the_head_comes_from_the_checkpoint(directories: Callable[[str], tuple[Any, Path]]) -> None:
    _, directory = directories("bert")
    with open_checkpoint(directory / "model.safetensors") as checkpoint:
        shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    shapes = {name: (8, *shape[1:]) if name.startswith("classifier") else shape for name, shape in shapes.items()}
    assert model_arguments(f"hf:{directory}", classes=3, tensors=shapes) == {"num_labels": 8}
    assert model_arguments(f"hf:{directory}", classes=3) == {"num_labels": 3}
    assert build_model(f"hf:{directory}", {"num_labels": 8}).classifier.weight.shape == (8, 16)


@pytest.mark.parametrize("with_shapes", [True, False])
def test_missing_unexpected_and_misshapen_tensors_are_listed(
    directories: Callable[[str], tuple[Any, Path]], with_shapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_shapes(*arguments: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Report misshapen tensors by name alone, as transformers does before version 5."""
        tensors, report = loaded_by_transformers(*arguments)
        return tensors, {**report, "mismatched_keys": [name for name, *_ in report["mismatched_keys"]]}

    if not with_shapes:
        monkeypatch.setattr(fitting, "loaded_by_transformers", without_shapes)
    _, directory = directories("vit")
    with open_checkpoint(directory / "model.safetensors") as checkpoint:
        state = checkpoint.state_dict()
    del state["vit.encoder.layer.0.attention.attention.key.bias"]
    state |= {"extra": torch.zeros(2), "classifier.weight": torch.zeros(3, 16)}
    with pytest.raises(DataError) as error:
        load_weights(build_model(f"hf:{directory}"), state, source="a.safetensors")
    message = str(error.value)
    for part in (
        "1 missing: vit.layers.0.attention.k_proj.bias",
        "1 unexpected: extra",
        "1 of another shape: classifier.weight (3, 16) for (5, 16)",
    ):
        assert part in message


def test_the_last_token_does_not_depend_on_the_batch(
    directories: Callable[[str], tuple[Any, Path]],
) -> None:
    model, _ = directories("gpt2")
    tokens = batch("gpt2")
    head = find_head(model, {name: tensor[:2] for name, tensor in tokens.items()})
    assert (head.name, head.positions) == ("score", "chosen")
    with torch.no_grad():
        together = head.tapped(model, tokens).features
        for number, length in enumerate((9, 4, 7, 1)):
            alone = head.tapped(model, {"input_ids": tokens["input_ids"][number : number + 1, :length]}).features
            torch.testing.assert_close(together[number : number + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_missing_padding_token_is_an_error_and_can_be_an_argument(tmp_path: Path) -> None:
    family, _, _, _ = MODELS["gpt2"]
    config = transformers.GPT2Config(num_labels=CLASSES, bos_token_id=2, eos_token_id=2, **GPT2)
    getattr(transformers, f"{family}ForSequenceClassification")(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="Cannot handle batch sizes > 1 if no padding token is defined"):
        find_head(build_model(f"hf:{tmp_path}"), batch("gpt2"))
    assert find_head(build_model(f"hf:{tmp_path}", {"pad_token_id": 1}), batch("gpt2")).name == "score"


def write_changed_config(directory: Path, source: Path, **changes: Any) -> Path:
    config = json.loads((source / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("name", "changes", "arguments", "expected"),
    [
        ("bert", {"architectures": ["BertForTokenClassification"]}, {}, "BertForTokenClassification"),
        ("bert", {"architectures": None}, {}, "BertForSequenceClassification"),
        ("bert", {"architectures": ["BertModel"]}, {"task": "token-classification"}, "BertForTokenClassification"),
        ("wav2vec2", {"architectures": None}, {}, "Wav2Vec2ForSequenceClassification"),
        ("vit", {"architectures": ["ViTModel"]}, {}, "ViTForImageClassification"),
        ("deit", {"architectures": None}, {}, "DeiTForImageClassification"),
    ],
)
def test_a_configuration_gives_the_class_of_the_model(
    name: str,
    changes: dict[str, Any],
    arguments: dict[str, Any],
    expected: str,
    directories: Callable[[str], tuple[Any, Path]],
    tmp_path: Path,
) -> None:
    directory = write_changed_config(tmp_path, directories(name)[1], **changes)
    assert type(build_model(f"hf:{directory}", arguments)).__name__ == expected


def test_names_of_classes_come_from_the_configuration(
    directories: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    names = ["ant", "bee", "cat", "dog", "elk"]
    directory = write_changed_config(tmp_path, directories("vit")[1], id2label=dict(enumerate(names)))
    assert class_names(build_model(f"hf:{directory}")) == tuple(names)
    assert class_names(build_model(f"hf:{directories('vit')[1]}")) is None


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (None, UsageError, r"no such file: .*config\.json; hf:DIR is a local directory"),
        ("{", DataError, r"config\.json: no configuration that transformers knows"),
        ('{"model_type": "nothing-like-it"}', DataError, r"config\.json: no configuration that transformers knows"),
        ('{"model_type": "clap"}', DataError, "transformers has no clap model for any of image-classification"),
        ('{"model_type": "bert", "hidden_size": "x"}', DataError, "config"),
        ('{"model_type": "bert", "architectures": 5}', DataError, r"config\.json: architectures is 5, expected a list"),
        (
            '{"model_type": "bert", "architectures": [["a"]]}',
            DataError,
            r"architectures is \[\['a'\]\], expected a list",
        ),
        ('{"model_type": "bert", "num_labels": 10000000}', DataError, r"config\.json: num_labels: unpacks to 2,560,"),
    ],
)
def test_invalid_configurations_are_errors(config: str | None, error: Any, message: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(error, match=message):
        build_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "evil"}, "the model needs code that comes with it, which is never run"),
        ({"_attn_implementation": "somebody/kernels"}, "names kernels for attention that would be downloaded"),
    ],
)
def test_code_that_a_configuration_names_is_not_run(
    changes: dict[str, Any], message: str, directories: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    mapped = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    directory = write_changed_config(tmp_path, directories("vit")[1], auto_map=mapped, **changes)
    with pytest.raises(DataError, match=message):
        build_model(f"hf:{directory}")
    # A model type that transformers has itself is built without that code.
    write_changed_config(tmp_path, directories("vit")[1], auto_map=mapped)
    assert type(build_model(f"hf:{directory}")).__name__ == "ViTForImageClassification"
    assert not (tmp_path / "ran").exists()


def test_unknown_arguments_of_a_configuration_are_errors(directories: Callable[[str], tuple[Any, Path]]) -> None:
    directory = directories("vit")[1]
    with pytest.raises(UsageError, match="its configuration has no entry 'depth'"):
        build_model(f"hf:{directory}", {"depth": 3})
    with pytest.raises(UsageError, match="task 'sorting': expected one of image-classification"):
        build_model(f"hf:{directory}", {"task": "sorting"})


def test_building_a_model_does_not_change_the_hubs_offline_setting(
    directories: Callable[[str], tuple[Any, Path]], monkeypatch: Any
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    before = constants.HF_HUB_OFFLINE
    build_model(f"hf:{directories('vit')[1]}")
    assert before == constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_torchvision_that_does_not_fit_torch_is_an_error_of_one_line(tmp_path: Path, commands: Any) -> None:
    """Transformers imports torchvision when a model of images is used for the first time."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    metadata = tmp_path / "torchvision-0.99.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    save_file({"classifier.weight": torch.zeros(3, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"], "model_type": "vit"}')
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ckpt_probe.cli.app import main; main()"
    words = commands.python(program, "inspect", tmp_path, "--model", f"hf:{tmp_path}")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: transformers is installed, but a part of it cannot be imported: RuntimeError: operator nms does not "
        "exist\n"
    )


@pytest.mark.parametrize(
    "entries", [{"n_embd": 40_000}, {"n_positions": 200_000_000}, {"vocab_size": 2_000_000_000}, {"n_layer": 10**6}]
)
def test_a_configuration_of_a_larger_model_than_the_checkpoint_is_refused(
    tmp_path: Path, entries: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_probe.budget.MEMORY", 2**24)
    usual = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 10, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps({**usual, "n_embd": 8, "n_positions": 4, **entries}))
    with pytest.raises(DataError, match=r"^model hf:.*: unpacks to [\d,]+ bytes or more"):
        build_model(f"hf:{tmp_path}", tensors={"transformer.wte.weight": (10, 8)})

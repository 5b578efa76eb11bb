"""Tests of images and texts of users with models of frameworks: features, names of classes, and damaged samples."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import get_model
from torchvision.transforms import Grayscale, InterpolationMode
from torchvision.transforms._presets import ImageClassification

from ckpt_probe.analysis import analyze
from ckpt_probe.data import load_data
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.progress import NullProgress

CLASSES = ("ant", "bee", "cat")


class Messages(NullProgress):
    """Progress that collects its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twelve photos of each of three classes in test, and return the directory."""
    directory, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in CLASSES:
        (directory / "test" / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (170 + 9 * (number % 3), 190, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(directory / "test" / name / f"{number:02}.jpg")
    return directory


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small timm network with three classes, and return the file."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "step-5.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_features_of_images_equal_those_of_a_timm_network(
    photos: Path, weights: Path, tmp_path: Path, workers: int
) -> None:
    import timm

    progress = Messages()
    extract_series(
        weights,
        tmp_path / "dumps",
        model="timm:test_resnet",
        data=f"imagefolder:{photos}",
        data_workers=workers,
        batch_size=8,
        device="cpu",
        progress=progress,
    )
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model.load_state_dict(load_file(weights))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    reference = ImageFolder(str(photos / "test"), transform)
    with torch.inference_mode():
        maps = [model.forward_features(images) for images, _ in DataLoader(reference, batch_size=8)]
        features = torch.cat([model.forward_head(part, pre_logits=True) for part in maps])
    with open_dump(tmp_path / "dumps" / "step-5.h5") as dump:
        np.testing.assert_allclose(dump["test"].features[:], features, rtol=1e-4, atol=1e-5)
        assert dump["test"].labels[:].tolist() == reference.targets
        assert dump.class_names == CLASSES
        assert dump.provenance is not None
        assert "workers" not in dump.provenance.data_arguments
        assert dump.provenance.data_arguments["transform"]["timm"]["input_size"] == [3, 160, 160]
    # The network is not trained, so its accuracy is near chance.
    assert [line.partition(":")[0] for line in progress.messages] == [
        "inputs",
        "accuracy stays near chance at every checkpoint",
    ]
    second = extract_series(
        weights, tmp_path / "dumps", model="timm:test_resnet", data=f"imagefolder:{photos}", device="cpu"
    )
    assert second.skipped == ("step-5",)


def features_of(model: torch.nn.Module, photos: Path, transform: Any) -> torch.Tensor:
    """Return the inputs of the last layer of a network for all photos, prepared by a transform."""
    inputs: list[torch.Tensor] = []
    last = next(module for module in reversed(list(model.modules())) if isinstance(module, torch.nn.Linear))
    with last.register_forward_pre_hook(lambda _module, given: inputs.append(given[0])), torch.inference_mode():
        for images, _ in DataLoader(ImageFolder(str(photos / "test"), transform), batch_size=8):
            model.eval()(images)
    return torch.cat(inputs)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("test_resnet", {}, {"img_size": 64, "crop_pct": 0.8, "mean": [0.4], "std": [0.3, 0.2, 0.1]}),
        ("test_resnet", {"in_chans": 1}, {"in_chans": 1, "mean": [0.4], "std": [0.2], "interpolation": "bilinear"}),
        ("test_vit", {"img_size": 96, "act_layer": "relu"}, {"model_kwargs": {"img_size": 96, "act_layer": "relu"}}),
        ("test_vit", {"global_pool": "avg"}, {"gp": "avg", "input_size": [3, 160, 160]}),
        ("test_efficientnet", {"bn_eps": 0.5}, {"bn_eps": 0.5, "crop_mode": "border"}),
    ],
)
def test_models_of_timms_script_and_their_images_are_as_in_its_training(
    name: str, sizes: dict[str, Any], options: dict[str, Any], named: bool, photos: Path, tmp_path: Path
) -> None:
    import timm
    from timm.utils import CheckpointSaver

    defaults = {"gp": None, "bn_eps": None, "img_size": None, "input_size": None, "crop_pct": None, "mean": None}
    others = {f"option_{number}": number for number in range(120)}
    script = Namespace(**{"model": name, **defaults, **others, "model_kwargs": {}, "num_classes": 3, **options})
    if "img_size" in sizes:
        script.img_size = sizes["img_size"]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CheckpointSaver(model, optimizer, script, checkpoint_dir=str(tmp_path)).save_checkpoint(4, metric=1.0)
    chosen = {"model": f"timm:{name}"} if named else {}
    arguments = {"data": f"imagefolder:{photos}", "batch_size": 8, "device": "cpu"}
    extract_series(tmp_path / "last.pth.tar", tmp_path / "dumps", **chosen, **arguments)
    settings = timm.data.resolve_data_config(vars(script), model=model)
    transform = timm.data.create_transform(**settings, is_training=False)
    if "in_chans" in sizes:
        transform.transforms.insert(0, Grayscale())
    with open_dump(tmp_path / "dumps" / "last.h5") as dump:
        features = features_of(model, photos, transform)
        np.testing.assert_allclose(dump["test"].features[:], features, rtol=1e-4, atol=1e-5)


def test_classes_of_timms_script_have_the_numbers_of_its_training(photos: Path, tmp_path: Path) -> None:
    import timm
    from timm.utils import CheckpointSaver

    for name, renamed in zip(
        sorted(path.name for path in (photos / "test").iterdir()), ("n10", "N9", "n2"), strict=True
    ):
        shutil.copytree(photos / "test" / name, tmp_path / "photos" / renamed)
    script = Namespace(model="test_resnet", img_size=32, dataset="", num_classes=3)
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CheckpointSaver(model, optimizer, script, checkpoint_dir=str(tmp_path)).save_checkpoint(4, metric=1.0)
    progress = Messages()
    data = f"imagefolder:{tmp_path / 'photos'}"
    extract_series(tmp_path / "last.pth.tar", tmp_path / "dumps", data=data, device="cpu", progress=progress)
    reader = timm.data.create_dataset("", str(tmp_path / "photos")).reader
    with open_dump(tmp_path / "dumps" / "last.h5") as dump:
        names = dump["photos"].sample_names()
        labels = dump["photos"].labels[:]
        assert dump.class_names == ("n2", "N9", "n10")
    assert names is not None
    expected = {Path(path): label for path, label in reader.samples}
    assert {tmp_path / "photos" / name: label for name, label in zip(names, labels, strict=True)} == expected
    assert "classes are numbered in natural order, as timm's train.py does: n2, N9, n10" in progress.messages
    with pytest.raises(UsageError, match="order='size': expected name or natural"):
        load_data(data, {"order": "size"})


@pytest.mark.parametrize("weights", [None, "DEFAULT"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_v2_s", "googlenet"])
def test_models_of_torchvisions_script_and_their_images_are_as_in_its_training(
    name: str, weights: str | None, photos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    # With published weights, torchvision sets this itself.
    changed = {"transform_input": True} if name == "googlenet" and weights else {}
    quick = {"init_weights": True} if name == "googlenet" else {}
    model = get_model(name, weights=None, num_classes=3, **quick, **changed)
    options = {"val_resize_size": 72, "val_crop_size": 64, "interpolation": "bicubic", "weights": weights}
    script = Namespace(model=name, lr=0.1, **options)
    torch.save({"model": model.state_dict(), "epoch": 4, "args": script}, tmp_path / "model_4.pth")
    progress = Messages()
    arguments = {"data": f"imagefolder:{photos}", "batch_size": 8, "device": "cpu", "progress": progress}
    extract_series(tmp_path / "model_4.pth", tmp_path / "dumps", **arguments)
    transform = ImageClassification(resize_size=72, crop_size=64, interpolation=InterpolationMode.BICUBIC)
    with open_dump(tmp_path / "dumps" / "model_4.h5") as dump:
        features = features_of(model, photos, transform)
        np.testing.assert_allclose(dump["test"].features[:], features, rtol=1e-4, atol=1e-5)
    assert "training arguments in the checkpoint, else torchvision's default for" in progress.messages[0]
    assert f"model torchvision:{name}: from the training arguments in the checkpoint" in progress.messages
    assert not any("assumed" in message for message in progress.messages)


@pytest.mark.parametrize(
    "options",
    [
        {"mean": "abc"},
        {"mean": [[0.5]]},
        {"img_size": "64"},
        {"img_size": 10**6},
        {"crop_pct": 1e-7},
        {"input_size": [3]},
        {"std": {}},
    ],
)
def test_hostile_training_arguments_end_in_an_error_of_one_line(
    options: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    import timm

    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    script = {"model": "test_resnet", **options}
    entries = {"state_dict": state, "arch": "test_resnet", "version": 2, "args": script}
    torch.save(entries, tmp_path / "last.pth.tar")
    with pytest.raises(DataError, match=r"timm has no such settings|training arguments in .*: \w+: expected"):
        extract_series(tmp_path / "last.pth.tar", tmp_path / "dumps", data=f"imagefolder:{photos}", device="cpu")


@pytest.mark.parametrize("store", ["features", "moments", "both"])
def test_a_damaged_image_is_left_out_of_the_dump_and_reported(weights: Path, tmp_path: Path, store: str) -> None:
    generator = np.random.default_rng(0)
    for number in range(120):
        file = tmp_path / "many" / "test" / CLASSES[number % 3] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    (tmp_path / "many" / "test" / "bee" / "004.png").write_bytes(b"damaged")
    progress = Messages()
    extract_series(
        weights,
        tmp_path / "dumps",
        model="timm:test_resnet",
        data=f"imagefolder:{tmp_path / 'many'}",
        data_arguments={"resize": 32, "crop": 32, "workers": 1},
        device="cpu",
        batch_size=50,
        store=store,
        progress=progress,
    )
    (record,) = analyze(tmp_path / "dumps" / "step-5.h5")
    assert record["samples"] == 119
    if store != "moments":
        with open_dump(tmp_path / "dumps" / "step-5.h5") as dump:
            names = dump["test"].sample_names()
            assert names is not None
            assert len(names) == 119
            assert "bee/004.png" not in names
            assert [CLASSES.index(name.partition("/")[0]) for name in names] == dump["test"].labels[:].tolist()
    message = "split test: 1 of 120 samples cannot be read, and are left out: bee/004.png (no image, or a damaged one)"
    assert (progress.messages[0].partition(":")[0], progress.messages[1]) == ("inputs", message)


def test_labels_are_matched_with_the_names_of_the_models_classes(photos: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    names = ["Cat", "dog", "ant", "Bee"]
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=32, patch_size=16, id2label=dict(enumerate(names)), **small)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    extract_series(tmp_path / "vit", tmp_path / "dumps", data=f"imagefolder:{photos}", data_workers=0, device="cpu")
    (path,) = (tmp_path / "dumps").iterdir()
    with open_dump(path) as dump:
        assert dump.class_names == tuple(names)
        assert dump["test"].labels[:].tolist() == [2] * 12 + [3] * 12 + [0] * 12
    rows = [row for row in _per_class(path) if row["samples"]]
    assert [(row["class"], row["class_name"]) for row in rows] == [(0, "Cat"), (2, "ant"), (3, "Bee")]
    (tmp_path / "vit" / "config.json").write_text(
        (tmp_path / "vit" / "config.json").read_text().replace('"ant"', '"emmet"')
    )
    with pytest.raises(
        DataError, match=r"1 of 3 classes .* no class of the model .*: ant; the data's are ant, bee, cat"
    ):
        extract_series(tmp_path / "vit", tmp_path / "b", data=f"imagefolder:{photos}", data_workers=0, device="cpu")
    arguments = {"match": "order"}
    extract_series(
        tmp_path / "vit",
        tmp_path / "c",
        data=f"imagefolder:{photos}",
        data_arguments=arguments,
        data_workers=0,
        device="cpu",
    )
    with open_dump(next((tmp_path / "c").iterdir())) as dump:
        assert dump["test"].labels[:].tolist() == [0] * 12 + [1] * 12 + [2] * 12


def _per_class(path: Path) -> list[dict[str, Any]]:
    from ckpt_probe.analysis import Settings, read_series

    (reading,) = read_series(path, Settings(per_class=True))
    return reading.per_class


def test_features_of_texts_equal_those_of_a_sequence_classifier(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=9, id2label={0: "negative", 1: "positive"}, max_position_embeddings=32, **small)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    texts = ["good film", "very bad", "bad bad film", "very very very good film", "good"]
    labels = ["positive", "negative", "negative", "positive", "positive"]
    rows = "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
    (tmp_path / "test.csv").write_text(f"text,label\n{rows}")
    extract_series(
        tmp_path / "bert", tmp_path / "dumps", data=f"csv:{tmp_path / 'test.csv'}", device="cpu", batch_size=2
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    with torch.inference_mode():
        pooled = model.bert(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    with open_dump(next((tmp_path / "dumps").iterdir())) as dump:
        np.testing.assert_allclose(dump["test"].features[:], pooled, rtol=1e-4, atol=1e-5)
        assert dump["test"].labels[:].tolist() == [1, 0, 0, 1, 1]
        assert dump.class_names == ("negative", "positive")
        assert dump.provenance is not None
        assert json.dumps(dump.provenance.data_arguments)

"""Tests of extraction from checkpoints of frameworks: no sizes are needed, and features and scales agree with them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ckpt_probe as cp
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Setup, open_subject
from ckpt_probe.models import build_model, logits_of
from ckpt_probe.plugins import load_function
from ckpt_probe.progress import MessageLog

CLASSES = 5


@pytest.fixture(autouse=True)
def _restored_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore `sys.path`, to which loading a function's file adds its directory."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


def images(directory: Path, channels: int, side: int, samples: int = 12) -> str:
    """Write random images of one split to a file, and return the name of the data."""
    draw = np.random.default_rng(0)
    x = draw.random((samples, channels, side, side), dtype=np.float32)
    np.savez(directory / "images.npz", x_test=x, y_test=np.arange(samples) % CLASSES)
    return f"npz:{directory / 'images.npz'}"


def inputs_in(directory: Path) -> Tensor:
    with np.load(directory / "images.npz") as arrays:
        return torch.from_numpy(arrays["x_test"])


def rows(path: Path, split: str = "test") -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return features, logits, weights and bias of a dump, after a check that they are consistent."""
    with cp.open_dump(path) as dump:
        view = dump[split]
        features, logits = (torch.from_numpy(np.asarray(part[:])) for part in (view.features, view.logits))
        weights = torch.as_tensor(np.asarray(dump.weights))
        bias = None if dump.bias is None else torch.as_tensor(np.asarray(dump.bias))
    torch.testing.assert_close(F.linear(features.double(), weights, bias), logits.double(), rtol=1e-4, atol=1e-4)
    return features, logits, weights, bias


@pytest.mark.parametrize(
    ("name", "arguments", "side"),
    [
        ("resnet10t", {"num_classes": CLASSES, "in_chans": 1}, 32),
        ("vit_tiny_patch16_224", {"num_classes": CLASSES, "img_size": 32}, 32),
        ("resnetv2_50x1_bit", {"num_classes": CLASSES}, 32),
    ],
)
def test_pickled_state_dicts_of_timm_have_timms_features(
    name: str, arguments: dict[str, Any], side: int, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    nn.init.normal_(model.get_classifier().weight)
    torch.save({"model": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "a.pth")
    data = images(tmp_path, arguments.get("in_chans", 3), side)
    cp.extract_series(
        tmp_path / "a.pth", tmp_path / "dumps", model=f"timm:{name}", data=data, device="cpu", batch_size=5
    )
    features, logits, _, _ = rows(tmp_path / "dumps" / "a.h5")
    with torch.no_grad():
        maps = model.forward_features(inputs_in(tmp_path))
        torch.testing.assert_close(features, model.forward_head(maps, pre_logits=True).flatten(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, model.forward_head(maps), rtol=1e-4, atol=1e-4)


def test_a_directory_of_transformers_needs_no_option_for_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES, **size)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    for step in (1, 2):
        nn.init.normal_(model.classifier.weight)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    summary = cp.extract_series(tmp_path / "run", tmp_path / "dumps", data=images(tmp_path, 1, 8), device="cpu")
    assert summary.written == ("checkpoint-1", "checkpoint-2")
    features, logits, _, _ = rows(tmp_path / "dumps" / "checkpoint-2.h5")
    with torch.no_grad():
        outputs = model(inputs_in(tmp_path), output_hidden_states=True)
    torch.testing.assert_close(logits, outputs.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, model.vit.layernorm(outputs.hidden_states[-1])[:, 0], rtol=1e-4, atol=1e-5)


NET = """
import torch
from torch import nn
from torch.nn import functional as F

class Cosine(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 6))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))

class Net(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.hidden, self.head = nn.Linear(16, 6), head
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.head(self.hidden(x.flatten(1))) / self.temperature

def cosine(classes=5):
    return Net(Cosine(classes))

def warm(classes=5):
    return Net(nn.Linear(6, classes))
"""


@pytest.mark.parametrize("name", ["cosine", "warm"])
def test_each_checkpoint_has_its_scale_of_logits(name: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    torch.manual_seed(0)
    function = f"{tmp_path / 'nets.py'}:{name}"
    model: Any = build_model(function)
    data = images(tmp_path, 1, 4)
    (tmp_path / "run").mkdir()
    logits = {}
    for step, scale in enumerate((1.0, 0.25, 7.0)):
        with torch.no_grad():
            model.temperature.fill_(scale)
            if name == "cosine":
                model.head.scale.fill_(3 * scale**2)
            logits[step] = model(inputs_in(tmp_path))
        torch.save(model.state_dict(), tmp_path / "run" / f"step-{step}.pth")
    cp.extract_series(tmp_path / "run", tmp_path / "dumps", model=function, data=data, device="cpu")
    for step, expected in logits.items():
        _, actual, _, _ = rows(tmp_path / "dumps" / f"step-{step}.h5")
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class Tokens(nn.Module):
    """A classifier of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, 6), nn.Linear(6, CLASSES)

    def forward(self, ids: Tensor) -> Any:
        return {"loss": None, "logits": self.head(self.words(ids))}


def batches() -> list[tuple[dict[str, Tensor], Tensor]]:
    """Return two batches of tokens of different lengths, as mappings; padding has the label −100."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(11, shape, generator=draw) for shape in ((3, 7), (2, 4))]
    labels = [part % CLASSES for part in ids]
    labels[0][1, 3:] = -100
    labels[1][:, 0] = -100
    return [({"ids": part}, targets) for part, targets in zip(ids, labels, strict=True)]


def test_every_token_with_a_label_is_a_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tokens()
    cp.extract(model, batches(), tmp_path / "tokens.h5", split="test", device="cpu")
    ids = torch.cat([inputs["ids"].flatten() for inputs, _ in batches()])
    labels = torch.cat([targets.flatten() for _, targets in batches()])
    features, _, _, _ = rows(tmp_path / "tokens.h5")
    assert len(features) == 3 * 7 + 2 * 4 - 4 - 2
    torch.testing.assert_close(features, model.words(ids[labels != -100]).detach())
    with cp.open_dump(tmp_path / "tokens.h5") as dump:
        assert torch.equal(torch.as_tensor(np.asarray(dump["test"].labels[:])), labels[labels != -100])


def test_labels_that_do_not_fit_the_rows_are_refused(tmp_path: Path) -> None:
    (inputs, labels), _ = batches()
    with pytest.raises(
        DataError, match=r"classifier head gives 21 rows for labels of shape \(3, 6\); a label for each"
    ):
        cp.extract(Tokens(), [(inputs, labels[:, 1:])], tmp_path / "tokens.h5", device="cpu")
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, CLASSES))
    with pytest.raises(DataError, match=r"labels: expected \(n,\), found \(3, 7\)"):
        cp.extract(model, [(inputs["ids"].float(), labels)], tmp_path / "rows.h5", device="cpu")
    with pytest.raises(DataError, match=r"batch 0: inputs and labels: .* found \(3, 7\) and \(2,\)"):
        cp.extract(Tokens(), [(inputs, labels[:2, 0])], tmp_path / "rows.h5", device="cpu")
    for loader, message in (
        ([(torch.zeros(7), 1)], r"found \(7,\) and \(\); pass a DataLoader"),
        ([inputs | {"labels": labels}], r"batch 0: expected a pair \(inputs, labels\), found a dict of 2"),
        (torch.zeros(2, 7), "found a Tensor$"),
    ):
        with pytest.raises(DataError, match=message):
            cp.extract(model, loader, tmp_path / "rows.h5", device="cpu")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_a_causal_classifier_has_the_features_of_the_last_token(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=6, n_layer=1, n_head=2, n_positions=8, pad_token_id=0, eos_token_id=0, num_labels=CLASSES
    )
    torch.manual_seed(0)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    ids = torch.randint(1, 11, (6, 7), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([7, 3, 5, 1, 6, 2])
    ids = ids.where(torch.arange(7) < lengths[:, None], 0)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    loader = [
        ({name: part[a:b] for name, part in batch.items()}, torch.arange(a, b) % CLASSES) for a, b in ((0, 4), (4, 6))
    ]
    cp.extract(model, loader, tmp_path / "text.h5", split="test", device="cpu")
    features, logits, _, bias = rows(tmp_path / "text.h5")
    assert bias is None
    with torch.no_grad():
        states = model.transformer(**batch).last_hidden_state
        torch.testing.assert_close(features, states[torch.arange(6), lengths - 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, logits_of(model(**batch)), rtol=1e-4, atol=1e-5)


LIT = """
import lightning
from torch import nn


class Lit(lightning.LightningModule):
    def __init__(self, width=3, inner=None, loss="ce"):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 5))

    def forward(self, images):
        return self.net(images)


def network(width=3):
    return Lit(width).net
"""


def lit_checkpoint(directory: Path, **arguments: Any) -> Path:
    """Save a checkpoint of `Lit` with Lightning's trainer, beside the file lit.py; return the checkpoint."""
    lightning = pytest.importorskip("lightning")
    (directory / "lit.py").write_text(LIT)
    module = load_function(f"{directory}/lit.py:Lit")(**arguments)
    trainer = lightning.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(directory / "epoch=0-step=4.ckpt")
    return directory / "epoch=0-step=4.ckpt"


@pytest.mark.parametrize("function", ["Lit", "network"])
def test_arguments_of_the_model_are_lightnings_hyperparameters(function: str, tmp_path: Path) -> None:
    path, data = lit_checkpoint(tmp_path, width=7), images(tmp_path, 1, 4)
    subject = open_subject(path, Setup(model=f"{tmp_path}/lit.py:{function}", data=data, device="cpu"))
    assert subject.model_arguments["width"] == 7
    assert "model arguments from the checkpoint's hyperparameters: width=7" in subject.notes[0]
    setup = Setup(model=f"{tmp_path}/lit.py:{function}", model_arguments={"width": 8}, data=data, device="cpu")
    with pytest.raises(DataError, match="of another shape"):
        open_subject(path, setup)


def test_a_function_in_hyperparameters_is_not_called(tmp_path: Path) -> None:
    path, data = lit_checkpoint(tmp_path, inner="os:system"), images(tmp_path, 1, 4)
    with pytest.raises(UsageError, match="names the function os:system, which is not called"):
        open_subject(path, Setup(model=f"{tmp_path}/lit.py:Lit", data=data, device="cpu"))


def test_the_architecture_in_a_file_is_only_suggested(tmp_path: Path) -> None:
    torch.save({"arch": "resnet10t", "state_dict": {"fc.weight": torch.ones(2, 2)}}, tmp_path / "last.pth.tar")
    with pytest.raises(UsageError, match=r"'resnet10t' stands in the file: perhaps timm:resnet10t"):
        open_subject(tmp_path / "last.pth.tar", Setup(data=images(tmp_path, 1, 4), device="cpu"))


def test_repeated_steps_and_weights_are_reported(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from torch import nn\n\n\ndef network():\n    return nn.Linear(4, 5)\n")
    torch.manual_seed(0)
    state = nn.Linear(4, 5).state_dict()
    for name, step in (("a", 1), ("b", 2), ("c", 2)):
        weights = {key: value + (name == "c") for key, value in state.items()}
        torch.save({"model": weights, "step": step}, tmp_path / f"{name}.pt")
    np.savez(tmp_path / "x.npz", x_test=np.eye(5, 4, dtype="f4"), y_test=np.arange(5))
    options = {"model": f"{tmp_path}/plain.py:network", "data": f"npz:{tmp_path}/x.npz", "device": "cpu"}
    progress = MessageLog()
    cp.extract_series(tmp_path, tmp_path / "dumps", progress=progress, **options)
    assert [message for message in progress.messages if message.startswith("warning: ")] == [
        "warning: step 2 is the step of 2 checkpoints: b (step in the file), c (step in the file)",
        "warning: the weights of b (step 2) are identical to those of a (step 1)",
    ]


SCALED = """
from torch import nn


class Scaled(nn.Linear):
    scale = 1.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]

    def forward(self, inputs):
        return self.scale * super().forward(inputs)


def network():
    return nn.Sequential(Scaled(4, 6), nn.ReLU(), nn.Linear(6, 5))
"""


@pytest.mark.parametrize("nested", [True, False])
def test_extra_state_of_each_checkpoint_is_loaded_into_the_model(nested: bool, tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    (tmp_path / "run").mkdir()
    np.savez(tmp_path / "x.npz", x_test=np.eye(5, 4, dtype="f4"), y_test=np.arange(5))
    model = load_function(f"{tmp_path}/scaled.py:network")()
    for step in (1, 2):
        model[0].scale = 10.0**step
        state = {f"module.{name}": entry for name, entry in model.state_dict().items()}
        torch.save({"state_dict": state} if nested else state, tmp_path / "run" / f"step-{step}.pt")
    options = {"model": f"{tmp_path}/scaled.py:network", "data": f"npz:{tmp_path}/x.npz", "device": "cpu"}
    cp.extract_series(tmp_path / "run", tmp_path / "dumps", **options)
    for step in (1, 2):
        model[0].scale = 10.0**step
        with torch.no_grad():
            expected = model(torch.eye(5, 4))
        torch.testing.assert_close(rows(tmp_path / "dumps" / f"step-{step}.h5")[1], expected)


def test_a_model_of_lazy_layers_takes_the_sizes_of_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "lazy_net.py").write_text(
        "from torch import nn\n"
        "def network(classes=2):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(classes))\n"
    )
    data = images(tmp_path, 1, 4)
    trained = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    torch.save(trained.state_dict(), tmp_path / "m.pt")
    cp.extract_series(tmp_path / "m.pt", tmp_path / "out", model=f"{tmp_path / 'lazy_net.py'}:network", data=data)
    torch.testing.assert_close(rows(tmp_path / "out" / "m.h5")[1], trained(inputs_in(tmp_path)).detach())


@pytest.mark.parametrize("name", ["batch_size", "limit", "max_rows", "workers"])
def test_numbers_that_are_not_whole_are_refused_by_name(tmp_path: Path, name: str) -> None:
    number: Any = {name: 2.5}
    with pytest.raises(UsageError, match=f"`{name}=2.5`: expected a whole number"):
        cp.extract_series(tmp_path, tmp_path / "out", **number)


def test_a_random_model_is_named_to_the_progress_of_extract(tmp_path: Path) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5))

    log = MessageLog()
    loader = [(torch.randn(8, 6), torch.arange(8) % 3)]
    cp.extract(nn.Sequential(Noisy(6, 6), nn.Linear(6, 3)), loader, tmp_path / "a.h5", device="cpu", progress=log)
    assert "two runs of the model on the same samples differ" in " ".join(log.messages)


SPECTRAL = """
import torch
from torch import nn


class Spectral(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, 6, dtype=torch.complex64))
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head((torch.fft.fft(x.double()).to(torch.complex64) @ self.filter).abs())
"""


def test_complex_weights_are_loaded_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "spectral.py").write_text(SPECTRAL)
    torch.manual_seed(0)
    model = load_function(f"{tmp_path / 'spectral.py'}:Spectral")()
    torch.save(model.state_dict(), tmp_path / "spectral.pt")
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x_test=x, y_test=np.arange(20) % CLASSES)
    name, data = f"{tmp_path / 'spectral.py'}:Spectral", f"npz:{tmp_path / 'rows.npz'}"
    cp.extract_series(tmp_path / "spectral.pt", tmp_path / "dumps", model=name, data=data)
    with torch.no_grad():
        torch.testing.assert_close(rows(tmp_path / "dumps" / "spectral.h5")[1], model(torch.from_numpy(x)))

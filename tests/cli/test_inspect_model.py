"""Tests of `inspect --model`: the head, the reasons for it, and a forward pass, for checkpoints of other programs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_probe.cli.app import run

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, width, 3), nn.Linear(width, classes)
        self.temperature = nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        return self.head(self.body(x).relu().mean(dim=(2, 3))) / self.temperature

def net(classes=10, width=4):
    return Net(classes, width)

def none():
    return 7

def raising():
    raise KeyError("no such dataset\\nmore of it")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my nets").mkdir()
    (tmp_path / "my nets" / "nets.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def output_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert run(words) == code
    text = capsys.readouterr()
    return text.out if code == 0 else text.err


def test_the_function_of_a_model_can_be_in_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    exec(FILE, namespace)
    torch.save(namespace["net"](classes=3, width=6).state_dict(), "paper.pth")
    model = ["--model", "my nets/nets.py:net", "--model-argument", "width=6", "--model-argument", "classes=3"]
    text = output_of(["inspect", "paper.pth", *model], capsys)
    assert (
        "head: head (Linear, linear), 3 classes × 6 features, with bias: the model's output is 0.25 · its output"
        in text
    )
    assert "forward pass: (1, 224, 224) of float32 → 1 × 3, class " in text
    facts = json.loads(output_of(["inspect", "paper.pth", *model, "--json"], capsys))
    assert facts["classifier"] == "head"
    assert facts["head"]["model_arguments"] == {"width": 6, "classes": 3}
    assert facts["head"]["shown"] == "random inputs"


def test_timm_needs_one_option_and_no_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", num_classes=7, in_chans=1)
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, "timm.pth")
    text = output_of(["inspect", "timm.pth", "--model", "timm:mobilenetv3_small_050"], capsys)
    assert "head: classifier (Linear, linear), 7 classes × 1,024 features, with bias: its output is the model" in text
    assert "forward pass: (1, 224, 224) of float32 → 1 × 7, class " in text


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ["--model", "my nets/nets.py:none"],
            2,
            "model my nets/nets.py:none: the function returned int, not a torch.nn.Module",
        ),
        (
            ["--model", "my nets/nets.py:raising"],
            2,
            "model my nets/nets.py:raising: the function raised KeyError: 'no such",
        ),
        (["--model", "my nets/absent.py:net"], 2, "my nets/absent.py: FileNotFoundError: no such file"),
        (["--model", "my nets/nets.py:absent"], 2, "my nets/nets.py has no function absent"),
        (["--model", "my nets/nets.py:net"], 1, "the model does not fit the checkpoint; "),
        (
            ["--model", "my nets/nets.py:net", "--model-argument", "width"],
            2,
            "width: expected NAME=VALUE such as width=64",
        ),
        (
            ["--model", "mlp", "--model-argument", "a=1", "--model-argument", "a=2"],
            2,
            "'--model-argument': a=2: a occurs twice",
        ),
        (["--model", "mlp", "--model-argument", "a=1", "--model-argument", '{"a": 2}'], 2, '{"a": 2}: a occurs twice'),
        (["--model", "nothing"], 2, "no model called 'nothing'; there are: mlp, "),
        (["--set", "classifier=head"], 2, "does not name its model; use --model, such as timm:NAME, hf:DIR or"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, line: str
) -> None:
    torch.save({"head.weight": torch.zeros(3, 6)}, "paper.pth")
    text = output_of(["inspect", "paper.pth", *words], capsys, code)
    assert line in text
    assert len(text.splitlines()) == 1


def test_debug_shows_where_a_models_function_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"head.weight": torch.zeros(3, 6)}, "paper.pth")
    text = output_of(["inspect", "paper.pth", "--model", "my nets/nets.py:raising", "--debug"], capsys, 2)
    assert 'raise KeyError("no such dataset' in text
    assert "nets.py" in text


def test_an_adapter_is_shown_with_the_head_of_its_base(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=8, num_labels=3, **size)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained("base")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"])).save_pretrained("adapter")
    text = output_of(["inspect", "adapter", "--set", "base=base", "--model", "hf:base"], capsys)
    assert "head: classifier (Linear, linear), 3 classes × 8 features" in text

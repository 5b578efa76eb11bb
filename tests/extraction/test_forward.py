"""Forward passes: what is tapped, in which order, and what happens when memory runs out."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.data import ArraySplit
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import forward_blocks
from ckpt_probe.extraction.forward import forward_batches
from ckpt_probe.extraction.single import lent
from ckpt_probe.models import Head, Part
from ckpt_probe.progress import NullProgress

HEAD, INNER = Head((Part("3", 8),)), Head((Part("inner.3", 8),))


def split_of(samples: int = 23) -> ArraySplit:
    generator = torch.Generator().manual_seed(0)
    return ArraySplit(torch.randn(samples, 6, generator=generator), torch.arange(samples) % 3)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_features_are_the_classifiers_input_and_logits_its_output(batch_size: int) -> None:
    split, model = split_of(), network()
    blocks = list(forward_blocks(model, HEAD, split, batch_size=batch_size))
    inputs, labels = split.batch(slice(None))
    with torch.no_grad():
        features = torch.relu(model[0](inputs))
        logits = model[3](features)
    torch.testing.assert_close(torch.cat([b.features for b in blocks]), features)
    torch.testing.assert_close(torch.cat([b.to_tensors()["logits"] for b in blocks]), logits)
    assert torch.equal(torch.cat([b.labels for b in blocks]), labels)


def test_limit_takes_the_first_samples_and_dtype_is_that_of_the_forward() -> None:
    blocks = list(forward_blocks(network(), HEAD, split_of(), batch_size=4, limit=10, dtype=torch.bfloat16))
    assert sum(len(b.labels) for b in blocks) == 10
    assert blocks[0].features.dtype == torch.bfloat16


class Hungry(nn.Module):
    """Fits at most `most` samples into its memory."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner = network()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return self.inner(x)


class Heard(NullProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_out_of_memory_halves_the_batch_aloud_and_loses_no_sample() -> None:
    heard = Heard()
    blocks = list(forward_blocks(Hungry(5), INNER, split_of(), batch_size=16, progress=heard))
    whole = list(forward_blocks(network(), HEAD, split_of(), batch_size=23))
    torch.testing.assert_close(torch.cat([b.features for b in blocks]), whole[0].features)
    assert heard.lines == [
        "out of memory: continuing with batches of 8 samples",
        "out of memory: continuing with batches of 4 samples",
    ]


def test_out_of_memory_for_one_sample_is_an_error() -> None:
    with pytest.raises(DataError, match="not enough memory on the device for a single sample"):
        list(forward_blocks(Hungry(0), INNER, split_of(), batch_size=4))


def test_a_classifier_on_sequences_is_an_error() -> None:
    model = nn.Linear(6, 3)
    sequences = ArraySplit(torch.randn(4, 5, 6), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="one row of features per sample"):
        list(forward_blocks(nn.Sequential(model), Head((Part("0", 6),)), sequences))


def test_a_classifier_that_runs_twice_is_an_error() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.head(x))

    with pytest.raises(DataError, match="ran 2 times"):
        list(forward_blocks(Twice(), Head((Part("head", 6),)), split_of()))


def test_a_broken_sample_reaches_the_caller_and_leaving_early_ends_the_thread() -> None:
    class Broken(ArraySplit):
        def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
            if isinstance(indices, slice) and indices.start >= 8:
                raise OSError("unreadable image")
            return super().batch(indices)

    broken = Broken(torch.randn(23, 6), torch.zeros(23, dtype=torch.long))
    with pytest.raises(OSError, match="unreadable image"):
        list(forward_blocks(network(), HEAD, broken, batch_size=4))
    passes = forward_blocks(network(), HEAD, split_of(), batch_size=1)
    next(passes)
    passes.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches_0"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same_features() -> None:
    split = split_of(257)
    there = list(forward_blocks(network(), HEAD, split, batch_size=32, device="cuda"))
    here = list(forward_blocks(network(), HEAD, split, batch_size=32))
    for name in ("features", "labels", "logits"):
        first, second = (torch.cat([b.to_tensors()[name] for b in blocks]) for blocks in (there, here))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_batches_go_to_the_model_as_they_are_and_halve_where_memory_runs_out() -> None:
    seen: list[torch.dtype] = []

    class Whole(Hungry):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return super().forward(x).float() if x.is_floating_point() else super().forward(x.float() / 255)

    images, labels = torch.arange(138).reshape(23, 6).to(torch.uint8), torch.arange(23) % 3
    batches = [(images[:9], labels[:9]), (images[9:], labels[9:])]
    how = {"device": torch.device("cpu"), "dtype": torch.float32}
    blocks = list(forward_batches(Whole(5).eval(), INNER, batches, **how))
    assert set(seen) == {torch.uint8}
    assert [len(block.labels) for block in blocks] == [4, 4, 1, 4, 4, 4, 2]
    expected = network()[:2](images / 255)
    torch.testing.assert_close(torch.cat([block.features for block in blocks]), expected, check_dtype=False)


@pytest.mark.parametrize("fails", [False, True])
def test_a_lent_model_comes_back_as_it_was(pretended: Callable[[str], Any], fails: bool) -> None:
    model = network().bfloat16()
    model.append(nn.BatchNorm1d(3).bfloat16())
    model[2].eval()
    with pretended("mps"), suppress(KeyError), lent(model, torch.device("mps")) as dtype:
        assert dtype == torch.bfloat16
        assert not any(module.training for module in model.modules())
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"mps"}
        if fails:
            raise KeyError
    assert [module.training for module in model.modules()] == [True, True, True, False, True, True]
    with pretended("mps"):
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_model_that_cannot_be_lent(pretended: Callable[[str], Any]) -> None:
    with pretended("mps"), pytest.raises(UsageError, match="float64, which MPS does not support"):
        lent(network().double(), torch.device("mps")).__enter__()
    apart = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3, device="meta"))
    with pytest.raises(UsageError, match="the model is spread over cpu, meta; move it to one device"):
        lent(apart, torch.device("cpu")).__enter__()

"""Tests of forward passes: rows and their order, batches after a lack of memory, and models of the caller."""

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


def test_limit_selects_the_first_samples_and_dtype_is_used_in_the_forward_pass() -> None:
    blocks = list(forward_blocks(network(), HEAD, split_of(), batch_size=4, limit=10, dtype=torch.bfloat16))
    assert sum(len(b.labels) for b in blocks) == 10
    assert blocks[0].features.dtype == torch.bfloat16


class LimitedMemory(nn.Module):
    """A network that runs out of memory with more than `most` samples."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner = network()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return self.inner(x)


class Messages(NullProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_out_of_memory_halves_the_batch_with_a_message_and_loses_no_sample() -> None:
    progress = Messages()
    blocks = list(forward_blocks(LimitedMemory(5), INNER, split_of(), batch_size=16, progress=progress))
    expected = list(forward_blocks(network(), HEAD, split_of(), batch_size=23))
    torch.testing.assert_close(torch.cat([b.features for b in blocks]), expected[0].features)
    assert progress.lines == [
        "out of memory: continuing with batches of 8 samples",
        "out of memory: continuing with batches of 4 samples",
    ]


def test_out_of_memory_for_a_single_sample_is_an_error() -> None:
    with pytest.raises(DataError, match="not enough memory on the device for a single sample"):
        list(forward_blocks(LimitedMemory(0), INNER, split_of(), batch_size=4))


def test_a_classifier_of_sequences_is_refused() -> None:
    model = nn.Linear(6, 3)
    sequences = ArraySplit(torch.randn(4, 5, 6), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="one row of features per sample"):
        list(forward_blocks(nn.Sequential(model), Head((Part("0", 6),)), sequences))


def test_a_classifier_that_runs_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.head(x))

    with pytest.raises(DataError, match="ran 2 times"):
        list(forward_blocks(Twice(), Head((Part("head", 6),)), split_of()))


def test_an_error_of_a_sample_is_raised_and_closing_early_ends_the_thread() -> None:
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
def test_features_on_cuda_equal_those_on_the_cpu() -> None:
    split = split_of(257)
    on_cuda = list(forward_blocks(network(), HEAD, split, batch_size=32, device="cuda"))
    on_cpu = list(forward_blocks(network(), HEAD, split, batch_size=32))
    for name in ("features", "labels", "logits"):
        first, second = (torch.cat([b.to_tensors()[name] for b in blocks]) for blocks in (on_cuda, on_cpu))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_batches_are_passed_to_the_model_unchanged_and_halved_without_memory() -> None:
    dtypes: list[torch.dtype] = []

    class Integers(LimitedMemory):
        def forward(self, x: Tensor) -> Tensor:
            dtypes.append(x.dtype)
            return super().forward(x).float() if x.is_floating_point() else super().forward(x.float() / 255)

    images, labels = torch.arange(138).reshape(23, 6).to(torch.uint8), torch.arange(23) % 3
    batches = [(images[:9], labels[:9]), (images[9:], labels[9:])]
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    blocks = list(forward_batches(Integers(5).eval(), INNER, batches, **options))
    assert set(dtypes) == {torch.uint8}
    assert [len(block.labels) for block in blocks] == [4, 4, 1, 4, 4, 4, 2]
    expected = network()[:2](images / 255)
    torch.testing.assert_close(torch.cat([block.features for block in blocks]), expected, check_dtype=False)


@pytest.mark.parametrize("fails", [False, True])
def test_a_lent_model_is_restored_afterwards(pretended: Callable[[str], Any], fails: bool) -> None:
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


def test_a_model_that_cannot_be_moved_is_refused(pretended: Callable[[str], Any]) -> None:
    with pretended("mps"), pytest.raises(UsageError, match="float64, which MPS does not support"):
        lent(network().double(), torch.device("mps")).__enter__()
    apart = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3, device="meta"))
    with pytest.raises(UsageError, match="the model is spread over cpu, meta; move it to one device"):
        lent(apart, torch.device("cpu")).__enter__()


class InPlace(nn.Module):
    """A network that doubles its inputs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(2))


def test_a_model_that_changes_its_inputs_in_place_leaves_the_data_as_they_are() -> None:
    split, model = split_of(), InPlace()
    inputs = split.batch(slice(None))[0].clone()
    for _ in range(2):
        blocks = list(forward_blocks(model, INNER, split, batch_size=23))
        torch.testing.assert_close(blocks[0].features, torch.relu(model.inner[0](2 * inputs)))
    assert torch.equal(split.batch(slice(None))[0], inputs)


def test_a_model_that_fails_on_a_batch_is_an_error_with_its_reason() -> None:
    class Double(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double())

    with pytest.raises(DataError, match=r"on a batch of 5 samples of shape \(6,\) of float32 \(RuntimeError: .*Double"):
        list(forward_blocks(Double(*network()), HEAD, split_of(), batch_size=5))

"""Tests of extraction from a trained run: content of dumps, resuming, refused input, and no unfinished files."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_probe.analysis import analyze
from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.data import load_data
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Block, Storage, extract, extract_series, store_writer
from ckpt_probe.models import build_model
from ckpt_probe.moments.registry import METRICS, SECOND_PASS, TRAIN_MEANS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> Path:
    return train_digits(tmp_path_factory.mktemp("run") / "digits", [10, 30])


def test_a_dump_has_the_features_and_logits_of_the_model(run: Path, tmp_path: Path) -> None:
    summary = extract_series(run, tmp_path, device="cpu")
    assert summary.written == ("step-000000", "step-000010", "step-000030")
    with open_checkpoint(run / "checkpoints" / "step-000030.safetensors") as checkpoint:
        metadata, tensors = checkpoint.metadata, checkpoint.state_dict()
    model = build_model(str(metadata.model), metadata.model_arguments)
    model.load_state_dict(tensors)
    with open_dump(tmp_path / "step-000030.h5") as dump:
        assert dump.splits == ["train", "test"]
        assert dump.step == 30
        assert dump.weights is not None
        np.testing.assert_array_equal(dump.weights.astype(np.float32), tensors["3.weight"].numpy())
        for name in dump.splits:
            inputs, labels = load_data("digits").split(name).batch(slice(None))
            with torch.no_grad():
                logits = model(inputs)
                features = nn.Sequential(*list(model.children())[:-1])(inputs)
            np.testing.assert_allclose(dump[name].features[:], features, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(dump[name].logits[:], logits, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(dump[name].labels[:], labels)


def test_complete_dumps_are_skipped_and_missing_ones_are_written(run: Path, tmp_path: Path) -> None:
    extract_series(run, tmp_path, device="cpu")
    (tmp_path / "step-000010.h5").unlink()
    before = (tmp_path / "step-000030.h5").stat().st_mtime_ns
    summary = extract_series(run, tmp_path, device="cpu", batch_size=7)
    assert summary.written == ("step-000010",)
    assert summary.skipped == ("step-000000", "step-000030")
    assert (tmp_path / "step-000030.h5").stat().st_mtime_ns == before


def test_a_dump_with_another_provenance_is_not_replaced(run: Path, tmp_path: Path) -> None:
    extract_series(run, tmp_path, device="cpu", splits=["test"])
    with pytest.raises(
        UsageError, match=r"another provenance.*splits \('test',\) / \('train', 'test'\).*`overwrite=True`"
    ):
        extract_series(run, tmp_path, device="cpu")
    extract_series(run, tmp_path, device="cpu", overwrite=True, limit=5)
    with open_dump(tmp_path / "step-000010.h5") as dump:
        assert [dump[name].samples for name in dump.splits] == [5, 5]


def test_a_file_that_is_not_a_dump_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "step-000000.h5").write_text("mine")
    with pytest.raises(UsageError, match="not a complete dump"):
        extract_series(run, tmp_path, device="cpu")
    assert (tmp_path / "step-000000.h5").read_text() == "mine"


def test_features_are_stored_in_the_requested_precision_and_logits_only_on_request(run: Path, tmp_path: Path) -> None:
    extract_series(run, tmp_path, device="cpu", feature_dtype="float16", dtype="float64", with_logits=False)
    with open_dump(tmp_path / "step-000000.h5") as dump:
        assert dump["test"].features.dtype == np.float16
        assert dump["test"].logits is None


@pytest.mark.parametrize("with_logits", [True, False])
def test_stored_moments_give_the_records_of_stored_features(run: Path, tmp_path: Path, with_logits: bool) -> None:
    options = {"device": "cpu", "feature_dtype": "float16", "with_logits": with_logits}
    for store in ("features", "moments"):
        extract_series(run, tmp_path / store, store=store, **options)
    assert extract_series(run, tmp_path / "moments", store="moments", **options).written == ()
    with pytest.raises(UsageError, match="store 'moments' / 'both'"):
        extract_series(run, tmp_path / "moments", store="both", **options)
    with open_dump(tmp_path / "moments" / "step-000030.h5") as dump:
        assert (dump["test"].features, dump["test"].labels) == (None, None)
    of_features, of_moments = (list(analyze(tmp_path / store)) for store in ("features", "moments"))
    of_second_pass = {metric.name for metric in METRICS if {SECOND_PASS, TRAIN_MEANS} & set(metric.requires)}
    for expected, record in zip(of_features, of_moments, strict=True):
        assert {record.get(name) for name in of_second_pass} == {None}
        for name in expected.keys() - {*of_second_pass, "missing"}:
            value = expected[name]
            assert record[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)


def test_moments_beyond_the_memory_budget_are_refused_before_the_forward_pass(run: Path, tmp_path: Path) -> None:
    message = r"class moments of 10 classes and 16 features take 20,480 bytes, more than `memory=20000`; raise"
    with pytest.raises(UsageError, match=message):
        extract_series(run, tmp_path / "out", device="cpu", store="moments", memory=20_000)
    assert not (tmp_path / "out").exists()
    extract_series(run, tmp_path / "out", device="cpu", store="features", memory=20_000)


def test_a_foreign_checkpoint_needs_a_model_and_data(run: Path, tmp_path: Path) -> None:
    model = build_model("mlp", {"hidden": [16], "input_shape": [1, 8, 8], "classes": 10})
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path / "foreign" / "model-7.safetensors", wrapped)
    with pytest.raises(UsageError, match=r"does not name its data; use `data=`, .*; nor its model: use `model=` too"):
        extract_series(tmp_path / "foreign", tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match="does not name its model; use `model=`"):
        extract_series(tmp_path / "foreign", tmp_path / "out", data="digits", device="cpu")
    options = {"model": "mlp", "model_arguments": {"hidden": [16]}, "data": "digits", "device": "cpu"}
    assert extract_series(tmp_path / "foreign", tmp_path / "out", **options).written == ("model-7",)
    with pytest.raises(DataError, match=r"does not fit the checkpoint; .*missing: .*unexpected"):
        extract_series(tmp_path / "foreign", tmp_path / "b", **(options | {"model": "cnn", "model_arguments": {}}))
    with open_dump(tmp_path / "out" / "model-7.h5") as dump:
        assert dump.step == 7


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"limit": 0}, {"dtype": "int8"}, {"feature_dtype": "bfloat16"}])
def test_invalid_options_are_refused(run: Path, tmp_path: Path, option: dict) -> None:
    [(name, value)] = option.items()
    with pytest.raises(UsageError, match=f"^`{name}={value!r}`: expected"):
        extract_series(run, tmp_path, device="cpu", **option)


def test_an_interruption_leaves_no_dump_and_no_thread(run: Path, tmp_path: Path) -> None:
    class Breaks:
        def __init__(self) -> None:
            self.passed = 0

        def __enter__(self) -> "Breaks":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def task(self, name: str, total: int | None, unit: str = "") -> "Breaks":
            return self

        def message(self, text: str) -> None:
            pass

        def advance(self, amount: int = 1, **facts: object) -> None:
            self.passed += amount
            if self.passed > 1000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_series(run, tmp_path, device="cpu", batch_size=100, progress=Breaks())
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "batches_0"]
    assert len(extract_series(run, tmp_path, device="cpu").written) == 3


def test_more_rows_than_announced_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    block = Block(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2))
    writing = store_writer(tmp_path / "a.h5", None, Storage(), torch.zeros(2, 3))
    with pytest.raises(DataError, match="more rows"), writing as writer:
        writer.write_split("test", [block] * 100, rows=4)
    assert list(tmp_path.iterdir()) == []


def test_extract_accepts_a_module_and_a_loader(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, labels = torch.randn(50, 6), torch.arange(50) % 3
    out = extract(model, DataLoader(TensorDataset(inputs, labels), batch_size=16), tmp_path / "mine.h5", device="cpu")
    with open_dump(out) as dump, torch.no_grad():
        np.testing.assert_allclose(dump["data"].features[:], torch.relu(model[0](inputs)), rtol=1e-5)
        np.testing.assert_array_equal(dump["data"].labels[:], labels)
        assert dump.provenance is None
    with pytest.raises(UsageError, match="exists already"):
        extract(model, [(inputs, labels)], out)
    with pytest.raises(DataError, match="yielded no batch"):
        extract(model, [], tmp_path / "none.h5")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_of_a_series_are_those_of_the_checkpoints_for_any_forward_dtype(
    run: Path, tmp_path: Path, dtype: str
) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for file in (run / "checkpoints").iterdir():
        with open_checkpoint(file) as checkpoint:
            state, raw = checkpoint.state_dict(), checkpoint.raw_metadata
        double = {name: tensor.double() * (1 + 1e-12) for name, tensor in state.items()}
        save_checkpoint(series / file.name, double if "10" in file.name else state, raw)
    extract_series(series, tmp_path / "all", device="cpu", dtype=dtype, splits=["test"])
    for file in series.iterdir():
        extract_series(file, tmp_path / "alone", device="cpu", dtype=dtype, splits=["test"])
        with open_checkpoint(file) as checkpoint:
            weights = checkpoint.state_dict()["3.weight"].double().numpy()
        dumps = [tmp_path / directory / f"{file.stem}.h5" for directory in ("all", "alone")]
        with open_dump(dumps[0]) as in_series, open_dump(dumps[1]) as alone:
            np.testing.assert_array_equal(in_series.weights, weights)
            np.testing.assert_array_equal(alone.weights, weights)
            np.testing.assert_array_equal(in_series["test"].features[:], alone["test"].features[:])


def test_features_that_overflow_float16_are_refused_and_leave_no_dump(run: Path, tmp_path: Path) -> None:
    with open_checkpoint(run / "checkpoints" / "step-000030.safetensors") as checkpoint:
        state, raw = checkpoint.state_dict(), checkpoint.raw_metadata
    state["1.weight"] *= 1e6
    save_checkpoint(tmp_path / "a.safetensors", state, raw)
    for store in ("features", "moments", "both"):
        with pytest.raises(DataError, match="`feature_dtype='float32'`"):
            extract_series(
                tmp_path / "a.safetensors", tmp_path / "d", device="cpu", feature_dtype="float16", store=store
            )
        assert list((tmp_path / "d").iterdir()) == []


def test_an_error_while_writing_leaves_no_thread(run: Path, tmp_path: Path) -> None:
    with open_checkpoint(run / "checkpoints" / "step-000030.safetensors") as checkpoint:
        state, raw = checkpoint.state_dict(), checkpoint.raw_metadata
    state["1.weight"] *= 1e6
    save_checkpoint(tmp_path / "a.safetensors", state, raw)
    # The exception keeps all frames of its traceback alive, so the thread must end without garbage collection.
    with pytest.raises(DataError, match="`feature_dtype='float32'`") as caught:
        extract_series(tmp_path / "a.safetensors", tmp_path / "d", device="cpu", feature_dtype="float16", batch_size=1)
    assert caught.tb is not None
    assert not [thread for thread in threading.enumerate() if thread.name == "batches_0"]


def test_tuples_in_arguments_and_repeated_splits_are_accepted(run: Path, tmp_path: Path) -> None:
    options = {"data_arguments": {"classes": (0, 1)}, "splits": ["test", "test"], "device": "cpu"}
    assert len(extract_series(run, tmp_path, **options).written) == 3
    assert len(extract_series(run, tmp_path, **options).skipped) == 3
    with open_dump(tmp_path / "step-000030.h5") as dump:
        assert dump.splits == ["test"]


@pytest.mark.parametrize("store", ["features", "moments"])
def test_a_label_beyond_the_classifier_is_refused_before_the_forward_pass_of_its_batch(
    tmp_path: Path, store: str
) -> None:
    class Counting(nn.Linear):
        seen = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            Counting.seen += len(input)
            return super().forward(input)

    inputs, labels = torch.randn(12, 4), torch.arange(12) % 3
    labels[6] = 3
    batches = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]
    message = "batch 1: the label of sample 2 is 3, outside 0 … 2, though the classifier gives 3 logits"
    with pytest.raises(DataError, match=message):
        extract(nn.Sequential(Counting(4, 3)), batches, tmp_path / "a.h5", device="cpu", store=store)
    assert Counting.seen == 2 + (2 + 2 + 1) + 4, "samples to find the classifier, to compare runs, and the first batch"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"batch 0: labels: expected numbers of classes, .* found 'a'"):
        extract(nn.Sequential(nn.Linear(4, 3)), [(inputs[:2], ["a", "b"])], tmp_path / "a.h5", device="cpu")


def test_an_index_that_the_model_does_not_have_is_reported(study: Callable[[str], str], tmp_path: Path) -> None:
    model = build_model(study("grokking/modular.py:modular_mlp"), {"modulus": 7, "embedding": 4, "hidden": 6})
    pairs, labels = torch.arange(24).reshape(12, 2) % 7, torch.arange(12) % 7
    pairs[9] = 7
    with pytest.raises(DataError, match="the model does not take some of the samples: they hold an index out of its"):
        extract(model, [(pairs[:6], labels[:6]), (pairs[6:], labels[6:])], tmp_path / "a.h5", device="cpu")


class Scaling(nn.Module):
    """A model that accepts images of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.to(self.head.weight.dtype))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_model_and_inputs_of_the_caller_are_not_changed(tmp_path: Path, kind: torch.dtype) -> None:
    model = nn.Sequential(Scaling().to(kind), nn.Identity())
    model[1].eval()
    images, labels = torch.randint(0, 256, (12, 4), dtype=torch.uint8), torch.arange(12) % 3
    out = extract(model, [(images[:8], labels[:8]), (images[8:], labels[8:])], tmp_path / "mine.h5", device="cpu")
    with open_dump(out) as dump:
        np.testing.assert_array_equal(dump["data"].features[:], images.numpy())
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert model[0].head.weight.dtype == kind
    with pytest.raises(DataError, match="split 'a/b'"):
        extract(model, [(images, labels)], tmp_path / "b.h5", split="a/b")
    with pytest.raises(DataError, match=r"batch 1: inputs and labels: .* found \(4, 4\) and \(3,\)"):
        extract(model, [(images, labels), (images[:4], labels[:3])], tmp_path / "b.h5", device="cpu")
    assert not (tmp_path / "b.h5").exists()
    assert model.training


def test_weights_of_a_float64_checkpoint_are_exact_on_mps(
    run: Path, tmp_path: Path, pretended: Callable[[str], Any]
) -> None:
    with open_checkpoint(run / "checkpoints" / "step-000030.safetensors") as checkpoint:
        state, raw = checkpoint.state_dict(), checkpoint.raw_metadata
    double = {name: tensor.double() * (1 + 1e-12) for name, tensor in state.items()}
    save_checkpoint(tmp_path / "run" / "step-1.safetensors", state, raw)
    save_checkpoint(tmp_path / "run" / "step-2.safetensors", double, raw)
    save_checkpoint(tmp_path / "run" / "step-3.safetensors", state, raw)
    with pretended("mps"):
        extract_series(tmp_path / "run", tmp_path / "dumps", device="mps", splits=["test"])
    for name, expected in (("step-1", state), ("step-2", double), ("step-3", state)):
        with open_dump(tmp_path / "dumps" / f"{name}.h5") as dump:
            np.testing.assert_array_equal(dump.weights, expected["3.weight"].double().numpy())


def test_a_damaged_checkpoint_does_not_keep_the_others_from_extraction(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run / "checkpoints", copy)
    damaged = copy / "step-000010.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"step-000010\.safetensors: tensor '.*' is damaged"):
        extract_series(copy, tmp_path / "out", device="cpu")
    assert sorted(file.name for file in (tmp_path / "out").glob("*")) == ["step-000000.h5", "step-000030.h5"]
    (copy / "step-000000.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"step-000000\.safetensors: tensor '.*' is damaged"):
        extract_series(copy, tmp_path / "first", device="cpu")
    assert list((tmp_path / "first").glob("*.h5")) == []


def test_a_damaged_tensor_is_reported_before_the_forward_pass(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    data = bytearray((run / "checkpoints" / "step-000010.safetensors").read_bytes())
    data[-5] ^= 32
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.safetensors: tensor '.*' is damaged: its bytes are not those written"):
        extract_series(path, tmp_path / "out", device="cpu")
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_checkpoint_that_cannot_be_opened_does_not_keep_the_others_from_extraction(
    run: Path, tmp_path: Path, workers: int
) -> None:
    copy = shutil.copytree(run / "checkpoints", tmp_path / "copy")
    steps = sorted(path.stem for path in copy.glob("*.safetensors"))
    (copy / f"{steps[0]}.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=rf"{steps[0]}\.safetensors"):
        extract_series(copy, tmp_path / "dumps", limit=20, device="cpu", workers=workers)
    assert sorted(path.stem for path in (tmp_path / "dumps").glob("*.h5")) == steps[1:]

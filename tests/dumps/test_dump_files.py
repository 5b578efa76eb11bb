"""Tests of dumps: written completely, readable with h5py and xarray, and dumps of other programs."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray

from ckpt_probe.analysis import analyze
from ckpt_probe.dumps import DumpWriter, Provenance, open_dump, open_dump_series, read_provenance, reading
from ckpt_probe.dumps.writing import Sink
from ckpt_probe.errors import DataError, UsageError


def provenance(**changes: object) -> Provenance:
    values = {
        "checkpoint": "step-000007",
        "checkpoint_size": 123,
        "checkpoint_sha256": "ab" * 32,
        "step": 7,
        "epoch": 0.5,
        "model": "mlp",
        "model_arguments": {"hidden": [4]},
        "data": "digits",
        "data_arguments": {},
        "classifier": "3",
        "forward_dtype": "float32",
        "feature_dtype": "float32",
        "splits": ("train", "test"),
        "limit": None,
        "logits": True,
        "store": "features",
        "device": "cpu",
        "versions": {"torch": "2"},
    }
    return Provenance(**(values | changes))


def arrays(samples: int = 11) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(samples, 5)).astype(np.float32),
        generator.integers(0, 3, samples),
        generator.normal(size=(samples, 3)).astype(np.float32),
    )


WEIGHTS, BIAS = np.arange(15.0).reshape(3, 5), np.array([0.5, 0, 1])


def write(path: Path, origin: Provenance | None = None, **options) -> Path:
    features, labels, logits = arrays()
    with DumpWriter(path, origin, classes=3, features=5, **options) as writer:
        writer.write_classifier(WEIGHTS, BIAS)
        writer.start_split("test", 11)
        writer.append("test", features[:6], labels[:6], logits[:6])
        writer.append("test", torch.tensor(features[6:]), torch.tensor(labels[6:]), torch.tensor(logits[6:]))
        writer.start_split("train", logits=False)
        for start in range(0, 11, 4):
            writer.append("train", features[start : start + 4], labels[start : start + 4])
    return path


def foreign(path: Path, **changes: object) -> Path:
    features, labels, _ = arrays()
    datasets = {"test/features": features, "test/labels": labels, "classifier/weights": WEIGHTS} | changes
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            if value is not None:
                file[name] = value
    return path


def test_a_dump_has_the_written_arrays_and_provenance(tmp_path: Path) -> None:
    features, labels, logits = arrays()
    path = write(tmp_path / "step-000007.h5", provenance())
    with open_dump(path) as dump:
        assert dump.splits == ["train", "test"]
        assert (dump.name, dump.step) == ("step-000007", 7)
        assert dump.provenance == provenance()
        np.testing.assert_array_equal(dump.weights, WEIGHTS)
        np.testing.assert_array_equal(dump.bias, BIAS)
        view = dump["test"]
        assert (view.samples, view.dimension) == (11, 5)
        np.testing.assert_array_equal(view.features[:100], features)
        blocks = list(view.blocks(4))
        assert [len(block[1]) for block in blocks] == [4, 4, 3]
        np.testing.assert_array_equal(np.concatenate([block[2] for block in blocks]), logits)
        assert dump["train"].logits is None
        np.testing.assert_array_equal(dump["train"].labels[:], labels)
        with pytest.raises(DataError, match="no split 'validation'; there are: train, test"):
            dump["validation"]
    assert read_provenance(path) == provenance()


def test_the_documented_names_can_be_read_with_h5py(tmp_path: Path) -> None:
    features, labels, _ = arrays()
    with h5py.File(write(tmp_path / "a.h5", provenance()), "r") as file:
        assert file.attrs["format"].decode() == "ckpt-probe-dump"
        assert file.attrs["format_version"] == 4
        assert bool(file.attrs["complete"])
        np.testing.assert_array_equal(file["test/features"][:], features)
        np.testing.assert_array_equal(file["train/labels"][:], labels)
        np.testing.assert_array_equal(file["classifier/weights"][:], WEIGHTS)
        assert file["test/features"].dims[0].keys() == ["sample"]
        assert file["train/sample"].shape == (11,)


def test_dumps_have_named_dimensions_in_xarray(tmp_path: Path) -> None:
    features, _, _ = arrays()
    path = write(tmp_path / "a.h5", provenance())
    with xarray.open_dataset(path, group="test", engine="h5netcdf") as data:
        assert data["features"].dims == ("sample", "feature")
        assert data["logits"].dims == ("sample", "class")
        np.testing.assert_array_equal(data["features"].values, features)
        assert data["sample"].values.tolist() == list(range(11))
    with xarray.open_dataset(path, group="classifier", engine="h5netcdf") as data:
        assert data["weights"].dims == ("class", "feature")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_features_are_stored_in_the_requested_precision(tmp_path: Path, dtype: str) -> None:
    with open_dump(write(tmp_path / "a.h5", feature_dtype=dtype)) as dump:
        assert dump["test"].features.dtype == np.dtype(dtype)
    with pytest.raises(DataError, match="not as int8"):
        write(tmp_path / "b.h5", feature_dtype="int8")


def test_bfloat16_is_stored_exactly(tmp_path: Path) -> None:
    features = torch.randn(4, 2).bfloat16()
    with DumpWriter(tmp_path / "a.h5", None, classes=2, features=2) as writer:
        writer.start_split("test", 4, logits=False)
        writer.append("test", features, torch.zeros(4, dtype=torch.long))
    with open_dump(tmp_path / "a.h5") as dump:
        np.testing.assert_array_equal(dump["test"].features[:], features.float().numpy())


def test_too_few_or_too_many_rows_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    def fill(rows: int) -> None:
        with DumpWriter(tmp_path / "a.h5", None, classes=2, features=2) as writer:
            writer.start_split("test", 4, logits=False)
            writer.append("test", np.zeros((rows, 2)), np.zeros(rows, dtype=int))

    with pytest.raises(DataError, match="split test got 3 rows, but 4 were announced"):
        fill(3)
    with pytest.raises(DataError, match="more rows than the 4 announced"):
        fill(5)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dump_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        write(path)
    assert path.read_bytes() == before
    write(path, provenance(), overwrite=True)
    assert read_provenance(path) is not None


def test_a_file_of_another_program_has_the_step_of_its_name_or_attribute(tmp_path: Path) -> None:
    with open_dump(foreign(tmp_path / "epoch-3-step-40.h5")) as dump:
        assert dump.step == 40
        assert dump.provenance is None
        assert dump.splits == ["test"]
    assert read_provenance(tmp_path / "epoch-3-step-40.h5") is None
    with h5py.File(tmp_path / "epoch-3-step-40.h5", "a") as file:
        file.attrs["step"] = 99
    assert [member.step for member in open_dump_series(tmp_path)] == [99]


def test_a_dump_without_the_mark_of_completion_is_refused_as_interrupted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", provenance())
    with h5py.File(path, "a") as file:
        del file.attrs["complete"]
    for opener in (open_dump_series, read_provenance):
        with pytest.raises(DataError, match=r"a\.h5: incomplete: writing it was interrupted"):
            opener(path)
    with pytest.raises(DataError, match="interrupted"), open_dump(path):
        pass


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 5
    with pytest.raises(DataError, match="dump format 5, but this ckpt-probe reads formats up to 4"), open_dump(path):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test/labels": None}, "features without labels"),
        (
            {"test/labels": np.zeros(10, dtype=int)},
            "labels: expected integers of shape .N,., N = 11 as in test/features, found",
        ),
        ({"test/labels": np.zeros(11)}, "labels: expected integers of shape"),
        ({"test/features": np.zeros((11, 5), dtype=int)}, "features: expected floating-point numbers of shape"),
        ({"test/features": np.zeros(11)}, "features: expected"),
        ({"test/features": None}, "no split"),
        ({"test/logits": np.zeros((9, 3))}, "logits: expected numbers of shape .N, C., N = 11 as in test/features"),
        ({"test/logits": np.zeros((11, 4))}, "logits: expected .*, C = 3 as in classifier/weights, found"),
        ({"classifier/weights": np.zeros((3, 6))}, "features: expected .*, D = 6 as in classifier/weights, found"),
        ({"classifier/weights": np.zeros(3)}, "classifier/weights: expected floating-point numbers of shape"),
    ],
)
def test_missing_and_inconsistent_arrays_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = foreign(tmp_path / "a.h5", **changes)
    with pytest.raises(DataError, match=rf"a\.h5.*{message}"), open_dump(path):
        pass


def test_files_that_are_not_dumps_are_refused(tmp_path: Path) -> None:
    intact = write(tmp_path / "intact.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(intact[: len(intact) // 2])
    (tmp_path / "text.h5").write_text("text")
    for name in ("cut", "text"):
        with (
            pytest.raises(DataError, match=rf"{name}\.h5: not an HDF5 file, or a truncated one"),
            open_dump(tmp_path / f"{name}.h5"),
        ):
            pass
    (tmp_path / "step-5.safetensors").write_text("weights")
    with pytest.raises(DataError, match=r"step-5\.safetensors: a checkpoint, not a dump; extract it first"):
        open_dump_series(tmp_path / "step-5.safetensors")
    with pytest.raises(DataError, match="no such file"), open_dump(tmp_path / "missing.h5"):
        pass
    with pytest.raises(DataError, match="a directory; expected one file"), open_dump(tmp_path):
        pass


def test_a_series_is_in_order_and_an_empty_directory_is_refused(tmp_path: Path) -> None:
    for name in ("step-10", "step-9", "last"):
        foreign(tmp_path / f"{name}.h5")
    assert [member.name for member in open_dump_series(tmp_path)] == ["step-9", "step-10", "last"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no dump found \(looked for"):
        open_dump_series(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file or directory"):
        open_dump_series(tmp_path / "missing")


def test_invalid_provenance_is_refused_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", provenance())
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
        file.attrs["model_arguments"] = "{"
    with pytest.raises(DataError, match=r"a\.h5: the provenance attributes cannot be read"):
        read_provenance(path)


def test_differences_name_each_field() -> None:
    assert provenance().differences(provenance(device="cuda", versions={})) == []
    assert provenance(limit=5).differences(provenance(model="cnn")) == ["model 'mlp' / 'cnn'", "limit 5 / None"]


KILLED = """
import sys, time
import numpy as np
from ckpt_probe.dumps import DumpWriter
with DumpWriter(sys.argv[1], None, classes=3, features=5, overwrite=True) as writer:
    writer.start_split("test", 11, logits=False)
    writer.append("test", np.zeros((6, 5)), np.zeros(6, dtype=int))
    print("writing", flush=True)
    time.sleep(60)
"""


def test_kill_9_while_writing_leaves_the_old_dump(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", provenance())
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert path.read_bytes() == before
    assert [member.name for member in open_dump_series(tmp_path)] == ["a"]
    write(path, provenance(), overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, signal, sys
import numpy as np
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
# Under this limit a module compiled now would leave truncated bytecode for later imports.
sys.dont_write_bytecode = True
try:
    with DumpWriter(sys.argv[1], None, classes=3, features=64) as writer:
        writer.write_classifier(np.zeros((3, 64)), np.zeros(3))
        for split in ("train", "test"):
            writer.start_split(split, 500)
            for start in range(0, 500, 100):
                rows = np.full((100, 64), start, dtype=np.float32)
                writer.append(split, rows, np.zeros(100, dtype=np.int64), np.zeros((100, 3)))
except DataError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("limit", [1_000, 20_000, 140_000, 200_000, 280_000])
def test_a_full_disk_is_a_one_line_error_and_no_crash(tmp_path: Path, limit: int, commands: Any) -> None:
    path = tmp_path / "dump.h5"
    words = commands.python(FULL, path, limit)
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (1, f"error: {path}: cannot be written: File too large\n")
    assert list(tmp_path.iterdir()) == []
    free = subprocess.run([*words[:-1], "10000000"], capture_output=True, text=True, timeout=600)
    assert (free.returncode, free.stderr) == (0, "")
    with open_dump(path) as dump:
        assert dump["test"].features[450, 0] == 400


def test_no_method_that_hdf5_calls_raises() -> None:
    # In Python 3.13 h5py makes a SystemError of an exception that an earlier call of HDF5 left behind.
    with Sink("/dev/full", "r+") as sink:
        assert sink.truncate(10) == 10
        assert sink.failure is not None
        assert sink.failure.errno == errno.EINVAL
        assert sink.write(b"abc") == 3
    with Sink("/dev/full", "r+") as sink:
        assert sink.write(b"abc") == 3
        assert sink.failure is not None
        assert sink.failure.errno == errno.ENOSPC


def test_an_error_of_the_caller_is_not_reported_as_one_of_the_dump(tmp_path: Path) -> None:
    path = write(tmp_path / "step-000007.h5", provenance())
    with pytest.raises(FileNotFoundError), open_dump(path):
        (tmp_path / "nowhere").read_text()


def test_a_dump_in_the_other_byte_order_has_the_same_record(tmp_path: Path) -> None:
    features, labels, _ = arrays()
    path = foreign(tmp_path / "a.h5", **{"test/features": features.astype(">f4"), "test/labels": labels.astype(">i8")})
    other = foreign(tmp_path / "b.h5")
    [actual], [expected] = ([*analyze(file, cache=False)] for file in (path, other))
    assert {**actual, "checkpoint": "b"} == expected


@pytest.mark.parametrize(("step", "text"), [("final", "'final'"), (2.5, r"np\.float64\(2\.5\)")])
def test_a_step_that_is_not_a_whole_number_is_refused(tmp_path: Path, step: str | float, text: str) -> None:
    path = foreign(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.attrs["step"] = step
    with pytest.raises(DataError, match=rf"a\.h5: attribute step is {text}"), open_dump(path):
        pass


@pytest.mark.parametrize("name", ["class", "feature", "classifier", "a/b", "", "."])
def test_invalid_names_of_splits_are_refused(tmp_path: Path, name: str) -> None:
    def fill() -> None:
        with DumpWriter(tmp_path / "a.h5", provenance(), classes=3, features=4) as writer:
            writer.start_split(name)

    with pytest.raises(DataError, match=f"split '{name}': not a valid name for a split in a dump"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_arguments_are_compared_as_json_stores_them() -> None:
    lists, tuples = (provenance(data_arguments={"classes": kind([0, 1])}) for kind in (list, tuple))
    assert tuples.differences(lists) == []
    expected = r"model_arguments: a dump can store only numbers, text, .*: Object of type PosixPath"
    with pytest.raises(UsageError, match=expected):
        provenance(model_arguments={"folder": Path("a")})


def test_a_step_may_be_an_array_of_one_number(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.h5")
    for value in (np.array([5]), np.float64(5), "5"):
        with h5py.File(path, "a") as file:
            file.attrs["step"] = value
        with open_dump(path) as dump:
            assert dump.step == 5
    for value in (np.array([5, 6]), np.nan):
        with h5py.File(path, "a") as file:
            file.attrs["step"] = value
        with pytest.raises(DataError, match="expected one integer"):
            open_dump_series(path)


@pytest.mark.parametrize(("dtype", "size", "wider"), [("float16", 7e4, "float32"), ("float32", 1e39, "float64")])
def test_features_that_overflow_their_precision_are_refused_and_leave_no_file(
    tmp_path: Path, dtype: str, size: float, wider: str
) -> None:
    features = np.full((3, 2), -size)
    features[0] = np.inf, np.nan

    def fill(rows: np.ndarray) -> None:
        with DumpWriter(tmp_path / "a.h5", None, classes=2, features=2, feature_dtype=dtype) as writer:
            writer.start_split("test", len(rows), logits=False)
            writer.append("test", rows, np.zeros(len(rows), dtype=int))

    with pytest.raises(
        DataError, match=f"a.h5: test: features as large as .* overflow {dtype}, .* `feature_dtype='{wider}'`$"
    ) as error:
        fill(features)
    assert f"as large as {size:.6g}" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    fill(features[:1])


def test_an_unchanged_file_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    check = reading._check_format
    monkeypatch.setattr(reading, "_check_format", lambda path, *rest: checked.append(path.name) or check(path, *rest))
    path = write(tmp_path / "step-000007.h5", provenance())
    # The time of modification is in the future, as if the file had just been written.
    os.utime(path, ns=(0, 4 * 10**18))
    for _ in range(2):
        open_dump_series(tmp_path)
    assert len(checked) == 2, "a file that was just written may be written again within the same tick of the clock"
    os.utime(path, ns=(0, 10**18))
    for _ in range(3):
        open_dump_series(tmp_path)
        read_provenance(path)
    assert len(checked) == 3
    with h5py.File(path, "a") as file:
        file["test/labels"].attrs["note"] = "not what was written"
    os.utime(path, ns=(0, 10**18 + 1))
    with pytest.raises(DataError, match="damaged: names or attributes differ"):
        open_dump_series(tmp_path)


def test_a_replaced_file_is_checked_again(tmp_path: Path) -> None:
    path = write(tmp_path / "step-000007.h5", provenance())
    other = write(tmp_path / "other.h5", provenance())
    with h5py.File(other, "a") as file:
        file["test/labels"].attrs["note"] = "not what was written"
    for dump in (path, other):
        os.utime(dump, ns=(0, 10**18))
    with open_dump(path) as dump:
        assert dump.step == 7
    other.replace(path)
    with pytest.raises(DataError, match="damaged"), open_dump(path):
        pass

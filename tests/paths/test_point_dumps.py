"""Tests of dumps of a path's points: analyze gives the numbers of the records; dumps are stored on request only."""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_probe.analysis import analyze
from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.data import load_data
from ckpt_probe.dumps import open_dump, read_provenance
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import Setup, Storage, store_writer
from ckpt_probe.models import build_model
from ckpt_probe.paths import evaluate_path
from ckpt_probe.paths import survey as survey_module
from ckpt_probe.paths.ledger import Ledger
from ckpt_probe.paths.options import PathOptions
from ckpt_probe.paths.shapes import linear
from ckpt_probe.progress import NullProgress

HERE = {"device": "cpu", "points": 3}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> tuple[Path, Path]:
    model = {"name": "resnet", "arguments": {"blocks": [1], "width": 6}}
    run = train_digits(tmp_path_factory.mktemp("run"), [10, 20], model=model)
    first, second = (run / "checkpoints" / f"step-{step:06d}.safetensors" for step in (10, 20))
    return first, second


@pytest.mark.parametrize("fits_in_memory", [True, False])
def test_analyzing_dumps_gives_the_numbers_of_the_records(
    ends: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits_in_memory: bool
) -> None:
    if not fits_in_memory:
        monkeypatch.setattr(survey_module, "CACHE_BYTES", 0)
    result = evaluate_path(*ends, tmp_path / "path", keep_dumps=True, span=(-0.5, 1.0), **HERE)
    assert {p["alpha"] for p in result.points} == {-0.5, 0, 0.25, 1}
    analyzed = list(analyze(tmp_path / "path" / "dumps"))
    assert [record["checkpoint"] for record in analyzed[::2]] == [
        "alpha--0.500000", "alpha-0.000000", "alpha-0.250000", "alpha-1.000000",
    ]  # fmt: skip
    compared = 0
    for point, record in zip(result.points, analyzed, strict=True):
        assert (point["split"], round(point["alpha"] * 1e6)) == (record["split"], record["step"])
        for name, value in record.items():
            if isinstance(value, float):
                assert point[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
                compared += 1
    assert compared > 8 * 20


def test_a_dump_states_its_provenance(ends: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate_path(*ends, tmp_path / "path", keep_dumps=True, splits=["test"], batchnorm="interpolate", **HERE)
    file = tmp_path / "path" / "dumps" / "alpha-0.500000.h5"
    provenance = read_provenance(file)
    assert provenance is not None
    assert provenance.checkpoint == "step-000010 to step-000020, alpha 0.5"
    assert (provenance.model, provenance.data, provenance.splits) == ("resnet", "digits", ("test",))
    assert len(provenance.checkpoint_sha256) == 64
    states = []
    for end in ends:
        with open_checkpoint(end) as checkpoint:
            states.append(checkpoint.state_dict())
    model = build_model("resnet", {"blocks": [1], "width": 6, "input_shape": [1, 8, 8], "classes": 10}).eval()
    model.load_state_dict(linear(*states, 0.5))
    inputs, labels = load_data("digits").split("test").batch(slice(None))
    with torch.no_grad(), open_dump(file) as dump:
        view = dump["test"]
        torch.testing.assert_close(torch.from_numpy(view.logits[:]), model(inputs), rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.from_numpy(view.labels[:]), labels)
        rebuilt = view.features[:].astype("float64") @ dump.weights.T + dump.bias
        torch.testing.assert_close(torch.from_numpy(rebuilt).float(), model(inputs), rtol=1e-4, atol=1e-5)


def test_dumps_are_stored_on_request_only_and_replaced_with_the_path(
    ends: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "path"
    evaluate_path(*ends, out, splits=["test"], **HERE)
    assert sorted(file.name for file in out.iterdir()) == ["path.json", "plan.json", "points.jsonl"]
    words = [
        "interpolate",
        *map(str, ends),
        "-o",
        str(out),
        "--split",
        "test",
        "--device",
        "cpu",
        "--set",
        "keep_dumps=true",
    ]
    assert run([*words, "--points", "5", "--overwrite"]) == 0
    assert len(list((out / "dumps").iterdir())) == 5
    (out / "dumps" / "mine.h5").write_text("mine")
    assert run([*words, "--points", "4", "--overwrite"]) == 0
    names = {file.name for file in (out / "dumps").iterdir()}
    assert names == {*(f"alpha-{alpha}.h5" for alpha in ("0.000000", "0.333333", "0.666667", "1.000000")), "mine.h5"}
    (out / "path.json").unlink()
    with pytest.raises(UsageError, match=r"another path .*dumps True / None"):
        evaluate_path(*ends, out, splits=["test"], **{**HERE, "points": 4})
    # A point with a dump but without a record is evaluated again.
    lines = (out / "points.jsonl").read_text().splitlines(keepends=True)
    (out / "points.jsonl").write_text("".join(lines[:2]))
    assert run([*words, "--points", "4"]) == 0
    assert [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()] == [
        json.loads(line) for line in lines
    ]


FULL = "cannot be written: File too large"
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
# Bytecode files would be cut off at the limit, and the next import of the module would read them.
sys.dont_write_bytecode = True
from ckpt_probe.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def test_a_full_disk_leaves_no_incomplete_file(ends: tuple[Path, Path], tmp_path: Path, commands: Any) -> None:
    out = tmp_path / "out"
    words = ["interpolate", *map(str, ends), "-o", str(out), "--device", "cpu", "--split", "test", "--points", "3"]
    words += ["--align", "permutation", "--set", "keep_dumps=true"]
    done = subprocess.run(commands.python(LIMITED, *words), capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (1, f"error: {out / 'aligned.safetensors'}: {FULL}\n")
    assert [file.name for file in out.rglob("*")] == ["plan.json"]
    assert run(words) == 0
    assert (out / "path.json").exists()


@pytest.mark.parametrize("failure", ["writer", "features"])
def test_a_failed_evaluation_leaves_no_thread(
    ends: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setattr(survey_module, "CACHE_BYTES", 0)
    setup, ledger = Setup(device="cpu", batch_size=1), Ledger(tmp_path / "p", "path")
    survey = survey_module.Survey(survey_module.Job(ends, setup, PathOptions(batchnorm="interpolate"), ledger))
    subject = survey.subject
    *_, scale, shift = (p for name, p in subject.model.named_parameters() if not name.startswith(subject.classifier))
    scale.data.fill_(1e6 if failure == "writer" else torch.nan)
    shift.data.fill_(1e6)
    storage = Storage(feature_dtype="float16")
    # The raised exception keeps its traceback and all local variables alive, so that garbage collection ends no thread.
    with (
        pytest.raises(DataError, match="NaN" if failure == "features" else "`feature_dtype='float32'`") as error,
        store_writer(tmp_path / "a.h5", None, storage, subject.weights, subject.bias) as writer,
    ):
        survey.record("test", NullProgress(), writer=writer if failure == "writer" else None)
    assert error.tb is not None
    assert not [thread for thread in threading.enumerate() if thread.name == "batches_0"]

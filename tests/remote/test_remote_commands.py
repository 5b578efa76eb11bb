"""Tests of commands on addresses: the numbers of local files, and no credentials in any output or file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ckpt_probe.analysis import analyze
from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.dumps import open_dump
from ckpt_probe.extraction import extract_series

Probe = Callable[..., tuple[int, str, str]]
SECRET, SIGNATURE = "hunter2-hunter2", "0123456789abcdef-signature"


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Return a function that runs a command in the test's directory and returns exit code, output and messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> tuple[int, str, str]:
        code = run([*map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.strip()

    return call


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def write_run(folder: Path, data: str | None = None) -> None:
    """Write two checkpoints of a small network, with metadata that state the model."""
    for step in (1, 2):
        torch.manual_seed(step)
        metadata = CheckpointMetadata(
            model="mlp", model_arguments={"input_shape": [4], "classes": 3, "hidden": [6]}, data=data, step=step
        )
        save_checkpoint(folder / f"step-{step}.safetensors", network().state_dict(), metadata)


def write_data(file: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 4)).astype(np.float32)
    np.savez(file, x_test=x, y_test=np.arange(60) % 3)


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    """Return dumps that are extracted locally from the run and its data."""
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run")
    write_data(tmp_path / "data.npz")
    extract_series(tmp_path / "run", tmp_path / "dumps", data=f"npz:{tmp_path / 'data.npz'}", device="cpu")
    return tmp_path / "dumps"


def test_extraction_from_s3_with_data_from_the_web_gives_the_local_features(
    probe: Probe, s3: Any, web: Any, dumps: Path, tmp_path: Path
) -> None:
    s3.put_all("commands", "run", tmp_path / "run")
    write_data(web.folder / "data.npz")
    data = web.at("data.npz", f"ann:{SECRET}") + f"?X-Amz-Signature={SIGNATURE}"
    web.required = SIGNATURE
    code, _, messages = probe("extract", "s3://commands/run", "-o", "away", "--device", "cpu", "--data", f"npz:{data}")
    assert (code, messages.splitlines()[-1]) == (0, "away: 2 dumps written, 0 already complete")
    assert not any(secret in messages for secret in (SECRET, SIGNATURE))
    for name in ("step-1", "step-2"):
        with open_dump(tmp_path / "away" / f"{name}.h5") as away, open_dump(dumps / f"{name}.h5") as local:
            assert np.array_equal(away["test"].features[:], local["test"].features[:])
            assert away.provenance is not None
            assert local.provenance is not None
            assert away.provenance.data == f"npz:{web.at('data.npz')}"
            [difference] = away.provenance.differences(local.provenance)
            assert difference.startswith("data ")
    # A second call of the command finds the dumps complete.
    code, _, messages = probe("extract", "s3://commands/run", "-o", "away", "--device", "cpu", "--data", f"npz:{data}")
    assert (code, messages) == (0, "away: 0 dumps written, 2 already complete")


def test_worker_processes_read_addresses(probe: Probe, s3: Any, web: Any, dumps: Path, tmp_path: Path) -> None:
    s3.put_all("commands", "workers", tmp_path / "run")
    write_data(web.folder / "data.npz")
    web.required = SIGNATURE
    data = web.at("data.npz") + f"?sig={SIGNATURE}"
    words = ("s3://commands/workers", "-o", "two", "--device", "cpu", "--data", f"npz:{data}", "--workers", 2)
    code, _, messages = probe("extract", *words)
    assert (code, messages.splitlines()[-1]) == (0, "two: 2 dumps written, 0 already complete")
    with open_dump(tmp_path / "two" / "step-2.h5") as away, open_dump(dumps / "step-2.h5") as local:
        assert np.array_equal(away["test"].features[:], local["test"].features[:])


def test_analysis_of_dumps_on_s3_gives_the_local_records_and_caches_them(
    probe: Probe, s3: Any, dumps: Path, tmp_path: Path, cache: Path
) -> None:
    s3.put_all("commands", "dumps", dumps)
    local = analyze(dumps)
    code, out, _ = probe("analyze", "s3://commands/dumps/", "--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == json.loads(json.dumps(list(local)))
    s3.forget()
    code, again, messages = probe("analyze", "s3://commands/dumps/", "--json")
    assert (code, again) == (0, out)
    assert "2 of 2 dumps are from the cache" in messages
    assert s3.sent < (dumps / "step-1.h5").stat().st_size
    assert not (tmp_path / "s3:").exists()


def test_inspect_prints_the_same_for_a_file_and_its_address(probe: Probe, s3: Any, dumps: Path, tmp_path: Path) -> None:
    s3.put_all("commands", "inspect", tmp_path / "run")
    s3.put_all("commands", "inspect-dumps", dumps)
    for local, away in (
        ("run/step-1.safetensors", "s3://commands/inspect/step-1.safetensors"),
        ("dumps/step-1.h5", "s3://commands/inspect-dumps/step-1.h5"),
    ):
        descriptions = [json.loads(probe("inspect", path_or_address, "--json")[1]) for path_or_address in (local, away)]
        assert [descriptions[0].pop("file"), descriptions[1].pop("file")] == [local, away]
        assert descriptions[0] == descriptions[1]
    code, out, _ = probe("inspect", "s3://commands/inspect")
    assert code == 0
    assert "step-2" in out
    code, out, _ = probe("inspect", "s3://commands/inspect/step-1.safetensors", "--verify")
    assert "tensors are as written" in out


def test_a_copy_in_a_series_of_addresses_is_named_by_inspect(
    probe: Probe, s3: Any, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "series").mkdir()
    states = [{"a": torch.randn(300, 400), "b": torch.randn(400, 300)} for _ in range(6)]
    states[3] = states[1]
    for step, state in enumerate(states):
        save_file(state, tmp_path / "series" / f"step-{step}.safetensors")
    s3.put_all("commands", "series", tmp_path / "series")
    local, away = (json.loads(probe("inspect", at, "--json")[1]) for at in ("series", "s3://commands/series"))
    assert away["audit"] == local["audit"]
    assert "holds the weights of step" in away["audit"]["verdict"]


def test_weights_without_data_are_read_from_an_address(probe: Probe, s3: Any, tmp_path: Path) -> None:
    tensors = {"backbone": torch.randn(1000, 1000), "head.weight": torch.randn(10, 64)}
    save_file(tensors, tmp_path / "step-1.safetensors")
    s3.put("commands", "weights/step-1.safetensors", tmp_path / "step-1.safetensors")
    s3.forget()
    code, out, _ = probe("weights", "s3://commands/weights", "--set", "classifier=head", "--json")
    assert (code, json.loads(out)["classifier"]) == (0, "head.weight")
    assert s3.sent < 200_000


def test_interpolation_between_addresses_equals_that_of_local_files(probe: Probe, s3: Any, dumps: Path) -> None:
    s3.put_all("commands", "ends", dumps.parent / "run")
    for name, directory in (("away", "s3://commands/ends"), ("local", "run")):
        ends = [f"{directory}/step-{step}.safetensors" for step in (1, 2)]
        code, _, messages = probe("interpolate", *ends, "--alpha", "0.25", "-o", f"{name}.safetensors")
        assert code == 0, messages
    assert (dumps.parent / "away.safetensors").read_bytes() == (dumps.parent / "local.safetensors").read_bytes()


def test_folders_of_images_are_downloaded(probe: Probe, s3: Any, tmp_path: Path) -> None:
    from PIL import Image

    from ckpt_probe.opening import load_data

    for name in ("ant", "bee"):
        (tmp_path / "photos" / "test" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (5, 6), (number, 7, 9)).save(tmp_path / "photos" / "test" / name / f"{number}.png")
    s3.put_all("commands", "photos", tmp_path / "photos")
    arguments = {"resize": 6, "crop": 6}
    away = load_data("imagefolder:s3://commands/photos", arguments, workers=0)
    local = load_data(f"imagefolder:{tmp_path / 'photos'}", arguments, workers=0)
    assert away.name == "imagefolder:s3://commands/photos"
    assert (away.class_names, away.classes) == (local.class_names, 2)
    remote_batch, local_batch = (data.split("test").batch(slice(0, 6)) for data in (away, local))
    assert torch.equal(torch.as_tensor(remote_batch[0]), torch.as_tensor(local_batch[0]))
    assert torch.equal(torch.as_tensor(remote_batch[1]), torch.as_tensor(local_batch[1]))


def test_no_credential_is_in_any_output_dump_record_or_name(
    probe: Probe, s3: Any, web: Any, dumps: Path, tmp_path: Path, cache: Path
) -> None:
    for file in [*(tmp_path / "run").iterdir(), *dumps.iterdir()]:
        if file.is_file():
            (web.folder / file.name).write_bytes(file.read_bytes())
    write_data(web.folder / "data.npz")
    (web.folder / "broken.safetensors").write_bytes(b"\xff" * 100)
    web.required = SIGNATURE

    def signed(name: str) -> str:
        return f"{web.at(name, f'ann:{SECRET}')}?X-Amz-Credential=AKID&X-Amz-Signature={SIGNATURE}"

    step = signed("step-1.safetensors")
    results = [
        probe("inspect", step),
        probe("inspect", step, "--json"),
        probe("extract", step, "-o", "out", "--device", "cpu", "--data", f"npz:{signed('data.npz')}"),
        probe("analyze", signed("step-1.h5"), "--json", "-o", "records.jsonl"),
        probe("report", "out", "records.jsonl", "-o", "report.html"),
        probe("inspect", signed("none.safetensors")),
        probe("inspect", signed("broken.safetensors")),
        probe("inspect", "--debug", signed("broken.safetensors")),
        probe("inspect", web.at("step-1.safetensors", f"ann:{SECRET}x") + "?sig=wrong-signature", "--debug"),
        probe("extract", step, "-o", signed("out"), "--data", "digits"),
        probe("extract", step, "-o", "other", "--device", "cpu", "--data", f"nonsense:{signed('data.npz')}"),
        probe("train", signed("config.toml"), "-o", "never"),
        probe("analyze", signed("step-1.safetensors")),
    ]
    assert [code for code, _, _ in results] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 1], results
    files_written = [file for file in tmp_path.rglob("*") if file.is_file() and web.folder not in file.parents]
    assert {file.suffix for file in files_written} >= {".h5", ".jsonl", ".html", ".json"}
    texts = [text.encode() for _, out, messages in results for text in (out, messages)]
    texts += [str(file).encode() for file in files_written] + [file.read_bytes() for file in files_written]
    for secret in (SECRET, SIGNATURE, "AKID", s3.client._request_signer._credentials.secret_key):
        assert not [text[:200] for text in texts if secret.encode() in text]


def test_a_directory_of_transformers_is_extracted_with_its_configuration(
    probe: Probe, s3: Any, tmp_path: Path, cache: Path
) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit" / "checkpoint-3")
    s3.put_all("commands", "vit", tmp_path / "vit")
    images = np.random.default_rng(0).random((12, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "images.npz", x_test=images, y_test=np.arange(12) % 3)
    for directory, out in (("s3://commands/vit", "away"), ("vit", "local")):
        words = ("-o", out, "--device", "cpu", "--data", f"npz:{tmp_path / 'images.npz'}")
        code, _, messages = probe("extract", directory, *words)
        assert code == 0, messages
    with open_dump(tmp_path / "away" / "checkpoint-3.h5") as away, open_dump("local/checkpoint-3.h5") as local:
        assert np.array_equal(away["test"].features[:], local["test"].features[:])
        assert away.provenance is not None
        assert away.provenance.model == "hf:s3://commands/vit/checkpoint-3"
    assert str(cache).encode() not in (tmp_path / "away" / "checkpoint-3.h5").read_bytes()


def test_data_at_an_address_named_by_a_checkpoint_are_not_downloaded(probe: Probe, web: Any, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    write_data(web.folder / "data.npz")
    write_run(tmp_path / "foreign", data=f"npz:{web.at('data.npz')}")
    code, _, messages = probe("extract", "foreign", "-o", "out", "--device", "cpu")
    assert code == 2
    assert f"names data at npz:{web.at('data.npz')}, which are not fetched" in messages
    assert web.requests == []
    code, _, _ = probe("extract", "foreign", "-o", "out", "--device", "cpu", "--data", f"npz:{web.at('data.npz')}")
    assert code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("extract", "run", "-o", "s3://b/dumps"),
        ("analyze", "dumps", "--out=https://h/records.jsonl"),
        ("average", "a", "b", "-os3://b/mean.safetensors"),
        ("report", "dumps", "--out", "gs://b/report.html"),
    ],
)
def test_an_output_at_an_address_is_refused_first(probe: Probe, words: tuple[str, ...]) -> None:
    code, out, messages = probe(*words)
    assert (code, out) == (2, "")
    assert messages.endswith("results are written to local files only; write there, then copy them")
    assert not Path("s3:").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report", "s3://b/dumps", "-o", "page.html"), "s3://b/dumps: report reads local files only"),
        (("extract", "s3://b/run", "-o", "dumps", "--follow"), "s3://b/run: extract reads local files only"),
        (
            ("train", "https://u:pw@h/run.toml", "-o", "run"),
            "https://h/run.toml: train reads local files only",
        ),
    ],
)
def test_commands_that_read_local_files_only_refuse_addresses(
    probe: Probe, words: tuple[str, ...], message: str
) -> None:
    assert probe(*words) == (2, "", f"error: {message}; download it and name the copy")


def test_outside_data_at_an_address_are_refused(probe: Probe, dumps: Path) -> None:
    code, _, messages = probe("analyze", "dumps", "--set", "outside=s3://b/others")
    assert (code, messages) == (2, "error: s3://b/others: dumps of other data must be local; download them first")


def test_results_from_addresses_equal_those_from_local_files(probe: Probe, s3: Any, dumps: Path) -> None:
    s3.put_all("commands", "verbs", dumps.parent / "run")
    s3.put_all("commands", "verb-dumps", dumps)
    data = ("--data", f"npz:{dumps.parent / 'data.npz'}", "--device", "cpu")
    for directory, dumped in (("s3://commands/verbs", "s3://commands/verb-dumps"), ("run", "dumps")):
        ends, name = [f"{directory}/step-{step}.safetensors" for step in (1, 2)], directory.partition(":")[0]
        results = [
            probe("interpolate", *ends, "-o", f"path-{name}", "--points", 3, *data),
            probe("average", *ends, "-o", f"mean-{name}.safetensors"),
            probe("prune", ends[0], "-o", f"pruned-{name}", "--sparsity", "0.5"),
            probe("analyze", dumped, "-o", f"{name}.jsonl"),
        ]
        assert [code for code, _, _ in results] == [0, 0, 0, 0], results
    for file in ("path-{}/points.jsonl", "mean-{}.safetensors", "{}.jsonl"):
        from_addresses, from_files = ((dumps.parent / file.format(name)) for name in ("s3", "run"))
        assert from_addresses.read_bytes() == from_files.read_bytes(), file


@pytest.mark.parametrize(
    ("package", "address"),
    [
        ("s3fs", "s3://b/a.pt"),
        ("gcsfs", "gs://b/a.pt"),
        ("aiohttp", "https://h/a.pt"),
        ("huggingface_hub", "hf://a/b/c.pt"),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(package: str, address: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None; from ckpt_probe.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", address], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f'error: {package} is not installed; pip install "ckpt-probe[remote]"\n'


def test_commands_on_local_files_load_no_client_and_open_no_socket(dumps: Path) -> None:
    program = """
import sys
asked = {"socket.connect", "socket.getaddrinfo"}
sys.addaudithook(lambda event, _: event in asked and sys.exit(f"{event} of a local file"))
from ckpt_probe.cli.app import run
assert run(["inspect", sys.argv[1]]) == 0
found = {"fsspec", "aiohttp", "s3fs", "tenacity", "huggingface_hub"} & set(sys.modules)
assert not found, found
run(["analyze", sys.argv[2], "--json"])
print(sorted({"aiohttp", "s3fs", "tenacity", "gcsfs"} & set(sys.modules)))
"""
    words = [sys.executable, "-c", program, str(dumps.parent / "run" / "step-1.safetensors"), str(dumps)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"

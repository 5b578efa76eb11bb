"""Tests of one checkpoint extracted by several workers: the dump equals that of one process, and no files are left."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import build_model
from ckpt_probe.progress import MessageLog

OPTIONS = {"device": "cpu", "batch_size": 50}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> Path:
    return train_digits(tmp_path_factory.mktemp("run"), [4], hidden=[8]) / "checkpoints"


def contents(path: Path) -> dict[str, Any]:
    """Return every array and attribute of a dump, except the recorded call and the hash that contains it."""
    items: dict[str, Any] = {}
    with h5py.File(path) as file:
        items |= {f"/{name}": str(value) for name, value in file.attrs.items()}

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                items[name] = (str(item.dtype), item.shape, item[()].tobytes())
            items.update({f"{name}/{key}": str(v) for key, v in item.attrs.items() if "LIST" not in key})

        file.visititems(visit)
    return {name: value for name, value in items.items() if name not in {"/request", "/structure_sha256"}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"store": "both", "max_rows": 100, "feature_dtype": "float16"},
        {"store": "moments", "layers": "all", "limit": 333, "splits": ["test"]},
    ],
)
def test_dumps_equal_those_of_one_process_bit_for_bit(trained: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    extract_series(trained, tmp_path / "single", **OPTIONS, **options)
    extract_series(trained, tmp_path / "shared", rows_per_task=120, workers=2, **OPTIONS, **options)
    names = sorted(file.name for file in (tmp_path / "single").iterdir())
    assert sorted(file.name for file in (tmp_path / "shared").iterdir()) == names
    assert len(names) == 2
    for name in names:
        assert contents(tmp_path / "shared" / name) == contents(tmp_path / "single" / name)


def test_positions_of_a_language_model_have_the_order_of_one_process(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[UNK]", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    letters = np.random.default_rng(0).choice(list("abcdefgh"), 700)
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(letters[i : i + 35]) for i in range(0, 700, 35)))
    options = {"data": f"text:{tmp_path / 'text.txt'}", "data_arguments": {"context": 8}, "batch_size": 5}
    for name, division in {"single": {}, "shared": {"rows_per_task": 20, "workers": 2}}.items():
        extract_series(tmp_path / "model", tmp_path / name, device="cpu", **options, **division)
    [single], [shared] = ([*(tmp_path / name).iterdir()] for name in ("single", "shared"))
    assert contents(shared) == contents(single)
    assert any(name.endswith("prediction") for name in contents(single))


def write_pictures(directory: Path, damaged: tuple[int, ...]) -> Path:
    random = np.random.default_rng(0)
    for number in range(60):
        file = directory / "test" / "ab"[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
        if number in damaged:
            file.write_bytes(file.read_bytes()[:40])
    return directory


def checkpoint(directory: Path) -> Path:
    torch.manual_seed(0)
    network = build_model("mlp", {"hidden": [4], "input_shape": [3, 8, 8], "classes": 2})
    metadata = CheckpointMetadata(step=1, model="mlp", model_arguments={"hidden": [4]})
    save_checkpoint(directory / "step-000001.safetensors", network.state_dict(), metadata, overwrite=True)
    return directory / "step-000001.safetensors"


def test_too_many_damaged_samples_are_refused_for_any_division_into_ranges(tmp_path: Path) -> None:
    """At most 1 % of 60 pictures may be damaged, that is none, also if they are read in ranges."""
    source = write_pictures(tmp_path / "pictures", damaged=(3, 41))
    settings = {"data": f"imagefolder:{source}", "data_arguments": {"resize": 8, "crop": 8}, "batch_size": 10}
    messages = []
    for name, options in {"single": {}, "shared": {"rows_per_task": 20, "workers": 2}}.items():
        with pytest.raises(DataError) as raised:
            extract_series(checkpoint(tmp_path), tmp_path / name, device="cpu", data_workers=0, **settings, **options)
        messages.append(str(raised.value))
        assert not [*(tmp_path / name).glob("*")]
    assert all("cannot be read, more than 1%" in message for message in messages)


def test_a_few_damaged_samples_are_left_out_and_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pictures(tmp_path / "pictures", damaged=(3, 41))
    (tmp_path / "tolerant.py").write_text(
        "from torch.utils.data import Dataset\nfrom pathlib import Path\nfrom PIL import Image\nimport numpy as np\n"
        "from ckpt_probe.data import Unreadable\nfrom ckpt_probe.data.dataset import DatasetSplit\n"
        f"FILES = sorted(Path({str(source)!r}).rglob('*.png'), key=lambda file: file.name)\n"
        "class Pictures(Dataset):\n"
        "    targets = [number % 2 for number in range(60)]\n"
        "    def __len__(self):\n        return 60\n"
        "    def __getitem__(self, number):\n"
        "        try:\n            pixels = np.asarray(Image.open(FILES[number]).convert('RGB'))\n"
        "        except OSError as error:\n            raise Unreadable(FILES[number].name) from error\n"
        "        return pixels.transpose(2, 0, 1).astype('float32'), number % 2\n"
        "def data():\n    return {'test': DatasetSplit(Pictures(), tolerance=0.05)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    messages = {}
    for name, options in {"single": {}, "shared": {"rows_per_task": 20, "workers": 2}}.items():
        progress = MessageLog()
        settings = {"data": f"{tmp_path / 'tolerant.py'}:data", "batch_size": 10, "device": "cpu", "progress": progress}
        extract_series(checkpoint(tmp_path), tmp_path / name, **settings, **options)
        messages[name] = [text for text in progress.messages if "cannot be read" in text]
    assert messages["shared"] == messages["single"]
    assert messages["single"] == ["split test: 2 of 60 samples cannot be read, and are left out: 03.png, 41.png"]
    [single], [shared] = ([*(tmp_path / name).iterdir()] for name in ("single", "shared"))
    assert contents(shared) == contents(single)


def test_files_of_a_killed_process_are_removed_and_the_dumps_completed(trained: Path, tmp_path: Path) -> None:
    words = ["extract", str(trained), "-o", str(tmp_path / "out"), "--device", "cpu", "--batch-size", "50"]
    words += ["--workers", "2", "--set", "rows_per_task=100"]
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        import ckpt_probe.extraction.parallel as parallel

        def deadly(_file: Path) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        parallel._read = deadly
        run(words)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    remaining = [file.name for file in (tmp_path / "out").iterdir()]
    assert any(re.fullmatch(r"\.step-\d+\.h5\..*\.parts", name) for name in remaining)
    assert run(words) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["step-000000.h5", "step-000004.h5"]
    extract_series(trained, tmp_path / "single", **OPTIONS)
    for file in (tmp_path / "out").iterdir():
        assert contents(file) == contents(tmp_path / "single" / file.name)

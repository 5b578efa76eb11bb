"""Undamaged files of every format that ckpt-probe opens, and the answer that reading them gives."""

import gzip
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ckpt_probe.analysis import analyze, read_records
from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.config import load_config
from ckpt_probe.data import load_data
from ckpt_probe.data.images.pictures import Unreadable, read_picture
from ckpt_probe.dumps import open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Storage, store_writer
from ckpt_probe.extraction.config import Setup
from ckpt_probe.inspection import inspect_model
from ckpt_probe.paths import evaluate_path, evaluate_plane
from ckpt_probe.training import train

CONFIGS = Path(__file__).parents[2] / "sample_configs"


@dataclass(frozen=True)
class Specimen:
    """A format that the fuzzer damages.

    Attributes:
        write: Write the format's files into an empty directory.
        read: Return the contents as text.
        ours: True for formats with checksums: damage may give an error or the same text, never a different one.
        share: Share of the cases, relative to the other formats.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], str]
    ours: bool = False
    share: int = 4


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(6, 4, generator=generator),
        "a.bias": torch.randn(6, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(7),
    }


def checkpoint(path: Path, base: Path | None = None) -> str:
    with open_checkpoint(path, base=base) as opened:
        digest = hashlib.sha256()
        for name, tensor in opened.state_dict().items():
            flat = tensor.contiguous().reshape(-1)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(errors="surrogateescape"))
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        return f"{digest.hexdigest()} {opened.metadata} {opened.facts}"


def write_shards(folder: Path) -> None:
    parts = {"x.safetensors": ("a.weight",), "y.safetensors": ("a.bias", "count")}
    for file, names in parts.items():
        save_file({name: state()[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_distributed(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": state(), "step": 3}, checkpoint_id=folder / "dcp", no_dist=True)


def write_adapter(folder: Path) -> None:
    save_file(state(), folder / "base.safetensors")
    (folder / "adapter").mkdir()
    low = {"a.lora_A.weight": torch.ones(2, 4), "a.lora_B.weight": torch.full((6, 2), 0.5)}
    save_file({f"base_model.model.{name}": t for name, t in low.items()}, folder / "adapter/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["a"], "bias": "none"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))


def write_dump(folder: Path, store: str = "features") -> None:
    generator = torch.Generator().manual_seed(0)
    features, weights = torch.randn(24, 4, generator=generator), torch.randn(3, 4, generator=generator).double()
    path = folder / "step-000003.h5"
    with store_writer(path, None, Storage(store=store), weights, torch.zeros(3).double()) as writer:
        writer.write_split("test", [Block(features, torch.arange(24) % 3, features @ weights.float().T)], rows=24)


def write_foreign_dump(folder: Path) -> None:
    random = np.random.default_rng(0)
    with h5py.File(folder / "a.h5", "w") as file:
        rows = random.normal(size=(60, 4)).astype("f4")
        file.create_dataset("test/features", data=rows, chunks=(10, 4), compression="gzip", shuffle=True)
        file["test/labels"] = np.arange(60) % 3
        file["classifier/weights"] = random.normal(size=(3, 4))
        file.attrs["step"], file.attrs["note"] = 3, "ä" * 20


def dumps(folder: Path) -> str:
    steps = [member.step for member in open_dump_series(folder)]
    return f"{steps} {list(analyze(folder))}"


def write_cached(folder: Path) -> None:
    write_dump(folder)
    list(analyze(folder, cache=True))


def cached(folder: Path) -> str:
    return str(list(analyze(folder, cache=True)))


def write_records(folder: Path) -> None:
    write_dump(folder)
    lines = [json.dumps(record) for record in analyze(folder)]
    (folder / "step-000003.h5").unlink()
    (folder / "records.jsonl").write_text("\n".join(lines * 3) + "\n")


def write_table(folder: Path) -> None:
    rows = [f"{number % 3},{number / 7:.4f},{number * 2}" for number in range(60)]
    (folder / "table.csv").write_text("\n".join(["label,x,y", *rows]) + "\n")


def data(name: str) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        kind, _, path = name.partition(":")
        dataset = load_data(f"{kind}:{folder / path}" if path else f"{kind}:{folder}", workers=0)
        return str([(split, len(part.labels), part.labels.tolist()[:50]) for split, part in dataset.splits.items()])

    return read


def write_archive(folder: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {"x": random.normal(size=(40, 1, 4, 4)).astype(np.float32), "y": np.arange(40) % 4}
    np.savez_compressed(folder / "data.npz", **arrays)


def write_pictures(folder: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "gif", "tiff", "webp"):
        Image.fromarray(pixels).save(folder / f"a.{suffix}")


def pictures(folder: Path) -> str:
    try:
        return str([read_picture(path, path.name).size for path in sorted(folder.iterdir())])
    except Unreadable as error:
        # The data source counts such files and names them.
        raise DataError(str(error)) from error


def write_idx(folder: Path) -> None:
    random = np.random.default_rng(0)
    for prefix, samples in (("train", 24), ("t10k", 12)):
        pixels = random.integers(0, 256, (samples, 5, 4), dtype=np.uint8)
        sizes = b"".join(size.to_bytes(4, "big") for size in pixels.shape)
        plain, packed = folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte.gz"
        plain.write_bytes(bytes([0, 0, 8, 3]) + sizes + pixels.tobytes())
        labels = bytes(number % 3 for number in range(samples))
        packed.write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + samples.to_bytes(4, "big") + labels, mtime=0))


def write_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"label": [f"class {number % 3}" for number in range(60)], "x": [number / 7 for number in range(60)]}
    parquet.write_table(pyarrow.table(columns), folder / "table.parquet")


def write_h5(folder: Path) -> None:
    random = np.random.default_rng(0)
    with h5py.File(folder / "data.h5", "w") as file:
        file["train/inputs"] = random.normal(size=(24, 1, 4, 4)).astype(np.float32)
        file.create_dataset("train/labels", data=np.arange(24) % 3, chunks=(8,), compression="gzip")


RUN = """\
[data]
name = "digits"
[model]
name = "mlp"
arguments = { hidden = [4] }
[training]
steps = 2
[optimizer]
name = "sgd"
learning_rate = 0.01
[checkpoints]
every_steps = 2
"""


def write_run(folder: Path) -> None:
    (folder / "a.toml").write_text(RUN)
    train(load_config(folder / "a.toml"), folder / "run")


def run(folder: Path) -> str:
    train(load_config(folder / "a.toml"), folder / "run", resume=True)
    lines = [{**line, "seconds": 0} for line in read_records(folder / "run" / "metrics.jsonl")]
    return f"{lines} {[checkpoint(file) for file in ends(folder)]}"


def ends(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "checkpoints").glob("*.safetensors"))


def write_path(folder: Path) -> None:
    write_run(folder)
    path(folder)


def path(folder: Path) -> str:
    first, last = ends(folder)
    return str(evaluate_path(first, last, folder / "path", points=3, splits=("test",), resume=True))


def write_plane(folder: Path) -> None:
    write_run(folder)
    plane(folder)


def plane(folder: Path) -> str:
    options = {"directions": "random", "grid": 2, "splits": ("test",), "resume": True}
    return str(evaluate_plane(ends(folder)[0], out=folder / "plane", **options))


def write_trainer(folder: Path) -> None:
    save_file(state(), folder / "model.safetensors")
    log = [{"step": step, "loss": 1 / step, "eval_accuracy": 0.5} for step in range(1, 20)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 19, "epoch": 1.0, "log_history": log}))


def write_model(folder: Path) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = {"vocab_size": 12, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "pad_token_id": 0}
    GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=3)).save_pretrained(folder)


def model(folder: Path) -> str:
    setup = Setup()
    with setup.open(folder / "model.safetensors") as opened:
        return str(inspect_model(opened, setup)["model_arguments"])


def write_config(folder: Path) -> None:
    (folder / "a.toml").write_text((CONFIGS / "digits.toml").read_text())


SPECIMENS = {
    "dump": Specimen(write_dump, dumps, ours=True, share=8),
    "moments": Specimen(lambda folder: write_dump(folder, "moments"), dumps, ours=True, share=8),
    "foreign-dump": Specimen(write_foreign_dump, dumps, share=1),
    "cache": Specimen(write_cached, cached, ours=True),
    "ours": Specimen(
        lambda folder: save_checkpoint(folder / "a.safetensors", state(), CheckpointMetadata(step=3, model="mlp")),
        lambda folder: checkpoint(folder / "a.safetensors"),
        ours=True,
        share=8,
    ),
    "safetensors": Specimen(
        lambda folder: save_file(state(), folder / "a.safetensors", {"note": "theirs"}),
        lambda folder: checkpoint(folder / "a.safetensors"),
    ),
    "shards": Specimen(write_shards, checkpoint),
    "zip": Specimen(
        lambda folder: torch.save({"model": state(), "epoch": 3}, folder / "a.pt"),
        lambda folder: checkpoint(folder / "a.pt"),
    ),
    "stream": Specimen(
        lambda folder: torch.save(
            {"model": state(), "epoch": 3}, folder / "a.pt", _use_new_zipfile_serialization=False
        ),
        lambda folder: checkpoint(folder / "a.pt"),
    ),
    "distributed": Specimen(write_distributed, lambda folder: checkpoint(folder / "dcp")),
    "adapter": Specimen(write_adapter, lambda folder: checkpoint(folder / "adapter", folder / "base.safetensors")),
    "trainer": Specimen(write_trainer, lambda folder: checkpoint(folder / "model.safetensors")),
    "model": Specimen(write_model, model, share=1),
    "config": Specimen(write_config, lambda folder: str(load_config(folder / "a.toml"))),
    "records": Specimen(write_records, lambda folder: str(read_records(folder / "records.jsonl"))),
    "table": Specimen(write_table, data("csv:table.csv")),
    "archive": Specimen(write_archive, data("npz:data.npz")),
    "pictures": Specimen(write_pictures, pictures),
    "idx": Specimen(write_idx, data("idx:"), share=2),
    "parquet": Specimen(write_parquet, data("parquet:table.parquet"), share=2),
    "h5-data": Specimen(write_h5, data("h5:data.h5"), share=2),
    "run": Specimen(write_run, run, share=2),
    "path": Specimen(write_path, path, share=2),
    "plane": Specimen(write_plane, plane, share=2),
}

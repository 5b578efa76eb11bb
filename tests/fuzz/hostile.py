"""Files made to exhaust memory or time: a few MB at most, which would unpack to far more than the budget of a file.

Each is written for a given memory budget: the tests use a small budget, `make fuzz` the real one.
"""

import gzip
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save_file
from specimens import checkpoint, data, dumps, model

Write = Callable[[Path, int], None]
"""Function that writes the files into an empty directory, for a budget of memory in bytes."""


@dataclass(frozen=True)
class Kind:
    """A kind of hostile file: `write` writes it for a memory budget, `read` opens it as the commands do."""

    write: Write
    read: Callable[[Path], str]


ENCODED = b"c_codecs\nencode\nq\x00X" + struct.pack("<I", 2**14) + b"a" * 2**14 + b"X\x04\x00\x00\x00utf8\x86q\x01"
"""Opcodes that store a function for copies, and its arguments, in the unpickler's memory."""


def pickled(opcodes: bytes, share: int, first: bytes = b"") -> Kind:
    """Return a file of torch.save whose pickle is a list that repeats opcodes, once per `share` bytes of the budget."""

    def write(folder: Path, budget: int) -> None:
        with zipfile.ZipFile(folder / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02](" + first + opcodes * (budget // share) + b"e.")
            archive.writestr("a/version", "3\n")

    return Kind(write, lambda folder: checkpoint(folder / "a.pt"))


def nested_keys(folder: Path, budget: int) -> None:
    steps = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    (folder / "dcp").mkdir()
    (folder / "dcp" / ".metadata").write_bytes(b"\x80\x02})" + steps + b"K\x01s.")


def many_metadata(folder: Path, budget: int) -> None:
    (folder / "dcp").mkdir()
    (folder / "dcp" / ".metadata").write_bytes(b"\x80\x02](" + b"}" * (budget // 256) + b"e.")


def header(text: str) -> Kind:
    """Return a safetensors file whose header repeats a text in place of @ until it fills a fiftieth of the budget."""
    before, middle, after = text.split("@")

    def write(folder: Path, budget: int) -> None:
        content = (before + middle * (budget // 50 // len(middle)) + after).encode()
        (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)

    return Kind(write, lambda folder: checkpoint(folder / "a.safetensors"))


def trainer_state(entry: str) -> Kind:
    """Return a state of Hugging Face's Trainer whose log repeats an entry."""

    def write(folder: Path, budget: int) -> None:
        save_file({"w": torch.zeros(2, 2)}, folder / "model.safetensors")
        log = ",".join([entry] * (budget // 50 // len(entry)))
        (folder / "trainer_state.json").write_text(f'{{"global_step": 3, "log_history": [{log}]}}')

    return Kind(write, lambda folder: checkpoint(folder / "model.safetensors"))


def wide_model(folder: Path, budget: int) -> None:
    save_file({"transformer.wte.weight": torch.zeros(10, 8)}, folder / "model.safetensors")
    entries = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 10, "n_layer": 1, "n_head": 2}
    (folder / "config.json").write_text(json.dumps({**entries, "n_embd": 2 * int((budget / 8) ** 0.5)}))


def zipped_arrays(arrays: int, compression: int) -> Write:
    """Return an archive of arrays of zeros; if there are several, only their sum exceeds the budget."""

    def write(folder: Path, budget: int) -> None:
        labels, head = io.BytesIO(), io.BytesIO()
        np.save(labels, np.arange(4) % 2)
        size = budget // arrays // 4 * 4
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (4, size // 4)})
        with zipfile.ZipFile(folder / "a.npz", "w", compression) as archive:
            for number in range(arrays):
                with archive.open(f"x_{number}.npy", "w", force_zip64=True) as member:
                    member.write(head.getvalue())
                    for start in range(0, size, 2**20):
                        member.write(bytes(min(2**20, size - start)))
                archive.writestr(f"y_{number}.npy", labels.getvalue())

    return write


def zipped_images(folder: Path, budget: int) -> None:
    for prefix in ("train", "t10k"):
        sizes = b"".join(size.to_bytes(4, "big") for size in (4, budget // 4000, 1000))
        with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz", "wb", 1) as file:
            file.write(bytes([0, 0, 8, 3]) + sizes)
        labels = bytes([0, 0, 8, 1]) + (4).to_bytes(4, "big") + bytes(4)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def parquet(columns: Callable[[int], dict[str, Any]], **options: Any) -> Kind:
    def write(folder: Path, budget: int) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns(budget)), folder / "a.parquet", compression="zstd", **options)

    return Kind(write, data("parquet:a.parquet"))


def false_metadata(folder: Path, budget: int) -> None:
    """Write a table with one large text whose metadata claim a hundred bytes; the page's header has the true size."""
    import pyarrow
    from pyarrow import parquet

    file = folder / "a.parquet"
    table = pyarrow.table({"label": [0, 1], "text": ["x" * (2 * budget), "y"]})
    parquet.write_table(
        table, file, use_dictionary=False, compression="zstd", write_statistics=False, store_schema=False
    )
    group, content = parquet.read_metadata(file).row_group(0), file.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    metadata = content[start:]
    for size in (group.total_byte_size, group.column(1).total_uncompressed_size):
        true = zigzag(size, 0)
        assert true in metadata
        metadata = metadata.replace(true, zigzag(100, len(true)))
    file.write_bytes(content[:start] + metadata)


def zigzag(number: int, length: int) -> bytes:
    """Return a number encoded as in the metadata of Parquet, in at least `length` bytes."""
    number, parts = 2 * number, []
    while number > 127 or len(parts) < length - 1:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def one_text(budget: int) -> dict[str, Any]:
    import pyarrow

    rows = budget // 1000
    numbers = pyarrow.array(np.zeros(rows, "i4"))
    texts = pyarrow.DictionaryArray.from_arrays(numbers, pyarrow.array(["x" * 2000]))
    return {"label": np.zeros(rows, "i1"), "text": texts}


def one_value(budget: int) -> dict[str, Any]:
    return {"label": np.zeros(budget // 16, "i1"), "x": np.zeros(budget // 16, "i1")}


def one_list(budget: int) -> dict[str, Any]:
    return {"label": [0, 1], "x": [np.zeros(budget // 4, "i1"), np.zeros(budget // 4, "i1")]}


def many_columns(folder: Path, budget: int) -> None:
    (folder / "a.csv").write_text("," * (budget // 1024) + "\n" + "," * 10 + "\n")


def compressed_table(folder: Path, budget: int) -> None:
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"label,x\n" + b"1,1\n" * 1000))


def data_set(compression: str | None, kind: str = "int8") -> Kind:
    """Return a data set on disk whose rows are compressed, or have a type of zero bytes."""

    def write(folder: Path, budget: int) -> None:
        import datasets
        import pyarrow

        datasets.disable_progress_bars()
        label = datasets.Features({"label": datasets.Value("int8"), "text": datasets.Value("string")})
        rows = {"label": [0, 1], "text": ["a", "b"]}
        datasets.Dataset.from_dict(rows, features=label).save_to_disk(str(folder / "d"))
        file = next((folder / "d").glob("*.arrow"))
        arrays = [pyarrow.nulls(2 * budget), pyarrow.nulls(2 * budget)]
        if kind != "null":
            arrays = [pyarrow.array(np.zeros(budget // 64, kind)), pyarrow.array(["x" * 60] * (budget // 64))]
        batch = pyarrow.record_batch(arrays, names=["label", "text"])
        options = pyarrow.ipc.IpcWriteOptions(compression=compression)
        with (
            pyarrow.OSFile(str(file), "wb") as sink,
            pyarrow.ipc.new_stream(sink, batch.schema, options=options) as out,
        ):
            out.write_batch(batch)

    return Kind(write, data("hf-dataset:d"))


def hdf5(shape: Callable[[int], tuple[int, ...]], chunk: Callable[[int], tuple[int, ...]]) -> Kind:
    """Return an HDF5 file of data whose inputs claim a shape in compressed chunks that are not stored."""

    def write(folder: Path, budget: int) -> None:
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("inputs", shape(budget), "u1", chunks=chunk(budget), compression="gzip")
            file["labels"] = np.arange(4) % 2

    return Kind(write, data("h5:a.h5"))


def small_chunk(folder: Path, budget: int) -> None:
    """Write a chunk of 16 numbers that unpacks to more than the budget."""
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        inputs = file.create_dataset("inputs", (4, 4), "f4", chunks=(4, 4), compression="gzip")
        inputs.id.write_direct_chunk((0, 0), zlib.compress(bytes(2 * budget), 1))
        file["labels"] = np.arange(4) % 2


def names_without_characters(folder: Path, budget: int) -> None:
    np.savez(folder / "a.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    head = f"{{'descr': '<U0', 'fortran_order': False, 'shape': ({budget},)}}".encode()
    with zipfile.ZipFile(folder / "a.npz", "a") as archive:
        archive.writestr("class_names.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head)


def repeated_text(folder: Path, budget: int) -> None:
    """Write a dump with an attribute that lists 3,000 references to one large text in the file."""
    count, size = 3000, budget // 750
    with h5py.File(folder / "a.h5", "w") as file:
        file["test/features"], file["test/labels"] = np.eye(4), np.arange(4) % 2
        file.attrs["step"] = ["x"] * count + ["y" * size]
    content = (folder / "a.h5").read_bytes()
    last = content.rindex(struct.pack("<I", size), 0, len(content))
    while content[last - 16 : last - 12] != struct.pack("<I", 1):
        last = content.rindex(struct.pack("<I", size), 0, last)
    first = last - 16 * count
    (folder / "a.h5").write_bytes(content[:first] + content[last : last + 16] * count + content[last:])


def many_groups(folder: Path, budget: int) -> None:
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        for number in range(budget // 2**14):
            file.create_group(str(number))


def picture(folder: Path, budget: int) -> None:
    from PIL import Image

    (folder / "a" / "b").mkdir(parents=True)
    side = int((budget / 6) ** 0.5)
    Image.new("1", (side, side)).save(folder / "a" / "b" / "a.png")


def pipe(suffix: str, kind: str) -> Kind:
    return Kind(lambda folder, _: os.mkfifo(folder / f"a.{suffix}"), data(f"{kind}:a.{suffix}"))


KINDS = {
    "pickle of dictionaries": pickled(b"}", 256),
    "pickle of lists": pickled(b"]", 256),
    "pickle of tuples": pickled(b"K\x01\x85", 256),
    "pickle of nothing": pickled(b"N", 200),
    "pickle of one text encoded many times": pickled(b"h\x00h\x01R", 2**13, ENCODED),
    "keys of nested tuples": Kind(nested_keys, lambda folder: checkpoint(folder / "dcp")),
    "metadata of dictionaries": Kind(many_metadata, lambda folder: checkpoint(folder / "dcp")),
    "shape of many axes": header('{"a":{"dtype":"F32","shape":[@1,@1],"data_offsets":[0,0]}}'),
    "header of lists": header('{"a":[@[],@[]]}'),
    "nested header": header('{"a":@[@}'),
    "number of many digits": header('{"a":{"dtype":"F32","shape":[@9@],"data_offsets":[0,0]}}'),
    "log of empty objects": trainer_state("{}"),
    "log of empty lists": trainer_state("[[],[],[]]"),
    "step of many digits": trainer_state(f'{{"step":{"9" * 5000}}}'),
    "model of a large configuration": Kind(wide_model, model),
    "many arrays": Kind(zipped_arrays(8, zipfile.ZIP_BZIP2), data("npz:a.npz")),
    "one array": Kind(zipped_arrays(1, zipfile.ZIP_DEFLATED), data("npz:a.npz")),
    "images": Kind(zipped_images, data("idx:")),
    "one text of many rows": parquet(one_text, store_schema=False),
    "one text of many rows, as a dictionary": parquet(one_text),
    "one value of many rows": parquet(one_value),
    "one list of many numbers": parquet(one_list),
    "one text larger than its metadata": Kind(false_metadata, data("parquet:a.parquet")),
    "table of many columns": Kind(many_columns, data("csv:a.csv")),
    "compressed table": Kind(compressed_table, data("csv:a.csv.gz")),
    "compressed data set": data_set("zstd"),
    "data set in blocks of LZ4": data_set("lz4"),
    "data set of rows without values": data_set(None, "null"),
    "large chunk": hdf5(lambda budget: (4, budget // 2), lambda budget: (4, budget // 2)),
    "small chunk": Kind(small_chunk, data("h5:a.h5")),
    "names of no characters": Kind(names_without_characters, data("npz:a.npz")),
    "many chunks": hdf5(lambda budget: (4, budget), lambda budget: (1, 2**16)),
    "many groups": Kind(many_groups, data("h5:a.h5")),
    "groups in place of a dump": Kind(many_groups, dumps),
    "one text in a long list": Kind(repeated_text, dumps),
    "picture of many pixels": Kind(picture, data("imagefolder:")),
    "pipe in place of an archive": pipe("npz", "npz"),
    "pipe in place of a table": pipe("csv", "csv"),
    "pipe in place of HDF5": pipe("h5", "h5"),
}

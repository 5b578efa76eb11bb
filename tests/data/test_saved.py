"""Tests of data sets that `datasets` saved: images, texts, names of labels, splits without labels, and invalid ones."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from torchvision import transforms

from ckpt_probe.data import ModelHints, load_data, notes_of, ready_batches
from ckpt_probe.errors import DataError, UsageError

SHAPE = (30, 40, 3)
PETS = ClassLabel(names=["dog", "cat"])


def picture(number: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8))


def encoded(number: int) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def images(count: int, *, damaged: tuple[int, ...] = ()) -> Dataset:
    rows = [{"bytes": b"no image", "path": None} if row in damaged else encoded(row) for row in range(count)]
    columns = {"image": rows, "label": [row % 2 for row in range(count)]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": PETS}))


def texts(labels: list[int]) -> Dataset:
    words = ["a good film", "bad", "very very bad plot", "good"]
    columns = {"idx": list(range(len(labels))), "sentence": words[: len(labels)], "label": labels}
    return Dataset.from_dict(
        columns, features=Features({"idx": Value("int32"), "sentence": Value("string"), "label": PETS})
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_read_with_the_names_of_their_labels(tmp_path: Path, workers: int) -> None:
    DatasetDict({"train": images(5), "test": images(3)}).save_to_disk(str(tmp_path / "pets"))
    data = load_data(f"hf-dataset:{tmp_path / 'pets'}", {"resize": 20, "crop": 16, "workers": workers})
    assert (list(data.splits), data.classes, data.class_names) == (["train", "test"], 2, ("dog", "cat"))
    assert data.input_shape == (3, 16, 16)
    with ready_batches(data.split("train"), 2) as batches:
        read = list(batches)
    chain = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16), transforms.ToTensor()])
    expected = torch.stack([chain(picture(row)) for row in range(5)])
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in read]), expected, rtol=1e-6, atol=1e-6)
    assert torch.cat([labels for _, labels in read]).tolist() == [0, 1, 0, 1, 0]


MODES = ("RGB", "RGBA", "P", "L", "LA", "1", "CMYK")


@pytest.mark.parametrize("declared", [None, "RGB", "L", "CMYK"])
def test_images_are_decoded_as_datasets_decodes_them(declared: str | None, tmp_path: Path) -> None:
    rows = []
    for orientation in range(1, 9):
        for mode in MODES:
            image, file = picture(len(rows)).convert(mode), io.BytesIO()
            exif = image.getexif()
            exif[0x112] = orientation
            image.save(file, "JPEG" if mode == "CMYK" else "PNG", exif=exif)
            rows.append({"bytes": file.getvalue(), "path": None})
    (tmp_path / "one.jpg").write_bytes(rows[-1]["bytes"])
    rows.append({"bytes": None, "path": str(tmp_path / "one.jpg")})
    columns = {"image": rows, "label": [0] * len(rows)}
    features = Features({"image": Image(mode=declared), "label": PETS})
    Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "d"))
    split = load_data(f"hf-dataset:{tmp_path / 'd'}").split("d")
    dataset = Dataset.load_from_disk(str(tmp_path / "d"))
    sideways = 0
    for row in range(len(rows)):
        expected = np.array(dataset[row]["image"].convert("RGB"))
        sideways += expected.shape == (40, 30, 3)
        image_batch = split.batch(torch.tensor([row]))[0]
        torch.testing.assert_close(image_batch, torch.from_numpy(expected).permute(2, 0, 1)[None] / 255)
    assert sideways == len(rows) // 2 + 1


def test_images_that_datasets_does_not_decode_are_not_rotated(tmp_path: Path) -> None:
    image, file = picture(0), io.BytesIO()
    exif = image.getexif()
    exif[0x112] = 6
    image.save(file, "PNG", exif=exif)
    columns = {"image": [{"bytes": file.getvalue(), "path": None}], "label": [0]}
    features = Features({"image": Image(decode=False), "label": PETS})
    Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "d"))
    assert load_data(f"hf-dataset:{tmp_path / 'd'}").input_shape == (3, 30, 40)


def test_splits_with_different_names_of_classes_are_refused(tmp_path: Path) -> None:
    other = images(3).cast_column("label", ClassLabel(names=["cat", "dog"]))
    DatasetDict({"train": images(5), "test": other}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="split 'train' has the classes dog, cat, but split 'test' has cat, dog"):
        load_data(f"hf-dataset:{tmp_path / 'd'}")


def test_files_that_a_dataset_names_are_read(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "zero.png")
    columns = {"photo": [str(tmp_path / "zero.png")], "label": [1]}
    Dataset.from_dict(columns).cast_column("photo", Image()).save_to_disk(str(tmp_path / "one"))
    data = load_data(f"hf-dataset:{tmp_path / 'one'}")
    assert list(data.splits) == ["one"]
    expected = torch.from_numpy(np.array(picture(0))).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(data.split("one").batch(slice(None))[0], expected)


def test_damaged_images_are_left_out_and_named(tmp_path: Path) -> None:
    images(200, damaged=(7,)).save_to_disk(str(tmp_path / "d"))
    split = load_data(f"hf-dataset:{tmp_path / 'd'}", {"workers": 0}).split("d")
    with ready_batches(split, 64) as batches:
        assert sum(len(labels) for _, labels in batches) == 199
    (note,) = notes_of(split)
    assert "1 of 200 samples cannot be read, and are left out" in note
    assert "d, row 7 (no image, or a damaged one)" in note


def test_texts_are_encoded_by_the_tokenizer_of_the_model(tmp_path: Path, tokenizer: Path) -> None:
    splits = {"train": texts([0, 1, 1, 0]), "test": texts([-1, -1])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    data = load_data(f"hf-dataset:{tmp_path / 'd'}", hints=ModelHints(f"hf:{tokenizer}"))
    assert data.notes == ("split test: 2 rows without labels (all are -1), left out",)
    assert (list(data.splits), data.class_names) == (["train"], ("dog", "cat"))
    inputs, labels = data.split("train").batch(torch.tensor([3, 0]))
    assert inputs["input_ids"].tolist() == [[2, 5, 3, 0, 0], [2, 9, 5, 7, 3]]
    assert labels.tolist() == [0, 0]
    assert data.arguments == {"tokenizer": str(tokenizer), "max_length": 16}


def test_labels_can_be_texts(tmp_path: Path, tokenizer: Path) -> None:
    columns = {"text": ["good", "bad", "film"], "kind": ["yes", "no", "yes"]}
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "d"))
    arguments = {"label": "kind", "tokenizer": str(tokenizer)}
    data = load_data(f"hf-dataset:{tmp_path / 'd'}", arguments)
    assert (data.class_names, data.split("d").labels.tolist()) == (("no", "yes"), [1, 0, 1])
    assert data.arguments == {**arguments, "max_length": 16}


def test_missing_and_ambiguous_columns_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    directory = str(tmp_path / "d")
    columns = {"first": ["good"], "second": ["bad"], "kind": [1], "many": [[1.0, 2.0]]}
    Dataset.from_dict(columns).save_to_disk(directory)
    options = {"tokenizer": str(tokenizer)}
    for arguments, message in (
        (
            {},
            r"which column has the labels\? there are: first, second, kind, many; choose one by .*'label': 'NAME'",
        ),
        ({"label": "sort"}, "no column 'sort'"),
        ({"label": "kind"}, "several columns of texts: first, second; choose one by `data_arguments=.'text': 'NAME'"),
        ({"label": "kind", "image": "first"}, r"no column 'first' of images; there are: first \(Value string\)"),
        ({"label": "many", "text": "first"}, "column 'many' holds several values a row, where one label is needed"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            load_data(f"hf-dataset:{directory}", {**options, **arguments})
        assert "\n" not in str(caught.value)
    data = load_data(f"hf-dataset:{directory}", {**options, "label": "kind", "text": "first", "text_pair": "second"})
    assert data.split("d").batch(slice(None))[0]["input_ids"].tolist() == [[2, 5, 3, 6, 3]]
    Dataset.from_dict({"x": [1.5], "label": [0]}).save_to_disk(str(tmp_path / "e"))
    with pytest.raises(DataError, match=r"no column of images, texts or sound; there are: x \(Value float64\)"):
        load_data(f"hf-dataset:{tmp_path / 'e'}")
    with pytest.raises(UsageError, match="unknown argument size; hf-dataset takes audio, channels"):
        load_data(f"hf-dataset:{directory}", {"size": 3})


def test_invalid_and_damaged_directories_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        load_data(f"hf-dataset:{tmp_path / 'missing'}")
    with pytest.raises(DataError, match="no data set that datasets' save_to_disk wrote"):
        load_data(f"hf-dataset:{tmp_path}")
    texts([-1, -1]).save_to_disk(str(tmp_path / "secret"))
    with pytest.raises(DataError, match="no split with labels in column 'label'; split secret: 2 rows without labels"):
        load_data(f"hf-dataset:{tmp_path / 'secret'}", {"tokenizer": str(tokenizer)})
    texts([0, 1, 0]).save_to_disk(str(tmp_path / "cut"))
    (arrow,) = (tmp_path / "cut").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read, it may be damaged") as caught:
        load_data(f"hf-dataset:{tmp_path / 'cut'}", {"tokenizer": str(tokenizer)})
    assert "\n" not in str(caught.value)


def arrow_file(directory: Path) -> Path:
    (file,) = directory.glob("*.arrow")
    return file


def rewrite(directory: Path, table: pa.Table, compression: str | None = None) -> None:
    """Replace the rows of a data set that consists of one file."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with arrow_file(directory).open("wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)


def rows_of(directory: Path) -> pa.Table:
    with arrow_file(directory).open("rb") as file:
        return pa.ipc.open_stream(file).read_all()


@pytest.mark.parametrize("name", ["../secret/{file}", "{secret}/{file}", "", None, ["x"]])
def test_a_state_that_names_a_file_outside_is_refused(tmp_path: Path, tokenizer: Path, name: Any) -> None:
    texts([0, 1]).save_to_disk(str(tmp_path / "secret"))
    texts([0, 1]).save_to_disk(str(tmp_path / "d"))
    state = tmp_path / "d" / "state.json"
    if isinstance(name, str):
        name = name.format(secret=tmp_path / "secret", file=arrow_file(tmp_path / "secret").name)
    state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": name}]}))
    message = (
        "which is outside the directory of the data set" if name and isinstance(name, str) else "the name of a file"
    )
    with pytest.raises(DataError, match=rf"d/state\.json: .*{message}"):
        load_data(f"hf-dataset:{tmp_path / 'd'}", {"tokenizer": str(tokenizer)})


def test_links_that_lead_outside_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("secret", "d"):
        texts([0, 1]).save_to_disk(str(tmp_path / name))
    file = arrow_file(tmp_path / "d")
    file.unlink()
    file.symlink_to(arrow_file(tmp_path / "secret"))
    with pytest.raises(DataError, match=r"d/state\.json: names the file .* outside the directory of the data set"):
        load_data(f"hf-dataset:{tmp_path / 'd'}", {"tokenizer": str(tokenizer)})


def test_links_of_a_hub_cache_are_followed(tmp_path: Path, tokenizer: Path) -> None:
    texts([0, 1]).save_to_disk(str(tmp_path / "blobs"))
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
    assert len(load_data(f"hf-dataset:{snapshot}", {"tokenizer": str(tokenizer)}).split("abc")) == 2


@pytest.mark.parametrize("split", ["../secret", "{secret}", "..", 3])
def test_splits_outside_the_directory_are_refused(tmp_path: Path, tokenizer: Path, split: Any) -> None:
    texts([0, 1]).save_to_disk(str(tmp_path / "secret"))
    (tmp_path / "d").mkdir()
    name = split.format(secret=tmp_path / "secret") if isinstance(split, str) else split
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(DataError, match=r"d/dataset_dict\.json: names the (split|file) .*"):
        load_data(f"hf-dataset:{tmp_path / 'd'}", {"tokenizer": str(tokenizer)})


def test_rows_that_name_files_outside_the_data_set_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "d"):
        images(2).save_to_disk(str(tmp_path / "d"))
        picture(0).save(folder / "zero.png")
        struct = pa.array(
            [{"bytes": None, "path": str(folder / "zero.png")}] * 2, rows_of(tmp_path / "d").schema.field("image").type
        )
        rewrite(tmp_path / "d", rows_of(tmp_path / "d").set_column(0, "image", struct))
        if folder == tmp_path:
            with pytest.raises(DataError, match=r"row 0: names the file .*zero\.png', which is outside the directory"):
                load_data(f"hf-dataset:{tmp_path / 'd'}")
        else:
            assert load_data(f"hf-dataset:{tmp_path / 'd'}").input_shape == (3, 30, 40)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_arrow_is_refused(tmp_path: Path, compression: str) -> None:
    images(3).save_to_disk(str(tmp_path / "d"))
    rewrite(tmp_path / "d", rows_of(tmp_path / "d"), compression)
    with pytest.raises(DataError, match=r"\.arrow: compressed Arrow data; load and save the data set again"):
        load_data(f"hf-dataset:{tmp_path / 'd'}")


def test_arrow_that_claims_rows_without_values_is_refused(tmp_path: Path) -> None:
    images(3).save_to_disk(str(tmp_path / "d"))
    rewrite(tmp_path / "d", pa.table({"image": pa.nulls(10**9), "label": pa.nulls(10**9)}))
    with pytest.raises(DataError, match=r"\.arrow: unpacks to 1,000,\d+,\d+ bytes or more"):
        load_data(f"hf-dataset:{tmp_path / 'd'}")


@pytest.mark.parametrize("kind", ["run_end_encoded", "string_view"])
def test_arrow_whose_rows_share_values_is_refused(tmp_path: Path, kind: str) -> None:
    images(3).save_to_disk(str(tmp_path / "d"))
    shared = {
        "run_end_encoded": lambda: pa.RunEndEncodedArray.from_arrays([10**9], pa.array(["x" * 100])),
        "string_view": lambda: pa.array(["x" * 100], pa.string_view()),
    }
    rewrite(tmp_path / "d", pa.table({"label": shared[kind]()}))
    with pytest.raises(DataError, match=rf"\.arrow: a column of {kind}.*, whose rows may share values"):
        load_data(f"hf-dataset:{tmp_path / 'd'}")

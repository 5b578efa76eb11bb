"""Tests of sound: batches equal those of transformers' feature extractor, and damaged samples are left out."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from datasets import Audio, ClassLabel, Dataset, Features, Sequence, Value
from scipy.signal import resample_poly

from ckpt_probe.data import load_data
from ckpt_probe.data.arguments import ModelHints
from ckpt_probe.data.samples import LENGTHS
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series

RATE = 4000
NAMES = ["low", "high"]


def tone(number: int, rate: int, channels: int = 1) -> np.ndarray:
    """Return a sound of at least a tenth of a second, shape (T, channels), float32."""
    times = np.arange(rate // 10 + 7 * number) / rate
    wave = 0.5 * np.sin(2 * np.pi * (200 + 300 * (number % 2)) * times)
    return np.stack([wave * (1 + 0.1 * channel) for channel in range(channels)], axis=1).astype(np.float32)


def encoded(number: int, rate: int, kind: str = "WAV", channels: int = 1) -> bytes:
    file = io.BytesIO()
    subtype = "FLOAT" if kind == "WAV" else "PCM_16"
    soundfile.write(file, tone(number, rate, channels), rate, format=kind, subtype=subtype)
    return file.getvalue()


def dataset_of(sounds: list[bytes], **declared: int) -> Dataset:
    # The datasets library needs another library to write a column of sound.
    encoded_type = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": encoded_type, "label": ClassLabel(names=NAMES)})
    rows = [{"bytes": sound, "path": None} for sound in sounds]
    dataset = Dataset.from_dict({"audio": rows, "label": [n % 2 for n in range(len(sounds))]}, features=features)
    return dataset.cast_column("audio", Audio(decode=False, **declared))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("wav2vec2")
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, classifier_proj_size=12, num_labels=2, feat_extract_norm="layer",
        id2label={0: "high", 1: "low"}, label2id={"high": 0, "low": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    network.save_pretrained(directory)
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    extractor.save_pretrained(directory)
    return network, directory


def expected(directory: Path, waves: list[np.ndarray]) -> dict[str, torch.Tensor]:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(directory)
    return dict(extractor(waves, sampling_rate=RATE, padding=True, return_tensors="pt"))


def hints(directory: Path) -> ModelHints:
    return ModelHints(f"hf:{directory}", {}, directory)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_encoded_sound_of_any_rate_and_number_of_channels_is_resampled_and_mixed(
    kind: str, model: tuple[Any, Path], tmp_path: Path
) -> None:
    rates, channels = [RATE, 6000, 2000], [1, 2, 1]
    sounds = [encoded(n, rate, kind, c) for n, (rate, c) in enumerate(zip(rates, channels, strict=True))]
    dataset_of(sounds).save_to_disk(tmp_path / "set")
    data = load_data(f"hf-dataset:{tmp_path / 'set'}", {}, hints=hints(model[1]))
    inputs, labels = next(iter(data.splits.values())).batch(slice(0, 3))
    waves = []
    for number, (rate, count) in enumerate(zip(rates, channels, strict=True)):
        mono = tone(number, rate, count).mean(axis=1)
        shared = math.gcd(rate, RATE)
        waves.append(resample_poly(mono, RATE // shared, rate // shared).astype(np.float32))
    reference = expected(model[1], waves)
    assert set(inputs) - {LENGTHS} == set(reference) == {"input_values", "attention_mask"}
    assert inputs[LENGTHS].tolist() == reference["attention_mask"].sum(dim=1).tolist()
    for name, value in reference.items():
        torch.testing.assert_close(inputs[name], value, rtol=0, atol=2e-3 if kind == "FLAC" else 1e-6)
    assert labels.tolist() == [0, 1, 0]
    assert data.class_names == ("low", "high")


def test_columns_of_numbers_are_sound_with_the_rate_of_the_argument(model: tuple[Any, Path], tmp_path: Path) -> None:
    waves = [tone(number, RATE)[:, 0] for number in range(3)]
    features = Features({"wave": Sequence(Value("float32")), "label": ClassLabel(names=NAMES)})
    Dataset.from_dict({"wave": waves, "label": [0, 1, 0]}, features=features).save_to_disk(tmp_path / "set")
    source = f"hf-dataset:{tmp_path / 'set'}"
    inputs, _ = load_data(source, {}, hints=hints(model[1])).split("set").batch(slice(0, 3))
    torch.testing.assert_close(inputs["input_values"], expected(model[1], waves)["input_values"])
    twice = load_data(source, {"sampling_rate": 2 * RATE}, hints=hints(model[1])).split("set").batch(slice(0, 1))[0]
    assert twice["input_values"].shape[1] == math.ceil(len(waves[0]) / 2)


def test_sound_is_resampled_to_the_rate_of_its_column_first(model: tuple[Any, Path], tmp_path: Path) -> None:
    dataset_of([encoded(0, RATE)], sampling_rate=RATE // 2).save_to_disk(tmp_path / "set")
    inputs, _ = load_data(f"hf-dataset:{tmp_path / 'set'}", {}, hints=hints(model[1])).split("set").batch(slice(0, 1))
    wave = resample_poly(resample_poly(tone(0, RATE)[:, 0], 1, 2), 2, 1).astype(np.float32)
    torch.testing.assert_close(inputs["input_values"], expected(model[1], [wave])["input_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("declared", [{"num_channels": 1}, {"stream_index": 1}])
def test_sound_with_more_channels_than_its_column_declares_is_refused(
    declared: dict[str, int], model: tuple[Any, Path], tmp_path: Path
) -> None:
    dataset_of([encoded(0, RATE, channels=2)], **declared).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="set, row 0: 2 channels, of which its column takes num_channels="):
        load_data(f"hf-dataset:{tmp_path / 'set'}", {}, hints=hints(model[1]))


def test_damaged_sound_is_left_out_and_named(model: tuple[Any, Path], tmp_path: Path) -> None:
    intact = encoded(0, RATE)
    for damaged in (intact[:30], intact[:58], b"no sound at all"):
        directory = tmp_path / f"set{len(damaged)}"
        dataset_of([intact, damaged]).save_to_disk(directory)
        split = load_data(f"hf-dataset:{directory}", {}, hints=hints(model[1])).split(directory.name)
        _, labels = split.batch(slice(0, 2))
        assert labels.tolist() == [0]
        assert "1 of 2 samples cannot be read" in split.notes[0]
        assert "row 1" in split.notes[0]


def test_features_are_extracted_from_the_directory_of_a_model(model: tuple[Any, Path], tmp_path: Path) -> None:
    network, directory = model
    sounds = [encoded(number, RATE) for number in range(6)]
    dataset_of(sounds).save_to_disk(tmp_path / "set")
    extract_series(directory, tmp_path / "dumps", data=f"hf-dataset:{tmp_path / 'set'}", batch_size=6)
    reference = expected(directory, [tone(number, RATE)[:, 0] for number in range(6)])
    calls = []
    handle = network.classifier.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    with torch.no_grad():
        network(**reference)
    handle.remove()
    (path,) = (tmp_path / "dumps").glob("*.h5")
    with open_dump(path) as dump:
        torch.testing.assert_close(torch.as_tensor(dump["set"].features[:]), calls[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.as_tensor(dump["set"].logits[:]), calls[0][1], rtol=1e-5, atol=1e-6)
        # The model has the classes in the opposite order.
        assert torch.as_tensor(dump["set"].labels[:]).tolist() == [1, 0, 1, 0, 1, 0]


def test_missing_and_invalid_sounds_are_refused(model: tuple[Any, Path], tmp_path: Path) -> None:
    dataset_of([encoded(0, RATE)]).save_to_disk(tmp_path / "set")
    source = f"hf-dataset:{tmp_path / 'set'}"
    with pytest.raises(UsageError, match=r"preprocessor_config\.json.*'feature_extractor': 'DIR'"):
        load_data(source, {})
    (tmp_path / "other").mkdir()
    transformers.ViTImageProcessor().save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match=r"cannot be read|has no sampling_rate"):
        load_data(source, {"feature_extractor": str(tmp_path / "other")})
    with pytest.raises(UsageError, match="sampling_rate: expected a whole number"):
        load_data(source, {"sampling_rate": 0}, hints=hints(model[1]))

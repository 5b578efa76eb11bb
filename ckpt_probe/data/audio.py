"""Sound as a model's own feature extractor sees it: decoded, at its sampling rate, each for itself."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ckpt_probe.data.dataset import Unreadable
from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.samples import LENGTHS
from ckpt_probe.errors import DataError, UsageError, last_line
from ckpt_probe.plugins import load_pretrained, require_extra

RATE, EXTRACTOR = "sampling_rate", "feature_extractor"
"""Arguments of sound: samples a second of a column of numbers, and the directory of the feature extractor."""

EXTRACTOR_FILE = "preprocessor_config.json"
BLOCK = 2**20
LONGEST_SECONDS = 3600


@dataclass(frozen=True)
class SoundPreparation:
    """A feature extractor, and the samples a second that it wants. rate: those of sound that does not say its own."""

    extractor: Any
    wanted: int
    rate: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def prepare(self, wave: np.ndarray, rate: int | None, declared: int | None = None) -> np.ndarray:
        """Return mono sound (T,) float32 at the rate that the model wants.

        Args:
            wave: Sound, (T,) or (T, channels), whose mean counts.
            rate: Samples a second; those of the arguments if None.
            declared: Samples a second to which the data set has its sounds brought first, as `datasets.Audio` does.
        """
        mono = wave.mean(axis=1) if wave.ndim == 2 else wave
        rate = rate or self.rate
        for wanted in (declared or rate, self.wanted):
            mono, rate = _resampled(mono, rate, wanted), wanted
        return np.ascontiguousarray(mono, dtype=np.float32)

    def collate(self, samples: Sequence[tuple[np.ndarray, int]]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the tensors that the extractor makes of each sound, by the names of a model's arguments, as a batch.

        Sounds of different lengths are padded with zeros at the end, and come with their lengths.

        Raises:
            DataError: If the extractor makes no tensors of them.
        """
        try:
            made = [dict(self.extractor(wave, sampling_rate=self.wanted, return_tensors="pt")) for wave, _ in samples]
        except Exception as error:
            raise DataError(f"the model's feature extractor takes no such sound: {last_line(error)}") from error
        inputs = {name: pad_sequence([each[name][0] for each in made], batch_first=True) for name in made[0]}
        inputs[LENGTHS] = torch.tensor([next(iter(each.values())).shape[1] for each in made])
        return inputs, torch.tensor([label for _, label in samples])


@dataclass(frozen=True)
class Sounds:
    """A map-style dataset of the sounds in a column of `datasets`, encoded or as numbers.

    feature: the column's, which may declare a rate to bring the sounds to.
    """

    table: Any
    column: str
    labels: Tensor
    preparation: SoundPreparation
    feature: Any
    name: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        held = self.table[number][self.column]
        name = f"{self.name}, row {number}"
        rate = None
        if isinstance(held, dict):
            if held["bytes"] is None and held["path"] is None:
                raise Unreadable(f"{name} (no sound)")
            held, rate = read_sound(Path(held["path"]) if held["bytes"] is None else held["bytes"], name)
            _require_channels(self.feature, held.shape[1], name)
        wave = np.asarray([] if held is None else held, dtype=np.float32)
        if not wave.size or not np.isfinite(wave).all():
            raise Unreadable(f"{name} ({'NaN or infinite' if wave.size else 'no sample'})")
        declared = getattr(self.feature, "sampling_rate", None)
        return self.preparation.prepare(wave, rate, declared), int(self.labels[number])


def _require_channels(feature: Any, channels: int, name: str) -> None:
    """Raise DataError if `datasets.Audio` has ffmpeg choose a stream of a file, or mix its channels into others."""
    wanted, stream = (getattr(feature, name, None) for name in ("num_channels", "stream_index"))
    if wanted not in (None, channels) or stream not in (None, 0):
        raise DataError(
            f"{name}: {channels} channels, of which its column takes num_channels={wanted}, stream_index={stream}: "
            "datasets does so by ffmpeg, which is not done here; cast the column to datasets.Audio(), and save again"
        )


def _resampled(mono: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return mono
    from scipy.signal import resample_poly

    shared = math.gcd(rate, wanted)
    return resample_poly(mono, wanted // shared, rate // shared)


def sound_preparation(arguments: Mapping[str, Any], hints: ModelHints) -> SoundPreparation:
    """The feature extractor of the model's directory, or of the one that `feature_extractor` names.

    Raises UsageError where none is near the model, DataError where it cannot be read or wants no sampling rate.
    """
    named = arguments.get(EXTRACTOR)
    directory = hints.holding(EXTRACTOR_FILE) if named is None else Path(str(named))
    if directory is None or not (directory / EXTRACTOR_FILE).is_file():
        raise UsageError(
            f"sound needs the model's feature extractor ({EXTRACTOR_FILE}), which is not beside it; name its directory "
            f"by --data-argument {EXTRACTOR}=DIR"
        )
    transformers = require_extra("transformers", "transformers")
    try:
        extractor = load_pretrained(transformers.AutoFeatureExtractor, directory)
    except Exception as error:
        raise DataError(f"{directory}: its feature extractor cannot be read: {last_line(error)}") from error
    wanted = getattr(extractor, "sampling_rate", None)
    if not isinstance(wanted, int) or wanted < 1:
        raise DataError(f"{directory}: {EXTRACTOR_FILE} is of no model of sound: it has no sampling_rate")
    rate = arguments.get(RATE, wanted)
    if type(rate) is not int or rate < 1:
        raise UsageError(f"{RATE}: expected a whole number of samples a second, found {rate!r}")
    return SoundPreparation(extractor, wanted, rate, {EXTRACTOR: str(directory), RATE: rate})


def read_sound(source: Path | bytes, name: str) -> tuple[np.ndarray, int]:
    """The samples (T, channels) float32 of an encoded sound, and how many there are a second.

    Whatever its header claims, it is read in blocks, and at most for an hour. Raises Unreadable where it is damaged.
    """
    soundfile = require_extra("soundfile", "audio")
    found: list[np.ndarray] = []
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            rate = int(file.samplerate)
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                found.append(block)
                if sum(map(len, found)) > rate * LONGEST_SECONDS:
                    raise Unreadable(f"{name} (longer than an hour)")
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as error:
        raise Unreadable(f"{name} ({last_line(error)})") from error
    if not found:
        raise Unreadable(f"{name} (no sample)")
    return np.concatenate(found), rate

"""Sounds decoded, resampled and passed one by one through the model's feature extractor."""

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

from ckpt_probe.budget import Budget
from ckpt_probe.data.arguments import ModelHints, load_auto, suggestion
from ckpt_probe.data.dataset import Unreadable
from ckpt_probe.data.samples import LENGTHS
from ckpt_probe.data.saved_files import encoded_source
from ckpt_probe.errors import DataError, UsageError, last_line
from ckpt_probe.keywords import whole_argument
from ckpt_probe.plugins import require_extra

RATE, EXTRACTOR = "sampling_rate", "feature_extractor"
"""Arguments of sound: the sampling rate in Hz of a column of numbers, and the directory of the feature extractor."""

EXTRACTOR_FILE = "preprocessor_config.json"
BLOCK = 2**20
COPIES = 3
"""Arrays of a sound at a time: its blocks, their sum, and the sound at another rate."""
ITEM, FILTER = 8, 20
"""Bytes of a number, and numbers of scipy's filter for each unit of the larger rate."""


@dataclass(frozen=True)
class SoundPreparation:
    """A feature extractor with its sampling rate.

    Args:
        extractor: A feature extractor of transformers.
        wanted: Sampling rate in Hz that the extractor expects.
        rate: Sampling rate in Hz of sounds that do not state one.
        arguments: Data arguments that describe this preparation in a record.
    """

    extractor: Any
    wanted: int
    rate: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def prepare(self, wave: np.ndarray, rate: int | None, declared: int | None = None) -> np.ndarray:
        """Return mono sound, shape (T,), float32, at the rate that the model expects.

        Args:
            wave: Sound, shape (T,) or (T, channels); channels are averaged.
            rate: Sampling rate in Hz; the rate of the arguments if None.
            declared: Rate in Hz to which the data set resamples first, as `datasets.Audio` does.
        """
        mono = wave.mean(axis=1) if wave.ndim == 2 else wave
        rate = rate or self.rate
        for wanted in (declared or rate, self.wanted):
            mono, rate = _resampled(mono, rate, wanted), wanted
        return np.ascontiguousarray(mono, dtype=np.float32)

    def collate(self, samples: Sequence[tuple[np.ndarray, int]]) -> tuple[dict[str, Tensor], Tensor]:
        """Pass each sound through the extractor and join the results into a batch, padded with zeros at the end.

        Args:
            samples: Pairs of mono sound, shape (T,), and label.

        Returns:
            Tensors by the names of the model's arguments with their lengths, and labels, shape (n,).

        Raises:
            DataError: If the extractor refuses a sound.
        """
        try:
            made = [dict(self.extractor(wave, sampling_rate=self.wanted, return_tensors="pt")) for wave, _ in samples]
        except Exception as error:
            raise DataError(f"the model's feature extractor takes no such sound: {last_line(error)}") from error
        inputs = {name: pad_sequence([each[name][0] for each in made], batch_first=True) for name in made[0]}
        inputs[LENGTHS] = torch.tensor([next(iter(each.values())).shape[1] for each in made])
        return inputs, torch.tensor([label for _, label in samples])


def sound_of_row(value: Any, feature: Any, directory: Path, name: str, preparation: SoundPreparation) -> np.ndarray:
    """Return the prepared sound, shape (T,), of a row of `datasets`.

    Args:
        value: Encoded sound, or numbers.
        feature: Type of the column, which may declare a sampling rate.
        directory: Directory of the data set.
        name: Name of the row in messages.
        preparation: The feature extractor and its sampling rate.

    Raises:
        Unreadable: If there is no sound, or it is damaged.
    """
    rate = None
    if isinstance(value, dict):
        source = encoded_source(value, directory, name)
        if source is None:
            raise Unreadable(f"{name} (no sound)")
        value, rate = read_sound(source, name)
        _require_channels(feature, value.shape[1], name)
    wave = np.asarray([] if value is None else value, dtype=np.float32)
    if not wave.size or not np.isfinite(wave).all():
        raise Unreadable(f"{name} ({'NaN or infinite' if wave.size else 'no sample'})")
    return preparation.prepare(wave, rate, getattr(feature, "sampling_rate", None))


def _require_channels(feature: Any, channels: int, name: str) -> None:
    """Raise DataError if the column asks `datasets.Audio` to select a stream or to mix channels, which needs ffmpeg."""
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
    up, down = wanted // shared, rate // shared
    # Filter and result, whose sizes follow from rates that files state.
    needed = ITEM * (FILTER * max(up, down) + len(mono) * up // down)
    Budget(f"a sound of {rate:,} Hz at {wanted:,} Hz", mono.nbytes).spend(needed)
    return resample_poly(mono, up, down)


def sound_preparation(arguments: Mapping[str, Any], hints: ModelHints) -> SoundPreparation:
    """Load the feature extractor of the model's directory, or of the directory that `feature_extractor` names.

    Args:
        arguments: Arguments of the data.
        hints: The model that will receive the data.

    Raises:
        UsageError: If there is no feature extractor, or the sampling rate is not a positive whole number.
        DataError: If the extractor cannot be read or has no sampling rate.
    """
    named = arguments.get(EXTRACTOR)
    directory = hints.directory_with(EXTRACTOR_FILE) if named is None else Path(str(named))
    if directory is None or not (directory / EXTRACTOR_FILE).is_file():
        raise UsageError(
            f"sound needs the model's feature extractor ({EXTRACTOR_FILE}), which is not beside it; name its directory "
            f"by {suggestion(feature_extractor='DIR')}"
        )
    extractor = load_auto("AutoFeatureExtractor", directory, f"{directory}: its feature extractor cannot be read")
    wanted = getattr(extractor, "sampling_rate", None)
    if not isinstance(wanted, int) or wanted < 1:
        raise DataError(f"{directory}: {EXTRACTOR_FILE} is of no model of sound: it has no sampling_rate")
    rate = whole_argument(RATE, arguments.get(RATE, wanted), 1)
    return SoundPreparation(extractor, wanted, rate, {EXTRACTOR: str(directory), RATE: rate})


def read_sound(source: Path | bytes, name: str) -> tuple[np.ndarray, int]:
    """Decode a sound in blocks within its budget, whatever length its header claims.

    Args:
        source: A file, or its content.
        name: Name of the sound in messages.

    Returns:
        Samples, shape (T, channels), float32, and the sampling rate in Hz.

    Raises:
        Unreadable: If the sound is damaged, empty or beyond its budget.
    """
    soundfile = require_extra("soundfile", "audio")
    blocks: list[np.ndarray] = []
    budget = Budget(name, len(source) if isinstance(source, bytes) else source.stat().st_size)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            rate = int(file.samplerate)
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                budget.spend(COPIES * block.nbytes)
                blocks.append(block)
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError, DataError) as error:
        # Its whole text has the address of the object that held the bytes.
        raise Unreadable(f"{name} ({getattr(error, 'error_string', None) or last_line(error)})") from error
    if not blocks:
        raise Unreadable(f"{name} (no sample)")
    return np.concatenate(blocks), rate

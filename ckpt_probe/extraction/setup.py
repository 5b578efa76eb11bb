"""What a caller asks for, checked before anything is opened: which model sees which data, what a dump keeps."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ckpt_probe.checkpoints import Checkpoint, open_checkpoint
from ckpt_probe.dumps import FEATURE_DTYPES, STORES
from ckpt_probe.errors import UsageError
from ckpt_probe.metrics.similarity import LEAST_ROWS
from ckpt_probe.models import POOLINGS
from ckpt_probe.moments import MEMORY
from ckpt_probe.moments.subset import ROWS

FORWARD_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Setup:
    """Which model sees which data, and where; None leaves it to what the checkpoint says.

    model, data: names with their arguments; those of the caller take the place of the checkpoint's. classifier: the
    name of the last linear layer, found by running the model where None. state_key, base: where the weights lie in a
    checkpoint, and what an adapter is merged onto, as `open_checkpoint`. splits: those of the data to use, all where
    None. batch_size: samples of one forward pass. device: "auto", "cpu", "cuda[:n]" or "mps".
    data_workers: processes that read images, as many as are free where None; the numbers are the same for any.
    unlabelled: whether labels of the data are not looked at. layers: which are tapped beside the classifier's input, as
    `choose_taps`. pooling: how what they give becomes rows, and which tokens of a model without a head are a sample's
    row: one of `POOLINGS`, the usual one where None.
    """

    model: str | None = None
    model_arguments: Mapping[str, Any] | None = None
    data: str | None = None
    data_arguments: Mapping[str, Any] | None = None
    classifier: str | None = None
    state_key: str | None = None
    base: Path | str | None = None
    splits: Sequence[str] | None = None
    batch_size: int = 256
    device: str = "auto"
    data_workers: int | None = None
    layers: str = "penultimate"
    unlabelled: bool = False
    pooling: str | None = None

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UsageError(f"--pooling {self.pooling}: expected one of {', '.join(POOLINGS)}")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size: expected at least 1, found {self.batch_size}")

    def open(self, path: Path) -> AbstractContextManager[Checkpoint]:
        """A checkpoint, opened for the time of a `with`: see `open_checkpoint`."""
        return open_checkpoint(path, state_key=self.state_key, base=self.base)

    def content_hash(self, path: Path) -> str:
        """The hash of a checkpoint's content, whatever its format."""
        with self.open(path) as checkpoint:
            return checkpoint.content_hash()

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> "Setup":
        """The setup that keyword options describe; they are removed from `options`, which keeps all others."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls) if field.name in options})


@dataclass(frozen=True)
class Storage:
    """What a dump keeps, and in which precision.

    limit: only the first so many samples of each split. dtype: precision of the forward pass; feature_dtype: that of
    the stored features. with_logits: whether logits are stored. store: "features" keeps the rows, "moments" class
    moments in their place (8·C·D² bytes at most, which must fit `memory`), "both" keeps both. max_rows: so many rows
    of a split are stored, chosen by `rows_seed`, the others only counted, and in the moments. layer_store: what is kept
    of layers other than the classifier's input. similarity_rows, similarity_seed: how many rows are kept of every layer
    to be compared with others, the same ones of each, and what they are drawn by.
    """

    limit: int | None = None
    dtype: str = "float32"
    feature_dtype: str = "float32"
    with_logits: bool = True
    store: str = "features"
    memory: int = MEMORY
    max_rows: int | None = None
    rows_seed: int = 0
    layer_store: str = "moments"
    similarity_rows: int = ROWS
    similarity_seed: int = 0

    def __post_init__(self) -> None:
        for option, least, number in (
            ("--limit", 1, self.limit),
            ("--max-rows", 1, self.max_rows),
            ("--rows-seed", 0, self.rows_seed),
            ("--similarity-rows", LEAST_ROWS, self.similarity_rows),
            ("--similarity-seed", 0, self.similarity_seed),
        ):
            if number is not None and number < least:
                raise UsageError(f"{option}: expected at least {least}, found {number}")
        for option, value, known in (
            ("--dtype", self.dtype, FORWARD_DTYPES),
            ("--feature-dtype", self.feature_dtype, FEATURE_DTYPES),
            ("--store", self.store, STORES),
            ("--layer-store", self.layer_store, STORES),
        ):
            if value not in known:
                raise UsageError(f"{option} {value}: expected one of {', '.join(known)}")

    def of_layers(self) -> dict[str, Any]:
        """What is kept of layers, as a provenance names it."""
        names = ("layer_store", "similarity_rows", "similarity_seed")
        return {name: getattr(self, name) for name in names}

    @property
    def forward_dtype(self) -> torch.dtype:
        """The precision of the forward pass, as torch names it."""
        return FORWARD_DTYPES[self.dtype]

    def require_fitting(self, classes: int, features: int, *, positions: bool = False) -> str | None:
        """What is to be said of moments that are larger than the memory they may take.

        positions: whether rows are positions, of which each class has few: then only the total second moment is kept.
        Raises UsageError otherwise, and where not even that fits.
        """
        needed = 8 * classes * features**2
        if self.store == "features" or needed <= self.memory:
            return None
        least = 8 * (classes + 2 * features) * features
        if positions and least <= self.memory:
            return (
                f"second moments of {classes:,} classes would take {needed:,} bytes, more than --memory: only that of "
                "all rows is kept, and within-class entropies are missing"
            )
        raise UsageError(
            f"--store {self.store}: class moments of {classes} classes and {features} features take "
            f"{least if positions else needed:,} "
            f"bytes, more than the memory limit of {self.memory:,}; raise --memory, or use --store features"
        )

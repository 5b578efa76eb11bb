"""The names in a dump, its version and its provenance; docs/dump-format.md is the specification."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import DataError, UsageError

FORMAT = "ckpt-probe-dump"
FORMAT_VERSION = 3
FIRST_HASHED = 3
"""The first version with checksums of every number and a hash of everything else."""

CLASSIFIER = "classifier"
WEIGHTS = "weights"
BIAS = "bias"
FEATURES = "features"
LABELS = "labels"
LOGITS = "logits"
PREDICTION = "prediction"
LOSS = "loss"
SCORES = (LOGITS, PREDICTION, LOSS)
OF_ROWS = (FEATURES, LABELS, *SCORES)
"""Arrays of a split that have one entry a row."""

MOMENTS = "moments"
LAYERS = "layers"
DEPTH = "depth"
POOLING = "pooling"
PENULTIMATE = "penultimate"
"""The classifier's input among the layers of a split, whose own arrays are those of the split itself."""

SIMILARITY = "similarity"
"""Of a split, which rows are kept of every layer to be compared with others."""

INDICES = "indices"
SIMILARITY_ROWS = "similarity_rows"
SEED = "seed"

UNLABELLED = "unlabelled"
NOT_STORED = "not_stored"
"""Attributes of a split: that its rows have no labels, and how many rows were seen and not stored."""

SAMPLE_SCALE = "sample"
FEATURE_SCALE = "feature"
CLASS_SCALE = "class"

SPLIT_ORDER = ("train", "validation", "test")
STORES = ("features", "moments", "both")
"""What a dump keeps of a split: its rows, class moments of them, or both."""

FEATURE_DTYPES = ("float16", "float32", "float64")

RESERVED = frozenset({"", ".", CLASSIFIER, FEATURE_SCALE, CLASS_SCALE})
"""Names at the root of a dump that no split can have."""


def require_split_name(name: str) -> None:
    """Raise DataError where a split cannot be called so in a dump."""
    if name in RESERVED or "/" in name or "\0" in name:
        raise DataError(
            f"split {name!r}: not a valid name for a split in a dump; it must not be empty or '.', contain '/' or a "
            f"zero byte, or be one of the reserved names {', '.join(sorted(RESERVED - {'', '.'}))}"
        )


def layer_place(split: str, layer: str) -> str:
    """The group of a layer of a split."""
    return f"{split}/{LAYERS}/{layer}"


@dataclass(frozen=True)
class Provenance:
    """Where a dump's numbers come from; the root attributes of the file, mappings and lists as JSON.

    Arguments become what JSON gives back of them, such as lists for tuples, so that a dump's provenance is equal to
    the one that it was written with; what was asked of layers is None where there are none but the penultimate. Raises
    UsageError for arguments that JSON does not have.
    """

    checkpoint: str
    checkpoint_size: int
    checkpoint_sha256: str
    step: int | None
    epoch: float | None
    model: str
    model_arguments: dict[str, Any]
    data: str
    data_arguments: dict[str, Any]
    classifier: str | None
    forward_dtype: str
    feature_dtype: str
    splits: tuple[str, ...]
    limit: int | None
    logits: bool
    store: str
    device: str
    versions: dict[str, str]
    max_rows: int | None = None
    rows_seed: int | None = None
    pooling: str | None = None
    layers: str | None = None
    layer_store: str | None = None
    similarity_rows: int | None = None
    similarity_seed: int | None = None
    request: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("model_arguments", "data_arguments"):
            try:
                kept = json.loads(json.dumps(getattr(self, name)))
            except (TypeError, ValueError) as error:
                told = "numbers, text, true and false, lists and mappings of them"
                raise UsageError(f"{name}: a dump keeps {told}: {error}") from error
            object.__setattr__(self, name, without_credentials(kept))
        for name in ("model", "data"):
            object.__setattr__(self, name, without_credentials(getattr(self, name)))

    def identity(self) -> dict[str, Any]:
        """Return what decides the content: everything but the device, the versions of libraries and the request."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OF_THE_CALL}

    def differences(self, other: "Provenance") -> list[str]:
        """Each field of the identity that differs, with this one's value and the other's."""
        theirs = other.identity()
        return [f"{name} {mine!r} / {theirs[name]!r}" for name, mine in self.identity().items() if mine != theirs[name]]

    def to_attributes(self) -> dict[str, Any]:
        """As HDF5 attributes; what is None, such as an unknown step, is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _attribute(value) for name, value in values.items() if value is not None}

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> "Provenance | None":
        """From HDF5 attributes; None where the file names no checkpoint. Raises DataError where they are broken."""
        if "checkpoint_sha256" not in attributes:
            return None
        try:
            values = {f.name: _value(f.name, attributes.get(f.name)) for f in fields(Provenance)}
            # Format 1 had no other store.
            values["store"] = values["store"] or "features"
        except (ValueError, TypeError) as error:
            raise DataError(f"the provenance attributes cannot be read ({error})") from error
        return Provenance(**values)


OF_THE_CALL = frozenset({"device", "versions", "request"})
_JSON = frozenset({"model_arguments", "data_arguments", "versions", "splits", "request"})


def _attribute(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | tuple) else value


def text(stored: Any) -> Any:
    """An attribute's text as Python's own; anything else as it is."""
    return stored.decode("utf-8") if isinstance(stored, bytes) else stored


def _value(name: str, stored: Any) -> Any:
    if stored is None:
        return None
    value = json.loads(stored) if name in _JSON else text(stored)
    if name == "splits":
        return tuple(value)
    # h5py hands numbers back as numpy scalars.
    return value.item() if hasattr(value, "item") else value

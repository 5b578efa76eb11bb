"""Define the names in a dump, its version and its provenance; docs/dump-format.md is the specification."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import DataError, UsageError

FORMAT = "ckpt-probe-dump"
FORMAT_VERSION = 4
FIRST_HASHED = 3
"""First version with checksums of all numbers and a hash of everything else."""

CLASSIFIER = "classifier"
WEIGHTS = "weights"
BIAS = "bias"
FEATURES = "features"
LABELS = "labels"
LOGITS = "logits"
PREDICTION = "prediction"
LOSS = "loss"
CONFIDENCE = "confidence"
SCORES = (LOGITS, PREDICTION, LOSS, CONFIDENCE)
DOCUMENTS = "documents"
POSITIONS = "positions"
"""Index of the document of each row, and the row's position in it; rows of one document are not independent."""
OF_ROWS = {
    FEATURES: ("f", "ND"),
    LABELS: ("iu", "N"),
    LOGITS: ("fiu", "NC"),
    PREDICTION: ("iu", "N"),
    LOSS: ("f", "N"),
    CONFIDENCE: ("f", "N"),
    DOCUMENTS: ("iu", "N"),
    POSITIONS: ("iu", "N"),
}
"""Arrays of a split with one entry per row: kinds of their numbers as in numpy, and a letter for each axis."""

MOMENTS = "moments"
BY_DOCUMENT = "by_document"
OVERSIZED = "oversized"
"""Group of a split with numbers of each document, and its attribute with the number of documents that have none."""
LAYERS = "layers"
DEPTH = "depth"
POOLING = "pooling"
PENULTIMATE = "penultimate"
"""Name of the classifier's input among the layers of a split; its arrays are those of the split itself."""

SUBSET = "subset"
"""Group of a split with its fixed subset of rows, which standard errors and similarities of layers come from."""

INDICES = "indices"
SUBSET_ROWS = "subset_rows"
"""Rows of the subset in a layer other than the penultimate one."""
SEED = "seed"

EARLIER_SUBSET, EARLIER_ROWS = "similarity", "similarity_rows"
"""Names of the subset and of its rows in every layer up to version 3, which has indices and seed only."""

UNLABELLED = "unlabelled"
NOT_STORED = "not_stored"
"""Attributes of a split: whether its rows have no labels, and how many rows were forwarded but not stored."""

SAMPLE_SCALE = "sample"
FEATURE_SCALE = "feature"
CLASS_SCALE = "class"

SPLIT_ORDER = ("train", "validation", "test")
STORES = ("features", "moments", "both")
"""Contents of a split: its rows, their class moments, or both."""

FEATURE_DTYPES = ("float16", "float32", "float64")

RESERVED = frozenset({"", ".", CLASSIFIER, FEATURE_SCALE, CLASS_SCALE})
"""Names that a split cannot have."""


def require_split_name(name: str) -> None:
    """Raise DataError if a split of a dump cannot have this name."""
    if name in RESERVED or "/" in name or "\0" in name:
        raise DataError(
            f"split {name!r}: not a valid name for a split in a dump; it must not be empty or '.', contain '/' or a "
            f"zero byte, or be one of the reserved names {', '.join(sorted(RESERVED - {'', '.'}))}"
        )


def layer_place(split: str, layer: str) -> str:
    """Return the name of the group of a layer of a split."""
    return f"{split}/{LAYERS}/{layer}"


@dataclass(frozen=True)
class Provenance:
    """The origin of a dump's numbers, stored as root attributes of the file, with mappings and lists as JSON.

    Arguments are converted to JSON and back (tuples become lists), so that the provenance read from a dump equals the
    one written. The fields about layers are None if only the penultimate layer is stored.

    Raises:
        UsageError: If arguments cannot be converted to JSON.
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
    subset_rows: int | None = None
    subset_seed: int | None = None
    request: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("model_arguments", "data_arguments"):
            try:
                arguments = json.loads(json.dumps(getattr(self, name)))
            except (TypeError, ValueError) as error:
                storable = "numbers, text, true and false, lists and mappings of them"
                raise UsageError(f"{name}: a dump can store only {storable}: {error}") from error
            object.__setattr__(self, name, without_credentials(arguments))
        for name in ("model", "data"):
            object.__setattr__(self, name, without_credentials(getattr(self, name)))

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine the content: all except device, library versions and request."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OF_THE_CALL}

    def differences(self, other: "Provenance") -> list[str]:
        """Return each field of the identity that differs, with this value and the other one."""
        theirs = other.identity()
        pairs = {name: (mine, theirs[name]) for name, mine in self.identity().items()}
        # A dump of an earlier version keeps no subset; everything else of it is that of a new one.
        earlier = self.subset_rows is None or other.subset_rows is None
        ignored = {"subset_rows", "subset_seed"} if earlier else set()
        return [
            f"{name} {mine!r} / {other_value!r}"
            for name, (mine, other_value) in pairs.items()
            if mine != other_value and name not in ignored
        ]

    def to_attributes(self) -> dict[str, Any]:
        """Return HDF5 attributes; fields that are None, such as an unknown step, are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: json.dumps(value, sort_keys=True) if isinstance(value, dict | tuple) else value
            for name, value in values.items()
            if value is not None
        }

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> "Provenance | None":
        """Return the provenance in HDF5 attributes, or None if they name no checkpoint.

        Raises:
            DataError: If they cannot be read.
        """
        if "checkpoint_sha256" not in attributes:
            return None
        try:
            values = {f.name: _value(f.name, attributes.get(f.name)) for f in fields(Provenance)}
            # Format 1 stored features only.
            values["store"] = values["store"] or "features"
            for name, earlier in (("subset_rows", EARLIER_ROWS), ("subset_seed", "similarity_seed")):
                values[name] = _value(name, attributes.get(name, attributes.get(earlier)))
        except (ValueError, TypeError) as error:
            raise DataError(f"the provenance attributes cannot be read ({error})") from error
        return Provenance(**values)


OF_THE_CALL = frozenset({"device", "versions", "request"})
_JSON = frozenset({"model_arguments", "data_arguments", "versions", "splits", "request"})


def text(stored: Any) -> Any:
    """Convert a text attribute to str; return anything else unchanged."""
    return stored.decode("utf-8") if isinstance(stored, bytes) else stored


def _value(name: str, stored: Any) -> Any:
    if stored is None:
        return None
    value = json.loads(stored) if name in _JSON else text(stored)
    if name == "splits":
        return tuple(value)
    # h5py returns numbers as numpy scalars.
    return value.item() if hasattr(value, "item") else value

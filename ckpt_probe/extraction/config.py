"""Settings of an extraction, which are checked before any file is opened, and the command line that repeats it."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ckpt_probe.addresses import redacted, without_credentials
from ckpt_probe.checkpoints import Checkpoint, open_checkpoint
from ckpt_probe.dumps import FEATURE_DTYPES, STORES
from ckpt_probe.errors import UsageError
from ckpt_probe.keywords import as_sequence, whole_number
from ckpt_probe.metrics.similarity import LEAST_ROWS
from ckpt_probe.models import POOLINGS
from ckpt_probe.moments import MEMORY
from ckpt_probe.moments.errors.subset import SUBSET_ROWS
from ckpt_probe.remote import resolve

FORWARD_DTYPES = ("float32", "float64", "float16", "bfloat16")
"""Names of torch's dtypes in which a model may run."""

SAMPLING = frozenset({"max_rows", "rows_seed", "subset_rows", "subset_seed"})
"""Keywords that are keys of the option --sampling."""

OPTIONS = {"model_arguments": "model-argument", "data_arguments": "data-argument", "splits": "split"}
OPTIONS |= dict.fromkeys(SAMPLING, "sampling")
"""Names of options that are not those of their keywords."""

IMPLIED = frozenset({"directions"})
"""Keywords that follow from the number of checkpoints."""

BETWEEN = {"span": ":", "grid": "x"}
"""Separators between the numbers of an option."""


@dataclass(frozen=True)
class Setup:
    """Model, data and device of an extraction.

    Attributes:
        model: Name of the model; that in the checkpoint's metadata if None.
        model_arguments: Arguments of the model, which replace those in the metadata.
        data: Name of the data; that in the checkpoint's metadata if None.
        data_arguments: Arguments of the data, which replace those in the metadata.
        classifier: Name of the last linear layer; found by running the model if None.
        state_key: Key of the weights in a checkpoint, as in `open_checkpoint`.
        base: Checkpoint onto which an adapter is merged, as in `open_checkpoint`.
        splits: Splits of the data to use; all if None.
        batch_size: Samples per forward pass.
        device: "auto", "cpu", "cuda[:n]" or "mps".
        data_workers: Number of processes that read images, which does not change the results; chosen by the number of
            free cores if None.
        layers: Layers that are stored beside the classifier's input, as in `choose_taps`.
        unlabelled: Whether labels of the data are ignored.
        pooling: Method by which activations of layers, or the tokens of a model without a head, become rows: one of
            `POOLINGS`; the usual one of each layer if None.
    """

    model: str | None = None
    model_arguments: Mapping[str, Any] | None = None
    data: str | None = None
    data_arguments: Mapping[str, Any] | None = None
    classifier: str | None = None
    state_key: str | None = None
    base: Path | None = None
    splits: Sequence[str] | None = None
    batch_size: int = 256
    device: str = "auto"
    data_workers: int | None = None
    layers: str = "penultimate"
    unlabelled: bool = False
    pooling: str | None = None

    def __post_init__(self) -> None:
        if self.base is not None:
            object.__setattr__(self, "base", resolve(self.base))
        object.__setattr__(self, "splits", as_sequence(self.splits))
        object.__setattr__(self, "layers", ",".join(as_sequence(self.layers) or ()))
        object.__setattr__(self, "batch_size", whole_number("batch_size", self.batch_size, 1))
        if self.model is not None and not isinstance(self.model, str):
            raise UsageError(
                '`model`: expected a name such as "timm:resnet18" or "path/to/file.py:function", found a '
                f"{type(self.model).__name__}; extract(model, loader, out) takes a module itself"
            )
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UsageError(f"`pooling={self.pooling!r}`: expected one of {', '.join(POOLINGS)}")

    def open(self, path: Path) -> AbstractContextManager[Checkpoint]:
        """Open a checkpoint, within a `with` block; see `open_checkpoint`."""
        return open_checkpoint(path, state_key=self.state_key, base=self.base)

    def content_hash(self, path: Path) -> str:
        """Return the hash of a checkpoint's content, which does not depend on its format."""
        with self.open(path) as checkpoint:
            return checkpoint.content_hash()


@dataclass(frozen=True)
class Storage:
    """Contents and precision of a dump.

    Attributes:
        limit: Number of samples of each split that are used; all if None.
        dtype: Precision of the forward pass.
        feature_dtype: Precision of the stored features.
        with_logits: Whether logits are stored.
        store: "features" for rows, "moments" for class moments (at most 8·C·D² bytes), or "both".
        memory: Largest size of class moments in bytes.
        max_rows: Largest number of rows stored of each split; the other rows are only counted, and enter the moments.
        rows_seed: Seed by which these rows are drawn.
        layer_store: What to store of layers other than the classifier's input: moments, features or both.
        subset_rows: Number of rows of the fixed subset, which is balanced by class, or drawn by documents. Of every
            layer these rows are stored, for standard errors and comparisons.
        subset_seed: Seed by which these rows are drawn.
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
    subset_rows: int = SUBSET_ROWS
    subset_seed: int = 0

    def __post_init__(self) -> None:
        least = {"limit": 1, "max_rows": 1, "rows_seed": 0, "subset_rows": LEAST_ROWS, "subset_seed": 0, "memory": 0}
        for name, smallest in least.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name), smallest))
        choices = {"dtype": FORWARD_DTYPES, "feature_dtype": FEATURE_DTYPES, "store": STORES, "layer_store": STORES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"`{name}={getattr(self, name)!r}`: expected one of {', '.join(known)}")

    def require_fitting(self, classes: int, features: int, *, positions: bool = False) -> str | None:
        """Check that class moments fit the memory limit.

        Args:
            classes: Number of classes C.
            features: Number of features D.
            positions: Whether rows are positions of samples; if their moments are too large, only the total second
                moment is stored instead of one per class.

        Returns:
            A warning if only the total second moment is stored, else None.

        Raises:
            UsageError: If the moments do not fit.
        """
        needed = 8 * classes * features**2
        if self.store == "features" or needed <= self.memory:
            return None
        least = 8 * (classes + 2 * features) * features
        if positions and least <= self.memory:
            return (
                f"second moments of {classes:,} classes would take {needed:,} bytes, more than `memory={self.memory}`: "
                "only that of all rows is stored, and within-class entropies are missing"
            )
        raise UsageError(
            f"`store={self.store!r}`: class moments of {classes} classes and {features} features take "
            f"{least if positions else needed:,} bytes, more than `memory={self.memory}`; raise `memory=`, or store "
            "features"
        )


def request_of(inputs: Sequence[Path], out: Path, *settings: Any) -> dict[str, Any]:
    """Return a call in values that JSON has.

    Args:
        inputs: Checkpoints or runs, as they were named.
        out: Directory of the results.
        settings: Dataclass instances; their fields that differ from the defaults are kept.

    Returns:
        Names of `inputs`, `options` by name, and `directory`: the working directory, relative to `out`.
    """
    options = {
        field.name: getattr(part, field.name)
        for part in settings
        for field in fields(part)
        if getattr(part, field.name) != field.default
    }
    request = {"inputs": list(inputs), "directory": os.path.relpath(Path.cwd(), out), "options": options}
    return without_credentials(json.loads(redacted(json.dumps(request, default=str))))


def command_of(verb: str, request: Mapping[str, Any], out: Path) -> str:
    """Return the command line that makes the results in `out` again, from the directory in which it was given.

    Args:
        verb: Command of ckpt-probe.
        request: Request as `request_of` returns it.
        out: Directory of the results, as it is named now.
    """
    directory = (out / request["directory"]).resolve()
    elsewhere = directory != Path.cwd() and directory.is_dir()
    target = os.path.relpath(out.resolve(), directory) if elsewhere else str(out)
    options = [word for name, value in request["options"].items() for word in _words(name, value)]
    line = shlex.join(["ckpt-probe", verb, *request["inputs"], "-o", target, *options])
    return f"cd {shlex.quote(str(directory))} && {line}" if elsewhere else line


def _words(name: str, value: Any) -> list[str]:
    if name in IMPLIED:
        return []
    option = OPTIONS.get(name, name.replace("_", "-"))
    if isinstance(value, bool):
        switch = option if value else f"no-{option}"
        return [f"--{switch}"]
    key = f"{name}=" if name in SAMPLING else ""
    values = value if name == "splits" else [value]
    return [word for each in values for word in (f"--{option}", key + _text(name, each))]


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return BETWEEN[name].join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    # None has a meaning for the number of points alone: chosen automatically.
    return "auto" if value is None else str(value)

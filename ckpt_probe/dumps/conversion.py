"""Convert a dump to an xarray DataTree with named dimensions, or to HTML for a notebook."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.hdf5 import CLASS_NAMES
from ckpt_probe.notebook import sparkline, table, text
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:
    from xarray import DataTree, Variable

    from ckpt_probe.dumps.reading import Dump
    from ckpt_probe.dumps.views import SplitView

SAMPLE, FEATURE, CLASS = schema.SAMPLE_SCALE, schema.FEATURE_SCALE, schema.CLASS_SCALE

AXES = {"N": SAMPLE, "D": FEATURE, "C": CLASS}
SUBSET_ROW = "subset_row"
OF_MOMENTS = {
    "counts": ("seen_class",),
    "means": ("seen_class", FEATURE),
    "squares": ("seen_class",),
    "within": (FEATURE, "other_feature"),
    "unit": (),
    "unit_counts": ("counted_class",),
    "left_out": (),
    "rows": ("kept_row", FEATURE),
    "row_labels": ("kept_row",),
    "second": ("counted_class", FEATURE, "other_feature"),
    "total": ("whole", FEATURE, "other_feature"),
}
"""Dimensions of stored moments; `seen_class` may lack the last classes if they have no sample."""
OF_LAYERS = {schema.SUBSET_ROWS: (SUBSET_ROW, FEATURE), schema.EARLIER_ROWS: (SUBSET_ROW, FEATURE)}


MOST_CLASSES = 200
"""Largest number of classifier rows in the sparkline, which is 120 pixels wide."""


def to_tree(dump: "Dump") -> "DataTree":
    """Return the tree of an open dump: /classifier with weights and bias, /SPLIT, and /SPLIT/moments if stored.

    Arrays are read when they are used, which is impossible once the dump is closed; `.load()` reads all of them.

    Raises:
        UsageError: If xarray is not installed.
    """
    xarray = require_extra("xarray", "frames")
    groups: dict[str, Any] = {"/": xarray.Dataset(attrs=_attributes(dump))}
    weights = dump.weights
    names = None if dump.class_names is None or weights is None else np.array(dump.class_names)
    head = {
        schema.WEIGHTS: ((CLASS, FEATURE), weights),
        schema.BIAS: ((CLASS,), dump.bias),
        # If not all classes have names, the names need another dimension.
        CLASS_NAMES: (
            (CLASS if names is not None and weights is not None and len(names) == len(weights) else "named_class",),
            names,
        ),
    }
    present = {name: xarray.Variable(dims, values) for name, (dims, values) in head.items() if values is not None}
    if present:
        groups[f"/{schema.CLASSIFIER}"] = xarray.Dataset(present)
    for split in dump.splits:
        groups |= {name: xarray.Dataset(variables) for name, variables in _groups(dump[split]).items()}
    return xarray.DataTree.from_dict(groups, name=dump.name)


def to_html(dump: "Dump", *, closed: bool) -> str:
    """Return a table of a dump's arrays with a sparkline of the lengths of the classifier's rows; read no row."""
    rows = []
    if dump.weights is not None:
        lengths = np.linalg.norm(dump.weights[:MOST_CLASSES], axis=1)
        known = [float(length) if np.isfinite(length) else None for length in lengths]
        line = sparkline(known, f"length of the classifier's rows of {len(known)} classes")
        rows.append([text(f"{schema.CLASSIFIER}/{schema.WEIGHTS}"), text(dump.weights.shape), text("float64"), line])
    if dump.bias is not None:
        rows.append([text(f"{schema.CLASSIFIER}/{schema.BIAS}"), text(dump.bias.shape), text("float64"), ""])
    for split in () if closed else dump.splits:
        for name, array in dump[split].arrays().items():
            rows.append([text(f"{split}/{name}"), text(tuple(array.shape)), text(array.dtype), ""])
    return table(_caption(dump, closed), ["array", "shape", "dtype", "‖row‖ by class"], rows)


def _attributes(dump: "Dump") -> dict[str, Any]:
    known = {} if dump.provenance is None else dump.provenance.to_attributes()
    return known if dump.step is None else {**known, "step": dump.step}


def _groups(view: "SplitView") -> dict[str, "dict[str, Variable]"]:
    groups: dict[str, dict[str, Variable]] = {f"/{view.name}": {}}
    for path, array in view.arrays().items():
        folder, _, name = path.rpartition("/")
        dimensions = _dimensions(folder, name)
        if dimensions is not None:
            groups.setdefault(f"/{view.name}/{folder}".rstrip("/"), {})[name] = _variable(view, array, dimensions)
    return groups


def _dimensions(folder: str, name: str) -> tuple[str, ...] | None:
    if folder in (schema.SUBSET, schema.EARLIER_SUBSET):
        return (SUBSET_ROW, FEATURE) if name == schema.FEATURES else (SUBSET_ROW,)
    if folder.endswith(schema.BY_DOCUMENT):
        return ("document",)
    of_rows = {name: tuple(AXES[axis] for axis in axes) for name, (_, axes) in schema.OF_ROWS.items()}
    known = OF_MOMENTS if folder.endswith(schema.MOMENTS) else {**of_rows, **OF_LAYERS}
    dimensions = known.get(name)
    if dimensions is None or not folder.startswith(f"{schema.LAYERS}/"):
        return dimensions
    # Layers differ in width, and in xarray a dimension has one length in a group and its parents.
    return tuple("layer_feature" if dimension == FEATURE else dimension for dimension in dimensions)


def _variable(view: "SplitView", array: Any, dimensions: tuple[str, ...]) -> "Variable":
    from xarray import Variable
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Stored(BackendArray):
        """An array that stays on disk until it is sliced."""

        shape = array.shape
        # The dtype after reading: in the byte order of this machine, and no wider than float64.
        dtype = view.read(array, (slice(0, 0),) * array.ndim or ()).dtype

        def __getitem__(self, key: Any) -> np.ndarray:
            vectors = indexing.IndexingSupport.OUTER_1VECTOR
            return indexing.explicit_indexing_adapter(key, array.shape, vectors, lambda part: view.read(array, part))

    return Variable(dimensions, indexing.LazilyIndexedArray(Stored()))


def _caption(dump: "Dump", closed: bool) -> str:
    step = "" if dump.step is None else f", step {dump.step}"
    source = "" if dump.provenance is None else f"; {dump.provenance.model} on {dump.provenance.data}"
    shut = f"; closed (it had {', '.join(dump.splits)})" if closed else ""
    return f"dump {dump.name}{step}{source}{shut}"

"""Open and check a dump, or an HDF5 file of another program that has arrays with the documented names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ckpt_probe.addresses import Address, as_path
from ckpt_probe.budget import Budget, require_regular
from ckpt_probe.dumps import schema
from ckpt_probe.dumps.conversion import to_html, to_tree
from ckpt_probe.dumps.schema import Provenance
from ckpt_probe.dumps.views import SplitView
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import (
    CLASS_NAMES,
    State,
    bounded_reads,
    opened,
    read_names,
    settled_state,
    state_of,
    structure_hash,
)
from ckpt_probe.moments.documents import NUMBERS
from ckpt_probe.series import Member, in_order, named_step, step_from_name

if TYPE_CHECKING:
    from xarray import DataTree

SUFFIXES = frozenset({".h5", ".hdf5"})

Sizes = dict[str, tuple[int, str]]
"""Length of each axis, and the dataset that it comes from."""

_checked: dict[State, bool] = {}
"""Files that were checked → whether the shapes of their arrays were compared too: a report opens each several times."""


class Dump:
    """An open dump: `dump["test"].features[:100]`, `dump.weights`, `dump.provenance`.

    Attributes:
        path: File.
        name: Name of the file without suffix.
        provenance: Origin of the numbers; None for a file of another program.
        step: Training step, if it is known.
        splits: Names of the splits.
        weights: Weights of the classifier, shape (C, D), float64, or None.
        bias: Bias of the classifier, shape (C,), float64, or None.
        class_names: Names of the first classes, or None.
    """

    def __init__(self, path: Path, file: h5py.File, *, consistent: bool = False) -> None:
        self.path = path
        self.name = path.stem
        self._file = file
        self.provenance = _provenance(path, file)
        self.step = _step(path, file)
        self.splits = _split_names(path, file)
        sizes: Sizes = {}
        self.weights: np.ndarray | None = self._classifier(schema.WEIGHTS, "CD", sizes)
        self.bias: np.ndarray | None = self._classifier(schema.BIAS, "C", {})
        self.class_names = self._class_names()
        for name in () if consistent else self.splits:
            self._check_split(name, sizes)
            self._check_layers(name)
        self._views = {name: SplitView(path, name, file[name]) for name in self.splits}

    def __getitem__(self, split: str) -> SplitView:
        if split not in self._views:
            raise DataError(f"{self.path}: no split {split!r}; there are: {', '.join(self.splits)}")
        return self._views[split]

    def to_xarray(self) -> "DataTree":
        """Return an xarray DataTree with named dimensions, such as (sample, feature) for `/test/features`.

        Rows are read when they are used; `.load()` reads all of them, so that the tree outlives the open dump.

        Raises:
            UsageError: If xarray is not installed.
        """
        return to_tree(self)

    def _repr_html_(self) -> str:
        return to_html(self, closed=not self._file)

    def _classifier(self, name: str, axes: str, sizes: Sizes) -> np.ndarray | None:
        dataset = self._array(schema.CLASSIFIER, name)
        if dataset is None:
            return None
        self._require(f"{schema.CLASSIFIER}/{name}", "f", axes, sizes)
        return np.asarray(dataset, dtype=np.float64)

    def _class_names(self) -> tuple[str, ...] | None:
        dataset = self._array(schema.CLASSIFIER, CLASS_NAMES)
        return None if dataset is None else read_names(self.path, dataset)

    def _array(self, parent: str, name: str) -> Any:
        group = self._file.get(parent)
        if not isinstance(group, h5py.Group) or name not in set(group):
            return None
        # A listed member may be unreachable: a broken link, or damaged bytes.
        return self._required(f"{parent}/{name}", h5py.Dataset)

    def _required(self, name: str, kind: type) -> Any:
        member = self._file.get(name)
        if not isinstance(member, kind):
            raise DataError(
                f"{self.path}: {name}: expected a {kind.__name__.lower()}; it is something else or cannot be reached"
            )
        return member

    def _require(self, name: str, kinds: str, axes: str, sizes: Sizes) -> None:
        """Check the numbers of a dataset.

        Args:
            name: Name of the dataset.
            kinds: Kinds of numbers as in numpy, such as "iu" for integers.
            axes: A letter for each axis.
            sizes: Known lengths of axes, each with the dataset that it comes from; gets the lengths of the other axes.

        Raises:
            DataError: If there is no such dataset, or it has numbers of another kind or another shape.
        """
        dataset = self._required(name, h5py.Dataset)
        known = [f", {axis} = {sizes[axis][0]} as in {sizes[axis][1]}" for axis in axes if axis in sizes]
        fits = dataset.ndim == len(axes) and 0 not in dataset.shape[1:]
        fits = fits and all(
            sizes.setdefault(axis, (length, name))[0] == length
            for axis, length in zip(axes, dataset.shape, strict=True)
        )
        if not fits or dataset.dtype.kind not in kinds:
            numbers = {"f": "floating-point numbers", "iu": "integers"}.get(kinds, "numbers")
            shape = f"({', '.join(axes)}{',' if len(axes) == 1 else ''}){''.join(known)}"
            actual = f"shape {dataset.shape} of {dataset.dtype}"
            raise DataError(f"{self.path}: {name}: expected {numbers} of shape {shape}, found {actual}")

    def _check_layers(self, split: str) -> None:
        group = self._required(split, h5py.Group)
        sizes: Sizes = {}
        for subset in {schema.SUBSET, schema.EARLIER_SUBSET} & set(group):
            self._check_subset(f"{split}/{subset}", sizes)
        for name in self._required(f"{split}/{schema.LAYERS}", h5py.Group) if schema.LAYERS in set(group) else ():
            path = schema.layer_place(split, name)
            layer: Any = self._required(path, h5py.Group)
            depth = layer.attrs.get(schema.DEPTH)
            if not isinstance(depth, float) or not 0 <= depth <= 1 or schema.POOLING not in layer.attrs:
                raise DataError(f"{self.path}: {path}: depth (0 … 1) or pooling is missing; extract again")
            self._check_split(path, {})
            for array in {schema.SUBSET_ROWS, schema.EARLIER_ROWS} & set(layer):
                if not sizes:
                    raise DataError(f"{self.path}: {path}/{array}: the indices of its rows are missing; extract again")
                self._require(f"{path}/{array}", "f", "RD", {"R": sizes["R"]})

    def _check_subset(self, name: str, sizes: Sizes) -> None:
        group = self._required(name, h5py.Group)
        if schema.INDICES not in set(group) or schema.SEED not in group.attrs:
            raise DataError(f"{self.path}: {name}: indices or seed are missing; extract again")
        self._require(f"{name}/{schema.INDICES}", "iu", "R", sizes)
        for member in set(group) - {schema.INDICES}:
            self._require(f"{name}/{member}", *(("f", "RD") if member == schema.FEATURES else ("iu", "R")), sizes)

    def _check_split(self, name: str, sizes: Sizes) -> None:
        group = self._required(name, h5py.Group)
        members, documents = set(group), Sizes()
        if schema.MOMENTS in members:
            self._check_moments(f"{name}/{schema.MOMENTS}", sizes)
        for array in NUMBERS if schema.BY_DOCUMENT in members else ():
            self._require(f"{name}/{schema.BY_DOCUMENT}/{array}", "f", "K", documents)
        if schema.FEATURES not in members:
            return
        if schema.LABELS not in members and not group.attrs.get(schema.UNLABELLED, False):
            advice = f"add an array {name}/labels, or an attribute {schema.UNLABELLED} = true to {name}"
            raise DataError(f"{self.path}: {name}: features without labels; {advice}")
        of_rows = dict(sizes)
        for array, (kinds, axes) in schema.OF_ROWS.items():
            if array in members:
                self._require(f"{name}/{array}", kinds, axes, of_rows)

    def _check_moments(self, path: str, sizes: Sizes) -> None:
        where, size, group = f"{self.path}: {path}", self.path.stat().st_size, self._required(path, h5py.Group)
        for name in group:
            member = self._file.get(f"{path}/{name}")
            if isinstance(member, h5py.Group):
                self._check_moments(f"{path}/{name}", sizes)
                continue
            claimed = self._required(f"{path}/{name}", h5py.Dataset).nbytes
            if claimed > size:
                raise DataError(f"{where}/{name}: claims {claimed:,} bytes, but the file has {size:,}; extract again")
        if not {"counts", "means"} <= set(group) or group["means"].ndim != 2:
            raise DataError(f"{where}: counts (C,) or means (C, D) are missing; extract again")
        self._require(f"{path}/means", "f", "KD", dict(sizes))


@contextmanager
def open_dump(path: Path | str) -> Iterator[Dump]:
    """Open a dump for reading, within a `with` block.

    Raises DataError if the file is missing, not HDF5, truncated, of a newer format, incomplete (our format without the
    completion mark) or damaged, if the shapes of its arrays do not match, or if it changes while it is open.
    """
    path = as_path(path)
    before = _state(path)
    try:
        with opened(path) as file:
            with bounded_reads(path) as budget:
                state = _require_sound(path, file, budget)
                dump = Dump(path, file, consistent=state is not None and _checked.get(state, False))
                _checked.update({} if state is None else {state: True})
            yield dump
    except (DataError, OSError) as error:
        _require_same(path, before, error)
        raise
    _require_same(path, before)


def read_provenance(path: Path | str) -> Provenance | None:
    """Return the provenance of a dump, or None for a file of another program.

    Raises:
        DataError: As in `open_dump`.
    """
    path = Path(path)
    with opened(path) as file, bounded_reads(path) as budget:
        _require_sound(path, file, budget)
        return _provenance(path, file)


def has_dumps(path: Path) -> bool:
    """Return whether a path is a dump by its suffix, or a directory with one."""
    if not path.is_dir():
        return path.suffix.lower() in SUFFIXES
    try:
        return any(entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") for entry in path.iterdir())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; repair or remove it") from error


def ordered_dumps(path: Path | str) -> list[Path]:
    """Return the dumps at `path` in the order of `open_dump_series`; a single one is not opened for its step."""
    files = _files(as_path(path))
    return files if len(files) == 1 else [member.path for member in in_order(map(_member, files))]


def open_dump_series(path: Path | str) -> list[Member]:
    """List the dumps at `path`, one .h5 file or a directory of them, ordered by step.

    The step is the attribute `step`, otherwise the number in the file name.

    Raises:
        DataError: If there is no dump, or one of them cannot be read.
    """
    return in_order(map(_member, _files(as_path(path))))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    require_regular(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or directory")
    files = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not files:
        raise DataError(f"{path}: no dump found (looked for *.h5 and *.hdf5); create dumps with ckpt-probe extract")
    return files


def _member(path: Path) -> Member:
    spelled = named_step(path.stem) if isinstance(path, Address) else None
    if spelled is not None and spelled[1] == "name":
        # A remote dump is not downloaded only for its step, which `extract` writes into the name.
        return Member(path, path.stem, spelled[0])
    with opened(path) as file, bounded_reads(path) as budget:
        _require_sound(path, file, budget)
        return Member(path, path.stem, _step(path, file))


def _state(path: Path) -> State | None:
    try:
        return state_of(path.stat())
    except OSError:
        return None


def _require_same(path: Path, before: State | None, error: Exception | None = None) -> None:
    if _state(path) != before:
        raise DataError(f"{path}: changed while it was read; try again when no program writes to it") from error


def _require_sound(path: Path, file: h5py.File, budget: Budget) -> State | None:
    """Check that a dump is not damaged and may be opened; a file that has not changed is checked only once.

    The numbers are covered by HDF5's checksums, which are verified whenever they are read.

    Returns:
        The `settled_state` of the file.

    Raises:
        DataError: If it is damaged, incomplete, or of a newer format.
    """
    state = settled_state(file)
    if state not in _checked:
        if schema.text(file.attrs.get("format")) == schema.FORMAT:
            _check_format(path, file, budget)
        _checked.update({} if state is None else {state: False})
    return state


def _check_format(path: Path, file: h5py.File, budget: Budget) -> None:
    attributes: Any = file.attrs
    version = int(attributes.get("format_version", 0))
    if version > schema.FORMAT_VERSION:
        known = schema.FORMAT_VERSION
        raise DataError(
            f"{path}: dump format {version}, but this ckpt-probe reads formats up to {known}: upgrade ckpt-probe"
        )
    if not file.attrs.get("complete", False):
        raise DataError(f"{path}: incomplete: writing it was interrupted (no completion mark); extract it again")
    if version < schema.FIRST_HASHED:
        return
    if schema.text(file.attrs.get("structure_sha256")) != structure_hash(file, budget):
        raise DataError(f"{path}: damaged: names or attributes differ from those that were written; extract it again")


def _provenance(path: Path, file: h5py.File) -> Provenance | None:
    try:
        return Provenance.from_attributes(file.attrs)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _step(path: Path, file: h5py.File) -> int | None:
    stated: Any = file.attrs.get("step")
    if stated is None:
        return step_from_name(path.stem)
    try:
        # Some programs write every attribute as an array of one.
        value = np.asarray(stated).item()
        if isinstance(value, float) and not value.is_integer():
            raise ValueError
        return int(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: attribute step is {repr(stated)[:100]}, expected one integer") from error


def _split_names(path: Path, file: h5py.File) -> list[str]:
    contents = {schema.FEATURES, schema.MOMENTS}
    groups = [name for name, item in file.items() if isinstance(item, h5py.Group) and contents & set(item)]
    if not groups:
        raise DataError(f"{path}: no split found; expected groups with the arrays features and labels")
    order = {name: number for number, name in enumerate(schema.SPLIT_ORDER)}
    return sorted(groups, key=lambda name: (order.get(name, len(order)), name))

"""Labelled data by name: builtin, files of anybody's, an entry point, or anybody's `package.module:function`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ckpt_probe.addresses import is_address, place
from ckpt_probe.data.arguments import require_known
from ckpt_probe.data.arrays import archives, idx, modular, union
from ckpt_probe.data.arrays.held import CHOICES, Held, chosen
from ckpt_probe.data.dataset import default_workers
from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.labels import BY_NAME, BY_ORDER, MATCH, without_labels
from ckpt_probe.data.returned import labelled, of_splits
from ckpt_probe.data.samples import LabelledData, Split
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.plugins import is_function_name, load_function, registered
from ckpt_probe.remote import kept

ENTRY_POINTS = "ckpt_probe.data"
AT_PLACES = frozenset({"idx", "npz", "h5", "text", "imagefolder", "hf-dataset", "csv", "parquet"})
"""Kinds whose files may also lie at an address, `npz:s3://bucket/digits.npz`."""
WORKERS = "workers"

FILES = {
    "text": ("ckpt_probe.data.language.documents", "load"),
    "imagefolder": ("ckpt_probe.data.images.folder", "load"),
    "hf-dataset": ("ckpt_probe.data.saved", "load"),
    "csv": ("ckpt_probe.data.tables", "load_csv"),
    "parquet": ("ckpt_probe.data.tables", "load_parquet"),
}
"""Files that are read for a model: module and function (place, arguments, hints, workers) → LabelledData."""

UNLABELLED = "unlabelled"
NO_LABELS: dict[str, dict[str, Any]] = {"text": {"labels": "none"}, "hf-dataset": {"label": None}}
"""Arguments of sources that then look for no labels; any other's are read and dropped."""

SPELLED = (
    *("digits", "idx:DIR", "npz:FILE", "h5:FILE", "text:FILE", "imagefolder:DIR", "hf-dataset:DIR", "csv:FILE"),
    *("parquet:FILE", "union", "modular:p=59,op=add,fraction=0.3"),
)


def load_data(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    hints: ModelHints | None = None,
    workers: int | None = None,
) -> LabelledData:
    """Labelled data in named splits.

    `digits`: 1,797 handwritten digits, inputs (1, 8, 8) in [0, 1], 10 classes, splits train and test (a stratified
    quarter chosen by seed 0; `test_fraction`, `split_seed` change that). `idx:DIR`: (1, H, W). `npz:FILE`: arrays `x`
    and `y`, split as digits are, or x_train, y_train, x_test, y_test. `h5:FILE`: arrays `inputs` and `labels` in each
    split's group. `union`: `sources` = [{name, arguments}, …] in one, `size` = [H, W]. These five take `classes`,
    `per_class`, `validation_per_class`, `subset_seed` (see arrays.subset) and `shift` (see arrays.shifts) too, applied
    in this order. `modular:p=59,op=add,fraction=0.3`: see arrays.modular. `text:FILE`, `imagefolder:DIR`,
    `hf-dataset:DIR`, `csv:FILE`, `parquet:FILE`: see language.documents, images.folder, saved and tables; what a model
    says of its inputs is in `hints`. `package.module:function` or `file.py:function` is called with `arguments`; what
    it may return: see `labelled`. An argument `unlabelled` that is true drops the labels of any of them.

    Of a kind with files, these may be elsewhere (`npz:s3://bucket/digits.npz`): they are fetched whole first.
    workers: processes that read images and datasets, and an argument of those sources; the data are the same for any
    number, none where 0. Raises UsageError for an unknown name or argument, DataError for a file or a function's result
    that is no such data.
    """
    kind, _, at = name.partition(":")
    if kind in AT_PLACES and is_address(at):
        return _of_address(kind, str(place(at)), arguments, hints, workers)
    given = dict(arguments or {})
    match = _match(name, given.pop(MATCH, None))
    unlabelled = _unlabelled(name, given.pop(UNLABELLED, False))
    with _named(name, given):
        if unlabelled:
            return _without_labels(name, given, hints or ModelHints(), workers)
        data = _loaded(name, given, hints or ModelHints(), workers)
    return replace(data, arguments={**data.arguments, MATCH: match}) if match else data


def _of_address(
    kind: str, address: str, arguments: Mapping[str, Any] | None, hints: ModelHints | None, workers: int | None
) -> LabelledData:
    """Data whose files are fetched first, and which are called by their address."""
    with kept(address) as local:
        data = load_data(f"{kind}:{local}", arguments, hints=hints, workers=workers)
    return replace(data, name=f"{kind}:{address}")


def functions_named(name: str, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """Each function that loading data called `name` would import, and each address; none for what comes with us."""
    kind, _, at = name.partition(":")
    if kind in AT_PLACES and is_address(at):
        return [name]
    if name == "union":
        parts = union.entries((arguments or {}).get("sources"))
        return [function for part, given in parts for function in functions_named(part, given)]
    known = _arrays(name) is not None or name.partition(":")[0] in {"modular", "h5", *FILES}
    return [] if known or not is_function_name(name) or name in registered(ENTRY_POINTS) else [name]


def _loaded(name: str, given: dict[str, Any], hints: ModelHints, workers: int | None) -> LabelledData:
    kind, _, place = name.partition(":")
    if (source := _arrays(name)) is not None:
        choices = {key: given[key] for key in CHOICES if key in given}
        held = source(**{key: value for key, value in given.items() if key not in choices})
        if choices:
            # What is empty or out of range as a whole is told before a part of it is taken.
            of_splits(name, held.splits, given)
            held = chosen(held, **choices)
        return of_splits(name, held.splits, given, held.class_names)
    if kind == "h5" and place:
        return _of_h5(name, Path(place), given)
    if kind in FILES and place:
        module, function = FILES[kind]
        asked = given.pop(WORKERS, None)
        count = _workers(asked if workers is None else workers)
        return getattr(import_module(module), function)(place, given, hints, count)
    return labelled(name, _function(name)(**given), given, _workers(workers) if workers is not None else 0)


def _without_labels(name: str, given: dict[str, Any], hints: ModelHints, workers: int | None) -> LabelledData:
    """Data whose labels, where there are any, are not looked at."""
    kind = name.partition(":")[0]
    # These have no labels but what they are asked for.
    told = NO_LABELS.get(kind, {})
    data = _loaded(name, {**given, **told}, hints, workers)
    splits: dict[str, Split] = {split: without_labels(held) for split, held in data.splits.items()}
    arguments = {**{key: value for key, value in data.arguments.items() if key not in told}, UNLABELLED: True}
    return replace(data, splits=splits, classes=0, class_names=None, arguments=arguments)


def _of_h5(name: str, path: Path, given: dict[str, Any]) -> LabelledData:
    from ckpt_probe.data.arrays.stored import read_h5

    splits, names = read_h5(path)
    require_known("h5", given, CHOICES)
    data = of_splits(name, splits, given, names)
    if not given:
        return data
    held = chosen(Held({split: stored.held() for split, stored in splits.items()}, names), **given)
    return of_splits(name, held.splits, given, held.class_names)


@contextmanager
def _named(name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """What goes wrong inside is told with the data's name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(f"data {name}: cannot be loaded with arguments {given}: {error}") from error
    except (DataError, UsageError) as error:
        raise type(error)(f"data {name}: {error}") from error


def _arrays(name: str) -> Callable[..., Held] | None:
    kind, _, place = name.partition(":")
    if name == "digits":
        return archives.read_digits
    if name == "union":
        return _union
    if kind == "idx" and place:
        return lambda: Held(idx.read_splits(Path(place)))
    if kind == "npz" and place:
        return lambda **arguments: archives.read_npz(Path(place), **arguments)
    return None


def _function(name: str) -> Callable[..., Any]:
    kind, _, place = name.partition(":")
    if kind == "modular":
        return lambda **arguments: modular.read_splits(place, arguments)
    if name in (others := registered(ENTRY_POINTS)):
        return others[name]
    if is_function_name(name):
        return load_function(name)
    raise UsageError(f"no data called {name!r}; there are: {', '.join([*SPELLED, *others, 'package.module:function'])}")


def _union(sources: Any = None, size: Sequence[int] | None = None) -> Held:
    return union.joined([load_data(name, arguments) for name, arguments in union.entries(sources)], size)


def _match(name: str, given: Any) -> str | None:
    if given not in (None, BY_NAME, BY_ORDER):
        raise UsageError(f"data {name}: {MATCH}: expected {BY_NAME} or {BY_ORDER}, found {given!r}")
    return BY_ORDER if given == BY_ORDER else None


def _unlabelled(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise UsageError(f"data {name}: {UNLABELLED}: expected true or false, found {given!r}")
    return given


def _workers(given: Any) -> int:
    """So many processes, one fewer than there are processors and at most eight where it was not said."""
    if given is None:
        return default_workers()
    if type(given) is not int or given < 0:
        raise UsageError(f"{WORKERS}: expected a whole number of at least 0, found {given!r}")
    return given

"""State dicts that torch.save wrote: zip archives, memory-mapped, and the stream of versions before 1.6, read whole.

Only `torch.load(weights_only=True)` builds anything, after `scanning` has read what it would build, and once a tensor
is asked for: names, dtypes and shapes are those of the outline wherever that shows them all.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ckpt_probe.checkpoints.contents import Asked, Contents
from ckpt_probe.checkpoints.formats.archive import check_archive
from ckpt_probe.checkpoints.formats.facts import MONITORED, plain
from ckpt_probe.checkpoints.formats.inert import STAND_INS
from ckpt_probe.checkpoints.formats.nesting import OF_TRAINING, Choice, choose
from ckpt_probe.checkpoints.formats.outlines import NotOutlined, OutlinedTensor
from ckpt_probe.checkpoints.formats.scanning import Scan, scan
from ckpt_probe.checkpoints.formats.signatures import ZIP
from ckpt_probe.checkpoints.tensors import filler, layout_of
from ckpt_probe.checkpoints.writing import BITS, Layout
from ckpt_probe.errors import CkptProbeError, DataError, last_line
from ckpt_probe.files import require_regular
from ckpt_probe.remote import whole

if TYPE_CHECKING:
    from torch import Tensor

PREAMBLE = 3
"""Pickles before the one with the tensors: that number, the protocol, and the machine's sizes."""

COUNT = 8
"""Bytes before each storage of a stream: how many numbers it has."""

OTHER_TENSORS = {
    "torch._utils._rebuild_qtensor": "quantised tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without data, on torch's meta device",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a class of their own",
}
"""Functions of torch that are not called, and what a file that needs them holds."""


@contextmanager
def open_pickled(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open a file of torch.save.

    Raises DataError for one that is truncated or lies about its sizes, names anything but tensors and what `inert`
    lists, or is a whole module; UsageError as `nesting.choose`.
    """
    require_regular(path)
    with whole(path).open("rb") as file:
        archive = file.read(len(ZIP)) == ZIP
        file.seek(0)
        outline = require_sound(file, path.stat().st_size, path, archive=archive).outline
    loaded = _Loaded(path, asked.state_key, archive)
    listing = _listing(outline, asked.state_key, path.stat().st_size) or loaded.listing
    choice, read = listing.choice, loaded.reader(listing.layout)
    yield Contents(
        path=path,
        format="torch zip" if archive else "torch stream",
        files=(path,),
        layout=listing.layout,
        read=read,
        fill=filler(read),
        beside=listing.beside,
        extra=lambda: loaded.listing.choice.taken.extra if choice.taken.extra else {},
        state_key=choice.taken.key or None,
        others=tuple(map(str, choice.others)),
        dropped=choice.taken.dropped,
    )


@dataclass(frozen=True)
class _Listing:
    """What is known of a file without its tensors' numbers: the mapping taken, its tensors, and what stands beside."""

    choice: Choice
    layout: Layout
    beside: Mapping[str, Any]


class _Loaded:
    """What torch makes of a file, read when it is first needed."""

    def __init__(self, path: Path, state_key: str | None, archive: bool) -> None:
        self._path = path
        self._state_key = state_key
        self._archive = archive

    @cached_property
    def listing(self) -> _Listing:
        """As `_listing`, of what torch made. Raises DataError and UsageError as `open_pickled`."""
        try:
            choice = choose(self._tree, _numbers, self._state_key)
            tensors = {name: _plain_tensor(name, tensor, self._path) for name, tensor in choice.taken.tensors.items()}
        except CkptProbeError as error:
            raise type(error)(f"{self._path}: {error}") from error
        self._tensors = tensors
        return _Listing(choice, layout_of(tensors), plain(_beside(self._tree, choice)))

    def reader(self, layout: Layout) -> "Callable[[str], Tensor]":
        """A function that gives a tensor of the layout, which has to be torch's too."""

        def read(name: str) -> "Tensor":
            if self.listing.layout != layout:
                raise DataError(f"{self._path}: changed while it was open, or damaged: torch reads other tensors")
            return self._tensors[name]

        return read

    @cached_property
    def _tree(self) -> Any:
        path = self._path
        # torch takes this suffix for its word; such a file is read whole.
        mapped = path if self._archive and path.suffix != ".safetensors" else None
        with whole(path).open("rb") as file:
            return load_checked(file, path.stat().st_size, path, archive=self._archive, mapped=mapped)


def _listing(outline: Any, state_key: str | None, most: int) -> _Listing | None:
    """What an outline shows of a file of at most so many bytes; None where torch must read it, or say why not."""
    try:
        choice = choose(outline, _outlined_numbers, state_key)
        layout = {name: (tensor.dtype, tensor.shape) for name, tensor in choice.taken.tensors.items()}
        beside = plain(_beside(outline, choice))
    except (CkptProbeError, NotOutlined):
        return None
    claimed = (math.prod(shape) * BITS.get(dtype, 8) // 8 for dtype, shape in layout.values())
    return None if max(claimed) > most else _Listing(choice, layout, beside)


def _outlined_numbers(value: Any) -> int | None:
    return value.numbers if isinstance(value, OutlinedTensor) else None


def load_checked(file: BinaryIO, size: int, told: Path, *, archive: bool = True, mapped: Path | None = None) -> Any:
    """What torch.load makes of a file of `size` bytes whose claims have been checked before; `mapped`: read by mmap.

    Raises DataError naming `told` where a claim does not hold, or torch cannot read it.
    """
    import torch

    require_sound(file, size, told, archive=archive)
    file.seek(0)
    allowed: Any = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(mapped or file, map_location="cpu", weights_only=True, mmap=mapped is not None)
    except MemoryError:
        raise
    except Exception as error:
        # torch raises whatever a damaged file happens to lead to, among them its own and pickle's errors.
        raise DataError(f"{told}: damaged or truncated, torch cannot read it ({last_line(error)})") from error


def require_sound(file: BinaryIO, size: int, told: Path, *, archive: bool = True) -> Scan:
    """What a file asks for; DataError naming `told` where it claims more than it has, or names what is not read."""
    try:
        found = check_archive(file) if archive else _check_stream(file, size)
    except (ValueError, OSError) as error:
        raise DataError(f"{told}: {error}") from error
    _require_allowed(told, found)
    return found


def _check_stream(file: BinaryIO, size: int) -> Scan:
    try:
        for _ in range(PREAMBLE):
            scan(file, size)
        found = scan(file, size - file.tell())
        # The order of the storages whose bytes follow: a pickle of its own.
        scan(file, size - file.tell())
    except ValueError as error:
        raise ValueError(f"truncated, or not written by torch.save ({error})") from error
    claimed = sum(COUNT + number for number in found.storages.values())
    if claimed > size - file.tell():
        raise ValueError(f"truncated: claims {claimed:,} bytes of tensors, but only {size - file.tell():,} follow")
    return found


def _require_allowed(path: Path, found: Scan) -> None:
    if not found.forbidden:
        return
    first = found.forbidden[0]
    load = f"torch.load({path.name!r}, weights_only=False)"
    if found.whole_module:
        raise DataError(
            f"{path}: a whole pickled module; opening it would run code from the file. If you trust it, convert it: "
            f"model = {load}; torch.save(model.state_dict(), '{path.stem}-weights.pt')"
        )
    if first in OTHER_TENSORS:
        raise DataError(f"{path}: holds {OTHER_TENSORS[first]}; convert them to dense floating point first")
    more = f" and {len(found.forbidden) - 1} more" if len(found.forbidden) > 1 else ""
    raise DataError(
        f"{path}: needs {first}{more}, not on the list of harmless classes; it is not opened, because it could run "
        f"code. If you trust it, convert it: saved = {load}; torch.save(saved['…'], '{path.stem}-weights.pt')"
    )


def _numbers(value: Any) -> int | None:
    import torch

    return value.numel() if isinstance(value, torch.Tensor) else None


def _plain_tensor(name: str, tensor: "Tensor", path: Path) -> "Tensor":
    import torch

    # By the class's own function, as a file may set attributes of its tensors.
    plain_one = torch.Tensor.detach(tensor)
    claimed = plain_one.numel() * plain_one.element_size()
    if claimed > max(plain_one.untyped_storage().nbytes(), path.stat().st_size):
        raise DataError(f"tensor {name!r} claims {claimed:,} bytes, more than the whole file has")
    return plain_one


def _beside(tree: Any, choice: Choice) -> Mapping[Any, Any]:
    """What stands at the top beside the tensors taken, and beside those of other mappings and of training."""
    if not isinstance(tree, Mapping) or not choice.taken.key:
        return {}
    holding = {key.partition(".")[0] for key in (choice.taken.key, *(other.key for other in choice.others))}
    entries = {
        name: value
        for name, value in tree.items()
        if str(name) not in holding and not (OF_TRAINING.search(str(name)) and isinstance(value, Mapping | list))
    }
    scores = _monitored(tree.get("callbacks"))
    return {**entries, MONITORED: scores} if scores else entries


def _monitored(callbacks: Any) -> dict[str, Any]:
    """Return the scores that Lightning's ModelCheckpoint keeps: of this checkpoint, else the best of the run so far."""
    scores = {}
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and isinstance(state.get("monitor"), str):
            keys = {f"best_{state['monitor']}": "best_model_score", state["monitor"]: "current_score"}
            present = {name: state[key] for name, key in keys.items() if state.get(key) is not None}
            scores |= dict(list(present.items())[-1:])
    return scores

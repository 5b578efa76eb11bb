"""State dicts that torch.save wrote: zip archives, memory-mapped, and the stream of versions before 1.6, read whole.

Only `torch.load(weights_only=True)` builds anything, after `scanning` has read what it would build.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ckpt_probe.checkpoints.contents import Asked, Contents
from ckpt_probe.checkpoints.formats.archive import check_archive
from ckpt_probe.checkpoints.formats.facts import plain
from ckpt_probe.checkpoints.formats.inert import STAND_INS
from ckpt_probe.checkpoints.formats.nesting import OF_TRAINING, Choice, choose
from ckpt_probe.checkpoints.formats.scanning import Scan, scan
from ckpt_probe.checkpoints.formats.signatures import ZIP
from ckpt_probe.checkpoints.tensors import filler, layout_of
from ckpt_probe.errors import CkptProbeError, DataError, last_line
from ckpt_probe.files import require_regular
from ckpt_probe.remote import whole

if TYPE_CHECKING:
    from torch import Tensor

PREAMBLE = 3
"""Pickles before the one with the tensors: that number, the protocol, and the machine's sizes."""

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
    tree, kind = load_pickled(path)
    try:
        choice = choose(tree, _numbers, asked.state_key)
        tensors = {name: _plain_tensor(name, tensor, path) for name, tensor in choice.taken.tensors.items()}
    except CkptProbeError as error:
        raise type(error)(f"{path}: {error}") from error
    yield Contents(
        path=path,
        format=kind,
        files=(path,),
        layout=layout_of(tensors),
        read=tensors.__getitem__,
        fill=filler(tensors.__getitem__),
        beside=plain(_beside(tree, choice)),
        state_key=choice.taken.key or None,
        others=tuple(map(str, choice.others)),
        dropped=choice.taken.dropped,
    )


def load_pickled(path: Path) -> tuple[Any, str]:
    """What torch.load makes of a file whose claims have been checked, and which kind of file it is."""
    require_regular(path)
    with whole(path).open("rb") as file:
        archive = file.read(len(ZIP)) == ZIP
        file.seek(0)
        # torch takes this suffix for its word; such a file is read whole.
        mapped = path if archive and path.suffix != ".safetensors" else None
        tree = load_checked(file, path.stat().st_size, path, archive=archive, mapped=mapped)
    return tree, "torch zip" if archive else "torch stream"


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


def require_sound(file: BinaryIO, size: int, told: Path, *, archive: bool = True) -> None:
    """Raise DataError naming `told` where a file claims more than it has, or names what is not read."""
    try:
        found = check_archive(file) if archive else _check_stream(file, size)
    except (ValueError, OSError) as error:
        raise DataError(f"{told}: {error}") from error
    _require_allowed(told, found)


def _check_stream(file: BinaryIO, size: int) -> Scan:
    try:
        for _ in range(PREAMBLE):
            scan(file, size)
        found = scan(file, size - file.tell())
        # The order of the storages whose bytes follow: a pickle of its own.
        scan(file, size - file.tell())
    except ValueError as error:
        raise ValueError(f"truncated, or not written by torch.save ({error})") from error
    claimed = sum(found.storages.values())
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
    return {
        name: value
        for name, value in tree.items()
        if str(name) not in holding and not (OF_TRAINING.search(str(name)) and isinstance(value, Mapping | list))
    }

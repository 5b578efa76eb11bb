"""Files of torch.save: zip archives, shards of them, and the streams of versions before 1.6.

`torch.load(weights_only=True)` builds them, after `pickle_checks` has checked the file: on the meta device, without
data, for names, dtypes and shapes, and again for the numbers when a tensor is read, memory-mapped if it is an archive.
"""

import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ckpt_probe.addresses import local_path
from ckpt_probe.checkpoints.checkpoint import Checkpoint, Fill
from ckpt_probe.checkpoints.formats import ZIP
from ckpt_probe.checkpoints.formats.nesting import OF_TRAINING, Choice, choose
from ckpt_probe.checkpoints.formats.pickle_checks import check_file
from ckpt_probe.checkpoints.formats.safe import tensor_bytes
from ckpt_probe.checkpoints.formats.stand_ins import STAND_INS, NeedsData, plain
from ckpt_probe.checkpoints.metadata import MONITORED
from ckpt_probe.checkpoints.parts import ModelFiles
from ckpt_probe.checkpoints.tensors import layout_of
from ckpt_probe.errors import DataError, error_context, last_line

if TYPE_CHECKING:
    from torch import Tensor

LISTING_DEVICE = "meta"
"""Device on which a file is loaded for its names, dtypes and shapes."""


def open_pickled(files: ModelFiles, state_key: str | None, *_: object) -> Checkpoint:
    """Open a file of torch.save.

    Raises:
        DataError: If it is truncated or claims sizes that it does not have, if it needs anything but tensors and the
            classes in `stand_ins`, or if it is a whole module.
        UsageError: See `nesting.choose`.
    """
    path = files.file
    pickled = _PickledFile(path, state_key)
    tree, choice, tensors = pickled.listing
    try:
        extras = plain(_extras(tree, choice))
    except NeedsData:
        tree = pickled.loaded[0]
        extras = plain(_extras(tree, choice))

    def read(name: str) -> "Tensor":
        return pickled.loaded[2][name]

    return Checkpoint(
        file=path,
        format="torch zip" if pickled.archive else "torch stream",
        files=(path,),
        layout=layout_of(tensors),
        reader=read,
        fill=filler(read),
        extras=extras,
        extra_state=lambda: pickled.loaded[1].taken.extra if choice.taken.extra else {},
        state_key=choice.taken.key or None,
        others=tuple(map(str, choice.others)),
        dropped=choice.taken.dropped,
    )


def open_pickled_shards(files: ModelFiles, state_key: str | None, *_: object) -> Checkpoint:
    """Open shards, memory-mapped.

    Raises:
        DataError: If a shard is missing, has other tensors than the index states, or a tensor of another shard; also as
            in `open_pickled`.
    """
    shards = [open_pickled(replace(files, file=file), None) for file in files.shards]
    tensors = {name: shard.read(name) for shard in shards for name in shard.layout}
    extra = {name: value for shard in shards for name, value in shard.extra_state().items()}
    keys = {shard.state_key for shard in shards}
    files.require_listed({shard.file.name: sorted(shard.layout) for shard in shards})
    checkpoint = Checkpoint(
        file=files.file,
        format=f"torch zip, {len(shards)} shards",
        files=files.shards if files.homes is None else (files.file, *files.shards),
        layout={name: entry for shard in shards for name, entry in shard.layout.items()},
        reader=tensors.__getitem__,
        fill=filler(tensors.__getitem__),
        extras=next((shard.extras for shard in shards if shard.extras), {}),
        extra_state=lambda: extra,
        state_key=keys.pop() if len(keys) == 1 else None,
    )
    inner = state_key not in {None, checkpoint.state_key}
    return checkpoint.below(str(state_key)) if inner else checkpoint


class _PickledFile:
    """A file of torch.save, whose numbers are read once, when they are first needed."""

    def __init__(self, path: Path, state_key: str | None) -> None:
        self._path = path
        self._state_key = state_key
        with local_path(path).open("rb") as file:
            self.archive = file.read(len(ZIP)) == ZIP

    @cached_property
    def listing(self) -> "tuple[Any, Choice, dict[str, Tensor]]":
        """The object that was saved, the mapping that was chosen in it, and its tensors; without data."""
        return self._load(LISTING_DEVICE)

    @cached_property
    def loaded(self) -> "tuple[Any, Choice, dict[str, Tensor]]":
        """Return `listing` with data. Raises DataError if the layout differs from that of `listing`."""
        loaded = self._load("cpu")
        if layout_of(loaded[2]) != layout_of(self.listing[2]):
            raise DataError(f"{self._path}: changed while it was open, or damaged: torch reads other tensors")
        return loaded

    def _load(self, device: str) -> "tuple[Any, Choice, dict[str, Tensor]]":
        path = self._path
        # torch reads a file with this suffix as safetensors if it has its path.
        mapped = str(local_path(path)) if self.archive and device == "cpu" and path.suffix != ".safetensors" else None
        with local_path(path).open("rb") as file:
            size = path.stat().st_size
            tree = load_checked(file, size, path, archive=self.archive, mapped=mapped, device=device)
        with error_context(f"{path}: "):
            choice = choose(tree, _numbers, self._state_key)
            tensors = {name: _plain_tensor(name, tensor, size) for name, tensor in choice.taken.tensors.items()}
        return tree, choice, tensors


def filler(read: "Callable[[str], Tensor]") -> Fill:
    """Return a function that copies bytes of a tensor, from a function that reads it.

    The last two tensors are cached, since several threads request the blocks of one tensor after another.

    Args:
        read: Function that returns a tensor by its name.
    """
    lock = threading.Lock()
    cached: dict[str, memoryview] = {}

    def fill(name: str, offset: int, into: memoryview) -> None:
        with lock:
            if name not in cached:
                for oldest in list(cached)[:-1]:
                    del cached[oldest]
                cached[name] = tensor_bytes(read(name))
            data = cached[name]
        into[:] = data[offset : offset + len(into)]

    return fill


def load_checked(
    file: BinaryIO, size: int, path: Path, *, archive: bool = True, mapped: str | None = None, device: str = "cpu"
) -> Any:
    """Check a file of torch.save and load it.

    Args:
        file: The open file.
        size: Its bytes.
        path: Its path, for messages.
        archive: Whether it is a zip archive, else a stream.
        mapped: Path to map into memory instead of reading `file`.
        device: Device of the tensors; "meta" reads no numbers, unless they are in the byte order of another machine.

    Raises:
        DataError: See `pickle_checks.check_file`, and if torch cannot read the file.
    """
    import torch

    if check_file(file, size, path, archive=archive):
        # torch reverses the bytes of each number, and crashes without numbers.
        device = "cpu"
    file.seek(0)
    allowed: Any = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            stack.enter_context(torch.serialization.safe_globals(allowed))
            if device == "meta":
                # Without this torch reads the storages of a stream although it needs none.
                stack.enter_context(torch.serialization.skip_data())
            return torch.load(mapped or file, map_location=device, weights_only=True, mmap=mapped is not None)
    except MemoryError:
        raise
    except Exception as error:
        if "Unsupported operand" in str(error):
            raise DataError(
                f"{path}: has opcodes that torch.load(weights_only=True) does not read, as pickle_protocol=4 writes; "
                "save it again with torch.save's default protocol"
            ) from error
        # A damaged file may lead to any exception, among them torch's and pickle's.
        raise DataError(f"{path}: damaged or truncated, torch cannot read it ({last_line(error)})") from error


def _numbers(value: Any) -> int | None:
    import torch

    return value.numel() if isinstance(value, torch.Tensor) else None


def _plain_tensor(name: str, tensor: "Tensor", size: int) -> "Tensor":
    """Return a tensor without its class and gradient, checked against the bytes of its file."""
    import torch

    # Call the method of the class, as a file may set attributes of its tensors.
    detached = torch.Tensor.detach(tensor)
    claimed = detached.numel() * detached.element_size()
    if claimed > size:
        raise DataError(f"tensor {name!r} claims {claimed:,} bytes, more than the whole file has")
    # A view with a conjugation or a sign that torch applies when it is read has other bytes than its numbers.
    return detached.resolve_conj().resolve_neg()


def _extras(tree: Any, choice: Choice) -> Mapping[Any, Any]:
    """Return the top entries besides the chosen tensors, other mappings of tensors, and the state of training."""
    if not isinstance(tree, Mapping) or not choice.taken.key:
        return {}
    with_tensors = {key.partition(".")[0] for key in (choice.taken.key, *(other.key for other in choice.others))}
    entries = {
        name: value
        for name, value in tree.items()
        if str(name) not in with_tensors and not (OF_TRAINING.search(str(name)) and isinstance(value, Mapping | list))
    }
    scores = _monitored(tree.get("callbacks"))
    return {**entries, MONITORED: scores} if scores else entries


def _monitored(callbacks: Any) -> dict[str, Any]:
    """Return the scores that Lightning's ModelCheckpoint stores: of this checkpoint, else the best of the run."""
    scores = {}
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and isinstance(state.get("monitor"), str):
            keys = {f"best_{state['monitor']}": "best_model_score", state["monitor"]: "current_score"}
            present = {name: state[key] for name, key in keys.items() if state.get(key) is not None}
            scores |= dict(list(present.items())[-1:])
    return scores

"""Stand-ins for the classes that trainers pickle beside the weights, and their contents as plain values.

`torch.load(weights_only=True)` refuses names that are not listed. Each name below is listed with a stand-in that stores
its arguments and does nothing; the named classes are never imported, and no tensor depends on them.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any

DEEPEST = 12
"""Most levels of a value that are kept."""
MOST_ENTRIES = 256
"""Most entries of one mapping or list that are kept."""
MOST_VALUES = 1_000
"""Most values that are kept in total."""
LONGEST_TEXT = 200
"""Most characters of a text that are kept."""

STRUCT_CODES = {
    f"{kind}{size}": code
    for kind, codes in (("f", "-efd"), ("i", "bhiq"), ("u", "BHIQ"))
    for size, code in zip((1, 2, 4, 8), codes, strict=True)
    if code != "-"
} | {"b1": "?"}
"""Name of a dtype in numpy → code in `struct`."""


class NeedsData(Exception):
    """A tensor of a single number, such as a loss, was loaded without its data."""


def plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert a mapping to texts, numbers, lists and mappings that JSON can store; shorten long and deep values.

    Raises:
        NeedsData: If a tensor of a single number is on the meta device.
    """
    remaining = [MOST_VALUES]
    converted = _plain(dict(values), remaining, 0)
    return converted if isinstance(converted, dict) else {}


def _plain(value: Any, remaining: list[int], depth: int) -> Any:
    remaining[0] -= 1
    if isinstance(value, Inert):
        return _plain(value.plain(), remaining, depth + 1) if depth < DEEPEST else type(value).__name__
    if isinstance(value, type):
        return value.__name__
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else "a number of more than 63 bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}…"
    if isinstance(value, Mapping | list | tuple | set):
        return _plain_container(value, remaining, depth)
    return _plain_tensor(value)


def _plain_container(value: Any, remaining: list[int], depth: int) -> Any:
    if depth >= DEEPEST or remaining[0] <= 0:
        return f"{len(value)} entries"
    more = len(value) - MOST_ENTRIES
    if isinstance(value, Mapping):
        entries = {str(name): _plain(part, remaining, depth + 1) for name, part in list(value.items())[:MOST_ENTRIES]}
        return {**entries, "…": f"{more} more"} if more > 0 else entries
    parts = [_plain(part, remaining, depth + 1) for part in list(value)[:MOST_ENTRIES]]
    return [*parts, f"… {more} more"] if more > 0 else parts


def _plain_tensor(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    if shape is None:
        # The name of a dtype or a device is its text.
        return str(value)[:LONGEST_TEXT] if type(value).__module__ == "torch" else type(value).__name__
    if len(shape) > 0:
        return f"tensor of shape {tuple(shape)}"
    if value.is_meta:
        raise NeedsData
    number = value.item()
    exact = isinstance(number, int) or (isinstance(number, float) and math.isfinite(number))
    return number if exact else str(number)


class Inert:
    """An object whose class is not imported: its arguments and its state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Any:
        """Store any arguments."""
        inert = object.__new__(cls)
        inert.arguments = arguments
        inert.state = None
        return inert

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def plain(self) -> Any:
        """Return the fields if the state has some, else the arguments."""
        # The state of a class with __slots__ has two parts: its fields, and its slots.
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        fields = [part for part in parts if isinstance(part, dict)]
        if fields:
            return {name: value for part in fields for name, value in part.items()}
        packed = any(isinstance(argument, bytes) for argument in self.arguments)
        return type(self).__name__ if packed else list(self.arguments)


class _Path(Inert):
    """A path on the machine that wrote the file."""

    def plain(self) -> Any:
        """Return the path as text."""
        return "/".join(part for part in self.arguments if isinstance(part, str)).replace("//", "/")


class _Config(Inert):
    """A container or a node of OmegaConf."""

    def plain(self) -> Any:
        """Return the entries of a container, or the value of a node."""
        state = self.state if isinstance(self.state, dict) else {}
        return state.get("_content", state.get("_val"))


class _Array(Inert):
    """A numpy array, without its numbers."""

    def plain(self) -> Any:
        """Return dtype and shape as text."""
        _, shape, dtype, *_ = self.state if isinstance(self.state, tuple) and len(self.state) > 2 else (0, (), None)
        axes = [str(axis) for axis in shape if isinstance(axis, int)] if isinstance(shape, tuple) else []
        return f"array {dtype.plain() if isinstance(dtype, _Dtype) else '?'} of shape ({', '.join(axes)})"


class _Dtype(Inert):
    """A numpy dtype."""

    def plain(self) -> Any:
        """Return its name."""
        name = self.arguments[0] if self.arguments else ""
        return name if isinstance(name, str) else "dtype"


def _numpy_scalar(dtype: Any = None, data: Any = b"") -> Any:
    """Return a numpy scalar as a Python number, None if its dtype or data are not of a number."""
    if not isinstance(dtype, _Dtype):
        return None
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    code = (">" if order == ">" else "<") + STRUCT_CODES.get(dtype.plain().lstrip("<=|>"), "")
    if len(code) != 2 or not isinstance(data, bytes) or len(data) != struct.calcsize(code):
        return None
    return struct.unpack(code, data)[0]


class _Dictionary:
    """A subclass of dict; the pickle fills a plain dictionary instead."""

    def __new__(cls, *_: Any) -> Any:
        """Return an empty dictionary for any arguments."""
        return {}


class _List:
    """A subclass of list; the pickle fills a plain list instead."""

    def __new__(cls, *_: Any) -> Any:
        """Return an empty list for any arguments."""
        return []


def _subclass(name: str, base: type) -> type:
    return type(name.rpartition(".")[2], (base,), {})


STAND_INS: dict[str, Any] = {
    # Arguments of the command line, in most research code and in timm's checkpoints.
    "argparse.Namespace": _subclass("Namespace", Inert),
    "types.SimpleNamespace": _subclass("SimpleNamespace", Inert),
    # Output directories in arguments and in Lightning's callbacks; pathlib._local is the module in Python 3.13.
    **{
        f"{module}.{name}": _subclass(name, _Path)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    },
    # Metrics and random states from numpy; numpy._core is the module in numpy 2.
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _subclass("array", _Array) for core in ("core", "_core")},
    "numpy.ndarray": _subclass("ndarray", _Array),
    "numpy.dtype": _subclass("dtype", _Dtype),
    # Counters and logs, and the classes of their missing entries.
    "collections.defaultdict": _Dictionary,
    "collections.deque": _List,
    **{f"builtins.{name}": _subclass(name, Inert) for name in ("list", "dict", "int", "float", "str", "bool", "tuple")},
    # Hyperparameters in Lightning.
    "lightning.fabric.utilities.data.AttributeDict": _Dictionary,
    "lightning_fabric.utilities.data.AttributeDict": _Dictionary,
    "pytorch_lightning.utilities.parsing.AttributeDict": _Dictionary,
    # Hydra's configuration, in Lightning's hyperparameters and fairseq's checkpoints.
    **{
        f"omegaconf.{name}": _subclass(name, _Config)
        for name in (
            "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata",
            "nodes.AnyNode", "nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode",
            "nodes.PathNode", "nodes.EnumNode", "nodes.BytesNode",
        )
    },
    "typing.Any": _subclass("Any", Inert),
    # The time of saving, in the metadata of OpenMMLab's runner and others, and its log of losses.
    **{f"datetime.{name}": _subclass(name, Inert) for name in ("datetime", "date", "time", "timedelta", "timezone")},
    "mmengine.logging.history_buffer.HistoryBuffer": _subclass("HistoryBuffer", Inert),
    # Extra states of TransformerEngine's modules.
    "_io.BytesIO": _subclass("BytesIO", Inert),
    # Enumerations in the arguments and states of Trainer and Lightning.
    **{
        name: _subclass(name, Inert)
        for name in (
            "transformers.trainer_utils.IntervalStrategy", "transformers.trainer_utils.SaveStrategy",
            "transformers.trainer_utils.SchedulerType", "transformers.trainer_utils.HubStrategy",
            "transformers.training_args.OptimizerNames", "lightning.pytorch.trainer.states.TrainerFn",
            "pytorch_lightning.trainer.states.TrainerFn",
        )
    },
}  # fmt: skip
"""Full name of a class or function → its stand-in."""

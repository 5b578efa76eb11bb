"""Stand-ins for the classes that trainers pickle beside their weights: they hold what they are given and do nothing.

Nothing of the named classes is imported. `torch.load(weights_only=True)` refuses names that are not listed; these are
listed, each for what writes it into checkpoints, and none of them matters to a tensor.
"""

import struct
from typing import Any

DECODED = {f"{kind}{size}": code for kind, codes in (("f", "-efd"), ("i", "bhiq"), ("u", "BHIQ"))
           for size, code in zip((1, 2, 4, 8), codes, strict=True) if code != "-"} | {"b1": "?"}  # fmt: skip
"""numpy's names of dtypes, and struct's."""


class Inert:
    """An object of a class that is not imported: the arguments it was made with and the state it was given."""

    def __new__(cls, *arguments: Any) -> Any:
        """Whatever the class takes."""
        made = object.__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def plain(self) -> Any:
        """What a person would be shown: fields where there are some, else the arguments."""
        if isinstance(self.state, tuple) and len(self.state) == 2:
            # What copyreg gives a class of slots: its fields, and its slots.
            return {**(self.state[0] or {}), **(self.state[1] or {})}
        if isinstance(self.state, dict):
            return self.state
        packed = any(isinstance(argument, bytes) for argument in self.arguments)
        return type(self).__name__ if packed else list(self.arguments)


class PathName(Inert):
    """A path of the machine that wrote it, as text."""

    def plain(self) -> Any:
        """Its parts joined."""
        return "/".join(part for part in self.arguments if isinstance(part, str)).replace("//", "/")


class Content(Inert):
    """omegaconf's containers: what they hold, without who holds them."""

    def plain(self) -> Any:
        """The entries, or the value of a single node."""
        state = self.state if isinstance(self.state, dict) else {}
        return state.get("_content", state.get("_val"))


class ArrayOf(Inert):
    """A numpy array, of which shape and dtype are kept."""

    def plain(self) -> Any:
        """Its shape and dtype, as text."""
        _, shape, kind, *_ = self.state if isinstance(self.state, tuple) and len(self.state) > 2 else (0, (), None)
        axes = [str(axis) for axis in shape if isinstance(axis, int)] if isinstance(shape, tuple) else []
        return f"array {kind.plain() if isinstance(kind, NumpyType) else '?'} of shape ({', '.join(axes)})"


class NumpyType(Inert):
    """A numpy dtype by its name."""

    def plain(self) -> Any:
        """The name."""
        name = self.arguments[0] if self.arguments else ""
        return name if isinstance(name, str) else "dtype"


def number(kind: Any = None, raw: Any = b"") -> Any:
    """A numpy scalar as Python's own number, None where it is none."""
    if not isinstance(kind, NumpyType):
        return None
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
    form = (">" if order == ">" else "<") + DECODED.get(kind.plain().lstrip("<=|>"), "")
    if len(form) != 2 or not isinstance(raw, bytes) or len(raw) != struct.calcsize(form):
        return None
    return struct.unpack(form, raw)[0]


class Dictionary:
    """A class of dictionaries, of which a plain one is made: the pickle then fills it."""

    def __new__(cls, *_: Any) -> Any:
        """An empty dictionary, whatever the class takes."""
        return {}


class Sequence:
    """A class of lists, of which a plain one is made: the pickle then fills it."""

    def __new__(cls, *_: Any) -> Any:
        """An empty list, whatever the class takes."""
        return []


def _named(name: str, base: type) -> type:
    return type(name.rpartition(".")[2], (base,), {})


STAND_INS: dict[str, Any] = {
    # Arguments of the command line, in most research code and in timm's checkpoints.
    "argparse.Namespace": _named("Namespace", Inert),
    "types.SimpleNamespace": _named("SimpleNamespace", Inert),
    # Output directories in arguments and in Lightning's callbacks; where Python 3.13 keeps them too.
    **{
        f"{module}.{name}": _named(name, PathName)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    },
    # Metrics and random states that numpy computed; numpy 2 calls its modules otherwise.
    **{f"numpy.{core}.multiarray.scalar": number for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _named("array", ArrayOf) for core in ("core", "_core")},
    "numpy.ndarray": _named("ndarray", ArrayOf),
    "numpy.dtype": _named("dtype", NumpyType),
    # Counters and logs, and what makes their missing entries.
    "collections.defaultdict": Dictionary,
    "collections.deque": Sequence,
    **{f"builtins.{name}": _named(name, Inert) for name in ("list", "dict", "int", "float", "str", "bool", "tuple")},
    # Hyperparameters that Lightning keeps as they were given.
    "lightning.fabric.utilities.data.AttributeDict": Dictionary,
    "lightning_fabric.utilities.data.AttributeDict": Dictionary,
    "pytorch_lightning.utilities.parsing.AttributeDict": Dictionary,
    # Hydra's configuration, in Lightning's hyperparameters and fairseq's checkpoints.
    **{
        f"omegaconf.{name}": _named(name, Content)
        for name in (
            "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata",
            "nodes.AnyNode", "nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode",
            "nodes.PathNode", "nodes.EnumNode", "nodes.BytesNode",
        )
    },
    "typing.Any": _named("Any", Inert),
    # When it was written, in the metadata of OpenMMLab's runner and others; its log of losses.
    **{f"datetime.{name}": _named(name, Inert) for name in ("datetime", "date", "time", "timedelta", "timezone")},
    "mmengine.logging.history_buffer.HistoryBuffer": _named("HistoryBuffer", Inert),
    # Extra states of TransformerEngine's modules.
    "_io.BytesIO": _named("BytesIO", Inert),
    # How Trainer and Lightning name what they do, in their arguments and states.
    **{
        name: _named(name, Inert)
        for name in (
            "transformers.trainer_utils.IntervalStrategy", "transformers.trainer_utils.SaveStrategy",
            "transformers.trainer_utils.SchedulerType", "transformers.trainer_utils.HubStrategy",
            "transformers.training_args.OptimizerNames", "lightning.pytorch.trainer.states.TrainerFn",
            "pytorch_lightning.trainer.states.TrainerFn",
        )
    },
}  # fmt: skip
"""Full name of a class or function → what takes its place."""

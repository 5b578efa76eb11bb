"""Outlines of what a pickle builds: mappings and lists with their plain values, tensors by dtype and shape.

Made from a pickle's opcodes alone (`scanning`), so that a file can be listed without torch. What torch would make of an
outlined call is known for the few that hold tensors or entries; everything else is opaque.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

from ckpt_probe.checkpoints.formats.inert import STAND_INS, Dictionary, Sequence
from ckpt_probe.checkpoints.tensors import dtype_name

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "complex128", "UntypedStorage": "U8",
}  # fmt: skip
"""torch's classes of storages, and the dtypes of what lies in them."""
FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
OF_STORAGE = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
OF_BYTES = "torch._utils._rebuild_tensor_v3"
OF_TENSOR = frozenset({"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})
FILLED_LATER = frozenset(
    name for name, taken in STAND_INS.items() if isinstance(taken, type) and issubclass(taken, Dictionary | Sequence)
)


class NotOutlined(Exception):
    """Something of which the outline does not tell enough: torch has to read the file."""


@dataclass(frozen=True)
class Named:
    """A global that a pickle names."""

    name: str


@dataclass(frozen=True)
class Opaque:
    """Something that holds no tensor, of which no more is known."""


OPAQUE = Opaque()


@dataclass(frozen=True)
class Storage:
    """Numbers of one dtype, by safetensors' name of it."""

    dtype: str


@dataclass(frozen=True)
class OutlinedTensor:
    """A tensor that is not read."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    def item(self) -> Any:
        """As of a tensor of a single number, which is in the file."""
        raise NotOutlined


def outlined_call(name: str, arguments: Items[Any]) -> Any:
    """What a call gives, by outlines of its arguments. Raises NotOutlined where it may hold tensors unseen."""
    if name == FROM_TYPE:
        function, _, inner, *_ = arguments
        return outlined_call(function.name, inner)
    if name == "torch.Size":
        return tuple(arguments[0])
    if name in OF_STORAGE:
        return _tensor(arguments[0].dtype, arguments[2])
    if name == OF_BYTES:
        return _tensor(dtype_name(arguments[6].name), arguments[2])
    if name in OF_TENSOR and isinstance(arguments[0], OutlinedTensor):
        return arguments[0]
    if name == "collections.OrderedDict" and not arguments:
        return OrderedDict()
    if name in FILLED_LATER:
        return STAND_INS[name]()
    if name.startswith(("torch._utils.", "torch.nn.", "collections.OrderedDict")):
        raise NotOutlined
    return OPAQUE


def _tensor(dtype: str, shape: Any) -> OutlinedTensor:
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise NotOutlined
    return OutlinedTensor(dtype, shape)

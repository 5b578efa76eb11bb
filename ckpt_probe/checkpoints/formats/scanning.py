"""Check a pickle without running it: the classes and functions that it names, and the sizes that it claims.

`torch.load(weights_only=True)` has an allow-list of its own, which is too wide for unknown files: `bytearray(2**40)`,
`torch.FloatTensor(2**40)` and `_codecs.encode` of one long text a thousand times are on it, and names on that list
cannot be replaced by `safe_globals`. It also allocates the size that a stream claims, and hashes any key. So the
opcodes are followed here first, on a stack of sizes in place of objects; nothing is imported, called or allocated.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from ckpt_probe.checkpoints.formats.stand_ins import STAND_INS

LONGEST = 64 * 2**20
"""Most bytes of a pickle, without the numbers of its tensors, that is accepted as a checkpoint."""
MOST_OPCODES = 10_000_000
COPIES = 4
"""Most bytes that the calls in a pickle may copy, in multiples of its length."""

REBUILD = frozenset(
    f"torch._utils.{name}"
    for name in (
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    )
)  # fmt: skip
"""Functions of torch that make a dense tensor from a storage and check its bounds."""
FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
CALLABLE = (
    REBUILD
    | frozenset(STAND_INS)
    | {
        FROM_TYPE, "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device", "_codecs.encode",
        "builtins.set", "builtins.complex", "torch.serialization._get_layout",
    }
)  # fmt: skip
"""Names that a pickle may call. Torch's list without everything that allocates by a number in its arguments: tensor
classes, bytearray, and the functions that rebuild quantised, sparse, nested and wrapped tensors."""
HASHING = frozenset({"builtins.set", "collections.OrderedDict", "collections.Counter"})
ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip
NAMEABLE = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.strided"}
    | {f"{package}.{name}" for package in ("torch", "torch.storage", "torch.cuda") for name in ITEM_BYTES}
    | {
        f"torch.{name}"
        for name in (
            "float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128", "int64", "int32",
            "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "float8_e4m3fn", "float8_e5m2",
            "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "contiguous_format", "channels_last",
            "preserve_format",
        )
    }
)  # fmt: skip
"""Names that a pickle may use as an argument, but not call."""
MODULES_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
NAMES_OF_PYTHON_2 = {"builtins.long": "builtins.int", "builtins.unicode": "builtins.str"}
"""Names in protocol 2, which torch writes → names in Python 3."""
MODULE_FIELDS = frozenset({"_modules", "_parameters", "_buffers"})
"""Fields of every pickled torch.nn.Module, whatever its class."""


@dataclass(frozen=True)
class Scan:
    """The requests of a pickle.

    Attributes:
        forbidden: Names outside the lists of this module, in their order.
        storages: Bytes that the pickle claims for each storage, by key.
        whole_module: Whether the fields of a pickled `torch.nn.Module` occur.
    """

    forbidden: tuple[str, ...]
    storages: Mapping[str, int]
    whole_module: bool


def scan(file: BinaryIO, length: int) -> Scan:
    """Read one pickle from a file's position to the end of the pickle.

    Args:
        file: The open file.
        length: Most bytes that belong to the pickle.

    Raises:
        ValueError: If torch does not write such a pickle, or if it ends early or is larger than any checkpoint.
    """
    limit = min(length, LONGEST)
    scanner = _Scanner(most_copied=COPIES * limit + 2**20)
    try:
        opcodes = pickletools.genops(_BoundedFile(file, limit))  # pyright: ignore[reportArgumentType]
        for count, (opcode, argument, _) in enumerate(opcodes):
            if opcode.name == "STOP":
                if scanner.marked or len(scanner.stack) != 1:
                    raise ValueError("no complete pickle (it ends within a list)")
                break
            if count > MOST_OPCODES:
                raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
            if opcode.name not in _STEPS:
                raise ValueError(f"opcode {opcode.name}, which torch.save does not write")
            _STEPS[opcode.name](scanner, argument)
    except (IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"no complete pickle ({type(error).__name__}: {error})") from error
    return Scan(tuple(scanner.forbidden), scanner.storages, scanner.fields >= MODULE_FIELDS)


class _BoundedFile:
    """A file that ends after a number of bytes, so that no claim of more is allocated."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._remaining = length

    def read(self, count: int) -> bytes:
        return self._count(self._file.read(min(count, self._remaining)))

    def readline(self) -> bytes:
        return self._count(self._file.readline(self._remaining))

    def _count(self, data: bytes) -> bytes:
        self._remaining -= len(data)
        return data


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names."""

    name: str


@dataclass(frozen=True)
class _Tuple:
    """A tuple, and whether it contains another."""

    items: tuple[Any, ...]
    nested: bool


@dataclass
class _Object:
    """Any other object: its number of entries or characters, and whether a nested tuple is among its entries.

    The hash of a nested tuple visits each element again wherever it occurs, which may never end.
    """

    size: int = 0
    nested: bool = False


class _Scanner:
    """The unpickler's stack, the stacks below its marks and its memo; each method is the step of an opcode."""

    def __init__(self, most_copied: int) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.forbidden: dict[str, None] = {}
        self.storages: dict[str, int] = {}
        self.fields: set[str] = set()
        self._copied = 0
        self._most_copied = most_copied

    def push_text(self, text: str) -> None:
        if text in MODULE_FIELDS:
            self.fields.add(text)
        self.stack.append(text)

    def push_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        full_name = f"{MODULES_OF_PYTHON_2.get(module, module)}.{name}"
        full_name = NAMES_OF_PYTHON_2.get(full_name, full_name)
        if full_name not in CALLABLE and full_name not in NAMEABLE:
            self.forbidden[full_name] = None
        self.stack.append(_Name(full_name))

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def push_tuple(self, items: list[Any]) -> None:
        self.stack.append(_Tuple(tuple(items), any(isinstance(item, _Tuple) for item in items)))

    def pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def extend(self, items: list[Any]) -> None:
        container = self.stack[-1]
        container.size += len(items)
        container.nested |= any(isinstance(item, _Tuple) and item.nested for item in items)

    def set_items(self, items: list[Any]) -> None:
        keys = items[::2]
        if any(isinstance(key, _Tuple) and key.nested for key in keys):
            raise ValueError("a key that is a tuple of tuples")
        self.stack[-1].size += len(keys)

    def call(self, _: Any) -> None:
        function, arguments = self.pop(2)
        name = function.name if isinstance(function, _Name) else "the result of a call"
        items = arguments.items
        if name not in CALLABLE and not (name == "torch.nn.parameter.Parameter" and not items):
            self.forbidden[name] = None
        if name == FROM_TYPE and not (isinstance(items[0], _Name) and items[0].name in REBUILD):
            self.forbidden[f"{name} of {getattr(items[0], 'name', 'the result of a call')}"] = None
        if name in HASHING and any(isinstance(item, _Object) and item.nested for item in items):
            raise ValueError("a key that is a tuple of tuples")
        size = len(items) + sum(map(_size, items))
        self._copied += size
        if self._copied > self._most_copied:
            raise ValueError(f"its calls copy more than {self._most_copied:,} bytes")
        self.stack.append(_Object(size))

    def push_storage(self, _: Any) -> None:
        kind, *rest = self.stack.pop().items
        if kind == "module":
            # A class with its source code, in a stream of torch.save(module).
            self.fields |= MODULE_FIELDS
            self.stack.append(rest[0])
            return
        storage, key, _location, count, *_view = rest
        if kind != "storage" or not isinstance(storage, _Name) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage that torch does not write")
        name = storage.name.rpartition(".")[2]
        if name not in ITEM_BYTES:
            self.forbidden[storage.name] = None
        size = count * ITEM_BYTES.get(name, 1)
        self.storages[str(key)] = max(size, self.storages.get(str(key), 0))
        self.stack.append(_Object())

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])


def _size(value: Any) -> int:
    if isinstance(value, _Object):
        return value.size
    if isinstance(value, _Tuple):
        return len(value.items)
    return len(value) if isinstance(value, str | bytes) else 0


_STEPS: dict[str, Callable[[_Scanner, Any], Any]] = {
    "PROTO": lambda scanner, _: None,
    "GLOBAL": _Scanner.push_name,
    "MARK": _Scanner.mark,
    "EMPTY_TUPLE": lambda scanner, _: scanner.push_tuple([]),
    "TUPLE": lambda scanner, _: scanner.push_tuple(scanner.since_mark()),
    "TUPLE1": lambda scanner, _: scanner.push_tuple(scanner.pop(1)),
    "TUPLE2": lambda scanner, _: scanner.push_tuple(scanner.pop(2)),
    "TUPLE3": lambda scanner, _: scanner.push_tuple(scanner.pop(3)),
    "REDUCE": _Scanner.call,
    "NEWOBJ": _Scanner.call,
    "BUILD": lambda scanner, _: scanner.pop(1),
    "APPEND": lambda scanner, _: scanner.extend(scanner.pop(1)),
    "APPENDS": lambda scanner, _: scanner.extend(scanner.since_mark()),
    "SETITEM": lambda scanner, _: scanner.set_items(scanner.pop(2)),
    "SETITEMS": lambda scanner, _: scanner.set_items(scanner.since_mark()),
    "BINPERSID": _Scanner.push_storage,
    "BINUNICODE": _Scanner.push_text,
    "BINGET": _Scanner.recall,
    "LONG_BINGET": _Scanner.recall,
    "BINPUT": _Scanner.remember,
    "LONG_BINPUT": _Scanner.remember,
    "NONE": lambda scanner, _: scanner.stack.append(None),
    "NEWTRUE": lambda scanner, _: scanner.stack.append(True),
    "NEWFALSE": lambda scanner, _: scanner.stack.append(False),
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"), lambda scanner, _: scanner.stack.append(_Object())),
    # Texts of Python 2, which torch decodes as UTF-8.
    "SHORT_BINSTRING": lambda scanner, text: scanner.stack.append(text.encode("latin-1").decode()),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), lambda scanner, number: scanner.stack.append(number)
    ),
}
"""The opcodes that torch.save writes."""

"""Check a pickle without running it: the classes and functions that it names, and the sizes that it claims.

`torch.load(weights_only=True)` has an allow-list of its own, which is too wide for unknown files: `bytearray(2**40)`,
`torch.FloatTensor(2**40)` and `_codecs.encode` of one long text a thousand times are on it, and names on that list
cannot be replaced by `safe_globals`. It also allocates the size that a stream claims, and hashes any key. So the
opcodes are followed here first, on a stack of sizes in place of objects; nothing is imported, called or allocated.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from ckpt_probe.checkpoints.formats.stand_ins import STAND_INS

HASH_COST = 1000
"""Most objects that the hash of one key may visit."""


@dataclass(frozen=True)
class Budget:
    """Limits of one pickle, counted while it is scanned.

    Attributes:
        size: Bytes.
        opcodes: Number of opcodes.
        containers: Number of dictionaries, lists and sets; an empty one takes one byte of the file, and 64 of memory.
        copied: Bytes that calls copy.
    """

    size: int = 64 * 2**20
    opcodes: int = 10_000_000
    containers: int = 400_000
    copied: int = 2**28


CHECKPOINT = Budget()
"""Limits of a pickled checkpoint, without the numbers of its tensors."""

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


def scan(file: BinaryIO, length: int, budget: Budget = CHECKPOINT) -> Scan:
    """Read one pickle from a file's position to the end of the pickle.

    Args:
        file: The open file.
        length: Most bytes that belong to the pickle.
        budget: Limits of the pickle.

    Raises:
        ValueError: If torch does not write such a pickle, or if it ends early or is larger than any checkpoint.
    """
    limit = min(length, budget.size)
    scanner = _Scanner(budget)
    try:
        opcodes = pickletools.genops(_BoundedFile(file, limit))  # pyright: ignore[reportArgumentType]
        for count, (opcode, argument, _) in enumerate(opcodes):
            if opcode.name == "STOP":
                if scanner.marked or len(scanner.stack) != 1:
                    raise ValueError("no complete pickle (it ends within a list)")
                break
            scanner.opcodes = count
            if count > budget.opcodes:
                raise ValueError(f"more than {budget.opcodes:,} opcodes")
            if scanner.containers > budget.containers:
                raise ValueError(f"more than {budget.containers:,} dictionaries, lists and sets")
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
    """A tuple, and the number of objects that its hash visits.

    The hash visits an element again wherever it occurs, so that few nested tuples may take forever.
    """

    items: tuple[Any, ...]
    cost: int


@dataclass
class _Object:
    """Any other object.

    Attributes:
        size: Number of entries or characters.
        cost: Number of objects that its hash visits; 1 for containers, which have none.
        entries: Sum of the costs of its entries, which a hash of an object with this state visits.
        largest: Largest cost of an entry.
    """

    size: int = 0
    cost: int = 1
    entries: int = 0
    largest: int = 1

    def add(self, items: list[Any], size: int) -> None:
        costs = [_cost(item) for item in items]
        self.size += size
        self.entries += sum(costs)
        self.largest = max(self.largest, *costs, 1)


class _Scanner:
    """The unpickler's stack, the stacks below its marks and its memo; each method is the step of an opcode."""

    def __init__(self, budget: Budget) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.forbidden: dict[str, None] = {}
        self.storages: dict[str, int] = {}
        self.fields: set[str] = set()
        self.opcodes = self.containers = 0
        self._copied = 0
        self._budget = budget

    def push_text(self, text: str) -> None:
        if text in MODULE_FIELDS:
            self.fields.add(text)
        self.stack.append(text)

    def push_container(self, _: Any) -> None:
        self.containers += 1
        self.stack.append(_Object())

    def push_global(self, _: Any) -> None:
        module, name = self.pop(2)
        self.push_name(f"{module} {name}")

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
        self.stack.append(_Tuple(tuple(items), 1 + sum(map(_cost, items))))

    def pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def extend(self, items: list[Any]) -> None:
        self.stack[-1].add(items, len(items))

    def set_items(self, items: list[Any]) -> None:
        keys = items[::2]
        _require_cheap(map(_cost, keys))
        self.stack[-1].add(items, len(keys))

    def add_items(self, items: list[Any]) -> None:
        _require_cheap(map(_cost, items))
        self.extend(items)

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Object):
            self.stack[-1].cost += _cost(state) + (state.entries if isinstance(state, _Object) else 0)

    def call(self, _: Any) -> None:
        function, arguments = self.pop(2)
        name = function.name if isinstance(function, _Name) else "the result of a call"
        items = arguments.items
        if name not in CALLABLE and not (name == "torch.nn.parameter.Parameter" and not items):
            self.forbidden[name] = None
        if name == FROM_TYPE and not (isinstance(items[0], _Name) and items[0].name in REBUILD):
            self.forbidden[f"{name} of {getattr(items[0], 'name', 'the result of a call')}"] = None
        if name in HASHING:
            _require_cheap(item.largest for item in items if isinstance(item, _Object))
        size = len(items) + sum(map(_size, items))
        self._copied += size
        if self._copied > self._budget.copied:
            raise ValueError(f"its calls copy more than {self._budget.copied:,} bytes")
        self.stack.append(_Object(size, 1 + sum(map(_cost, items))))

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
        value = self.stack[-1]
        if index > self.opcodes:
            # An unpickler allocates this many positions.
            raise ValueError(f"position {index:,} of its memo, after {self.opcodes:,} opcodes")
        self.memo[index] = value

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])


def _cost(value: Any) -> int:
    return value.cost if isinstance(value, _Tuple | _Object) else 1


def _require_cheap(costs: Iterable[int]) -> None:
    if any(cost > HASH_COST for cost in costs):
        raise ValueError("a key that is a tuple of too many nested tuples")


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
    "BUILD": _Scanner.build,
    "STACK_GLOBAL": _Scanner.push_global,
    "MEMOIZE": lambda scanner, _: scanner.remember(len(scanner.memo)),
    "FRAME": lambda scanner, _: None,
    "SHORT_BINUNICODE": _Scanner.push_text,
    "ADDITEMS": lambda scanner, _: scanner.add_items(scanner.since_mark()),
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
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"), _Scanner.push_container),
    # Texts of Python 2, which torch decodes as UTF-8.
    "SHORT_BINSTRING": lambda scanner, text: scanner.stack.append(text.encode("latin-1").decode()),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), lambda scanner, number: scanner.stack.append(number)
    ),
}
"""The opcodes that torch.save writes."""

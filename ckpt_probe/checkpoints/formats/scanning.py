"""Check a pickle without running it: the classes and functions that it names, and the sizes that it claims.

`torch.load(weights_only=True)` has an allow-list of its own, which is too wide for unknown files: `bytearray(2**40)`,
`torch.FloatTensor(2**40)` and `_codecs.encode` of one long text a thousand times are on it, and names on that list
cannot be replaced by `safe_globals`. It also allocates the size that a stream claims, and hashes any key. So the
opcodes are followed here first, on a stack of sizes in place of objects; nothing is imported, called or allocated.
Opcodes, copies and the objects that hashes visit are spent from the budget of the file.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_probe.budget import Budget
from ckpt_probe.checkpoints.formats.stand_ins import STAND_INS

COSTLIEST = 2**40
"""Cost of a hash beyond which it is not counted: more than any budget."""
DEEPEST = 100
"""Most tuples in one another: a hash of more might overflow the stack."""
COSTLY = 1000
"""Number of objects within its entries that the hash of a tuple visits, beyond which they are counted at once."""
NESTED = "a tuple of too many nested tuples: "
SHARE = 1024
"""Opcodes that are counted at a time; those that make a container count twice."""

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
HASHING = frozenset(
    {"builtins.set", "collections.OrderedDict", "collections.Counter", "torch.serialization._get_layout"}
)
"""Names whose calls hash their arguments or the entries of them."""
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


def scan(pickle: io.BytesIO, budget: Budget) -> Scan:
    """Read one pickle from a position to the end of the pickle.

    Args:
        pickle: Bytes that are in memory, so that no claim of more is allocated.
        budget: Budget of the file.

    Raises:
        ValueError: If torch does not write such a pickle, or if it ends early.
        DataError: If the budget is spent.
    """
    scanner = _Scanner(budget)
    try:
        while (code := pickle.read(1)) != STOP:
            step, argument = _STEPS.get(code) or _unknown(code)
            if not scanner.opcodes % SHARE:
                budget.spend(entries=SHARE + scanner.containers)
                scanner.containers = 0
            step(scanner, None if argument is None else argument(pickle))
            scanner.opcodes += 1
        if scanner.marked or len(scanner.stack) != 1:
            raise ValueError("no complete pickle (it ends within a list)")
        if isinstance(scanner.stack[0], _Value):
            # The last pickle of a stream is a list of keys, which are looked up.
            budget.spend(entries=max(scanner.stack[0].entries - scanner.stack[0].size, 0), cause=NESTED)
    except (IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"no complete pickle ({type(error).__name__}: {error})") from error
    return Scan(tuple(scanner.forbidden), scanner.storages, scanner.fields >= MODULE_FIELDS)


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the pickle names."""

    name: str


@dataclass(slots=True)
class _Value:
    """A tuple or another object that is no text or number.

    A hash visits an element again wherever it occurs, so that few nested tuples may take forever.

    Attributes:
        size: Number of entries or characters.
        cost: Number of objects that its hash visits; 1 for containers, which have none.
        entries: Sum of the costs of its entries, which a hash of them or of an object with this state visits.
        items: Entries of a tuple; None for another object.
        depth: Number of tuples in one another; 0 for another object.
    """

    size: int = 0
    cost: int = 1
    entries: int = 0
    items: list[Any] | None = None
    depth: int = 0

    def add(self, items: list[Any], size: int) -> None:
        self.size += size
        self.entries += sum(map(_cost, items))


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
        self._budget = budget

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_text(self, text: str) -> None:
        if text in MODULE_FIELDS:
            self.fields.add(text)
        self.stack.append(text)

    def push_container(self, _: Any) -> None:
        self.containers += 1
        self.stack.append(_Value())

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
        self.containers += 1
        entries = sum(map(_cost, items))
        depth = 1 + max((item.depth for item in items if isinstance(item, _Value)), default=0)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} tuples in one another, which torch.save does not write")
        if entries - len(items) > COSTLY:
            # It may be spelled or looked up where no container is filled.
            self._budget.spend(entries=entries - len(items), cause=NESTED)
        self.stack.append(_Value(len(items), 1 + entries, entries, items, depth))

    def pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def extend(self, items: list[Any]) -> None:
        self.stack[-1].add(items, len(items))

    def set_items(self, items: list[Any]) -> None:
        keys = items[::2]
        self._budget.spend(entries=sum(map(_cost, keys)), cause=NESTED)
        self.stack[-1].add(items, len(keys))

    def add_items(self, items: list[Any]) -> None:
        self._budget.spend(entries=sum(map(_cost, items)), cause=NESTED)
        self.extend(items)

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        entries = state.entries if isinstance(state, _Value) else 0
        # An ordered dictionary takes its state from pairs too, and hashes the first of each.
        self._budget.spend(entries=entries, cause=NESTED)
        if isinstance(self.stack[-1], _Value):
            self.stack[-1].cost += _cost(state) + entries

    def call(self, _: Any) -> None:
        function, arguments = self.pop(2)
        name = function.name if isinstance(function, _Name) else "the result of a call"
        items = arguments.items
        if name not in CALLABLE and not (name == "torch.nn.parameter.Parameter" and not items):
            self.forbidden[name] = None
        if name == FROM_TYPE and not (isinstance(items[0], _Name) and items[0].name in REBUILD):
            self.forbidden[f"{name} of {getattr(items[0], 'name', 'the result of a call')}"] = None
        if name in HASHING:
            hashed = sum(_cost(item) + (item.entries if isinstance(item, _Value) else 0) for item in items)
            self._budget.spend(entries=hashed, cause=NESTED)
        size = len(items) + sum(map(_size, items))
        self._budget.spend(size)
        self.containers += 1
        self.stack.append(_Value(size, 1 + sum(map(_cost, items))))

    def push_storage(self, _: Any) -> None:
        kind, *rest = self.stack.pop().items
        if kind == "module":
            # A class with its source code, in a stream of torch.save(module).
            self.fields |= MODULE_FIELDS
            self.stack.append(rest[0])
            return
        storage, key, _location, count, *_view = rest
        kinds = isinstance(storage, _Name), isinstance(key, str), isinstance(count, int)
        # A view of a storage has three entries, of which torch hashes the first.
        if kind != "storage" or not all(kinds) or count < 0 or max(map(_cost, rest)) > 4:
            raise ValueError("a storage that torch does not write")
        name = storage.name.rpartition(".")[2]
        if name not in ITEM_BYTES:
            self.forbidden[storage.name] = None
        size = count * ITEM_BYTES.get(name, 1)
        self.storages[key] = max(size, self.storages.get(key, 0))
        self.stack.append(_Value())

    def remember(self, index: int) -> None:
        value = self.stack[-1]
        if index > self.opcodes:
            # An unpickler allocates this many positions.
            raise ValueError(f"position {index:,} of its memo, after {self.opcodes:,} opcodes")
        self.memo[index] = value


def _cost(value: Any) -> int:
    return min(value.cost, COSTLIEST) if isinstance(value, _Value) else 1


def _size(value: Any) -> int:
    if isinstance(value, _Value):
        return value.size
    return len(value) if isinstance(value, str | bytes) else 0


def _unknown(code: bytes) -> Any:
    if not code:
        raise ValueError("no complete pickle (it ends early)")
    known = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
    raise ValueError(f"opcode {known.get(code, code)}, which torch.save does not write")


_OPCODES: dict[Callable[[_Scanner, Any], Any], str] = {
    lambda scanner, _: None: "PROTO FRAME",
    _Scanner.push: "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT LONG1",
    _Scanner.push_text: "SHORT_BINUNICODE BINUNICODE",
    # Texts of Python 2, which torch decodes as UTF-8.
    lambda scanner, text: scanner.push(text.encode("latin-1").decode()): "SHORT_BINSTRING",
    _Scanner.push_container: "EMPTY_DICT EMPTY_LIST EMPTY_SET",
    _Scanner.push_name: "GLOBAL",
    lambda scanner, _: scanner.push_name(" ".join(scanner.pop(2))): "STACK_GLOBAL",
    _Scanner.push_storage: "BINPERSID",
    _Scanner.mark: "MARK",
    lambda scanner, _: scanner.push_tuple([]): "EMPTY_TUPLE",
    lambda scanner, _: scanner.push_tuple(scanner.since_mark()): "TUPLE",
    lambda scanner, _: scanner.push_tuple(scanner.pop(1)): "TUPLE1",
    lambda scanner, _: scanner.push_tuple(scanner.pop(2)): "TUPLE2",
    lambda scanner, _: scanner.push_tuple(scanner.pop(3)): "TUPLE3",
    lambda scanner, _: scanner.extend(scanner.pop(1)): "APPEND",
    lambda scanner, _: scanner.extend(scanner.since_mark()): "APPENDS",
    lambda scanner, _: scanner.add_items(scanner.since_mark()): "ADDITEMS",
    lambda scanner, _: scanner.set_items(scanner.pop(2)): "SETITEM",
    lambda scanner, _: scanner.set_items(scanner.since_mark()): "SETITEMS",
    _Scanner.call: "REDUCE NEWOBJ",
    _Scanner.build: "BUILD",
    _Scanner.remember: "BINPUT LONG_BINPUT",
    lambda scanner, _: scanner.remember(len(scanner.memo)): "MEMOIZE",
    lambda scanner, index: scanner.push(scanner.memo[index]): "BINGET LONG_BINGET",
}
"""Steps, with the names of their opcodes: those that torch.save writes."""
_STEPS = {
    opcode.code.encode("latin-1"): (step, opcode.arg.reader if opcode.arg else None)
    for step, names in _OPCODES.items()
    for opcode in pickletools.opcodes
    if opcode.name in names.split()
}
"""Step and reader of the argument of each opcode, by its byte."""
STOP = b"."

"""What a pickle would build, read off its opcodes: nothing is imported, called or allocated by its word.

`torch.load(weights_only=True)` comes after this, and has its own list of what it may call. This pass tells beforehand
which names a file asks for, and how large it says its storages are, since torch allocates what a file claims. It also
outlines what will be built, so that a file can be looked at before torch, which takes seconds to import, is needed.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ckpt_probe.checkpoints.formats.inert import STAND_INS
from ckpt_probe.checkpoints.formats.outlines import (
    FROM_TYPE,
    OPAQUE,
    STORAGES,
    Named,
    NotOutlined,
    Storage,
    outlined_call,
)

LONGEST = 64 * 2**20
"""Bytes of a pickle, its tensors' numbers not among them, that is still taken for a checkpoint's."""
MOST_OPCODES = 10_000_000
COPIES = 4
"""How many times the length of a pickle its calls may copy."""

REBUILD = frozenset(
    f"torch._utils.{name}"
    for name in (
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    )
)  # fmt: skip
"""Functions of torch that make a dense tensor of a storage, whose bounds they check."""
CALLED = (
    REBUILD
    | frozenset(STAND_INS)
    | {
        FROM_TYPE, "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device", "_codecs.encode",
        "builtins.set", "builtins.complex", "torch.serialization._get_layout",
    }
)  # fmt: skip
"""What may be called. Left out of torch's own list is what allocates by a number that it is given: tensor classes,
bytearray, and the functions that rebuild quantised, sparse, nested and wrapped tensors."""
HASHING = frozenset({"builtins.set", "collections.OrderedDict", "collections.Counter"})
ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip
NAMED = frozenset(
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
"""What may be named without being called."""
OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
NAMES_OF_PYTHON_2 = {"builtins.long": "builtins.int", "builtins.unicode": "builtins.str"}
"""What protocol 2, which torch writes, calls modules and classes."""
MODULE_FIELDS = frozenset({"_modules", "_parameters", "_buffers"})
"""Fields by which a pickled torch.nn.Module is known, whatever its class is called."""


@dataclass
class Held:
    """Something that a pickle builds: how many entries or characters it has, and its outline.

    deep: whether there is a tuple of tuples among them, whose hash may take for ever. outline: a mapping or list that
    is filled as the pickle says, a tensor's dtype and shape, or `OPAQUE`.
    """

    size: int = 0
    deep: bool = False
    outline: Any = OPAQUE


@dataclass(frozen=True)
class Tuple:
    """A tuple, whether it has tuples in it, and its outline."""

    items: tuple[Any, ...]
    deep: bool
    outline: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What a pickle asks for.

    forbidden: globals outside the lists of this module, in their order; storages: key → bytes that the file says the
    storage has; whole_module: whether there are fields of a pickled `torch.nn.Module`; outline: of what is built, None
    where it may hold tensors that the outline does not show.
    """

    forbidden: tuple[str, ...]
    storages: Mapping[str, int]
    whole_module: bool
    outline: Any = None


@dataclass
class _Machine:
    """The stack, the stacks that marks have put aside, the memo, and what has been found."""

    stack: list[Any] = field(default_factory=list)
    aside: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    forbidden: dict[str, None] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)
    most_copied: int = 0
    copied: int = 0
    outlines: bool = True


def scan(file: BinaryIO, length: int) -> Scan:
    """Read one pickle off a file, from where it stands up to its end, at most `length` bytes.

    Raises ValueError for what is no pickle that torch writes, ends early, or is larger than any checkpoint's.
    """
    most = min(length, LONGEST)
    bounded = _Bounded(file, most)
    machine = _Machine(most_copied=COPIES * most + 2**20)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):  # pyright: ignore[reportArgumentType]
            if opcode.name == "STOP":
                if machine.aside or len(machine.stack) != 1:
                    raise ValueError("no whole pickle (it ends within a list)")
                break
            if count > MOST_OPCODES:
                raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
            if opcode.name not in _STEPS:
                raise ValueError(f"opcode {opcode.name}, which torch.save does not write")
            _STEPS[opcode.name](machine, argument)
    except (IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"no whole pickle ({type(error).__name__}: {error})") from error
    outline = _outline(machine.stack[0]) if machine.outlines and machine.stack else None
    return Scan(tuple(machine.forbidden), machine.storages, machine.fields >= MODULE_FIELDS, outline)


class _Bounded:
    """A file of which no more than so many bytes are there: a claim of more is never allocated."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length

    def read(self, count: int) -> bytes:
        return self._took(self._file.read(min(count, self._left)))

    def readline(self) -> bytes:
        return self._took(self._file.readline(self._left))

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def _push(make: Callable[[Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.stack.append(make(argument))


def _text(machine: _Machine, argument: str) -> None:
    if argument in MODULE_FIELDS:
        machine.fields.add(argument)
    machine.stack.append(argument)


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    named = f"{OF_PYTHON_2.get(module, module)}.{name}"
    named = NAMES_OF_PYTHON_2.get(named, named)
    if named not in CALLED and named not in NAMED:
        machine.forbidden[named] = None
    machine.stack.append(Named(named))


def _mark(machine: _Machine, _: Any) -> None:
    machine.aside.append(machine.stack)
    machine.stack = []


def _since_mark(machine: _Machine) -> list[Any]:
    items = machine.stack
    machine.stack = machine.aside.pop()
    return items


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        items = [machine.stack.pop() for __ in range(count)]
        machine.stack.append(_made(items[::-1]))

    return step


def _tuple(machine: _Machine, _: Any) -> None:
    items = _since_mark(machine)
    machine.stack.append(_made(items))


def _made(items: list[Any]) -> Tuple:
    return Tuple(tuple(items), any(isinstance(item, Tuple) for item in items), tuple(map(_outline, items)))


def _append(machine: _Machine, _: Any) -> None:
    _extend(machine, [machine.stack.pop()])


def _append_all(machine: _Machine, _: Any) -> None:
    items = _since_mark(machine)
    _extend(machine, items)


def _extend(machine: _Machine, items: list[Any]) -> None:
    held = machine.stack[-1]
    held.size += len(items)
    held.deep |= any(isinstance(item, Tuple) and item.deep for item in items)
    if isinstance(held.outline, list):
        held.outline += [_outline(item) for item in items]
    else:
        machine.outlines = False


def _set(machine: _Machine, _: Any) -> None:
    pair = [machine.stack.pop(), machine.stack.pop()]
    _fill(machine, pair[1:], pair[:1])


def _set_all(machine: _Machine, _: Any) -> None:
    items = _since_mark(machine)
    _fill(machine, items[::2], items[1::2])


def _fill(machine: _Machine, keys: list[Any], values: list[Any]) -> None:
    if any(isinstance(key, Tuple) and key.deep for key in keys):
        raise ValueError("a key that is a tuple of tuples")
    held = machine.stack[-1]
    held.size += len(keys)
    if isinstance(held.outline, dict) and all(isinstance(key, str | int | float | None) for key in keys):
        held.outline.update(zip(keys, map(_outline, values), strict=False))
    else:
        machine.outlines = False


def _call(machine: _Machine, _: Any) -> None:
    arguments, called = machine.stack.pop(), machine.stack.pop()
    name = called.name if isinstance(called, Named) else "the result of a call"
    items = arguments.items
    if name not in CALLED and not (name == "torch.nn.parameter.Parameter" and not items):
        machine.forbidden[name] = None
    if name == FROM_TYPE and not (isinstance(items[0], Named) and items[0].name in REBUILD):
        machine.forbidden[f"{name} of {getattr(items[0], 'name', 'the result of a call')}"] = None
    if name in HASHING and any(isinstance(item, Held) and item.deep for item in items):
        raise ValueError("a key that is a tuple of tuples")
    size = len(items) + sum(map(_size, items))
    machine.copied += size
    if machine.copied > machine.most_copied:
        raise ValueError(f"its calls copy more than {machine.most_copied:,} bytes")
    machine.stack.append(Held(size, outline=_outline_of_call(machine, name, items)))


def _outline_of_call(machine: _Machine, name: str, items: tuple[Any, ...]) -> Any:
    try:
        return outlined_call(name, [_outline(item) for item in items])
    except (NotOutlined, ValueError, IndexError, AttributeError, TypeError):
        machine.outlines = False
        return OPAQUE


def _build(machine: _Machine, _: Any) -> None:
    machine.stack.pop()
    built = getattr(machine.stack[-1], "outline", OPAQUE)
    # To an OrderedDict this adds attributes, to what is opaque anything.
    machine.outlines &= isinstance(built, OrderedDict) or built is OPAQUE


def _outline(item: Any) -> Any:
    return item.outline if isinstance(item, Held | Tuple) else item


def _size(value: Any) -> int:
    if isinstance(value, Held):
        return value.size
    if isinstance(value, Tuple):
        return len(value.items)
    return len(value) if isinstance(value, str | bytes) else 0


def _storage(machine: _Machine, _: Any) -> None:
    kind, *rest = machine.stack.pop().items
    if kind == "module":
        # A class with its source, as torch.save of a whole module wrote them into a stream.
        machine.fields |= MODULE_FIELDS
        machine.stack.append(rest[0])
        return
    storage, key, _location, count, *_view = rest
    if kind != "storage" or not isinstance(storage, Named) or not isinstance(count, int) or count < 0:
        raise ValueError("a storage that torch does not write")
    name = storage.name.rpartition(".")[2]
    if name not in ITEM_BYTES:
        machine.forbidden[storage.name] = None
    size = count * ITEM_BYTES.get(name, 1)
    machine.storages[str(key)] = max(size, machine.storages.get(str(key), 0))
    machine.stack.append(Held(outline=Storage(STORAGES.get(name, name))))


def _remember(machine: _Machine, argument: int) -> None:
    machine.memo[argument] = machine.stack[-1]


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "GLOBAL": _global,
    "MARK": _mark,
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_TUPLE": _push(lambda _: Tuple((), False)),
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
    "APPEND": _append,
    "APPENDS": _append_all,
    "SETITEM": _set,
    "SETITEMS": _set_all,
    "BINPERSID": _storage,
    "BINUNICODE": _text,
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "NONE": _push(lambda _: None),
    "NEWTRUE": _push(lambda _: True),
    "NEWFALSE": _push(lambda _: False),
    "EMPTY_DICT": _push(lambda _: Held(outline={})),
    "EMPTY_LIST": _push(lambda _: Held(outline=[])),
    "EMPTY_SET": _push(lambda _: Held()),
    # Texts of Python 2, which torch takes for UTF-8.
    "SHORT_BINSTRING": _push(lambda argument: argument.encode("latin-1").decode()),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), _push(lambda argument: argument)),
}

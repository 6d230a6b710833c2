"""PyTorch's pickles: followed by a machine of our own that knows containers, numbers and tensors, and nothing else.

No file is known here: bytes of storages come from a function. Any other name in a pickle is an error and stays a name;
nothing of what a pickle asks for is ever imported or called. The truth is torch/_weights_only_unpickler.py of PyTorch.
"""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..errors import FormatError, TensorError
from ..quant import DTYPES
from ..tensors import Entry, Tensors
from .files import array_at

COMPLEX = "COMPLEX64"  # a table of rotations; no weight has it
STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64"}
STORAGES |= {"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"}
STORAGES |= {"ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": COMPLEX}
DTYPE_NAMES = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64"}
DTYPE_NAMES |= {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
MAX_AXES = 64  # numpy's limit


def loads(raw: bytes, what: str, storage: Callable[[str], np.ndarray]) -> Any:
    """What a pickle holds: dicts, lists, numbers and texts, with an `Entry` in the place of each tensor.

    `storage` gives the bytes of a key, uint8 (size,). Raises FormatError, which names what the pickle asks for.
    """
    return _Machine(what, storage).run(raw)


def dumps(value: Mapping[str, Any]) -> tuple[bytes, list[tuple[str, Entry]]]:
    """Nested dicts of texts, numbers and `Tensors` as a pickle, and the tensors in the order of their storages' keys.

    Raises TensorError for a type that PyTorch has no storage for.
    """
    pickler = _Pickler()
    return pickler.dump(value), pickler.found


# Reading


@dataclass(frozen=True)
class _Storage:
    """One member of bytes, and what its elements are called."""

    type: str
    key: str
    count: int


@dataclass(frozen=True)
class _Dtype:
    """`torch.float8_e4m3fn` and its like, which newer tensors give beside an untyped storage."""

    type: str


@dataclass(frozen=True)
class _Kind:
    """A storage's class."""

    type: str


@dataclass(frozen=True)
class _Call:
    """One of the few functions that may be called: ours, in the place of the one that the pickle names."""

    make: Callable[..., Any]


class _Opaque:
    """Something harmless that nobody here needs, such as the extra state of a layer."""


class _Machine:
    """A stack, its marks and a memo: all that a pickle's opcodes work on."""

    def __init__(self, what: str, storage: Callable[[str], np.ndarray]):
        self.what, self.bytes_of = what, storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        tensor = _Call(self._tensor)
        self.known: dict[str, Any] = {
            "collections OrderedDict": _Call(dict),
            "torch._utils _rebuild_tensor_v2": tensor,
            "torch._utils _rebuild_tensor_v3": _Call(self._typed_tensor),
            "torch._utils _rebuild_parameter": _Call(lambda data, needs_grad, hooks: data),
            "torch Size": _Call(tuple),
            "torch.storage UntypedStorage": _Kind("U8"),
            "_io BytesIO": _Call(lambda data: _Opaque()),
            **{f"torch {name}": _Kind(kind) for name, kind in STORAGES.items()},
            **{f"torch {name}": _Dtype(kind) for name, kind in DTYPE_NAMES.items()},
        }

    def fail(self, problem: str, remedy: str = "The file is damaged: fetch or convert it again.") -> NoReturn:
        raise FormatError(f"{self.what} is not a good PyTorch checkpoint: its pickle {problem}. {remedy}")

    def run(self, raw: bytes) -> Any:
        try:
            for op, argument, _ in pickletools.genops(raw):
                if op.name == "STOP":
                    return self.stack.pop()
                action = _ACTIONS.get(op.name)
                if action is None:
                    self.fail(f"has the opcode {op.name}, which no tensor needs; it is not executed")
                action(self, argument)
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError, struct.error) as problem:
            self.fail(f"makes no sense ({problem})")
        self.fail("has no end")

    def lookup(self, name: str) -> Any:
        if name not in self.known:
            dotted = ".".join(name.split(" ", 1))
            self.fail(
                f"asks for {dotted!r:.90}, which is neither a tensor nor a plain container; it is not executed",
                "Where you trust its source, load it with PyTorch and save the tensors alone as safetensors.",
            )
        return self.known[name]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def popped(self) -> list[Any]:
        """What lies above the last mark."""
        found, self.stack = self.stack, self.marks.pop()
        return found

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Call) or not isinstance(arguments, tuple):
            self.fail("calls something that is no function of PyTorch's; it is not executed")
        self.push(function.make(*arguments))

    def build(self) -> None:
        """Attributes that PyTorch hangs on a state dict: the versions of its modules, which nobody needs."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            self.fail("sets the state of something that is no dict; it is not executed")

    def storage(self) -> None:
        label, kind, key, _, count = self.stack.pop()
        if label != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str) or type(count) is not int:
            raise TypeError("a storage is described by its class, key, place and size")
        self.push(_Storage(kind.type, key, count))

    def _typed_tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, meta: Any = None
    ) -> Entry:
        kind, count = dtype.type, storage.count // _dtype(dtype.type).itemsize
        return self._tensor(_Storage(kind, storage.key, count), offset, shape, strides)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Entry:
        if not isinstance(storage, _Storage) or not (_sizes((offset,)) and _sizes(shape) and _sizes(strides)):
            raise TypeError("a tensor is described by storage, offset, shape and strides")
        if len(shape) != len(strides) or len(shape) > MAX_AXES or math.prod(size or 1 for size in shape) >= 1 << 60:
            raise ValueError(f"a tensor of shape {shape!r:.60} with strides {strides!r:.60}")
        dtype = _dtype(storage.type)
        data = self.bytes_of(storage.key)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if storage.count * dtype.itemsize > len(data) or (math.prod(shape) and last >= storage.count):
            raise ValueError(f"a tensor of shape {shape!r:.60} reaches beyond its storage {storage.key!r:.20}")
        nbytes = math.prod(shape) * dtype.itemsize
        return Entry(shape, storage.type, nbytes, lambda: _array(data, dtype, offset, shape, strides))


def _dtype(kind: str) -> np.dtype:
    return np.dtype("<c8") if kind == COMPLEX else DTYPES[kind]


def _sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _array(
    data: np.ndarray, dtype: np.dtype, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    """A view where numbers lie in order, else a copy in order."""
    if strides == _strides(shape) or not math.prod(shape):
        return array_at(data, offset * dtype.itemsize, dtype, shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    flat = array_at(data, offset * dtype.itemsize, dtype, (last - offset + 1,))
    view = np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])
    return np.ascontiguousarray(view)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one entry to the next along each axis, when the last axis runs fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


_Action = Callable[[_Machine, Any], Any]


def _push(make: Callable[[Any], Any]) -> _Action:
    return lambda machine, argument: machine.push(make(argument))


def _mark(machine: _Machine, argument: Any) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple(count: int) -> _Action:
    def action(machine: _Machine, argument: Any) -> None:
        if len(machine.stack) < count:
            raise IndexError("its stack is empty too soon")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return action


def _put(machine: _Machine, argument: int) -> None:
    machine.memo[argument] = machine.stack[-1]


def _set_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise TypeError(f"items for a {type(target).__name__}")
    target.update(zip(values[::2], values[1::2], strict=True))


def _append(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise TypeError(f"elements for a {type(target).__name__}")
    target.extend(values)


def _set_item(machine: _Machine, argument: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_items(machine, [key, value])


def _stacked_name(machine: _Machine, argument: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.push(machine.lookup(f"{module} {name}"))


_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        _push(lambda argument: argument),
    ),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _push(lambda argument: argument)),
    "NONE": _push(lambda argument: None),
    "NEWTRUE": _push(lambda argument: True),
    "NEWFALSE": _push(lambda argument: False),
    "EMPTY_DICT": _push(lambda argument: {}),
    "EMPTY_LIST": _push(lambda argument: []),
    "EMPTY_TUPLE": _push(lambda argument: ()),
    "MARK": _mark,
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.popped())),
    **{f"TUPLE{count}": _tuple(count) for count in (1, 2, 3)},
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda machine, argument: _put(machine, len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, argument: machine.push(machine.memo[argument])),
    "GLOBAL": lambda machine, argument: machine.push(machine.lookup(argument)),
    "STACK_GLOBAL": _stacked_name,
    "BINPERSID": lambda machine, argument: machine.storage(),
    "REDUCE": lambda machine, argument: machine.call(),
    "BUILD": lambda machine, argument: machine.build(),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, argument: _set_items(machine, machine.popped()),
    "APPEND": lambda machine, argument: _append(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, argument: _append(machine, machine.popped()),
}


# Writing


class _Pickler:
    """Nested dicts as a pickle of protocol 2; `found` collects the tensors in the order of their keys."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Entry]] = []

    def dump(self, value: Mapping[str, Any]) -> bytes:
        return b"\x80\x02" + b"".join(self._value("", value)) + b"."

    def _value(self, name: str, value: Any) -> Iterator[bytes]:
        if isinstance(value, Entry):
            yield from self._tensor(name, value)
        elif isinstance(value, Mapping):
            yield b"}("
            for key, inner in (value.entries if isinstance(value, Tensors) else value).items():
                yield _text(key)
                yield from self._value(key, inner)
            yield b"u"
        else:
            yield _plain(value)

    def _tensor(self, name: str, entry: Entry) -> Iterator[bytes]:
        classes = {kind: name for name, kind in STORAGES.items()}
        if entry.type not in classes:
            raise TensorError(
                f"PyTorch has no storage of type {entry.type}, which {name} has; it has {', '.join(classes)}. "
                "Choose a float type."
            )
        yield b"ctorch._utils\n_rebuild_tensor_v2\n(("
        yield _text("storage") + f"ctorch\n{classes[entry.type]}\n".encode()
        yield _text(str(len(self.found))) + _text("cpu") + _plain(math.prod(entry.shape)) + b"tQ" + _plain(0)
        for sizes in (entry.shape, _strides(entry.shape)):
            yield b"(" + b"".join(_plain(size) for size in sizes) + b"t"
        yield b"\x89ccollections\nOrderedDict\n)RtR"
        self.found.append((name, entry))


def _plain(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int) and -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    return _text(value)


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw

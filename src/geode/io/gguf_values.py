"""Values of GGUF metadata: their types and their bytes.

What a key means, and where in a file its value lies, is not known here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import OptionError
from ..strings import StringArray, pack

VALUE_TYPES: dict[str, tuple[int, str]] = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "string": (8, ""),
    "array": (9, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
"""Types of metadata: name -> (number in the file, little-endian code of `struct` and numpy)."""

_NUMPY_NAMES = {np.dtype("<" + code): name for name, (_, code) in VALUE_TYPES.items() if code}


def packed_name(name: str) -> bytes:
    """A key or a tensor's name as the file spells it. Raises OptionError when it is not UTF-8."""
    try:
        return _packed_string(name, "strict")
    except UnicodeEncodeError:
        raise OptionError(f"Names in a GGUF file are UTF-8, and {name!r} cannot be written so. Rename it.") from None


def packed_value(key: str, value: Any, kind: str) -> bytes:
    """The number of the type `kind` ("u32", "array[string]") and the value. Raises OptionError when they do not fit."""
    array = re.fullmatch(r"array\[(\w+)\]", kind)
    element = array[1] if array else kind
    if element not in VALUE_TYPES or kind == "array":
        known = ", ".join(name for name in VALUE_TYPES if name != "array")
        raise OptionError(f"{kind!r} ({key}) is no metadata type of GGUF; those are {known}, and array[…] of each.")
    packed = _packed_array if array else _packed_one
    try:
        return struct.pack("<I", VALUE_TYPES["array" if array else kind][0]) + packed(key, value, element)
    except (struct.error, ValueError, TypeError, OverflowError, AttributeError):
        raise OptionError(f"The metadata key {key} cannot be written as {kind}: got {value!r:.100}.") from None


def type_of(key: str, value: object) -> str:
    """The type that a value without a given one gets."""
    if isinstance(value, np.ndarray | np.generic):
        return _numpy_type(key, value)
    if isinstance(value, StringArray):
        return "array[string]"
    if isinstance(value, list | tuple) and value:
        return f"array[{_element_type(key, value)}]"
    for kind, name in ((bool, "bool"), (str, "string"), (float, "f32")):
        if isinstance(value, kind):
            return name
    if isinstance(value, int):
        return _int_type(value, value)
    raise OptionError(
        f"The metadata key {key} has a value that GGUF has no type for: {value!r:.100}. "
        "Give a string, a number, a boolean or a filled list of them, or name the type in `types`."
    )


def _packed_string(text: str, errors: str = "surrogateescape") -> bytes:
    raw = text.encode("utf-8", errors)
    return struct.pack("<Q", len(raw)) + raw


def _packed_one(key: str, value: Any, kind: str) -> bytes:
    return _packed_string(value) if kind == "string" else _packed_numbers([value], kind)


def _packed_array(key: str, values: Any, kind: str) -> bytes:
    """The elements' type, their number, and they."""
    head = struct.pack("<IQ", VALUE_TYPES[kind][0], len(values))
    if kind == "array":
        return head + b"".join(_packed_array(key, value, _inner_type(key, value)) for value in values)
    if kind == "string":
        return head + pack(values).raw
    return head + _packed_numbers(values, kind)


def _packed_numbers(values: Any, kind: str) -> bytes:
    """Numbers side by side. Raises struct.error or TypeError where one would change on the way."""
    code = VALUE_TYPES[kind][1]
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype == np.dtype("<" + code):
        return values.tobytes()
    if kind == "bool" and not all(isinstance(value, bool | np.bool_) for value in values):
        raise TypeError
    return struct.pack(f"<{len(values)}{code}", *values)


def _inner_type(key: str, value: Any) -> str:
    """The element type of an array in an array. Only one that held arrays is read as a list, so an empty list did."""
    if isinstance(value, list) and not value:
        return "array"
    kind = type_of(key, value)
    if not kind.startswith("array["):
        raise TypeError
    return kind[6:-1]


def _numpy_type(key: str, value: np.ndarray | np.generic) -> str:
    name = _NUMPY_NAMES.get(value.dtype.newbyteorder("<"))
    if name is None or value.ndim > 1:
        raise OptionError(f"The metadata key {key} is a numpy value of {value.dtype} {value.shape}, unknown to GGUF.")
    return name if value.ndim == 0 else f"array[{name}]"


def _element_type(key: str, values: Iterable[Any]) -> str:
    """The one type of a list's elements: for whole numbers the first of i32, u32, i64 and u64 that holds them all."""
    kinds = {type_of(key, value) for value in values}
    if kinds <= {"u32", "i32", "u64", "i64"}:
        return _int_type(min(values), max(values), ("i32", "u32", "i64", "u64"))
    if kinds <= {"u32", "i32", "f32"}:
        return "f32"
    if all(kind.startswith("array") for kind in kinds):
        return "array"
    if len(kinds) > 1:
        raise OptionError(f"The metadata key {key} mixes {', '.join(sorted(kinds))}; an array has one type.")
    return kinds.pop()


def _int_type(low: int, high: int, names: tuple[str, ...] = ("u32", "i32", "u64", "i64")) -> str:
    for name in names:
        limits = np.iinfo("<" + VALUE_TYPES[name][1])
        if limits.min <= low and high <= limits.max:
            return name
    raise OptionError(f"GGUF holds integers of at most 64 bits; got {low} to {high}.")

"""The fields of a SentencePiece .model file, read from protobuf's wire format.

What the fields mean for tokenising is spm.py's business; the names are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import TokenizerError

BPE = 2  # TrainerSpec.ModelType: 1 unigram, 2 bpe, 3 word, 4 char


@dataclass
class Model:
    """One .model file. The defaults are the .proto's own."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    model_type: int = 1
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    suffix_space: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


TRAINER = {3: "model_type", 24: "suffix_space", 40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
NORMALIZER = {2: "charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}


def parse(data: bytes) -> Model:
    """The model in these bytes. Raises TokenizerError when they are no whole SentencePiece model."""
    model = Model()
    try:
        for number, value in _fields(data):
            if number == 1:
                _add_piece(model, _as_bytes(value))
            elif number in (2, 3):
                _set(model, _as_bytes(value), TRAINER if number == 2 else NORMALIZER)
    except (IndexError, struct.error, ValueError) as problem:
        raise TokenizerError(
            f"This is no whole SentencePiece model: {problem}. Fetch or copy the file again."
        ) from None
    if not model.pieces:
        raise TokenizerError("This SentencePiece model holds no pieces. Fetch or copy the file again.")
    return model


def _add_piece(model: Model, data: bytes) -> None:
    found: dict[int, int | bytes] = dict(_fields(data))
    model.pieces.append(_as_bytes(found.get(1, b"")).decode("utf-8"))
    model.scores.append(struct.unpack("<f", _as_bytes(found.get(2, bytes(4))))[0])
    model.types.append(_as_int(found.get(3, 1)))


def _set(model: Model, data: bytes, names: dict[int, str]) -> None:
    for number, value in _fields(data):
        if name := names.get(number):
            default = getattr(model, name)
            setattr(model, name, _as_bytes(value) if isinstance(default, bytes) else type(default)(_as_int(value)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of one message: an int for a varint, else the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"byte {at} begins a field of the unknown kind {kind}")
        if at + size > len(data):
            raise ValueError(f"a field at byte {at} ends after the file's end")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"the number before byte {at} is too long")


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where bytes belong")
    return value


def _as_int(value: int | bytes) -> int:
    """Negative numbers come as 64-bit two's complement."""
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number belongs")
    return value - (1 << 64) if value >> 63 else value

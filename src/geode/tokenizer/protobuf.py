"""The fields of a SentencePiece .model file, read from and written in protobuf's wire format.

What the fields mean for tokenising is spm.py's business; the names are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
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
    text, score, kind = _usual_piece(data) or _any_piece(data)
    model.pieces.append(text.decode("utf-8"))
    model.scores.append(struct.unpack("<f", score)[0])
    model.types.append(kind)


def _usual_piece(data: bytes) -> tuple[bytes, bytes, int] | None:
    """Text, score and type where they stand as nearly always: in this order, the text short, the type one byte."""
    end = 2 + data[1] if len(data) > 1 and data[0] == 0x0A and data[1] < 128 else len(data)
    if data[end : end + 1] != b"\x15" or len(data) not in (end + 5, end + 7):
        return None
    if len(data) == end + 5:
        return data[2:end], data[end + 1 :], 1
    if data[end + 5] != 0x18 or data[end + 6] > 127:
        return None
    return data[2:end], data[end + 1 : end + 5], data[end + 6]


def _any_piece(data: bytes) -> tuple[bytes, bytes, int]:
    found: dict[int, int | bytes] = dict(_fields(data))
    return _as_bytes(found.get(1, b"")), _as_bytes(found.get(2, bytes(4))), _as_int(found.get(3, 1))


def _set(model: Model, data: bytes, names: dict[int, str]) -> None:
    for number, value in _fields(data):
        if name := names.get(number):
            default = getattr(model, name)
            setattr(model, name, _as_bytes(value) if isinstance(default, bytes) else type(default)(_as_int(value)))


# Writing

SPELT = {"unk_id": 45, "bos_id": 46, "eos_id": 47, "pad_id": 48}  # where the trainer spec has the texts of these ids
_VOCAB_SIZE, _BYTE_FALLBACK = 4, 35
_BYTE_TYPE = 6


def serialise(model: Model) -> bytes:
    """The bytes of a .model file with these pieces, types and ids. Raises UnicodeEncodeError for pieces no UTF-8."""
    trainer = {number: int(getattr(model, name)) for number, name in TRAINER.items()}
    trainer |= {_VOCAB_SIZE: len(model.pieces), _BYTE_FALLBACK: int(_BYTE_TYPE in model.types)}
    spelt = {
        number: model.pieces[token].encode() for name, number in SPELT.items() if (token := getattr(model, name)) >= 0
    }
    normalizer = {1: b"identity", **{number: getattr(model, name) for number, name in NORMALIZER.items()}}
    pieces = zip(model.pieces, model.scores, model.types, strict=True)
    parts = [_field(1, _piece(*each)) for each in pieces]
    return b"".join([*parts, _field(2, _message(trainer | spelt)), _field(3, _message(normalizer))])


def _piece(text: str, score: float, kind: int) -> bytes:
    spelt = text.encode()
    return b"\n%b%b\x15%b\x18%b" % (_number(len(spelt)), spelt, struct.pack("<f", score), _number(kind))


def _message(fields: Mapping[int, int | bytes]) -> bytes:
    return b"".join(_field(number, fields[number]) for number in sorted(fields))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _number(number << 3 | 2) + _number(len(value)) + value
    return _number(number << 3) + _number(int(value) & (1 << 64) - 1)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# Reading the wire


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

"""llama2.c's tokenizer.bin: pieces with scores, and nothing else.

    longest piece, bytes i32 | for each token: score f32 | bytes i32 | text, spaces plain

Types and roles follow from run.c in github.com/karpathy/llama2.c, which knows them by place: 0 unknown, 1 BOS, 2 EOS,
3 to 258 the bytes. It puts a BOS and a space before every text. How ids and scores are used is spm.py's business.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ..errors import TokenizerError
from ..strings import pack
from .base import Roles
from .spm import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from .vocabulary import Scored

UNK, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_MARKED = {BOS: "\n<s>\n", EOS: "\n</s>\n"}  # as its tokenizer.py exports them


def read(path: Path) -> Scored:
    """The vocabulary in a tokenizer.bin. Raises TokenizerError where it is none or incomplete."""
    pieces, scores = _entries(path, path.read_bytes())
    if pieces[FIRST_BYTE : FIRST_BYTE + 256] != _BYTES:
        raise TokenizerError(
            f"{path}: tokens 3 to 258 of a llama2.c tokenizer are the bytes <0x00> to <0xFF>; these are not."
        )
    types = np.full(len(pieces), NORMAL, np.int32)
    types[: FIRST_BYTE + 256] = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    spelt = [text if i < FIRST_BYTE else text.replace(" ", SPACE) for i, text in enumerate(pieces)]
    spelt[BOS], spelt[EOS] = spelt[BOS].strip("\n"), spelt[EOS].strip("\n")
    roles = Roles(bos=BOS, eos=EOS, unk=UNK, adds_bos=True)
    return Scored(pieces=pack(spelt), scores=np.array(scores, np.float32), types=types, roles=roles, prefix=True)


def _entries(path: Path, data: bytes) -> tuple[list[str], list[float]]:
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
        at += 8 + length
        if not 0 <= length <= 1 << 16 or at > len(data):
            raise TokenizerError(
                f"{path} is no whole llama2.c tokenizer: token {len(pieces)} does not fit into its {len(data)} bytes. "
                "Fetch or export the file again."
            )
        pieces.append(data[at - length : at].decode("utf-8", "surrogateescape"))
        scores.append(score)
    return pieces, scores


def write(vocabulary: Scored) -> bytes:
    """The bytes of a tokenizer.bin. Raises TokenizerError where run.c would take other tokens for bytes, BOS or EOS."""
    if problem := misplaced(vocabulary):
        raise TokenizerError(f"llama2.c knows tokens by their place, and cannot read this vocabulary: {problem}.")
    marks = (USER_DEFINED, CONTROL, UNKNOWN)
    entries = []
    for token, (text, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types.tolist(), strict=True)):
        spelt = _MARKED.get(token) or (text if kind in marks else text.replace(SPACE, " "))
        entries.append(spelt.encode("utf-8", "surrogateescape"))
    scores = vocabulary.scores.tolist()
    packed = (struct.pack("<fi", score, len(text)) + text for score, text in zip(scores, entries, strict=True))
    return struct.pack("<i", max(map(len, entries))) + b"".join(packed)


def misplaced(vocabulary: Scored) -> str | None:
    """Why run.c would misread a vocabulary; None where it would not."""
    roles = vocabulary.roles
    if (roles.bos, roles.eos) != (BOS, EOS):
        return f"BOS should be token 1 and EOS token 2, and they are {roles.bos} and {roles.eos}"
    if vocabulary.pieces[FIRST_BYTE : FIRST_BYTE + 256] != _BYTES:
        return "tokens 3 to 258 should be the bytes <0x00> to <0xFF>"
    return None

"""Token ids to text, one at a time, without ever showing half a character.

Vocabularies are not known here: a function gives the bytes of each id.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Text of ids as they come. What the pushes and the flush return, joined, is the text of all the ids.

    `piece` gives the bytes of an id, none for one that is not shown. With `trim` one space that begins the text is
    dropped: the one that some vocabularies put before every text. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, piece: Callable[[int], bytes], trim: bool = False):
        self._piece = piece
        self._trim = trim
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this id completes, often none."""
        piece = self._piece(token)
        if self._trim and piece:
            self._trim = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished."""
        return self._utf8.decode(b"", final=True)

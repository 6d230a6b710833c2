"""Text to token ids and back, equal to what each model's own reference does.

Models, weights and conversations are not known here; chat.py turns messages into text.

    files.py    a directory, a .model, a .tiktoken      base.py     the one face of all engines
    gguf.py     the arrays of a GGUF file               stream.py   ids to text, one at a time
                                                        spm.py      SentencePiece BPE, by score
    protobuf.py the fields of a .model                  bytebpe.py  byte-level BPE, by rank
    patterns.py how byte-level BPE cuts words           rust.py     tokenizer.json, by `tokenizers`
"""

from .base import Roles, Tokenizer
from .files import from_sentencepiece, from_tiktoken, load
from .gguf import from_gguf
from .stream import StreamDecoder

__all__ = ["Roles", "StreamDecoder", "Tokenizer", "from_gguf", "from_sentencepiece", "from_tiktoken", "load"]

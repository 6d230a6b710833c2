"""Text to token ids and back, equal to what each model's own reference does.

Models, weights and conversations are not known here; chat.py turns messages into text.

    files.py    a directory, a .model, a .tiktoken      base.py     the one face of all engines
    gguf.py     the arrays of a GGUF file               stream.py   ids to text, one at a time
                                                        spm.py      SentencePiece BPE, by score
    protobuf.py the fields of a .model                  bytebpe.py  byte-level BPE, by rank
    patterns.py how byte-level BPE cuts words           rust.py     tokenizer.json, by `tokenizers`

From format to format, by way of one description:

    vocabulary.py  what a tokenizer consists of         write_gguf.py   as a GGUF file's metadata
    sources.py     that, from any source                write_hf.py     as a Hugging Face directory's files
    hf.py          from a tokenizer.json                write_files.py  as a .model, a .tiktoken, a tokenizer.bin
    llama2c.py     from a tokenizer.bin, and back       losses.py       what a format leaves out
    merges.py      merges and scores, one from another  cuts.py         a tokenizer.json's way to cut words
"""

from .base import Roles, Tokenizer
from .files import from_sentencepiece, from_tiktoken, load
from .gguf import from_gguf
from .losses import losses
from .sources import vocabulary
from .stream import StreamDecoder
from .vocabulary import Ranked, Scored, Vocabulary
from .write_files import to_llama2c, to_sentencepiece, to_tiktoken
from .write_gguf import to_gguf
from .write_hf import to_hf

__all__ = [
    "Ranked",
    "Roles",
    "Scored",
    "StreamDecoder",
    "Tokenizer",
    "Vocabulary",
    "from_gguf",
    "from_sentencepiece",
    "from_tiktoken",
    "load",
    "losses",
    "to_gguf",
    "to_hf",
    "to_llama2c",
    "to_sentencepiece",
    "to_tiktoken",
    "vocabulary",
]

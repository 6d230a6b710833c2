"""llama2.c: a .bin of float32 arrays, and a tokenizer's .bin beside it. Read and written as its run.c reads them.

How the bytes lie is `io.llama2c`'s business, the names are the dialect's. run.c fixes what the header does not say: the
rotary base, the epsilon of the norms, the shape of a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import families
from ..config import Config
from ..dialects import llama2c as dialect
from ..errors import ModelNotFound, TokenizerError
from ..tensors import Tensors
from .base import Checkpoint, Format, Target, common_type, floats

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from ..tokenizer.vocabulary import Vocabulary

NAME, TOKENIZER = "model.bin", "tokenizer.bin"
THETA, EPS = 10_000.0, 1e-5  # run.c: `forward` and `rmsnorm`


class Llama2c(Checkpoint):
    """A .bin, with its tokenizer beside it."""

    def _tensors(self) -> Tensors:
        return dialect.read(self.stored, self.config)

    def _tokenizer(self) -> Tokenizer | None:
        found = self._vocabulary()
        return None if found is None else found.tokenizer()

    def _vocabulary(self) -> Vocabulary | None:
        """What tokenizer.bin or, after llama2.c's custom, tok512.bin holds; by that name for a vocabulary of 512."""
        from .. import tokenizer

        vocab = self.config.vocab
        for name in (TOKENIZER, f"tok{vocab}.bin", f"{self.path.stem}-tokenizer.bin"):
            path = self.path.parent / name
            if path.is_file():
                found = tokenizer.vocabulary(path)
                if found is None or len(found.pieces) != vocab:
                    count = 0 if found is None else len(found.pieces)
                    raise TokenizerError(f"{path} has {count} tokens, and {self.path.name} beside it has {vocab}.")
                return found
        return None

    def _template(self) -> str | None:
        return None

    def files(self) -> list[Path]:
        return [self.path]


def claims(path: Path) -> bool:
    """A .bin whose size is what its first 28 bytes ask for, or a directory where one is."""
    from ..io import llama2c

    if path.is_dir():
        return any(llama2c.looks_like(file) for file in path.glob("*.bin"))
    return path.suffix == ".bin" and llama2c.looks_like(path)


def open(path: Path) -> Llama2c:
    """Opens a .bin, or the only one of a directory."""
    from ..io import llama2c

    if path.is_dir():
        found = sorted(file for file in path.glob("*.bin") if llama2c.looks_like(file))
        if len(found) != 1:
            raise ModelNotFound(f"{path} holds {len(found)} models of llama2.c; name the .bin to open.")
        path = found[0]
    header, stored = llama2c.read(path)
    values: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": header.vocab,
        "hidden_size": header.width,
        "intermediate_size": header.ffn,
        "num_hidden_layers": header.depth,
        "num_attention_heads": header.heads,
        "num_key_value_heads": header.kv_heads,
        "max_position_embeddings": header.context,
        "tie_word_embeddings": header.tied,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
    }
    config = families.LLAMA.config_from_hf(values, str(path))
    return Llama2c(path, "llama2c", families.LLAMA, config, stored, {})


def write(checkpoint: Checkpoint, folder: Path, name: str, target: Target) -> None:
    """model.bin, and tokenizer.bin where the tokenizer can be written so."""
    from .. import tokenizer
    from ..io import llama2c

    c = checkpoint.config
    header = llama2c.Header(c.width, c.ffn, c.depth, c.heads, c.kv_heads, c.vocab, c.context, c.tied)
    stored = dialect.write(floats(checkpoint.tensors, "F32"), c)
    llama2c.write(folder / NAME, header, stored.entries | llama2c.rotations(header))
    if _why_no_tokenizer(checkpoint) is None and checkpoint.vocabulary is not None:
        (folder / TOKENIZER).write_bytes(tokenizer.to_llama2c(checkpoint.vocabulary))


def _why_no_tokenizer(checkpoint: Checkpoint) -> str | None:
    from .. import tokenizer

    vocabulary = checkpoint.vocabulary
    if vocabulary is None:
        return None
    if len(vocabulary.pieces) != checkpoint.config.vocab:
        return f"The tokenizer has {len(vocabulary.pieces)} tokens and the network {checkpoint.config.vocab}"
    try:
        tokenizer.to_llama2c(vocabulary)
    except TokenizerError as problem:
        return str(problem).rstrip(".")
    return None


def refuses(checkpoint: Checkpoint, target: Target) -> str | None:
    c = checkpoint.config
    usual = families.LLAMA.config_from_hf(_values(c), "a network of Llama's shape")
    if c.replace(norm=usual.norm) != usual or c.norm.kind != "rms" or not c.norm.weight or c.norm.bias:
        return (
            "llama2.c runs networks of Llama 2's shape alone: rotary base 10,000, heads as wide as width / heads, no "
            f"biases, no windows; this {checkpoint.family.name} is another."
        )
    if c.norm.eps != EPS:
        return f"llama2.c norms with an epsilon of {EPS}, and this network with {c.norm.eps}."
    return None


def _values(c: Config) -> dict[str, Any]:
    """The keys of the Llama that has these sizes and nothing of its own."""
    sizes = {"vocab_size": c.vocab, "hidden_size": c.heads * (c.width // c.heads), "intermediate_size": c.ffn}
    sizes |= {"num_hidden_layers": c.depth, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads}
    return sizes | {"max_position_embeddings": c.context, "tie_word_embeddings": c.tied, "rms_norm_eps": EPS}


def losses(checkpoint: Checkpoint, target: Target) -> list[str]:
    found = []
    if problem := _why_no_tokenizer(checkpoint):
        found.append(f"No tokenizer.bin is written. {problem}.")
    if common_type(checkpoint.tensors) != "F32":
        found.append("llama2.c knows float32 only: the file is larger, and no number changes.")
    if checkpoint.template is not None:
        found.append("llama2.c reads no chat template, and none is written.")
    return found


FORMAT = Format(
    name="llama2c",
    about="llama2.c: model.bin of float32, tokenizer.bin",
    claims=claims,
    open=open,
    write=write,
    refuses=refuses,
    losses=losses,
    options=frozenset(),
)

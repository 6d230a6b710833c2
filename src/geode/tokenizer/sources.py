"""A `Vocabulary` from whatever holds one.

How each kind of file is read is not known here, only which is which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelNotFound, TokenizerError
from . import files, gguf, hf, llama2c, tiktoken
from .vocabulary import Vocabulary


def vocabulary(source: Mapping[str, Any] | str | os.PathLike[str]) -> Vocabulary | None:
    """The vocabulary of a GGUF file's metadata, a checkpoint's directory, or a tokenizer's own file; None without one.

    Files are told by their names: *.model, *.tiktoken, tekken.json, tokenizer.json, *.bin (llama2.c). Raises
    TokenizerError for a kind that is not understood, ModelNotFound where there is no such path.
    """
    if isinstance(source, Mapping):
        return gguf.describe(source) if "tokenizer.ggml.model" in source else None
    path = Path(source)
    if path.is_dir():
        return _of_directory(path)
    if not path.is_file():
        raise ModelNotFound(f"There is no file or directory {path}. Give the path of a tokenizer.")
    return _of_file(path)


def _of_directory(directory: Path) -> Vocabulary | None:
    found = files.chosen(directory)
    if found is None:
        return None
    if found.name == "tokenizer.json":
        return hf.describe(directory, files.of_json(directory))
    if found.name != "tekken.json" and files.is_sentencepiece(found):
        return hf.completed(files.describe_directory(found), directory)
    return _of_file(found)


def _of_file(path: Path) -> Vocabulary:
    if path.name == "tokenizer.json":
        return hf.describe(path.parent, files.of_json(path.parent))
    if path.name == "tekken.json":
        return tiktoken.tekken(path).describe()
    if path.suffix == ".bin":
        return llama2c.read(path)
    if path.suffix == ".tiktoken" or ".model" in path.suffixes:
        return files.describe_model(path, {}) if files.is_sentencepiece(path) else tiktoken.ranks(path).describe()
    raise TokenizerError(
        f"{path} has no name that tokenizers have: tokenizer.json, *.model, *.tiktoken, tekken.json, or llama2.c's "
        "*.bin. Rename it, or give the directory that holds it."
    )

"""What all checkpoint formats share: an opened `Checkpoint`, what a `Target` asks for, and the `Format` itself.

No format is known here, and no file is read or written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import manifest
from ..config import Config
from ..errors import FormatError, TokenizerError
from ..families import Family
from ..quant import BLOCKS, DTYPES, QTensor
from ..tensors import Array, Entry, Tensors

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer, Vocabulary


@dataclass
class Checkpoint:
    """One opened checkpoint. `stored` are the tensors as the file has them, `tensors` the canonical ones over them.

    A format's own class says how: it overrides the methods with an underscore.
    """

    path: Path
    format: str
    family: Family
    config: Config
    stored: Tensors
    metadata: Mapping[str, Any]  # what the format says beside weights: GGUF's keys, or config.json

    @cached_property
    def tensors(self) -> Tensors:
        """Canonical tensors. Raises TensorError when config and weights disagree."""
        return self._tensors()

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer; None when it brings none. Raises TokenizerError when it is damaged."""
        return self._tokenizer()

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer as data, to be written in other formats; None when the checkpoint brings none."""
        return self._vocabulary()

    @cached_property
    def template(self) -> str | None:
        """The checkpoint's own chat template (Jinja), if it has one."""
        return self._template()

    @property
    def chat(self) -> str | None:
        """The name of the built-in format that this family speaks when the checkpoint brings no template."""
        control = self.tokenizer.control if self.tokenizer else {}
        return next((name for token, name in self.family.chat if not token or token in control), None)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end a text by the checkpoint's generation settings (the tokenizer knows more)."""
        return self._ends()

    def signs(self, name: str) -> np.ndarray | None:
        """Signs of the blocks that a float tensor was unpacked from (`recover.signs`), where somebody kept them."""
        return None

    def files(self) -> list[Path]:
        """Every file that the checkpoint is read from, for digests and for noticing changes."""
        if self.path.is_file():
            return [self.path]
        return sorted(file for file in self.path.rglob("*") if file.is_file())

    def tokenizer_files(self) -> list[Path]:
        """The files of the tokenizer and the chat template, where they lie as Hugging Face lays them out."""
        return tokenizer_files(self.path if self.path.is_dir() else self.path.parent)

    def left_out(self) -> list[str]:
        """What the files hold and this network has not, one sentence each."""
        seen = self._vision()
        found = f"The vision tower and its projector, {len(seen)} tensors, are not part of the text model."
        return [found] * bool(seen)

    def _vision(self) -> list[str]:
        """Stored tensors of a vision tower, by name."""
        return []

    def _tensors(self) -> Tensors:
        raise NotImplementedError

    def _tokenizer(self) -> Tokenizer | None:
        """Formats that bring no tokenizer of their own have one beside them, in a Hugging Face directory's files."""
        from .. import tokenizer

        return tokenizer.load(self.path if self.path.is_dir() else self.path.parent)

    def _vocabulary(self) -> Vocabulary | None:
        from .. import tokenizer

        return tokenizer.vocabulary(self.path if self.path.is_dir() else self.path.parent)

    def _template(self) -> str | None:
        return beside_template(self.path if self.path.is_dir() else self.path.parent)

    def _ends(self) -> frozenset[int]:
        return frozenset()


@dataclass(frozen=True)
class Target:
    """What somebody asks of a written checkpoint. A format refuses what it has no use for: `Format.options`."""

    dtype: str | None = (
        None  # "F32", "BF16", "F16": what floats become; None keeps them, and unpacks packed ones to F32
    )
    quant: str | None = None  # a block type or a mix: "q8_0", "q4_k_m"
    imatrix: Path | None = None  # an importance matrix, for `quant`
    max_shard_bytes: int | None = None
    parallel: int = 1  # ranks that tensors are split over
    scanned: bool = True  # layers stacked in one array
    threads: int | None = None


@dataclass(frozen=True)
class Format:
    """One checkpoint format. `write` fills an empty folder; the caller gives it its name when it is whole.

    name      what `--to` takes
    claims    whether a path looks like this format: names and first bytes only
    open      reads headers only; raises ModelNotFound, FormatError, ConfigError
    write     (checkpoint, folder, name, target): all files of the artefact, or the one file `name` where `suffix` says
              that a file is the artefact. None: the format is read only
    refuses   why this network cannot be written so, in one sentence that starts with a capital; None when it can
    losses    what would be lost, one sentence each: a template, a bias, precision that nobody asked to give up
    options   the fields of `Target` that mean something here, beside `threads`
    """

    name: str
    about: str
    claims: Callable[[Path], bool]
    open: Callable[[Path], Checkpoint]
    write: Callable[[Checkpoint, Path, str, Target], None] | None = None
    refuses: Callable[[Checkpoint, Target], str | None] = lambda checkpoint, target: None
    losses: Callable[[Checkpoint, Target], list[str]] = lambda checkpoint, target: []
    options: frozenset[str] = frozenset({"dtype"})
    suffix: str = ""


# What readers and writers of most formats need

FLOATS = ("F64", "F32", "F16", "BF16")


def floats(tensors: Tensors, dtype: str | None) -> Tensors:
    """The same tensors in float types only: `dtype` for all, or None to keep floats and unpack packed ones to F32."""

    def entry(name: str, known: Entry) -> Entry:
        kept = known.type if known.type in FLOATS else "F32"
        kind = dtype or kept
        if known.type == kind or not (known.type in FLOATS or known.type in BLOCKS):  # positions and the like stay
            return known
        nbytes = _count(known.shape) * DTYPES[kind].itemsize
        return Entry(known.shape, kind, nbytes, lambda: _cast(known.load(), kind))

    return Tensors({name: entry(name, known) for name, known in tensors.entries.items()})


def _cast(array: Array, kind: str) -> Array:
    return unpacked(array, kind) if isinstance(array, QTensor) else array.astype(DTYPES[kind], copy=False)


def unpacked(packed: QTensor, kind: str) -> np.ndarray:
    """The numbers in a float type, by the extension where it was built; numpy gives the same bits."""
    from ..native import extension, weights

    if kind in weights.NARROW and extension.is_there():
        return weights.dequantize(packed, kind)
    return packed.dequantize().astype(DTYPES[kind], copy=False)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def common_type(tensors: Tensors) -> str:
    """The float type that most of the numbers have; F32 for packed ones."""
    sizes: dict[str, int] = {}
    for entry in tensors.entries.values():
        kind = entry.type if entry.type in ("F32", "F16", "BF16") else "F32"
        sizes[kind] = sizes.get(kind, 0) + _count(entry.shape)
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else "F32"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is no file. Raises FormatError."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{path} is not valid JSON ({problem}). Get the file again from its source.") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path} should hold a JSON object; it holds a {type(found).__name__}.")
    return found


def read_text(path: Path) -> str | None:
    """What a text file holds, None when there is no file. Raises FormatError."""
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise FormatError(f"{path} is not UTF-8 text ({problem}). Get the file again from its source.") from None


def end_ids(values: Mapping[str, Any]) -> frozenset[int]:
    """`eos_token_id` of generation_config.json or config.json: one id, or a list of them."""
    found = values.get("eos_token_id")
    return frozenset(i for i in (found if isinstance(found, list) else [found]) if type(i) is int)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def beside_template(folder: Path) -> str | None:
    """The chat template in a directory as Hugging Face lays it out."""
    if (found := read_text(folder / "chat_template.jinja")) is not None:
        return found
    old = read_json(folder / "chat_template.json").get("chat_template")
    return _default_template(old or read_json(folder / "tokenizer_config.json").get("chat_template"))


def _default_template(found: Any) -> str | None:
    """One template out of what tokenizer_config.json may hold: a text, or a list of named ones."""
    if isinstance(found, list):
        entries = (entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default")
        found = next(entries, {}).get("template")
    return found if isinstance(found, str) else None


def described(path: Path) -> tuple[Family, Config] | None:
    """Family and configuration that our manifest of some weights tells; None where there is none."""
    from .. import families

    values = (manifest.read(path) or {}).get("config")
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        return None
    family = families.by_model_type(values["model_type"])
    return family, family.config_from_hf(values, str(manifest.place(path)))


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """The tokenizer's files as Hugging Face names them, and the chat template: what most formats keep beside weights.

    Files that a source has in this form already are copied as they are.
    """
    from .. import tokenizer

    for file in checkpoint.tokenizer_files():
        (folder / file.name).write_bytes(file.read_bytes())
    if not checkpoint.tokenizer_files() and checkpoint.vocabulary is not None:
        made = tokenizer.to_hf(checkpoint.vocabulary, checkpoint.template, checkpoint.config.context)
        for name, data in made.items():
            (folder / name).write_bytes(data)


def write_sentencepiece(checkpoint: Checkpoint, folder: Path) -> bool:
    """tokenizer.model, where the tokenizer can be written so and is not there yet; whether it is there."""
    from .. import tokenizer

    if not (folder / "tokenizer.model").exists() and checkpoint.vocabulary is not None:
        try:
            (folder / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece(checkpoint.vocabulary))
        except TokenizerError:  # a byte-level BPE: SentencePiece has no form for it
            return False
    return (folder / "tokenizer.model").exists()


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a directory that belong to its tokenizer, its chat template with them."""
    from ..io.hf import TOKENIZER

    return sorted({file for pattern in TOKENIZER for file in folder.glob(pattern) if file.is_file()})

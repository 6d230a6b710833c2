"""Low-rank pairs: PEFT's and GGUF's names and layouts <-> pairs on canonical tensors, by the dialects' own tables.

What an adapter's options mean, and which file it lies in, is not known here.

    W_ours = rows of W_theirs in another order, or some of them, so with W = B·A it is B that a rule moves; A stays.

    PEFT                                                      GGUF
    base_model.model.{module}.lora_A.weight      A            {tensor}.lora_a    A   of token_embd: B
    base_model.model.{module}.lora_B.weight      B            {tensor}.lora_b    B   of token_embd: Aᵀ
    base_model.model.{module}.lora_embedding_A   Bᵀ
    base_model.model.{module}.lora_embedding_B   Aᵀ
    base_model.model.{module}.lora_magnitude_vector

The truth is github.com/huggingface/peft src/peft/tuners/lora/layer.py, and convert_lora_to_gguf.py with
src/llama-adapter.cpp in github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import Config
from ..errors import TensorError
from ..families import Family
from ..quant import to_float32
from ..tensors import Array, Tensors, from_arrays, shapes
from . import Rule, gguf, hf, matches

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Pair:
    """What an adapter does to one matrix: W + scale · B·A, and with `magnitude` each row then made that long (DoRA).

    a (rank, in), b (out, rank), magnitude (out,); of any float type.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: (out, in)."""
        return int(self.b.shape[0]), int(self.a.shape[1])


# By a table


def split(rules: Sequence[Rule], theirs: Mapping[str, Pair], config: Config) -> dict[str, Pair]:
    """Pairs on canonical matrices, of pairs on theirs. Raises TensorError for names or shapes the network has not."""
    expected = shapes(config)
    found: dict[str, Pair] = {}
    for rule in rules:
        if len(rule.theirs) != 1 or rule.theirs[0] not in theirs:
            continue
        pair, (shape,) = theirs[rule.theirs[0]], rule.their_shapes(expected).values()
        if pair.shape != shape or pair.b.shape[1] != pair.rank:
            raise TensorError(
                f"The adapter's pair for {rule.theirs[0]} is A {pair.a.shape}, B {pair.b.shape}; the matrix of the "
                f"base model is {shape}. Give the base model that the adapter was trained on."
            )
        parts = rule.read([pair.b])
        lengths = [None] * len(parts) if pair.magnitude is None else rule.read([pair.magnitude])
        for name, part, length in zip(rule.ours, parts, lengths, strict=True):
            found[name] = replace(pair, b=np.asarray(part), magnitude=None if length is None else np.asarray(length))
    _complain(theirs.keys() - {name for rule in rules for name in rule.theirs})
    return found


def join(rules: Sequence[Rule], ours: Mapping[str, Pair], config: Config) -> dict[str, Pair]:
    """The way back. Where they keep several of our matrices as one, the pair is exact all the same:

    parts with one A share it and only B grows; else the ranks add up, A stacked and B in blocks.
    """
    expected = shapes(config)
    found: dict[str, Pair] = {}
    for rule in rules:
        present = {name: ours[name] for name in rule.ours if name in ours}
        if present:
            found[rule.theirs[0]] = _joined(rule, present, expected)
    return found


def _joined(rule: Rule, present: Mapping[str, Pair], expected: Mapping[str, tuple[int, ...]]) -> Pair:
    pairs = list(present.values())
    first = pairs[0]
    lengths = [pair.magnitude for pair in pairs if pair.magnitude is not None]
    if lengths and len(lengths) < len(rule.ours):
        raise TensorError(
            f"{rule.theirs[0]} holds {', '.join(rule.ours)} in one, and the adapter gives only some of them a "
            "magnitude (DoRA). Merge the adapter into its base model instead: geode merge BASE --adapter ADAPTER DST."
        )
    magnitude = np.asarray(rule.write(list(lengths))[0]) if lengths else None
    if len(pairs) == len(rule.ours) and all(_same_input(first, pair) for pair in pairs):
        return Pair(first.a, np.asarray(rule.write([pair.b for pair in pairs])[0]), first.scale, magnitude)
    a, blocks = _stacked(rule.ours, present, expected)
    return Pair(a, np.asarray(rule.write(list(blocks))[0]), first.scale, magnitude)


def _same_input(one: Pair, other: Pair) -> bool:
    return one.scale == other.scale and (one.a is other.a or np.array_equal(one.a, other.a))


def _stacked(
    names: Sequence[str], present: Mapping[str, Pair], expected: Mapping[str, tuple[int, ...]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One A, the pairs' own below each other, and for each name the B that takes its own rows of it; one scale."""
    scale = next(iter(present.values())).scale
    rank = sum(pair.rank for pair in present.values())
    blocks, at = [], 0
    for name in names:
        block = np.zeros((expected[name][0], rank), np.float32)
        if pair := present.get(name):
            own = pair.b.astype(np.float32)
            block[:, at : at + pair.rank] = own if pair.scale == scale else own * np.float32(pair.scale / scale)
            at += pair.rank
        blocks.append(block)
    return np.concatenate([pair.a.astype(np.float32) for pair in present.values()]), blocks


def _complain(unknown: Iterable[str]) -> None:
    names = sorted(unknown)
    if names:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise TensorError(
            f"The adapter changes {len(names)} matrices that the base model does not have: {shown}. "
            "Give the base model that the adapter was trained on."
        )


# PEFT's names

PREFIX = "base_model.model."
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_COPY = re.compile(r".+\.base_layer\.weight")  # PEFT saves the base's own embeddings with a pair on them
_KEPT = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(?P<kind>weight|bias)"
)


def read_names(stored: Tensors, family: Family) -> tuple[dict[str, dict[str, Array]], dict[str, Array], list[str]]:
    """PEFT's tensors sorted: the parts of each pair by matrix name, tensors kept whole, names of a vision tower."""
    parts: dict[str, dict[str, Array]] = {}
    whole: dict[str, Array] = {}
    vision: list[str] = []
    for name in stored:
        own, kept = _NAME.fullmatch(name), _KEPT.fullmatch(name)
        match = own or kept
        if match is None:
            raise TensorError(f"The adapter holds {name}, which is no part of a LoRA adapter that is understood here.")
        theirs = _module(hf._renamed(f"{match['module']}.{'weight' if own else match['kind']}", family), family)
        if any(matches(theirs, pattern) for pattern in family.vision):
            vision.append(name)
        elif own:
            parts.setdefault(theirs, {})[match["kind"]] = stored[name]
        elif not _COPY.fullmatch(name):
            whole[theirs] = stored[name]
    return parts, whole, vision


def pair_of(name: str, parts: Mapping[str, Array], scale: float) -> Pair:
    """A pair of the parts that PEFT keeps. Raises TensorError where one is absent or no matrix."""
    embedded = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    keys = ("lora_embedding_B", "lora_embedding_A") if embedded else ("lora_A", "lora_B")
    for key in keys:
        if key not in parts or parts[key].ndim != 2:
            found = f"of shape {parts[key].shape}" if key in parts else "absent"
            raise TensorError(
                f"The adapter's {key} for {name} should be a matrix; it is {found}. Save the adapter anew."
            )
    a, b = (_plain(parts[key].T if embedded else parts[key]) for key in keys)  # type: ignore[union-attr]
    length = parts.get("lora_magnitude_vector")
    return Pair(a, b, scale, None if length is None else _plain(length).reshape(-1))


def parts_of(theirs: str, pair: Pair, embedding: str) -> dict[str, np.ndarray]:
    """A pair under PEFT's names; `embedding` is the name of the matrix that is looked up."""
    module = PREFIX + theirs.removesuffix(".weight")
    if theirs == embedding:
        return {f"{module}.lora_embedding_A": pair.b.T, f"{module}.lora_embedding_B": pair.a.T}
    found = {f"{module}.lora_A.weight": pair.a, f"{module}.lora_B.weight": pair.b}
    return found if pair.magnitude is None else found | {f"{module}.lora_magnitude_vector": pair.magnitude}


def whole_tensors(rules: Sequence[Rule], theirs: Mapping[str, Array], config: Config) -> Tensors:
    """Tensors that an adapter keeps whole, canonical. Raises TensorError for names or shapes the network has not."""
    expected = shapes(config)
    found: dict[str, Array] = {}
    for rule in rules:
        have = [theirs[name] for name in rule.theirs if name in theirs]
        if not have:
            continue
        if [tuple(array.shape) for array in have] != list(rule.their_shapes(expected).values()):
            wanted, came = list(rule.their_shapes(expected).values()), [tuple(array.shape) for array in have]
            raise TensorError(
                f"The adapter replaces {', '.join(rule.theirs)} by tensors of shape {came}; the base model has "
                f"{wanted}. Where its vocabulary was extended, extend the base's first: geode merge BASE DST "
                "--add-token TEXT."
            )
        found |= dict(zip(rule.ours, rule.read(have), strict=True))
    _complain(theirs.keys() - {name for rule in rules for name in rule.theirs})
    return from_arrays(found)


def their_tensors(rules: Sequence[Rule], ours: Tensors) -> dict[str, np.ndarray]:
    """The way back, float64 as float32. Raises TensorError where they keep in one what is here only in part."""
    found: dict[str, np.ndarray] = {}
    for rule in rules:
        have = [ours[name] for name in rule.ours if name in ours]
        if have and len(have) < len(rule.ours):
            raise TensorError(
                f"{rule.theirs[0]} holds {', '.join(rule.ours)} in one, and the adapter replaces only some of them. "
                "Merge the adapter into its base model instead: geode merge BASE --adapter ADAPTER DST."
            )
        if have:
            found |= {name: _plain(array) for name, array in zip(rule.theirs, rule.write(have), strict=True)}
    return found


def _plain(array: Array) -> np.ndarray:
    return to_float32(array) if not isinstance(array, np.ndarray) or array.dtype == np.float64 else array


def hf_rules(config: Config, family: Family) -> list[Rule]:
    """Hugging Face's table by modules, with the head's row whether tied or not: adapters may change one side only."""
    table = hf.rules(config.replace(tied=False), family)
    return [replace(rule, theirs=tuple(_module(name, family) for name in rule.theirs)) for rule in table]


def _module(name: str, family: Family) -> str:
    """peft goes by modules, and transformers 5 calls every head lm_head, whatever the files call it."""
    head = family.names["output"] + "."
    return "lm_head." + name.removeprefix(head) if name.startswith(head) else name


# GGUF's names


def gguf_rules(config: Config, family: Family) -> list[Rule]:
    return gguf.rules(config.replace(tied=False), family)


def read_gguf_names(stored: Tensors, alpha: float) -> tuple[dict[str, Pair], dict[str, Array]]:
    """GGUF's tensors as pairs and tensors kept whole. An alpha of 0 means a scale of 1. Raises TensorError."""
    pairs: dict[str, Pair] = {}
    for name in stored:
        if not name.endswith(".lora_a"):
            continue
        theirs = name.removesuffix(".lora_a")
        if f"{theirs}.lora_b" not in stored:
            raise TensorError(f"The adapter has {name} and no {theirs}.lora_b: half of a pair. Get the file again.")
        a, b = _plain(stored[name]), _plain(stored[f"{theirs}.lora_b"])
        if a.ndim != 2 or b.ndim != 2 or not a.size:
            raise TensorError(f"The adapter's pair for {theirs} is no pair of matrices: {a.shape}, {b.shape}.")
        a, b = (b.T, a) if theirs == EMBEDDING else (a, b)
        pairs[theirs] = Pair(a, b, alpha / a.shape[0] if alpha else 1.0)
    whole = {name: stored[name] for name in stored if not name.endswith((".lora_a", ".lora_b"))}
    lone = {name for name in stored if name.endswith(".lora_b") and name.removesuffix(".lora_b") not in pairs}
    if lone:
        raise TensorError(f"The adapter has {min(lone)} and no lora_a beside it: half of a pair. Get the file again.")
    return pairs, whole


def gguf_names(pairs: Mapping[str, Pair], alpha: float) -> dict[str, np.ndarray]:
    """Pairs under GGUF's names, float32; the file has one alpha, so what differs from alpha / rank goes into B."""
    found: dict[str, np.ndarray] = {}
    for theirs, pair in pairs.items():
        factor = pair.scale * pair.rank / alpha
        b = pair.b.astype(np.float32)
        a, b = pair.a.astype(np.float32), b if abs(factor - 1) < 1e-7 else b * np.float32(factor)
        first, second = (b, a.T) if theirs == EMBEDDING else (a, b)
        found |= {f"{theirs}.lora_a": first, f"{theirs}.lora_b": second}
    return found

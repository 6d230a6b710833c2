"""Tiny checkpoints as people have them: a Hugging Face directory of each family, with a tokenizer and a template."""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path

import numpy as np
from variants import VARIANTS, Variant, build

from geode import tokenizer
from geode.strings import pack
from geode.tokenizer import Ranked, Roles, Scored, Vocabulary
from geode.tokenizer.patterns import CUTS
from geode.tokenizer.spm import CONTROL, NORMAL, UNKNOWN

FAMILIES = {
    "llama": "Llama 2",
    "mistral": "Mistral Nemo",
    "gemma": "Gemma 1 2B",
    "gemma2": "Gemma 2 2B, 9B",
    "gemma3": "Gemma 3 270M, 1B",
    "falcon": "Falcon 7B",
    "gpt_neox": "GPT-NeoX, Pythia, oasst-sft",
    "olmo": "OLMo 1",
    "olmo2": "OLMo 2",
    "stablelm": "StableLM 2 1.6B",
    "qwen2": "Qwen 2, 2.5",
    "qwen3": "Qwen 3",
}
"""One variant for each family."""

PUBLISHED = {"llama": {"rms_norm_eps": 1e-5}, "gemma2": {"num_hidden_layers": 4}}
"""What published networks have and formats rely on: llama2.c knows one epsilon, MaxText scans Gemma 2 in pairs."""

SCORED = ("llama", "mistral", "gemma", "gemma2", "gemma3")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ROLES = Roles(bos=1, eos=2, pad=0, unk=3, adds_bos=True)
CONTROLS = ["<pad>", "<s>", "</s>", "<unk>"]
TYPES = [CONTROL, CONTROL, CONTROL, UNKNOWN]
LETTERS = [*string.ascii_letters, *string.digits, *".,:;!?"]


def variant(family: str) -> Variant:
    found = next(one for one in VARIANTS if one.name == FAMILIES[family])
    return replace(found, options=found.options | PUBLISHED.get(family, {}))


def save(family: str, folder: Path, dtype: str = "float32") -> Path:
    """The family's tiny network, saved by transformers, and a tokenizer of 96 tokens."""
    import torch

    build(variant(family)).to(getattr(torch, dtype)).save_pretrained(folder)
    return add_words(folder, scored() if family in SCORED else ranked())


def add_words(folder: Path, words: Vocabulary) -> Path:
    """Adds a tokenizer and a template to a saved network."""
    for name, data in tokenizer.to_hf(words, TEMPLATE, 1024).items():
        (folder / name).write_bytes(data)
    return folder


def scored(size: int = 96) -> Vocabulary:
    """SentencePiece BPE of letters and a few joined pieces."""
    joined = ["th", "in", "er", "an", "▁t", "▁th", "▁the", "▁a", "re", "on", "es", "ed", "▁c", "ou", "it", "▁i", "al"]
    pieces = [*CONTROLS, *joined, "▁", *LETTERS]
    pieces += [f"▁{a}{b}" for a in "bdfgh" for b in "aeiou"][: size - len(pieces)]
    return Scored(
        pieces=pack(pieces),
        types=np.array([*TYPES, *[NORMAL] * (size - 4)], np.int32),
        roles=ROLES,
        scores=-np.arange(size, dtype=np.float32),
        prefix=False,
    )


def ranked(size: int = 96) -> Vocabulary:
    """Byte-level BPE of letters and a few merges."""
    merges = ["t h", "i n", "e r", "a n", "Ġ t", "Ġ a", "r e", "o n", "Ġ i", "e s", "e d", "Ġ c", "o u", "i t", "Ġt h"]
    pieces = [*CONTROLS, *LETTERS, "Ġ", "Ċ", *(merge.replace(" ", "") for merge in merges)]
    rest = [f"{a} {b}" for a in "bdfgk" for b in "aeiou"][: size - len(pieces)]
    pieces += [merge.replace(" ", "") for merge in rest]
    roles = Roles(bos=1, eos=2, pad=0, unk=None)
    types = np.array([CONTROL] * 4 + [NORMAL] * (size - 4), np.int32)
    return Ranked(pieces=pack(pieces), types=types, roles=roles, merges=pack([*merges, *rest]), cut=CUTS["gpt-2"])

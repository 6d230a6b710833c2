"""How byte-level BPE cuts a text into words, by the names that GGUF files use (`tokenizer.ggml.pre`).

Vocabularies are not known here. Each pattern cuts what the one before left whole; what lies between matches is a word
too. The facts are llama-vocab.cpp's in github.com/ggml-org/llama.cpp; NFC is as each model's tokenizer.json says.
"""

from __future__ import annotations

from dataclasses import dataclass

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CL100K = _CL100K % "1,3"
QWEN2 = _CL100K % "1"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|\p{{N}}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = _CASED % ("", "", "")
_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = _CASED % (_ENDING, _ENDING, "{1,3}")
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


@dataclass(frozen=True)
class Cut:
    """`whole`: a word that is a token is not built by merges. `adds_bos`: the default of a file that does not say."""

    patterns: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    adds_bos: bool = False


_DIGIT_GPT2 = Cut((r"\p{N}", GPT2))
_LLAMA3 = Cut((CL100K,), whole=True, adds_bos=True)
_DEFAULT = Cut((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

# Of names for one cut the first is written: one under which llama.cpp, like us, does not tidy spaces (`clean_spaces`).
CUTS: dict[str, Cut] = {
    "": _DEFAULT,
    "default": _DEFAULT,
    "gpt-2": Cut((GPT2,)),
    "phi-2": Cut((GPT2,)),
    "jais": Cut((GPT2,)),
    "olmo": Cut((GPT2,), nfc=True),
    "mpt": Cut((GPT2,), nfc=True),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    "smollm": _DIGIT_GPT2,
    "starcoder": _DIGIT_GPT2,
    "refact": _DIGIT_GPT2,
    "codeshell": _DIGIT_GPT2,
    "exaone": _DIGIT_GPT2,
    "minerva-7b": _DIGIT_GPT2,
    "command-r": Cut((r"\p{N}", GPT2), nfc=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon-h1": _LLAMA3,
    "pixtral": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": Cut((CL100K,)),
    "smaug-bpe": Cut((CL100K,)),
    "chatglm-bpe": Cut((CL100K,)),
    "glm4": Cut((CL100K,), whole=True),
    "qwen2": Cut((QWEN2,), nfc=True),
    "stablelm2": Cut((QWEN2,), nfc=True),
    "deepseek-r1-qwen": Cut((QWEN2,), nfc=True),
    "hunyuan": Cut((QWEN2,)),
    "qwen35": Cut((QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),)),
    "tekken": Cut((TEKKEN,), whole=True, adds_bos=True),
    "gpt-4o": Cut((O200K,)),
    "llama4": Cut((O200K,)),
    "deepseek-coder": Cut(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
}  # fmt: skip

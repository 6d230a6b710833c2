"""How a tokenizer.json cuts words, as a `Cut` and back; and the name that GGUF has for a cut.

Vocabularies are not known here. A cut is told by what it does to a probe, as llama.cpp's converter does
(`get_vocab_base_pre` in its conversion/base.py): the same rule is spelled in many ways.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import TokenizerError
from .bytebpe import isolate
from .patterns import CUTS, GPT2, Cut

PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"  # ASCII's, and Unicode's category P

PROBE = (
    "\n \n\n \n\n\n\r\n\r\n \t \t\tx  y   z    w\u00a0\u3000v 'The I'VE we'll WE'LL don'T he's x'd 'tis can't'll\n"
    "1 22 333 4444 55555 3.14 1,000 a1b22c333 ½²x٣٤٥Ⅷ 七八 Hello hELLO XMLHttpRequest ǅungla ǆ İi żółć ªº ʰʷ\n"
    "नमस्ते दुनिया สวัสดี مَرْحَبًا e\u0301tude A\u030a 日本語テキスト。中文，한국어 あア漢字abc abc漢字\n"
    "🦙👩\u200d👧x 👍🏽 \u200bq\ufeffr !!!...?\n\n///\n//x /y $5+<=>^|~` a$b x+=1;\r\n\ty_z __w__ -v --u (t) [s]{r}\n"
    "#q \u2026\u2019s \u2019s don\u2019t \u0301a  \u0301b . \u0301c ...\u0301d $$$abc ===  === @#%&*\n"
    "«»€5° \\n\\t ₿ \x1cs\x85t  \n"
)


def name_of(cut: Cut) -> str | None:
    """The name under which GGUF files have this cut, NFC and whole words included; None where there is none."""
    return next((name for name, nfc, whole in _alike(cut) if (nfc, whole) == (cut.nfc, cut.whole)), None)


def nearest_name(cut: Cut) -> str | None:
    """The name of this cut, or of one that differs in NFC or whole words only."""
    found = _alike(cut)
    found.sort(key=lambda each: (each[2] != cut.whole, each[1] != cut.nfc))
    return name_of(cut) or (found[0][0] if found else None)


def same(patterns: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether two chains of patterns cut the probe alike."""
    words = _words(patterns)
    return words is not None and words == _words(others)


def _alike(cut: Cut) -> list[tuple[str, bool, bool]]:
    """Names, NFC and whole of the cuts that part the probe as this one does."""
    return [(name, each.nfc, each.whole) for name, each in CUTS.items() if name and same(each.patterns, cut.patterns)]


@cache
def _words(patterns: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of the probe; None where a pattern is none that `regex` knows."""
    import regex

    words = [PROBE]
    try:
        for pattern in map(regex.compile, patterns):
            words = [piece for word in words for piece in isolate(pattern, word)]
    except regex.error:
        return None
    return tuple(words)


# tokenizer.json


def read(pre_tokenizer: Any, normalizer: Any, whole: bool) -> tuple[Cut | None, tuple[str, ...]]:
    """The cut of a byte-level tokenizer.json, None where it is not known; and what of it `Cut` does not hold."""
    patterns: list[str] = []
    beyond: list[str] = []
    nfc, rest = _normalised(normalizer)
    beyond += rest
    for step in steps(pre_tokenizer, "pretokenizers"):
        pattern = _pattern(step)
        if pattern is None:
            return None, (*beyond, f"Its pre_tokenizer {step.get('type')} ({step}) is not understood.")
        patterns += [pattern] if pattern else []
        if step.get("type") == "ByteLevel" and step.get("add_prefix_space"):
            beyond.append("It puts a space before each text (add_prefix_space).")
    return Cut(tuple(patterns), nfc=nfc, whole=whole), tuple(beyond)


def _normalised(normalizer: Any) -> tuple[bool, list[str]]:
    kinds = [str(step.get("type")) for step in steps(normalizer, "normalizers")]
    others = [kind for kind in kinds if kind != "NFC"]
    return "NFC" in kinds, [f"It changes texts by {', '.join(others)} before it cuts them."] if others else []


def steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """The parts that a component of tokenizer.json chains, in order; `inner` is the key of a Sequence's parts."""
    if not part:
        return []
    if part.get("type") == "Sequence":
        return [step for each in part.get(inner) or () for step in steps(each, inner)]
    return [part]


def _pattern(step: dict[str, Any]) -> str | None:
    """The pattern by which a step cuts, "" where it does not, None where it is not understood."""
    match step:
        case {"type": "ByteLevel"}:
            return GPT2 if step.get("use_regex", True) else ""
        case {"type": "Digits"}:
            return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return PUNCTUATION
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not step.get("invert"):
            return pattern
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return pattern  # the matches are kept, and these patterns leave nothing between
    return None


def pre_tokenizer(cut: Cut) -> dict[str, Any]:
    """The pre_tokenizer of tokenizer.json that cuts so. Its last step, ByteLevel, spells bytes as characters."""
    own = cut.patterns[-1:] == (GPT2,)
    patterns = cut.patterns[:-1] if own else cut.patterns
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    chain = [*splits, byte_level(use_regex=own)]
    return chain[0] if len(chain) == 1 else {"type": "Sequence", "pretokenizers": chain}


def byte_level(use_regex: bool = True) -> dict[str, Any]:
    """The ByteLevel component, which is pre-tokenizer, decoder and post-processor alike."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def unnamed(cut: Cut | None) -> TokenizerError:
    """The error for a cut that GGUF has no name for."""
    spelt = "unknown" if cut is None else " then ".join(cut.patterns)
    return TokenizerError(
        f"GGUF names the ways to cut words (tokenizer.ggml.pre), and has no name for this one: {spelt[:300]}. "
        "Keep this model in a format that holds a tokenizer.json."
    )

"""Texts that tokenizers get wrong, for comparing ours with the originals."""

from __future__ import annotations

import random

HARD = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n \n\t\t\n",
    " leading",
    "trailing ",
    "Hello, Gemma! 1234 你好",
    "Héllo wörld e\u0301\u0302 naïve",
    "ａｂｃ ｶﾞ ﬁ Å K ſ 'S 'ſt İi ẞß",
    "日本語テキスト、中文。한국어 ㅎㅎ",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 🤷🏻‍♂️",
    "1234567890 3.14159 ½ ² ٣٤٥ Ⅷ",
    "a  b   c    d     e",
    "\t\ttabs\t",
    "     \n      foo",
    "مرحبا بالعالم שלום",
    "नमस्ते दुनिया สวัสดี",
    "I'm you're WE'LL he'd 'Tis",
    "def f(x):\n    return x**2  # ok\r\n\r\n\tpass",
    "x\u00a0y\u2003z\u3000w\u200bq\ufeffr\x1cs\x85t",
    "\x00\x01\x7f",
    "▁▁ a▁b ▁ > </div> ></b>",
    "'''...!!!???---===",
    "ABCdefGHI XMLHttpRequest zażółć gęślą jaźń",
    "<table><tr> <td>",
    "<start_of_turn>user\nhi<end_of_turn>",
    "<|im_end|><|endoftext|></s><s>[INST] x [/INST]<bos><unused12>",
    '<tool_call>{"a":1}</tool_call><think>\nx</think>',
    "<0x0A> <0xFF> <unk> <pad> [TOOL_CALLS] [control_12]",
    "\U0010ffff \ufdd0",
]

_ALPHABET = [*"ab  \n\té你好🏽👍e\u0301'sS12  ▁<>|/_tdK\r.#", "<|im_end|>", "</s>", "Hello", " the", "<x>"]


def random_texts(count: int, seed: int = 1) -> list[str]:
    """Short texts of awkward characters, the same for the same seed."""
    chance = random.Random(seed)
    return ["".join(chance.choices(_ALPHABET, k=chance.randint(1, 60))) for _ in range(count)]

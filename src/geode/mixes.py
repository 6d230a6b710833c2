"""Which type each tensor of a network gets when it is quantised to a mix that people name: llama.cpp's choices.

Files and bytes are not known here. The truth is src/llama-quant.cpp (`llama_tensor_get_type_impl` and
`tensor_type_fallback`) in github.com/ggml-org/llama.cpp; its choices for experts and its IQ types are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .config import Config
from .errors import OptionError
from .quant import BLOCKS
from .tensors import shapes

Where = Callable[[int, Config], bool]
"""Whether a layer is meant."""


def _everywhere(layer: int, config: Config) -> bool:
    return True


def _sensitive(layer: int, config: Config) -> bool:
    """The first and the last eighth of the layers and every third between."""
    eighth = config.depth // 8
    return layer < eighth or layer >= 7 * config.depth // 8 or (layer - eighth) % 3 == 2


def _first(part: int) -> Where:
    return lambda layer, config: layer < config.depth // part


def _below(count: int) -> Where:
    return lambda layer, config: layer < count


def _few_values(layer: int, config: Config) -> bool:
    """Values that four query heads or more share."""
    return config.heads // config.kv_heads >= 4


Choices = dict[str, tuple[tuple[Where, str], ...]]
"""For a matrix by its stem: types for some layers; the first whose layers match is taken."""


@dataclass(frozen=True)
class Mix:
    """`base` for every matrix but those of `instead`; the head gets `head`.

    `informed` goes before `instead` where an importance matrix is given, and one must be where `blind` is False.
    `eight_bit_head` stands for `instead` in families whose head llama.cpp keeps in eight bits; there attn_v alone keeps
    its own choice.
    """

    base: str
    head: str = "Q6_K"
    instead: Choices = field(default_factory=dict)
    informed: Choices = field(default_factory=dict)
    eight_bit_head: Choices = field(default_factory=dict)
    blind: bool = True


_SIX = ((_sensitive, "Q6_K"),)

MIXES: dict[str, Mix] = {
    "q8_0": Mix("Q8_0", head="Q8_0"),
    "q4_0": Mix("Q4_0", informed={"ffn_down": ((_first(8), "Q4_1"),)}),
    "q4_1": Mix("Q4_1"),
    "q5_0": Mix("Q5_0", informed={"ffn_down": ((_first(8), "Q5_1"),)}),
    "q5_1": Mix("Q5_1"),
    "q2_k": Mix(
        "Q2_K",
        instead={
            "attn_v": ((_few_values, "Q4_K"), (_everywhere, "Q3_K")),
            "attn_output": ((_everywhere, "Q3_K"),),
            "ffn_down": ((_everywhere, "Q3_K"),),
        },
        eight_bit_head={"ffn_down": ((_everywhere, "Q3_K"),)},
    ),
    "q2_k_s": Mix(
        "Q2_K",
        instead={"attn_v": ((_few_values, "Q4_K"),), "ffn_down": ((_first(8), "Q4_K"),)},
        eight_bit_head={"ffn_down": ((_first(8), "Q4_K"),)},
        blind=False,
    ),
    "q3_k_s": Mix("Q3_K"),
    "q3_k_m": Mix(
        "Q3_K",
        instead={
            "attn_v": ((_below(2), "Q5_K"), (_everywhere, "Q4_K")),
            "attn_output": ((_everywhere, "Q4_K"),),
            "ffn_down": ((_first(16), "Q5_K"), (_everywhere, "Q4_K")),
        },
        eight_bit_head={"ffn_down": ((_first(16), "Q5_K"), (_sensitive, "Q4_K"))},
    ),
    "q3_k_l": Mix(
        "Q3_K",
        instead=dict.fromkeys(("attn_v", "attn_output", "ffn_down"), ((_everywhere, "Q5_K"),)),
        eight_bit_head=dict.fromkeys(("attn_output", "ffn_down"), ((_everywhere, "Q4_K"),)),
    ),
    "q4_k_s": Mix("Q4_K", instead={"attn_v": ((_below(4), "Q5_K"),), "ffn_down": ((_first(8), "Q5_K"),)}),
    "q4_k_m": Mix(
        "Q4_K",
        instead={"attn_v": _SIX, "ffn_down": _SIX},
        eight_bit_head={"ffn_down": ((_first(16), "Q6_K"), (_sensitive, "Q5_K"))},
    ),
    "q5_k_s": Mix("Q5_K"),
    "q5_k_m": Mix("Q5_K", instead={"attn_v": _SIX, "ffn_down": _SIX}, eight_bit_head={"ffn_down": _SIX}),
    "q6_k": Mix("Q6_K"),
}
"""The mixes by llama.cpp's names, in lower case."""

NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What stands in where rows are no whole number of blocks of 256."""


def find(name: str) -> Mix:
    """The mix of that name, in either case. Raises OptionError for a name that is none."""
    if name.lower() not in MIXES:
        raise OptionError(f"{name!r} is no way to quantise a model; there are {', '.join(MIXES)}.")
    return MIXES[name.lower()]


def plan(
    config: Config, mix: str, *, fused_qkv: bool = False, eight_bit_head: bool = False, imatrix: bool = False
) -> dict[str, str]:
    """Canonical tensor names to types: norms and biases F32, matrices by the mix, rows of no whole blocks F16.

    `fused_qkv`: a file of this family keeps q, k and v in one tensor, so all three have v's type. `eight_bit_head`:
    llama.cpp gives this family's head Q8_0, and fewer bits to other matrices. `imatrix`: an importance matrix is there.
    Raises OptionError for an unknown mix, and for one that needs an importance matrix.
    """
    chosen = find(mix)
    if not (chosen.blind or imatrix):
        raise OptionError(
            f"{mix} has so few bits that it needs an importance matrix: collect one with `geode imatrix` and give it, "
            "or take q2_k."
        )
    choices = _choices(chosen, eight_bit_head, imatrix)
    head = "Q8_0" if eight_bit_head else chosen.head
    found = {}
    for name, shape in shapes(config).items():
        kind = "F32"
        if _is_matrix(name, shape):
            is_head = name == "output.weight" or (config.tied and name == "token_embd.weight")
            kind = head if is_head else _choice(name, config, chosen.base, choices, fused_qkv)
        found[name] = _that_fits(kind, shape[-1])
    return found


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and not name.endswith("_norm.weight")


def _choices(mix: Mix, eight_bit_head: bool, imatrix: bool) -> Choices:
    found = mix.instead
    if eight_bit_head:
        found = {stem: choice for stem, choice in mix.instead.items() if stem == "attn_v"} | mix.eight_bit_head
    return found | mix.informed if imatrix else found


def _choice(name: str, config: Config, base: str, choices: Choices, fused_qkv: bool) -> str:
    if name == "token_embd.weight":
        return base
    _, layer, stem, _ = name.split(".")
    if fused_qkv and stem in ("attn_q", "attn_k"):
        stem = "attn_v"
    kind = next((kind for where, kind in choices.get(stem, ()) if where(int(layer), config)), base)
    if stem == "attn_v" and config.depth == 80 and config.kv_heads < config.heads and kind in ("Q3_K", "Q4_K"):
        return "Q5_K"  # Llama 2 70B and its like: values are an eighth of the queries' size and cost little
    return kind


def _that_fits(kind: str, columns: int) -> str:
    """`kind`, or what llama.cpp takes for rows of so many numbers."""
    for candidate in (kind, NARROWER.get(kind, kind)):
        if candidate not in BLOCKS or columns % BLOCKS[candidate].elements == 0:
            return candidate
    return "F16"

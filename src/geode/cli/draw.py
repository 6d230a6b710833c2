"""A network as a small drawing, from its configuration alone.

Weights, names and files are not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from ..config import Attn, Bands, Block, Config, Factors, Rope, Stretch, Yarn


def network(config: Config) -> str:
    """The drawing: one block with its norms, and what stands in its boxes."""
    lines = [
        f"tokens ─ embedding {config.vocab:,} × {config.width:,}"
        + (", times √width" if config.scale_embedding else ""),
        f"┌─ {config.depth} blocks",
        *(f"│  {line}" for line in DRAWINGS[config.block]()),
        "│",
        *(f"│  {name:<10} {text}" for name, text in _boxes(config)),
        "└─",
        f"norm ─ head {config.vocab:,} × {config.width:,}"
        + (", tied to the embedding" if config.tied else "")
        + (f", logits capped at ±{config.final_softcap:g}" if config.final_softcap else ""),
    ]
    return "\n".join(lines)


def _chain(*halves: str) -> Callable[[], list[str]]:
    """x ─┬─ norm ─ attention ─ + ─┬─ norm ─ ffn ─ + ─   with the way around each half below it"""

    def draw() -> list[str]:
        above, below = "x", " "
        for half in halves:
            above += f" ─┬─ {half} ─ +"
            below += "  └" + "─" * (len(half) + 5) + "┘"
        return [above + " ─", below.rstrip()]

    return draw


def _parallel(shared: bool) -> Callable[[], list[str]]:
    """Attention and ffn read the same x; both are added to it."""
    lead = "x ─┬─ norm ─┬─ attention ─┬─ + ─" if shared else "x ─┬─ norm ─ attention ─┬─ + ─"
    branch = "   │        └─ ffn ───────┤" if shared else "   ├─ norm ─ ffn ───────┤"
    return lambda: [lead, branch, "   └" + "─" * (len(branch) - 5) + "┘"]


DRAWINGS: dict[Block, Callable[[], list[str]]] = {
    "pre": _chain("norm ─ attention", "norm ─ ffn"),
    "post": _chain("attention ─ norm", "ffn ─ norm"),
    "sandwich": _chain("norm ─ attention ─ norm", "norm ─ ffn ─ norm"),
    "parallel": _parallel(shared=False),
    "parallel_shared": _parallel(shared=True),
}


QK_NORMS = {
    "none": "",
    "shared": "q and k normed head by head",
    "per_head": "q and k normed head by head, each with its own weight",
    "whole": "q and k normed across heads",
}


def _boxes(c: Config) -> list[tuple[str, str]]:
    return [("norm", _norm(c)), ("attention", _attention(c)), ("sees", _sees(c)), *_ropes(c), ("ffn", _ffn(c))]


def _norm(c: Config) -> str:
    parts = ["weight"] * c.norm.weight + ["bias"] * c.norm.bias
    return f"{c.norm.kind}, eps {c.norm.eps:g}, {' and '.join(parts) or 'neither weight nor bias'}"


def _attention(c: Config) -> str:
    shared = "" if c.kv_heads == c.heads else f" on {c.kv_heads} of keys and values"
    extras = [
        QK_NORMS[c.qk_norm],
        "biases on " + " and ".join(["q, k, v"] * c.qkv_bias + ["output"] * c.out_bias)
        if c.qkv_bias or c.out_bias
        else "",
        f"q, k, v clipped at ±{c.clip_qkv:g}" if c.clip_qkv else "",
        f"scores capped at ±{c.attn_softcap:g}" if c.attn_softcap else "",
    ]
    return ", ".join([f"{c.heads} heads of {c.head_dim}{shared}", f"scale {c.scale:.4g}", *filter(None, extras)])


def _sees(c: Config) -> str:
    """The windows of one turn of the pattern: `5 × 512 tokens, 1 × all, repeated`."""
    windows = [attn.window for attn in c.pattern]
    if set(windows) == {None}:
        return f"all of up to {c.context:,} tokens"
    groups = [(window, len(list(group))) for window, group in itertools.groupby(windows)]
    shown = ", ".join(f"{count} × {'all' if window is None else f'last {window:,}'}" for window, count in groups)
    return f"{shown}; repeated over the layers; context {c.context:,} tokens"


def _ropes(c: Config) -> list[tuple[str, str]]:
    """One line for each kind of layer that rotates differently."""
    kinds: dict[Rope, list[Attn]] = {}
    for attn in c.pattern:
        kinds.setdefault(attn.rope, []).append(attn)
    return [
        ("rope", _rope(rope, c) + (f" ({_where(attns)})" if len(kinds) > 1 else "")) for rope, attns in kinds.items()
    ]


def _rope(rope: Rope, c: Config) -> str:
    part = "" if rope.fraction == 1 else f", {rope.dims(c.head_dim)} of {c.head_dim} channels"
    match rope.scaling:
        case None:
            scaling = ""
        case Stretch(factor=factor):
            scaling = f", positions divided by {factor:g}"
        case Bands(factor=factor):
            scaling = f", long waves divided by {factor:g} (Llama 3)"
        case Yarn(factor=factor):
            scaling = f", YaRN {factor:g}"
        case Factors():
            scaling = ", one factor a channel"
    return f"theta {rope.theta:,.0f}{part}{scaling}"


def _where(attns: Sequence[Attn]) -> str:
    if all(attn.window for attn in attns):
        return "layers with a window"
    return "some layers" if any(attn.window for attn in attns) else "layers that see all"


def _ffn(c: Config) -> str:
    gate = "gated " if c.gated else ""
    bias = ", with biases" if c.ffn_bias else ""
    return f"{c.width:,} → {c.ffn:,} → {c.width:,}, {gate}{c.activation.replace('_', ' ')}{bias}"

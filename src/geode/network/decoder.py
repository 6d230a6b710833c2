"""The decoder: one forward for every family, driven by Config.

    tokens ─ embedding ─ block ─ block ─ … ─ norm ─ head ─ logits

    a sandwich block; others leave norms out, a parallel one adds both halves to the same x

      x ─┬─ attn_norm ─ attention ─ post_attention_norm ─ + ─┬─ ffn_norm ─ ffn ─ post_ffw_norm ─ + ─
         └────────────────────────────────────────────────┘  └───────────────────────────────────┘

Shape letters: B batch, T tokens, D model, N query heads, K key/value heads, H head size, F ffn, S slots, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..config import Attn, Config
from ..tensors import NORM_SLOTS
from . import backend
from .attention import attend, rotate, rotation, visible
from .backend import Tensor
from .cache import Cache, slots_of, windows, write_positions
from .layers import Embedding, Linear, Norm
from .loss import logprobs
from .storage import Fetch, Part, Store

ACTIVATIONS = {
    "silu": ops.silu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
}


class View:
    """What all layers of one forward share: rotations and masks, one for each kind of layer, and slots to write."""

    def __init__(self, config: Config, positions_BT: Tensor, segments_BT: Tensor | None, cache: Cache | None):
        self.groups = windows(config)
        self.rotations = {a.rope: rotation(a.rope, config.head_dim, positions_BT) for a in config.pattern}
        self.slots: list[Tensor] = []
        self.kept: list[Tensor] = []  # positions of the keys
        self.used: int | None = None  # slots that hold anything; None means all must be looked at
        if cache is not None:
            highest = backend.highest(positions_BT)
            self.used = None if highest is None else highest + 1
            self.slots = [slots_of(positions_BT, kept.shape[1]) for kept in cache.positions]
            self.kept = [
                write_positions(kept, positions_BT, slots)
                for kept, slots in zip(cache.positions, self.slots, strict=True)
            ]
        keys = [self.seen(kept, 1) for kept in self.kept] or [positions_BT] * len(self.groups)
        segments = None if segments_BT is None else (segments_BT, segments_BT)
        self.masks = [visible(positions_BT, key, w, segments) for key, w in zip(keys, self.groups, strict=True)]
        ordered = segments_BT is not None
        every = zip(self.masks, self.groups, strict=True)
        self.spans = [None if cache is not None else backend.spans(mask, w, ordered) for mask, w in every]

    def seen(self, kept: Tensor, axis: int) -> Tensor:
        """The slots of `kept` that can hold anything."""
        if self.used is None or self.used >= kept.shape[axis]:
            return kept
        return kept[(slice(None),) * axis + (slice(0, self.used),)]


class Attention(Part):
    """x (B, T, D) -> (B, T, D): projections, query/key norms, rotation, attention, output."""

    def __init__(self, store: Store, name: str, config: Config, attn: Attn):
        super().__init__()
        self.config, self.attn = config, attn
        self.group = windows(config).index(attn.window)
        self.attn_q = Linear(store, f"{name}.attn_q")
        self.attn_k = Linear(store, f"{name}.attn_k")
        self.attn_v = Linear(store, f"{name}.attn_v")
        self.attn_output = Linear(store, f"{name}.attn_output")
        if config.qk_norm != "none":
            self.attn_q_norm = Norm(store, f"{name}.attn_q_norm", config.norm)
            self.attn_k_norm = Norm(store, f"{name}.attn_k_norm", config.norm)

    def call(self, x_BTD: Tensor, view: View, kept: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        c = self.config
        turn = view.rotations[self.attn.rope]
        q_BTNH = rotate(self._heads(self.attn_q, "attn_q_norm", x_BTD, c.heads), turn)
        k_BTKH = rotate(self._heads(self.attn_k, "attn_k_norm", x_BTD, c.kv_heads), turn)
        v_BTKH = self._heads(self.attn_v, None, x_BTD, c.kv_heads)
        k_BKSH, v_BKSH = ops.transpose(k_BTKH, (0, 2, 1, 3)), ops.transpose(v_BTKH, (0, 2, 1, 3))
        if kept is not None:
            slots = view.slots[self.group]
            kept = (backend.write_slots(kept[0], k_BKSH, slots), backend.write_slots(kept[1], v_BKSH, slots))
            k_BKSH, v_BKSH = view.seen(kept[0], 2), view.seen(kept[1], 2)
        out_BTD = attend(
            q_BTNH, k_BKSH, v_BKSH, view.masks[self.group], c.scale, c.attn_softcap, view.spans[self.group]
        )
        return self.attn_output(out_BTD), kept

    def _heads(self, linear: Linear, norm: str | None, x_BTD: Tensor, heads: int) -> Tensor:
        """One projection as heads (B, T, heads, H), clipped and normed as the network asks."""
        c = self.config
        y = linear(x_BTD)
        if c.clip_qkv is not None:
            y = ops.clip(y, -c.clip_qkv, c.clip_qkv)
        if norm is not None and c.qk_norm == "whole":
            y = getattr(self, norm)(y)
        y = ops.reshape(y, (*x_BTD.shape[:2], heads, c.head_dim))
        if norm is not None and c.qk_norm in ("shared", "per_head"):
            y = getattr(self, norm)(y)
        return y


class FFN(Part):
    """x (B, T, D) -> (B, T, D): down(act(gate x) · up x), or down(act(up x))."""

    def __init__(self, store: Store, name: str, config: Config, thrifty: bool):
        super().__init__()
        self.thrifty = thrifty
        self.act, self.kind = ACTIVATIONS[config.activation], config.activation
        self.ffn_gate = Linear(store, f"{name}.ffn_gate") if config.gated else None
        self.ffn_up = Linear(store, f"{name}.ffn_up")
        self.ffn_down = Linear(store, f"{name}.ffn_down")

    def call(self, x_BTD: Tensor) -> Tensor:
        if self.ffn_gate is None:
            return self.ffn_down(self.act(self.ffn_up(x_BTD)))
        gate, up = self.ffn_gate(x_BTD), self.ffn_up(x_BTD)
        h_BTF = self._gated(gate, up)
        with backend.rebuilt(h_BTF, lambda: self._gated(gate, up), self.thrifty):
            return self.ffn_down(h_BTF)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return backend.gated(gate, up, self.kind) if backend.trains_eagerly() else self.act(gate) * up


class Block(Part):
    """One layer; which norms it has and how its halves join is `config.block` (drawn in `config`). A `thrifty` one
    keeps no norm's result and no gated activation for gradients, but computes them again."""

    def __init__(self, store: Store, name: str, config: Config, attn: Attn, thrifty: bool):
        super().__init__()
        self.parallel = config.block in ("parallel", "parallel_shared")
        self.norms = {slot: Norm(store, f"{name}.{slot}", config.norm) for slot in NORM_SLOTS[config.block]}
        self.attention = Attention(store, name, config, attn)
        self.ffn = FFN(store, name, config, thrifty)
        self.thrifty = thrifty

    def call(self, x: Tensor, view: View, kept: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        h = self._norm("attn_norm", x)
        with self._unkept(h, "attn_norm", x):
            a, kept = self.attention(h, view, kept)
        if self.parallel:
            return x + a + self.ffn(self._norm("ffn_norm", x) if "ffn_norm" in self.norms else h), kept
        x = x + self._norm("post_attention_norm", a)
        h = self._norm("ffn_norm", x)
        with self._unkept(h, "ffn_norm", x):
            h = self.ffn(h)
        return x + self._norm("post_ffw_norm", h), kept

    def _unkept(self, h: Tensor, slot: str, x: Tensor) -> Any:
        """A context in which h, a norm's result, is not kept for gradients."""
        return backend.rebuilt(h, lambda: self._norm(slot, x), self.thrifty and slot in self.norms)

    def _norm(self, slot: str, x: Tensor) -> Tensor:
        return self.norms[slot](x) if slot in self.norms else x


class Decoder(keras.Model):
    """The network. `fetch(name)` gives each canonical tensor, once; `dtype` is what they are held in, but for matrices
    where `quantize` says "int8" or "int4". `compute` is what activations are, if not `dtype`; `remat` keeps only what
    goes between blocks for the gradients, and computes the rest again; `wide` names tensors held in float32."""

    def __init__(
        self,
        config: Config,
        fetch: Fetch,
        dtype: str = "float32",
        quantize: str | None = None,
        compute: str | None = None,
        remat: bool = False,
        wide: frozenset[str] = frozenset(),
    ):
        super().__init__(dtype=dtype)
        self.config, self.activations, self.remat = config, compute or dtype, remat
        self.store = store = Store(config, fetch, dtype, quantize, wide)
        self.token_embd = Embedding(store, config, self.activations)
        self.blk = [Block(store, f"blk.{i}", config, attn, not remat) for i, attn in enumerate(config.layers)]
        self.output_norm = Norm(store, "output_norm", config.norm)
        self.unembed = None if config.tied else Linear(store, "output")
        self.built = True

    def call(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """Logits float32 (B, T, V), and the cache with these tokens added.

        positions: int32, -1 for padding; 0 … T-1 if not given. segments: tokens see only their own segment, and
        within it stand in order (for packed training rows, without cache).
        """
        h_BTD, cache = self.hidden(tokens_BT, positions_BT, segments_BT, cache)
        return self.head(h_BTD), cache

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """The normed last hidden state (B, T, D): all but the head."""
        if positions_BT is None:
            b, t = tokens_BT.shape
            positions_BT = ops.broadcast_to(ops.arange(t, dtype="int32")[None], (b, t))
        view = View(self.config, positions_BT, segments_BT, cache)
        x = self.token_embd(tokens_BT)
        kept: list[Any] = []
        for i, block in enumerate(self.blk):
            if self.remat and cache is None:
                x = keras.remat(lambda x, block=block: block(x, view, None)[0])(x)
                continue
            x, both = block(x, view, None if cache is None else (cache.keys[i], cache.values[i]))
            kept.append(both)
        if cache is not None:
            cache = Cache(tuple(k for k, _ in kept), tuple(v for _, v in kept), tuple(view.kept))
        return self.output_norm(x), cache

    def head(self, h_BTD: Tensor) -> Tensor:
        """Hidden state -> float32 logits (..., V)."""
        logits = self.token_embd.head(h_BTD) if self.unembed is None else self.unembed(h_BTD)
        logits = ops.cast(logits, "float32")
        cap = self.config.final_softcap
        return logits if cap is None else ops.tanh(logits / cap) * cap

    def logprobs(self, h_MD: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of targets (M,) or (M, K) after hidden states, and log Σ exp (M,); float32. Logits are
        never there as a whole."""
        head = self.unembed or self.token_embd
        return logprobs(head.weight, h_MD, targets, self.config.final_softcap)

"""Running the extension's model for generation: batches of rows, pages, chunks of prompts.

Keeps the contract of `generate.Executor`; what is sampled, and text, are not known here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config
from ..errors import BackendError, CapacityError, OptionError
from ..memory import available
from ..quant import to_float32
from ..sampling import Candidates, Need
from ..tensors import Tensors
from . import extension, weights
from .pages import PAGE, Group, Pages, Text, groups, page_bytes, table

if TYPE_CHECKING:
    from ..adapters import Pair
    from ..generate import Logits

CHUNK = 512  # rows that one forward takes at most: enough to keep the multipliers busy, few enough for the caches
LOGITS = 1 << 24  # numbers of logits that exist at a time while a text is scored
KV_TYPES = {"auto": "", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
SHORT = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def open(
    config: Config,
    tensors: Tensors,
    dtype: str = "auto",
    threads: int | None = None,
    kv_type: str = "auto",
    quantize: str | None = None,
    quiet: bool = False,
) -> Executor:
    """A network on the CPU. dtype "auto" keeps every tensor in the bits that its file has.

    `quantize` packs float matrices while they are loaded: "q8_0", "q4_0" or "q4_k_m". `kv_type` is what keys and values
    are kept in: "float32", "float16", "bfloat16" or "q8_0"; "auto" is float32 where most weights are, else the narrower
    type that this CPU multiplies. Raises BackendError, OptionError, TensorError.
    """
    kv = kv_type_of(config, tensors, kv_type, dtype)
    model = _model(config, extension.threads(threads))
    weights.load(model, config, tensors, _types(config, tensors, dtype, quantize), quiet)
    return Executor(config, model, kv)


def kv_type_of(config: Config, tensors: Tensors, asked: str, dtype: str) -> str:
    """What keys and values are kept in where `asked` was asked for, as files name it. Raises OptionError."""
    name = SHORT.get(asked, asked)
    if name not in KV_TYPES:
        raise OptionError(f"kv_type must be one of {', '.join(KV_TYPES)}; {asked!r} was given.")
    if name == "q8_0" and config.head_dim % 32:
        raise OptionError(
            f"kv_type q8_0 packs runs of 32 channels, and this model's heads have {config.head_dim}. Use bfloat16."
        )
    if name != "auto":
        return KV_TYPES[name]
    wide = sum(entry.nbytes for entry in tensors.entries.values() if entry.type in ("F32", "F64"))
    if dtype == "float32" or (dtype == "auto" and wide > tensors.nbytes / 2):
        return "F32"
    return "BF16" if extension.isa() in ("avx512", "amx") else "F16"


def _types(config: Config, tensors: Tensors, dtype: str, quantize: str | None) -> dict[str, str]:
    """What each matrix is to become; those that stay as they are have no entry."""
    names = [name for name in tensors.entries if weights.is_matrix(name)]
    if dtype != "auto":
        if quantize is not None:
            raise OptionError(f"dtype={dtype!r} and quantize={quantize!r} contradict each other. Give one of them.")
        return dict.fromkeys(names, {"float32": "F32", "bfloat16": "BF16"}[dtype])
    if quantize is None:
        return {}
    from ..mixes import plan

    found = plan(config, quantize)
    return {name: found[name] for name in names if tensors.entries[name].type in ("F64", "F32", "F16", "BF16")}


def _model(config: Config, threads: int) -> Any:
    ropes = tuple(dict.fromkeys(layer.rope for layer in config.layers))
    return extension.module().Model(
        {
            **{name: getattr(config, name) for name in ("vocab", "width", "depth", "heads", "kv_heads", "head_dim")},
            **{name: getattr(config, name) for name in ("ffn", "block", "qk_norm", "activation", "gated", "scale")},
            **{name: getattr(config, name) or 0.0 for name in ("attn_softcap", "final_softcap", "clip_qkv")},
            "norm": config.norm.kind,
            "eps": config.norm.eps,
            "embedding_scale": float(config.width) ** 0.5 if config.scale_embedding else 0.0,
            "tied": config.tied,
        },
        _seen(config),
        [ropes.index(layer.rope) for layer in config.layers],
        [(rope.frequencies(config.head_dim), rope.magnitude) for rope in ropes],
        extension.isa(),
        threads,
    )


def _seen(config: Config) -> list[tuple[int, int, int]]:
    """For each layer its window (0: none), its group and its place there."""
    found: dict[int, tuple[int, int, int]] = {}
    for number, group in enumerate(groups(config)):
        for place, layer in enumerate(group.layers):
            found[layer] = (group.window or 0, number, place)
    return [found[i] for i in range(config.depth)]


@dataclass
class State:
    """Texts in progress and the memory that holds their keys and values."""

    cache: Any
    texts: list[Text]


@dataclass
class Part:
    """Some consecutive tokens of one text of a batch; `last` asks for the hidden state after the last of them."""

    text: Text
    tokens: Sequence[int] | np.ndarray
    last: bool = True
    wanted: range | None = None  # rows among `tokens`, instead of the last
    adapter: Any = None  # of `Executor.adapter`: what its rows go through besides the weights


class Executor:
    """An extension's model behind the contract of `generate.Executor`."""

    def __init__(self, config: Config, model: Any, kv_type: str):
        self.config = config
        self.kv_type = kv_type
        self._model = model
        self._groups = groups(config)
        self._spare: list[tuple[Any, list[int]]] = []  # memory of states that are gone

    @property
    def model(self) -> Any:
        if self._model is None:
            raise BackendError("This model was closed. Load it again.")
        return self._model

    def close(self) -> None:
        """Lets go of the weights; whatever is asked afterwards is refused."""
        self._model = None
        self._spare.clear()

    def rows(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        """Float32 logits (t, V) after positions start … T-1, in chunks."""
        step = max(1, min(CHUNK, LOGITS // self.config.vocab))
        for hidden in self.hidden(ids, start):
            for at in range(0, len(hidden), step):
                yield self._logits(hidden[at : at + step])

    def score(self, ids: Sequence[int], start: int, size: int | None = None) -> tuple[list[float], list[bool]]:
        """For the ids from `start` on: log-probability, and whether the id is the likeliest of the first `size`.

        Logits never exist whole.
        """
        logprobs: list[float] = []
        greedy: list[bool] = []
        for hidden in self.hidden(ids[:-1], start - 1):
            done = start + len(logprobs)
            some, best = self.judge(hidden, ids[done : done + len(hidden)], size)
            logprobs += some
            greedy += best
        return logprobs, greedy

    def prefill(
        self, prompts: Sequence[Sequence[int]], room: int, needs: Sequence[Need | None] | None = None
    ) -> tuple[State, Logits]:
        """Logits after each prompt's last token, and the state to go on from."""
        state = self._begin([len(prompt) for prompt in prompts], room)
        hidden = np.empty((len(prompts), self.config.width), np.float32)
        for numbers, parts in _chunks(prompts, state.texts):
            ends = [number for number, part in zip(numbers, parts, strict=True) if part.last]
            hidden[ends] = self._forward(state, parts)
        return state, self.needed(hidden, needs)

    def step(
        self, state: State, tokens: Sequence[int], needs: Sequence[Need | None] | None = None
    ) -> tuple[State, Logits]:
        """One more token for each row, and its logits. A row whose context is full gets noise."""
        full = [text.length >= self.config.context for text in state.texts]
        parts = [
            Part(text, [token]) for text, token, is_full in zip(state.texts, tokens, full, strict=True) if not is_full
        ]
        hidden = np.zeros((len(tokens), self.config.width), np.float32)
        if parts:
            hidden[[not is_full for is_full in full]] = self._forward(state, parts)
        return state, self.needed(hidden, needs)

    def run(self, cache: Any, parts: Sequence[Part], **taps: np.ndarray) -> np.ndarray:
        """Normed hidden states (W, D) after the wanted rows of all parts; their tokens are in the cache then.

        Texts must have room for the tokens, and do not advance. `taps` are filled with what is seen on the way; every
        row must be wanted then.
        """
        sizes = [len(part.tokens) for part in parts]
        starts = np.cumsum([0, *sizes]).astype(np.int32)
        texts = [part.text for part in parts]
        more: dict[str, Any] = taps | _adapters([part.adapter for part in parts])
        hidden: np.ndarray = (self.model.observe if taps else self.model.forward)(
            cache,
            np.concatenate([np.asarray(part.tokens, np.int32) for part in parts]),
            starts,
            np.asarray([text.length for text in texts], np.int32),
            [table(texts, number) for number in range(len(self._groups))],
            np.asarray(_wanted(parts, starts), np.int32),
            **more,
        )
        return hidden

    def needed(self, hidden: np.ndarray, needs: Sequence[Need | None] | None, adapters: Sequence[Any] = ()) -> Logits:
        """What each hidden state needs: all logits, or those that the head finds without reading all of its weights.

        `adapters`: of each the one it came through, or None; or nothing where there is none.
        """
        changed = [adapter is not None and adapter.changes_head for adapter in adapters] or [False] * len(hidden)
        few = [i for i, need in enumerate(needs or ()) if need is not None and not changed[i]]
        if not few or needs is None or not self.model.screens:
            return self._logits(hidden, adapters)
        rest = [i for i in range(len(hidden)) if needs[i] is None or changed[i]]
        found = dict(zip(few, self._candidates(hidden[few], [need for i in few if (need := needs[i])]), strict=True))
        every = self._logits(hidden[rest], [adapters[i] for i in rest] if any(changed) else ()) if rest else ()
        all_of = dict(zip(rest, every, strict=True))
        return [found[i] if i in found else all_of[i] for i in range(len(hidden))]

    def judge(
        self, hidden: np.ndarray, targets: Sequence[int], size: int | None = None, adapters: Sequence[Any] = ()
    ) -> tuple[list[float], list[bool]]:
        """For each hidden state the log-probability of its target, and whether it is the likeliest of the first `size`.

        Logits never exist whole. `adapters` as in `needed`.
        """
        ids = np.asarray(targets, np.int32)
        logprobs, greedy = self.model.score(hidden, ids, size or self.config.vocab, **_adapters(adapters))
        return logprobs, greedy

    def hidden(self, ids: Sequence[int], start: int = 0, adapter: Any = None) -> Iterator[np.ndarray]:
        """Normed hidden states, float32 (t, D), after positions start … T-1, in chunks."""
        state = self._begin([len(ids)], 0)
        for at in range(0, len(ids), CHUNK):
            part = Part(state.texts[0], ids[at : at + CHUNK], adapter=adapter)
            part.wanted = range(max(start - at, 0), len(part.tokens))
            hidden = self._forward(state, [part])
            if len(hidden):
                yield hidden

    def adapter(self, pairs: Mapping[str, Pair]) -> Any:
        """Pairs by canonical name in the extension's memory, for `Part.adapter`; it goes with the last reference.

        They are kept in float32 for matrices of float32, else in float16. Raises OptionError for a pair on what is no
        matrix of this network, or one of another shape.
        """
        made = extension.module().Adapter(self.model)
        for name, pair in pairs.items():
            a, b = (np.ascontiguousarray(to_float32(part)) for part in (pair.a, pair.b))
            try:
                made.add(self.model, name, a, b, pair.scale)
            except (KeyError, ValueError):
                raise OptionError(
                    f"The adapter changes {name} by A {a.shape} and B {b.shape}, which does not fit this network. Give "
                    "the base model that the adapter was trained on."
                ) from None
        return made

    @property
    def groups(self) -> tuple[Group, ...]:
        """The layers by what they see."""
        return self._groups

    def cache(self, counts: Sequence[int]) -> Any:
        """Memory for so many pages of each group, for `run`; a page takes it when it is first written."""
        c = self.config
        return extension.module().Cache(self.kv_type, c.kv_heads, c.head_dim, _seen(c), list(counts))

    def trace(self, ids: Sequence[int]) -> np.ndarray:
        """The residual stream of a text: float32 (depth + 1, T, D), after the embedding and after each block."""
        depth, width = self.config.depth, self.config.width
        found = np.empty((depth + 1, len(ids), width), np.float32)
        for at, observe in self._observed(ids):
            part = np.empty((depth + 1, min(CHUNK, len(ids) - at), width), np.float32)
            observe(residual=part)
            found[:, at : at + CHUNK] = part
        return found

    def inputs(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """For every matrix the squares of what it is multiplied with, summed over a text's positions: float64
        (columns,) by canonical name; matrices with the same input share one array."""
        c = self.config
        widths = {"attn_q": c.width, "ffn_up": c.width, "attn_output": c.q_width, "ffn_down": c.ffn}
        sums = np.zeros((c.depth, sum(widths.values())))
        head = np.zeros(c.width)
        for _, observe in self._observed(ids):
            head += np.square(observe(squares=sums), dtype=np.float64).sum(axis=0)
        ends = np.cumsum(list(widths.values()))[:-1]
        found = {"token_embd.weight" if c.tied else "output.weight": head}
        for layer, row in enumerate(sums):
            parts = dict(zip(widths, np.split(row, ends), strict=True))
            parts |= {"attn_k": parts["attn_q"], "attn_v": parts["attn_q"]}
            parts |= {"ffn_gate": parts["ffn_up"]} if c.gated else {}
            found |= {f"blk.{layer}.{stem}.weight": part for stem, part in parts.items()}
        return found

    def facts(self) -> dict[str, Any]:
        """What a benchmark tells of the engine."""
        model = self.model
        embedding = 0 if self.config.tied else self._embedding_bytes
        return {
            "isa": model.isa,
            "threads": model.threads,
            "kv_type": self.kv_type,
            "weights_bytes": model.nbytes,
            "bytes_per_token": lambda depth: model.nbytes - embedding - self._unread + self._kv_bytes(depth),
        }

    def _kv_bytes(self, depth: int) -> int:
        """Bytes of keys and values that a token with `depth` before it reads."""
        seen = [min(depth, group.window or depth) * self.page_bytes(group) // PAGE for group in self._groups]
        return sum(seen)

    @property
    def _unread(self) -> int:
        """Bytes of the head that the last token did not need."""
        name = "token_embd.weight" if self.config.tied else "output.weight"
        return int(self.model.matrix_bytes(name) - self.model.head_bytes_read) if self.model.screens else 0

    @property
    def _embedding_bytes(self) -> int:
        return int(self.model.matrix_bytes("token_embd.weight"))

    def _logits(self, hidden: np.ndarray, adapters: Sequence[Any] = ()) -> np.ndarray:
        logits: np.ndarray = self.model.head(hidden, **_adapters(adapters))
        return logits[:, : self.config.vocab]

    def _candidates(self, hidden: np.ndarray, needs: Sequence[Need]) -> list[Candidates]:
        ks, gaps, wanted, sizes = zip(*needs, strict=True)
        found = self.model.candidates(
            hidden, np.asarray(ks, np.int32), np.asarray(gaps, np.float32), list(wanted), np.asarray(sizes, np.int32)
        )
        return [Candidates(ids, logits, size) for (ids, logits), size in zip(found, sizes, strict=True)]

    def _observed(self, ids: Sequence[int]) -> Iterator[tuple[int, Callable[..., np.ndarray]]]:
        """A text in chunks: where each begins, and the forward that fills what it is given and returns hidden states
        (t, D) after every position. It is to be called once."""
        state = self._begin([len(ids)], 0)
        for at in range(0, len(ids), CHUNK):
            part = Part(state.texts[0], ids[at : at + CHUNK])
            part.wanted = range(len(part.tokens))
            yield at, partial(self._forward, state, [part])

    def _begin(self, lengths: Sequence[int], room: int) -> State:
        """Memory for texts of such lengths and up to `room` more tokens each, as far as memory goes."""
        wanted = counts = [self._pages(group, lengths, room) for group in self._groups]
        sizes = [self.page_bytes(group) for group in self._groups]
        free = available()
        if free is not None and sum(n * size for n, size in zip(counts, sizes, strict=True)) > free:
            least = [self._pages(group, lengths, min(room, PAGE)) for group in self._groups]
            need = sum(n * size for n, size in zip(least, sizes, strict=True))
            if need > free:
                raise CapacityError(
                    f"Keys and values of {sum(lengths)} tokens need {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB "
                    "are free. Give a shorter text, fewer together, or a narrower --kv-type (q8_0 takes half)."
                )
            share = (free - need) / max(1, sum(n * size for n, size in zip(counts, sizes, strict=True)) - need)
            counts = [few + int((many - few) * share) for few, many in zip(least, counts, strict=True)]
        short = counts != wanted
        cache, counts = self._take_cache(counts)
        pages = Pages(counts, short=short)
        state = State(cache, [Text(pages, self._groups) for _ in lengths])
        weakref.finalize(state, self._spare.append, (cache, counts)).atexit = False
        return state

    def _take_cache(self, counts: list[int]) -> tuple[Any, list[int]]:
        """Memory with at least so many pages: that of a state which is gone, if it is not much larger; else new."""
        if self._spare:
            cache, there = self._spare.pop()
            self._spare.clear()
            if all(few <= many <= 4 * few for few, many in zip(counts, there, strict=True)):
                return cache, there
        return self.cache(counts), counts

    def _pages(self, group: Group, lengths: Sequence[int], room: int) -> int:
        most = max(self.config.context, *lengths)
        return sum(group.pages(min(length + room, most), min(length, CHUNK)) for length in lengths)

    def page_bytes(self, group: Group) -> int:
        """Memory of one page of a group, about."""
        return page_bytes(self.config, group, self.kv_type)

    def _forward(self, state: State, parts: Sequence[Part], **taps: np.ndarray) -> np.ndarray:
        """`run` of texts that get room before and advance after it."""
        for part in parts:
            part.text.extend(len(part.tokens))
        hidden = self.run(state.cache, parts, **taps)
        for part in parts:
            part.text.advance(len(part.tokens))
        return hidden


def _adapters(each: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """The extension's argument, which it does without where nobody has an adapter."""
    return {"adapters": tuple(each)} if any(adapter is not None for adapter in each) else {}


def _wanted(parts: Sequence[Part], starts: np.ndarray) -> list[int]:
    found: list[int] = []
    for part, start in zip(parts, starts, strict=False):
        rows = part.wanted if part.wanted is not None else [len(part.tokens) - 1] * part.last
        found += [int(start) + row for row in rows]
    return found


def _chunks(prompts: Sequence[Sequence[int]], texts: Sequence[Text]) -> Iterator[tuple[list[int], list[Part]]]:
    """All prompts cut into batches of at most CHUNK rows, one prompt after the other: their numbers, their parts."""
    numbers: list[int] = []
    parts: list[Part] = []
    room = CHUNK
    for number, prompt in enumerate(prompts):
        at = 0
        while at < len(prompt):
            size = min(room, len(prompt) - at)
            numbers.append(number)
            parts.append(Part(texts[number], prompt[at : at + size], last=at + size == len(prompt)))
            at, room = at + size, room - size
            if room == 0:
                yield numbers, parts
                numbers, parts, room = [], [], CHUNK
    if parts:
        yield numbers, parts

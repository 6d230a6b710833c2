"""The cached loop against the naive one, rows against each other, and where a text ends."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geode.config import Config
from geode.errors import ContextError, OptionError, TokenizerError
from geode.generate import Options, Piece, Row, Text, naive, stream


class OneLayer:
    """An executor in a few lines: one causal attention over random embeddings. Chunks of three rows."""

    def __init__(self, vocab: int = 50, context: int = 40, seed: int = 0):
        random = np.random.default_rng(seed)
        self.config = Config(vocab, width=16, depth=1, heads=1, kv_heads=1, head_dim=16, ffn=1, context=context)
        self.embedding = random.standard_normal((vocab, 16))
        self.position = random.standard_normal((2 * context, 16))
        self.matrices = random.standard_normal((4, 16, 16)) / 4
        self.steps = 0

    def rows(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        _, logits = self._forward((np.empty((0, 16)), np.empty((0, 16))), ids)
        for i in range(start, len(ids), 3):
            yield logits[i : i + 3]

    def prefill(self, prompts: Sequence[Sequence[int]], room: int, needs: Any = None) -> tuple[Any, np.ndarray]:
        self.left = room
        ran = [self._forward((np.empty((0, 16)), np.empty((0, 16))), prompt) for prompt in prompts]
        return [cache for cache, _ in ran], np.stack([logits[-1] for _, logits in ran])

    def step(self, state: Any, tokens: Sequence[int], needs: Any = None) -> tuple[Any, np.ndarray]:
        assert self.left > 0, "more steps than prefill was told to keep room for"
        self.left -= 1
        self.steps += 1
        ran = [self._forward(cache, [token]) for cache, token in zip(state, tokens, strict=True)]
        return [cache for cache, _ in ran], np.stack([logits[-1] for _, logits in ran])

    def _forward(self, cache: tuple[np.ndarray, np.ndarray], ids: Sequence[int]) -> tuple[Any, np.ndarray]:
        past = len(cache[0])
        x = self.embedding[list(ids)] + self.position[past : past + len(ids)]
        q, k, v = (x @ m for m in self.matrices[:3])
        keys, values = np.concatenate([cache[0], k]), np.concatenate([cache[1], v])
        seen = q @ keys.T / 4
        seen[np.triu_indices(len(ids), past + 1, len(keys))] = -np.inf
        weights = np.exp(seen - seen.max(axis=1, keepdims=True))
        mixed = x + weights / weights.sum(axis=1, keepdims=True) @ values @ self.matrices[3]
        return (keys, values), (mixed @ self.embedding.T).astype(np.float32)


class Letters:
    """A tokenizer whose id i spells `words[i]`, in bytes."""

    def __init__(self, words: Sequence[bytes], ends: Iterable[int] = ()):
        self.words, self.size, self.bos, self.ends = words, len(words), None, frozenset(ends)

    def stream(self) -> Letters:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return self

    def push(self, token: int) -> str:
        return self.decoder.decode(self.words[token])

    def flush(self) -> str:
        return self.decoder.decode(b"", final=True)


class Scripted:
    """An executor that wants to say the given ids, whatever is fed."""

    def __init__(self, ids: Sequence[int], vocab: int, context: int = 100):
        self.config = Config(vocab, width=1, depth=1, heads=1, kv_heads=1, head_dim=1, ffn=1, context=context)
        self.ids = list(ids)

    def prefill(self, prompts: Sequence[Sequence[int]], room: int, needs: Any = None) -> tuple[int, np.ndarray]:
        return self.step(0, [0] * len(prompts))

    def step(self, state: int, tokens: Sequence[int], needs: Any = None) -> tuple[int, np.ndarray]:
        logits = np.zeros((len(tokens), self.config.vocab), np.float32)
        logits[:, self.ids[state]] = 50
        return state + 1, logits


def continue_(executor: Any, prompts: Sequence[Sequence[int]], ends: Iterable[int] = (), **options: Any) -> list[Row]:
    """Runs all prompts together; each row gets `.pieces`."""
    rows = [Row(prompt, Options(**options), executor.config.context, frozenset(ends)) for prompt in prompts]
    for row in rows:
        row.pieces = []  # type: ignore[attr-defined]
    for i, piece in stream(executor, rows):
        rows[i].pieces.append(piece)  # type: ignore[attr-defined]
    return rows


def tokens(row: Any) -> list[int]:
    return [piece.token for piece in row.pieces]


def say(
    words: Sequence[bytes], ids: Sequence[int], ends: Iterable[int] = (), **options: Any
) -> tuple[str, list[Piece]]:
    tokenizer: Any = Letters(words)
    executor: Any = Scripted(ids, len(words))
    row = Row([0], Options(temperature=0, **options), 100, frozenset(ends), tokenizer)
    pieces = [piece for _, piece in stream(executor, [row])]
    return "".join(piece.text for piece in pieces), pieces


SAMPLED = {
    "temperature": 1.5,
    "top_k": 20,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.5,
    "seed": 11,
}


@pytest.mark.parametrize("options", [{"temperature": 0}, SAMPLED])
def test_cached_equals_naive(options: dict[str, Any]) -> None:
    for seed in range(5):
        executor = OneLayer(seed=seed)
        (row,) = continue_(executor, [[1, 2, 3]], max_tokens=20, **options)
        assert tokens(row) == naive(executor, [1, 2, 3], Options(max_tokens=20, **options))


@pytest.mark.parametrize("options", [{"temperature": 0}, SAMPLED])
def test_a_batch_of_unequal_prompts_equals_single_ones(options: dict[str, Any]) -> None:
    executor = OneLayer()
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 9], list(range(30))]
    ends = {3, 14, 15, 40}
    together = continue_(executor, prompts, ends, logprobs=2, **options)
    for prompt, row in zip(prompts, together, strict=True):
        (alone,) = continue_(executor, [prompt], ends, logprobs=2, **options)
        assert tokens(row) == tokens(alone)
        assert row.finish_reason == alone.finish_reason
        assert [p.logprob for p in row.pieces] == pytest.approx([p.logprob for p in alone.pieces], abs=1e-5)  # type: ignore[attr-defined]
        assert (row.usage.prompt_tokens, row.usage.completion_tokens) == (len(prompt), len(tokens(row)))
    assert {row.finish_reason for row in together} == {"stop", "length"}


def test_rows_that_are_finished_gain_nothing_more() -> None:
    executor = OneLayer()
    rows = [Row([1], Options(temperature=0, max_tokens=n), 40) for n in (1, 4, 2)]
    assert [i for i, _ in stream(executor, rows)] == [0, 1, 2, 1, 2, 1, 1]
    assert executor.steps == 3


def test_an_end_token_ends_and_shows_nothing() -> None:
    text, pieces = say([b"a", b"b", b"<end>"], [0, 1, 2, 0], ends={2})
    assert text == "ab"
    assert [(piece.token, piece.finish_reason) for piece in pieces] == [(0, None), (1, None), (2, "stop")]


def test_max_tokens_ends_with_length_and_with_stop_where_both_meet() -> None:
    assert say([b"a", b"b"], [0, 1, 0], max_tokens=2)[1][-1] == Piece("b", 1, finish_reason="length")
    assert say([b"a", b"b"], [0, 1, 0], ends={1}, max_tokens=2)[1][-1].finish_reason == "stop"


def test_without_max_tokens_the_context_is_filled() -> None:
    (row,) = continue_(OneLayer(context=40), [[1] * 25], temperature=0)
    assert (len(tokens(row)), row.finish_reason) == (15, "length")
    assert len(naive(OneLayer(context=40), [1] * 25, Options(temperature=0))) == 15


def test_too_long_prompts_tell_both_numbers() -> None:
    with pytest.raises(ContextError, match=r"41 tokens.*40"):
        Row([1] * 41, Options(), 40)
    with pytest.raises(ContextError, match=r"40 tokens.*40.*no room"):
        Row([1] * 40, Options(), 40)
    with pytest.raises(ContextError, match=r"30 tokens.*11 more.*41.*40.*at most 10"):
        Row([1] * 30, Options(max_tokens=11), 40)
    assert Row([1] * 30, Options(max_tokens=10), 40).room == 10
    with pytest.raises(OptionError, match="empty"):
        Row([], Options(), 40)


def test_a_stop_string_is_cut_out_across_tokens() -> None:
    words = [b"one ", b"S", b"TO", b"P", b" two"]
    text, pieces = say(words, [0, 1, 2, 3, 4], stop="STOP")
    assert text == "one "
    assert [piece.text for piece in pieces] == ["one ", "", "", ""]
    assert (pieces[-1].token, pieces[-1].finish_reason) == (3, "stop")


def test_a_stop_string_that_never_completes_is_shown() -> None:
    words = [b"S", b"TO", b"x", b"<end>"]
    assert [piece.text for piece in say(words, [0, 1, 2, 3], ends={3}, stop=["STOP"])[1]] == ["", "", "STOx", ""]
    assert say(words, [2, 0, 1, 3], ends={3}, stop=["STOP"])[0] == "xSTO"
    assert [piece.text for piece in say(words, [2, 0, 1], max_tokens=3, stop=["STOP"])[1]] == ["x", "", "STO"]


def test_half_characters_wait_and_the_last_one_is_flushed() -> None:
    euro = "€".encode()
    words = [euro[:1], euro[1:2], euro[2:], b"!"]
    assert [piece.text for piece in say(words, [0, 1, 2, 3], max_tokens=4)[1]] == ["", "", "€", "!"]
    assert [piece.text for piece in say(words, [3, 0, 1], max_tokens=3)[1]] == ["!", "", "\N{REPLACEMENT CHARACTER}"]
    text, pieces = say(words, [0, 1, 2, 3], stop="€", max_tokens=4)
    assert (text, len(pieces)) == ("", 3)


def test_a_stop_string_inside_one_token_hides_the_half_character_behind_it() -> None:
    assert say([b"ab.c" + "€".encode()[:1]], [0], stop=".", max_tokens=1)[0] == "ab"


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_where_a_text_stops_does_not_depend_on_the_tokens(parts: list[str], stops: list[str]) -> None:
    class Parts:
        push = parts.__getitem__
        flush = staticmethod(lambda: "")

    decoder: Any = Parts()
    text, shown = Text(decoder, stops), ""
    for i in range(len(parts)):
        shown += text.push(i)
        assert not any(stop in shown for stop in stops)
        if text.stopped:
            break
    shown += text.flush()
    whole = "".join(parts)
    ends = [n for n in range(len(whole) + 1) if any(whole[:n].endswith(stop) for stop in stops)]
    if ends:
        longest = max(len(stop) for stop in stops if whole[: ends[0]].endswith(stop))
        whole = whole[: ends[0] - longest]
    assert (shown, text.stopped) == (whole, bool(ends))


def test_padding_rows_are_never_generated() -> None:
    words = [b"a", b"b"]
    tokenizer: Any = Letters(words)
    executor: Any = Scripted([3, 3, 3, 3], vocab=4)
    row = Row([0], Options(temperature=5, seed=0, max_tokens=4), 100, tokenizer=tokenizer)
    assert all(piece.token in (0, 1) for _, piece in stream(executor, [row]))


def test_ids_go_without_a_tokenizer_and_stop_strings_do_not() -> None:
    (row,) = continue_(OneLayer(), [[1]], temperature=0, max_tokens=3)
    assert [piece.text for piece in row.pieces] == ["", "", ""]  # type: ignore[attr-defined]
    with pytest.raises(TokenizerError, match="Stop strings"):
        Row([1], Options(stop="x"), 40)


def test_the_stream_is_lazy() -> None:
    executor = OneLayer()
    pieces = stream(executor, [Row([1], Options(temperature=0, max_tokens=10), 40)])
    next(pieces)
    next(pieces)
    assert executor.steps == 1


def test_logprobs_come_with_the_pieces() -> None:
    (row,) = continue_(OneLayer(), [[1, 2]], temperature=0, max_tokens=3, logprobs=2)
    for piece in row.pieces:  # type: ignore[attr-defined]
        assert piece.top_logprobs[0] == (piece.token, piece.logprob)
        assert len(piece.top_logprobs) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", 0), ("max_tokens", 2.5), ("stop", ""), ("stop", ["a", ""]), ("stop", 3)]
)
def test_options_outside_their_range_are_named(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        Options(**{name: value})  # type: ignore[arg-type]

"""Formats that an answer must have, as masks over a model's tokens; llguidance does the parsing.

Where the formats come from, and how the next token is chosen, is not known here.

    format ── checked, with limits ──> a matcher, compiled once and kept ── copied for each answer ──> Constraint

Properties come in the order of the schema; white space is at most one character, or a line break and its indentation.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from math import prod
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from ..engine.request import Constraint
from ..errors import MissingExtra, OptionError
from .ask import Ask, Format, Grammar, JsonObject, JsonSchema, Regex
from .closing import Closing, Marks, shortest
from .exact import exact
from .patterns import COUNT, check_pattern, check_repeats, check_size, largest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from ..tokenizer import Tokenizer
    from .loading import Served

MAX_TEXT = 128 << 10  # bytes of a grammar
LIMITS: dict[str, Any] = {
    "max_items_in_row": 4_000,  # four for each optional property
    "initial_lexer_fuel": 500_000,  # some milliseconds
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,  # 1 to 2 kB each
    "max_grammar_size": 100_000,
    "verbose_errors": False,  # they hold the answer so far
}
BEFORE = "\x02"  # what comes before a text so that it is encoded as the rest of one
KEPT = 64  # compiled formats of one vocabulary

SPACE = r"[ \t]|\r?\n[ \t]{0,24}"
# Without \u, which would let a name of a property be spelled in two ways.
WRITTEN = {"whitespace_pattern": SPACE, "json_allowed_escapes": 'nrbtf\\"'}


def constraint_for(served: Served, ask: Ask, room: int) -> Callable[[], Constraint] | None:
    """What makes a fresh constraint for each answer to an ask, of at most `room` tokens, by its format, its tools and
    their choice; None where any text will do.

    Raises OptionError for what cannot be enforced, MissingExtra, TokenizerError.
    """
    from .tools import tools_for

    format = ask.format
    if ask.tools and ask.tool_choice != "none":
        format = tools_for(served).format(ask.tools, ask.tool_choice, ask.parallel_calls, ask.format)
    if format is None:
        return None
    local = served.local
    tokenizer = local.tokenizer_to("keep to a format")
    return guide(tokenizer, local.config.vocab, local.ends, format, room)


def guide(
    tokenizer: Tokenizer, vocab: int, ends: Collection[int], format: Format, room: int | None = None
) -> Callable[[], Constraint]:
    """What makes a fresh constraint for each answer. `vocab`: rows of the logits; `ends`: the end tokens; `room`: how
    many tokens an answer may have: JSON is brought to its end before.

    The first call for a tokenizer takes a second or two, for 262,144 tokens, the first for a format up to one; call it
    where nothing waits. Raises OptionError for a format that cannot be enforced, MissingExtra without llguidance.
    """
    words = vocabulary(tokenizer, vocab, ends)
    first = words.compiled(source_of(format))
    is_json = isinstance(format, JsonObject | JsonSchema) or (isinstance(format, Grammar) and format.json)
    if room is not None and is_json:
        least = first.least
        return lambda: Closing(first.begun(), words.marks, room, least)
    return first.begun


def vocabulary(tokenizer: Tokenizer, vocab: int, ends: Collection[int]) -> Vocabulary:
    """The tokens as llguidance needs them, made once for each tokenizer. Raises MissingExtra."""
    key = (vocab, frozenset(ends))
    if found := _vocabularies.get(tokenizer, {}).get(key):
        return found  # without waiting for another's
    with _lock:
        kept = _vocabularies.setdefault(tokenizer, {})
        if key not in kept:
            kept[key] = Vocabulary(tokenizer, vocab, ends)
        return kept[key]


def warm(tokenizer: Tokenizer | None, vocab: int, ends: Collection[int]) -> None:
    """Begins to make a vocabulary on a thread of its own, so that the first who needs it waits less, and nobody else.

    Where it cannot be made, whoever asks for a format is told why.
    """

    def work() -> None:
        with suppress(Exception):
            vocabulary(tokenizer, vocab, ends)  # type: ignore[arg-type]

    if tokenizer is not None and ends and find_spec("llguidance") is not None:
        Thread(target=work, name="geode-grammar", daemon=True).start()


def source_of(format: Format) -> str:
    """The format in llguidance's own notation. Raises OptionError where it is too large or holds what is unknown."""
    if isinstance(format, JsonObject):
        return f"start: {json_rule({'type': 'object'})}"
    if isinstance(format, JsonSchema):
        return f"start: {json_rule(format.schema)}"
    if isinstance(format, Regex):
        check_pattern(format.pattern)
        return f"start: /{_library().regex_to_lark(format.pattern, 'dw')}/"
    check_size(format.source, "grammar", MAX_TEXT)
    counts = sorted((largest(found) for found in COUNT.finditer(format.source)), reverse=True)
    check_repeats(prod(counts[:2]), "grammar")
    return format.source


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """JSON of a schema as the right side of a rule in Lark's notation. Raises OptionError."""
    made = exact(schema)
    whole = {**(made if isinstance(made, dict) else {}), "x-guidance": WRITTEN}
    return f"%json {json.dumps(whole)}"


class Vocabulary:
    """A model's tokens, and the formats compiled for them."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, ends: Collection[int]):
        self.size = vocab
        self.ends = frozenset(ends)
        self._tokens, self.chosen, pieces = _tokens(tokenizer, vocab, sorted(ends))
        self.marks = Marks(pieces, vocab, ends)
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()
        self._lock = Lock()

    def compiled(self, source: str) -> Compiled:
        """A format, made once. Raises OptionError for a source that is wrong or too large."""
        with self._lock:
            if source in self._compiled:
                self._compiled.move_to_end(source)
                return self._compiled[source]
        made = Compiled(self, self._compile(source))
        with self._lock:
            self._compiled[source] = made
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return made

    def _compile(self, source: str) -> LLMatcher:
        library = _library()
        matcher: LLMatcher = library.LLMatcher(
            self._tokens, source, log_level=0, limits=library.LLParserLimits(**LIMITS)
        )
        allowed = np.empty(0) if matcher.is_error() else np.frombuffer(matcher.compute_bitmask(), np.uint8)
        empty = matcher.is_error() and "NoExtension" in matcher.get_error()
        if matcher.is_error() and not empty:
            raise OptionError(
                f"The format asked for cannot be enforced: {_cause(matcher)}. "
                "Correct or simplify the schema, the pattern or the grammar."
            )
        if empty or not np.any(allowed):
            raise OptionError(
                "No answer can have the format asked for: nothing may come first. A schema or a rule that refers to "
                "itself needs a way to end."
            )
        return matcher


class Compiled:
    """A format over a vocabulary: where every answer begins."""

    def __init__(self, words: Vocabulary, matcher: LLMatcher):
        self._words = words
        self._matcher = matcher

    def begun(self) -> Constraint:
        """For one answer."""
        return _Guided(self._words, self._matcher.deep_copy())

    @cached_property
    def least(self) -> int:
        """Tokens of a short answer in it, if it is JSON."""
        return shortest(self.begun(), self._words.marks)


class _Guided:
    """A `Constraint`: llguidance's matcher for one answer."""

    def __init__(self, words: Vocabulary, matcher: LLMatcher):
        self._words = words
        self._matcher = matcher
        self._bits = np.empty((words.size + 31) // 32, np.int32)

    def mask(self) -> np.ndarray:
        """bool (V,). Raises OptionError where the format has become too complex to go on with."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return np.unpackbits(self._bits.view(np.uint8), count=self._words.size, bitorder="little").view(bool)

    def allows(self, token: int) -> bool:
        if token in self._words.ends:
            return self._matcher.is_accepting()
        return (
            0 <= token < self._words.size
            and bool(self._words.chosen[token])
            and self._matcher.validate_tokens([token]) == 1
        )

    def accept(self, token: int) -> None:
        """Raises OptionError for a token that was not allowed."""
        if not self._matcher.consume_token(token):
            if "satisfy the grammar" not in self._matcher.get_error():
                self._check()
            raise OptionError(f"The token {token} does not fit the format asked for.")

    def forced(self) -> list[int]:
        """An end token where nothing else can follow."""
        if self._matcher.is_stopped():
            return [min(self._words.ends)] if self._words.ends else []
        return self._matcher.compute_ff_tokens()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise OptionError(
                f"The format asked for cannot be followed further: {_cause(self._matcher)}. Simplify the schema, the "
                "pattern or the grammar."
            )


class _Words:
    """A tokenizer as llguidance asks for one: `tokens` are the bytes of every id, and calling it encodes a text."""

    is_tokenizer_wrapper = True
    special_token_ids: tuple[int, ...] = ()
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab: int, ends: list[int]):
        self._encode = tokenizer.encode
        self.eos_token_id = ends[0]
        control = frozenset(getattr(tokenizer, "control", {}).values()) | frozenset(ends)
        self.pieces = [tokenizer.piece(i) for i in range(min(tokenizer.size, vocab))]
        self.chosen = self._choices(control, vocab)
        # A byte that no text has sets control tokens apart. Empty pieces are never chosen.
        self.tokens = [
            b"\xff" + piece if i in control else piece if self.chosen[i] else b"" for i, piece in enumerate(self.pieces)
        ]
        self.tokens += [b""] * (vocab - len(self.tokens))

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text in the midst of another."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._encode(f"{BEFORE}{data.decode('utf-8', 'replace')}", bos=False)
        before = self._encode(BEFORE, bos=False)
        found = ids[len(before) :]
        if ids[: len(before)] == before and b"".join(map(self.pieces.__getitem__, found)) == data:
            return found
        return [self._ids[byte] for byte in (data[i : i + 1] for i in range(len(data)))]

    def _choices(self, control: frozenset[int], vocab: int) -> np.ndarray:
        """bool (V,): the ids that a format may hold. Of several with the same bytes, the one that encoding gives:
        a letter, not the byte that stands in where letters are missing."""
        chosen = np.zeros(vocab, bool)
        self._ids: dict[bytes, int] = {}
        twice: set[bytes] = set()
        for i, piece in enumerate(self.pieces):
            if i not in control and piece:
                if piece in self._ids:
                    twice.add(piece)
                self._ids[piece] = i
        for piece in twice:
            ids = self(piece)
            if len(ids) == 1:
                self._ids[piece] = ids[0]
        chosen[[*self._ids.values(), *(token for token in control if token < vocab)]] = True
        return chosen


_vocabularies: WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], Vocabulary]] = WeakKeyDictionary()
_lock = Lock()


def _tokens(tokenizer: Tokenizer, vocab: int, ends: list[int]) -> tuple[LLTokenizer, np.ndarray, list[bytes]]:
    """What llguidance makes of a vocabulary, bool (V,): the ids that a format may hold, and the bytes of each."""
    if not ends:
        raise OptionError("A format cannot be enforced on a model without an end token: its answer would never end.")
    words = _Words(tokenizer, vocab, ends)
    return _library().LLTokenizer(words, n_vocab=vocab, eos_token=ends), words.chosen, words.pieces


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtra("llguidance", "serve", "An answer of a given format") from None
    return llguidance


def _cause(matcher: LLMatcher) -> str:
    """What llguidance says, without the lines that it quotes."""
    text = " ".join(
        re.sub(
            r"\n +(\d+ )?\|.*|\n +\^$|<non-verbose/>|^at 1\(8\): |failed to compile JSON schema: ",
            "",
            matcher.get_error(),
        ).split()
    )
    if text.find("oneOf") >= 0:
        return "oneOf is taken only where no two of its schemas allow the same; anyOf has no such limit"
    return text[:400].rstrip(". ")

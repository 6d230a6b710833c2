"""The one face that everything above a model sees (`LM`), models that wear it, and `open`, which is `geode.load`.

How a file is read or a network computed is not known here, nor which family a model belongs to.
"""

from __future__ import annotations

import codecs
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import memory
from .config import Config
from .errors import (
    BackendError,
    CapacityError,
    ContextError,
    MissingExtra,
    OptionError,
    TensorError,
    TokenizerError,
)
from .generate import Executor, Options, Piece, Row, likelihood, stream
from .results import Result, Score, Stream, gather, options_of

if TYPE_CHECKING:
    from .chat import Template
    from .checkpoint import Checkpoint
    from .tokenizer import Tokenizer

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]


class LM(Protocol):
    """A language model, near or far. Options are the fields of `generate.Options`."""

    @property
    def config(self) -> Config: ...

    def stream(self, prompt: Prompt, **options: Any) -> Stream: ...

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Result | list[Result]: ...

    def score(self, context: str | Sequence[int], continuation: str | Sequence[int]) -> Score: ...

    def tokenize(self, text: str, bos: bool | None = None) -> list[int]: ...

    def detokenize(self, ids: Sequence[int]) -> str: ...


class Local:
    """A model in this process: an executor, and what turns text into ids and back.

    Without a tokenizer ids go in and come out and every `text` is "". `ends` are added to the tokenizer's own end
    tokens. A prompt is text (tokenised as the model's reference does, BOS included), a list of messages (through the
    chat template), or a list of ids. At most `batch` prompts run together. `own_template` False says that the template
    is its family's, which proves no tuning.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer | None = None,
        template: Template | None = None,
        ends: Iterable[int] = (),
        batch: int = 16,
        own_template: bool = True,
    ):
        self.executor = executor
        self.tokenizer = tokenizer
        self.template = template
        self.own_template = template is not None and own_template
        self.ends = frozenset(ends) | (frozenset(tokenizer.ends) if tokenizer else frozenset())
        self.batch = batch

    @property
    def config(self) -> Config:
        return self.executor.config

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.config.context

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """Pieces of the answer as they are made. Options: `generate.Options`; all is checked before this returns.

        Raises OptionError, ContextError, TokenizerError, ChatError.
        """
        row = self._row(self.ids_of(prompt), options_of(options))
        return Stream((piece for _, piece in stream(self.executor, [row])), row.usage)

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Result | list[Result]:
        """The whole answer; for a list of prompts a list of answers, each the same as if it were asked alone."""
        if not _is_many(prompt):
            return self.stream(prompt, **options).result()  # type: ignore[arg-type]
        asked = options_of(options)
        rows = [self._row(self.ids_of(one), asked) for one in prompt]  # type: ignore[arg-type]
        groups = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        return [result for group in groups for result in self._together(group)]

    def score(self, context: str | Sequence[int], continuation: str | Sequence[int]) -> Score:
        """The log-probability of `continuation` after `context`; both text or both ids.

        Of two texts, the continuation's tokens are those of the joined text after the context's own; spaces that end
        the context count to the continuation (as lm-evaluation-harness has it). An empty context means BOS.
        """
        ids, start = self.split(context, continuation)
        logprobs, greedy = likelihood(self.executor, ids, start, self.tokenizer.size if self.tokenizer else None)
        if np.isnan(logprobs).any():
            raise TensorError(
                "The model's logits are not numbers (NaN). Load with check=True to look for damaged weights."
            )
        return Score(float(np.sum(logprobs)), all(greedy), logprobs, ids[start:])

    def split(self, context: str | Sequence[int], continuation: str | Sequence[int]) -> tuple[list[int], int]:
        """The ids that `score` looks at, and where the continuation's begin. Raises OptionError, ContextError."""
        if not len(continuation):
            raise OptionError("Nothing can be scored: the continuation is empty.")
        if isinstance(context, str) and isinstance(continuation, str):
            ids, start = self._joined(context, continuation)
        elif isinstance(context, str) or isinstance(continuation, str):
            raise OptionError("score needs two texts or two lists of ids; one of each was given.")
        else:
            known = self._checked(context) or self._first()
            ids, start = known + self._checked(continuation), len(known)
        if not 0 < start < len(ids):
            raise OptionError(
                "Nothing can be scored: the context is empty and this model has no BOS token to stand for it. "
                "Give a context of at least one token."
            )
        self._check_length(len(ids))
        return ids, start

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Raw logits after every position: float32 (T, V), V = config.vocab with its padding rows.

        Raises OptionError for ids that the model does not have, ContextError for too many.
        """
        checked = self._checked(ids)
        if not checked:
            raise OptionError("logits needs at least one token id; an empty list was given.")
        self._check_length(len(checked))
        return np.concatenate(list(self.executor.rows(checked)))

    def rows(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        """The same after the positions start, start + 1 ..., in consecutive chunks (t, V): never T × V at once."""
        checked = self._checked(ids)
        if not 0 <= start < len(checked):
            raise OptionError(f"start must be the position of one of the {len(checked)} ids; {start} was given.")
        self._check_length(len(checked))
        return self.executor.rows(checked, start)

    def close(self) -> None:
        """Lets go of the weights at once, where the executor can; the model must not be used afterwards."""
        if close := getattr(self.executor, "close", None):
            close()

    def tokenize(self, text: str, bos: bool | None = None) -> list[int]:
        """Ids of a text as the model's reference tokenizer gives them; `bos` False leaves BOS out."""
        if not isinstance(text, str):
            raise OptionError(f"tokenize needs a text; {type(text).__name__} was given.")
        return list(self.tokenizer_to("turn text into ids").encode(text, bos=bos))

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.tokenizer_to("turn ids into text").decode(self._checked(ids))

    def ids_of(self, prompt: Prompt) -> list[int]:
        """A prompt's ids, as `stream` gives them to the network. Raises OptionError, TokenizerError, ChatError."""
        if isinstance(prompt, str):
            return self._open_ended(prompt)
        if _is_messages(prompt):
            return self._render(prompt)  # type: ignore[arg-type]
        return self._checked(prompt)

    def tokenizer_to(self, purpose: str) -> Tokenizer:
        """The tokenizer; where there is none, TokenizerError says what the model therefore cannot."""
        if self.tokenizer is None:
            raise TokenizerError(
                f"This model came without a tokenizer, so it cannot {purpose}. "
                "Give token ids instead, or load a checkpoint that holds its tokenizer."
            )
        return self.tokenizer

    def _row(self, ids: list[int], options: Options) -> Row:
        return Row(ids, options, self.context, self.ends, self.tokenizer)

    def _together(self, rows: Sequence[Row]) -> Iterator[Result]:
        pieces: list[list[Piece]] = [[] for _ in rows]
        for i, piece in stream(self.executor, rows):
            pieces[i].append(piece)
        return (gather(mine, row.usage) for mine, row in zip(pieces, rows, strict=True))

    def _render(self, messages: Sequence[Message]) -> list[int]:
        from .chat import needed

        self.tokenizer_to("turn a conversation into ids")
        template = needed(self.template)
        return list(template.tokens([dict(message) for message in messages], add_generation_prompt=True))

    def _checked(self, ids: Any) -> list[int]:
        array = _array(ids)
        if array.size == 0:
            return []
        if array.min() < 0 or array.max() >= self.config.vocab:
            bad = next(int(i) for i in array if not 0 <= i < self.config.vocab)
            raise OptionError(f"Token ids of this model are 0 to {self.config.vocab - 1}; {bad} was given.")
        found: list[int] = array.tolist()
        return found

    def _check_length(self, count: int) -> None:
        if count > self.context:
            raise ContextError(f"{count} tokens were given and the model's context holds {self.context}. Give fewer.")

    def _open_ended(self, text: str) -> list[int]:
        """Ids of a text that goes on: BOS as the reference has it, never an EOS."""
        tokenizer = self.tokenizer_to("turn text into ids")
        return tokenizer.encode(text, bos=tokenizer.adds_bos)

    def _first(self) -> list[int]:
        """What stands for an empty context."""
        bos = self.tokenizer.bos if self.tokenizer else None
        return [] if bos is None else [bos]

    def _joined(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Ids of two texts as one, and where the continuation's begin."""
        kept = context.rstrip()
        joined = context + continuation
        if not kept:
            return self._first() + self.tokenize(joined, bos=False), len(self._first())
        ids = self._open_ended(joined)
        return ids, min(len(self._open_ended(kept)), len(ids) - 1)  # a merge over the seam leaves the merged token


def _is_many(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], str | Sequence | np.ndarray)


def _is_messages(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _array(ids: Any) -> np.ndarray:
    """Ids as integers (T,), whatever list they came in."""
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of different lengths
        array = np.empty((0, 0))
    if array.shape == (0,):
        return array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        shown = repr(ids) if len(repr(ids)) <= 80 else f"{repr(ids)[:77]}..."
        raise OptionError(
            f"Expected a text, a list of messages (each with role and content) or a list of integer token ids; "
            f"got {shown}."
        )
    return array


class Fake(Local):
    """A model that says what it is told, for tests of everything above one. Its tokens are bytes of UTF-8.

    `answers` are given in turn, over and over, or computed from the prompt's text (a conversation reads
    "user: Hi\nassistant: "); without any the prompt is echoed. The scripted byte is all but certain at any temperature;
    `score` and `logits` see the same certainty, for the answer that would come next.
    """

    def __init__(self, answers: Sequence[str] | Callable[[str], str] | None = None, context: int = 4096):
        tokenizer: Any = _Bytes()
        template: Any = _Plain()
        super().__init__(_Script(answers or (lambda prompt: prompt), context), tokenizer, template)


class _Bytes:
    """The tokenizer of `Fake`: 256 bytes, a BOS and an end."""

    size, bos, adds_bos, ends = 258, 256, True, frozenset({257})
    control: Mapping[str, int] = {"<bos>": 256, "<end>": 257}

    def encode(self, text: str, bos: bool | None = None, special: bool = False) -> list[int]:
        return [self.bos] * (bos is not False) + list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else f"<{'bos' if token == self.bos else 'end'}>".encode()

    def stream(self) -> _ByteStream:
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token] if token < 256 else []))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Plain:
    """The chat template of `Fake`."""

    def tokens(self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Any = None) -> list[int]:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return _Bytes().encode("".join(lines) + "assistant: " * add_generation_prompt)


class _Script:
    """The executor of `Fake`: after a prompt its answer's bytes come one by one, then the end, whatever is fed back."""

    def __init__(self, answers: Sequence[str] | Callable[[str], str], context: int):
        self.config = Config(_Bytes.size, width=1, depth=1, heads=1, kv_heads=1, head_dim=1, ffn=1, context=context)
        self._answers = answers
        self._turn = 0

    def rows(self, ids: Sequence[int], start: int = 0) -> Iterator[np.ndarray]:
        script = self._script(ids[: start + 1], self._turn)
        yield np.stack([_certain(script, i) for i in range(len(ids) - start)])

    def prefill(self, prompts: Sequence[Sequence[int]], room: int, needs: Any = None) -> tuple[Any, np.ndarray]:
        scripts = [self._script(prompt, self._turn + i) for i, prompt in enumerate(prompts)]
        self._turn += len(prompts)
        return (scripts, 1), np.stack([_certain(script, 0) for script in scripts])

    def step(self, state: Any, tokens: Sequence[int], needs: Any = None) -> tuple[Any, np.ndarray]:
        scripts, position = state
        return (scripts, position + 1), np.stack([_certain(script, position) for script in scripts])

    def _script(self, prompt: Sequence[int], turn: int) -> bytes:
        if callable(self._answers):
            return self._answers(_Bytes().decode(prompt)).encode()
        return self._answers[turn % len(self._answers)].encode()


def _certain(script: bytes, position: int) -> np.ndarray:
    logits = np.full(_Bytes.size, -50, np.float32)
    logits[script[position] if position < len(script) else 257] = 0
    return logits


# In the order that "auto" tries on a machine without an accelerator.
BACKENDS = ("native", "torch", "jax", "tensorflow")
DTYPES = ("auto", "float32", "bfloat16")
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")  # NVIDIA, AMD, and Google's two kinds


def open(
    name_or_path: str | Path,
    on: str = "auto",
    dtype: str = "auto",
    *,
    adapter: str | Path | None = None,
    threads: int | None = None,
    kv_type: str | None = None,
    quantize: str | None = None,
    check: bool = False,
) -> Local:
    """Opens a model: a known name ("gemma3:270m"), hf:owner/repo, a .gguf file, a Hugging Face directory, or that of a
    LoRA adapter, which names its base model. The address of a server (http://127.0.0.1:8080/v1#name) gives a `Remote`,
    which wears the same face but has no `logits`; the options below are not its own.

    on       "native", "torch", "jax", "tensorflow", or "auto": the framework that this process or KERAS_BACKEND already
             uses; else an installed one where there is an accelerator; else native. One process has one framework.
    dtype    "float32", "bfloat16", or "auto", which leaves it to the executor: native keeps the file's own bits.
    adapter  a LoRA adapter for the model: a PEFT directory or a GGUF file, merged in while the weights load. Natively
             what it changes is kept in the file's type, or in Q8_0 where that has fewer bits.
    threads  of the CPU; None takes the physical cores, or the framework's default.
    kv_type  what native keeps keys and values in: "float32", "float16", "bfloat16", "q8_0"; None chooses.
    quantize natively packs float weights while they load: "q8_0", "q4_0", "q4_k_m" ...; a framework keeps all
             matrices as integers, "int8" or "int4", whatever the file has them in.
    check    reads all weights first and raises TensorError where any is not a finite number.

    Raises ModelNotFound, FormatError, ConfigError, TensorError, BackendError; CapacityError before any weight is read.
    """
    if str(name_or_path).startswith(("http://", "https://")):
        from .remote import Remote

        asked = {"adapter": adapter, "threads": threads, "kv_type": kv_type, "quantize": quantize}
        given = [*(["on"] * (on != "auto")), *(name for name, value in asked.items() if value)]
        return _far(Remote, str(name_or_path), given)  # type: ignore[no-any-return]
    backend = _backend(on)
    _check_dtype(dtype)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise OptionError(f"threads must be an integer, 1 or more, or None; {threads!r} was given.")
    _check_storage(backend, kv_type, quantize)
    from . import checkpoint
    from .io import hub

    beside = None if adapter is None else hub.resolve(adapter)
    kept = backend == "native" and dtype == "auto" and quantize is None
    found = checkpoint.open(hub.resolve(name_or_path), beside, exact=not kept)
    _check_memory(found, dtype, backend, quantize)
    text = (found.tokenizer, _template(found), found.ends)  # what is damaged here should be told before weights load
    if check:
        _check_finite(found)
    executor: Executor
    if backend == "native":
        from .native import executor as native

        executor = native.open(found.config, found.tensors, dtype, threads, kv_type or "auto", quantize)
    else:
        from .network import executor as network

        executor = network.open(
            found.config, found.tensors, on=backend, dtype=dtype, threads=threads, quantize=quantize
        )
    return Local(executor, *text, own_template=found.template is not None)


def _far(make: Any, url: str, given: Sequence[str]) -> Any:
    """A model on a server, whose loading is the server's business."""
    if given:
        raise OptionError(f"{url} is a server's address; {', '.join(given)} are for models that are loaded here.")
    return make(url)


def _backend(on: str) -> str:
    by = ""
    if on == "auto":
        on, by = _choose()
    if on not in BACKENDS:
        raise BackendError(
            f"Geode runs on {', '.join(BACKENDS)}, or on='auto' to choose among them; {on!r} was asked for{by}."
        )
    if on == "native":
        return on  # its own error tells where it was not built
    for package in (on, "keras"):
        if not _installed(package):
            raise MissingExtra(package, on, f"Running a model on {on}")
    return on


def _choose() -> tuple[str, str]:
    """What "auto" stands for here, and by whose word."""
    if (active := _active()) is not None:
        return active, " (by KERAS_BACKEND or the Keras that is already imported)"
    from .native import extension

    frameworks = [name for name in BACKENDS if name != "native" and _installed(name) and _installed("keras")]
    if extension.is_there() and not (frameworks and accelerated()):
        return "native", ""
    if not frameworks:
        raise MissingExtra("torch", "torch", "Running a model without the native engine")
    return frameworks[0], ""


def accelerated() -> bool:
    """Whether this machine has a device that a framework would use; asks the system, not the frameworks."""
    return any(Path(path).exists() for path in ACCELERATORS)


def _active() -> str | None:
    """The backend that this process is bound to, if any; Keras is asked only where somebody imported it."""
    keras = sys.modules.get("keras")
    if keras is not None:
        return str(keras.config.backend())
    return os.environ.get("KERAS_BACKEND") or None


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _check_dtype(dtype: str) -> None:
    if dtype == "float16":
        raise BackendError(
            "float16 is not offered: activations of Gemma and its like exceed its largest number, 65504, and turn into "
            "infinities. Use dtype='bfloat16', which takes as little memory, or 'float32'."
        )
    if dtype not in DTYPES:
        raise BackendError(f"dtype must be one of {', '.join(DTYPES)}; {dtype!r} was given.")


def _check_storage(backend: str, kv_type: str | None, quantize: str | None) -> None:
    from .integers import KINDS

    if backend == "native":
        if quantize in KINDS:
            like = {"int8": "q8_0", "int4": "q4_0"}[str(quantize)]
            raise OptionError(f"{quantize} is what the frameworks keep; natively {like!r} is its like. Ask for that.")
        return
    if kv_type is not None:
        raise OptionError(f"kv_type is the native engine's; this model runs on {backend}. Leave it out.")
    if quantize not in (None, *KINDS):
        raise OptionError(
            f"quantize={quantize!r} is no storage of {backend}'s: there matrices can be kept as {' or '.join(KINDS)}. "
            "Ask for one of them, or load with on='native'."
        )


def _check_finite(found: Checkpoint) -> None:
    from .quant import find_nonfinite

    bad = list(find_nonfinite(found.tensors))
    if bad:
        shown = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        raise TensorError(
            f"{len(bad)} tensors hold numbers that are not finite (NaN or infinite): {shown}. "
            "The file is damaged or was written by a run that diverged; get it again from its source."
        )


def _template(found: Checkpoint) -> Template | None:
    """The checkpoint's own template, else its family's."""
    if found.tokenizer is None or not (found.template or found.chat):
        return None
    from . import chat

    if found.template:
        return chat.Template(found.template, found.tokenizer)
    return chat.Template(chat.builtin(str(found.chat)), found.tokenizer, check=False)


CHAT_LENGTH = 4096  # tokens of keys and values that any use will soon hold


def _check_memory(found: Checkpoint, dtype: str, backend: str, quantize: str | None) -> None:
    free = memory.available()
    keeps = backend == "native" and dtype == "auto" and quantize is None
    if backend == "native" and quantize is not None:
        return  # its size is known only when it is packed, and far below the file's
    need = memory_needed(found.config, dtype, stored=found.stored.nbytes if keeps else None, quantize=quantize)
    if free is not None and need > free:
        hint = "dtype='bfloat16', which takes half, or a smaller model"
        if keeps:
            hint = "a smaller model, or one in fewer bits (--quantize q4_0 for float weights)"
        elif dtype == "bfloat16" or quantize is not None:
            hint = "a smaller model" if quantize == "int4" else "quantize='int4', or a smaller model"
        raise CapacityError(
            f"This model needs about {need / 2**30:.1f} GiB of memory (weights, and keys and values of "
            f"{min(found.config.context, CHAT_LENGTH)} tokens), and {free / 2**30:.1f} GiB are free. Try {hint}, "
            "or free some memory."
        )


def memory_needed(
    config: Config,
    dtype: str = "auto",
    tokens: int = CHAT_LENGTH,
    stored: int | None = None,
    quantize: str | None = None,
) -> int:
    """Bytes of the weights and of one sequence's keys and values; "auto" counts as float32, which it is on a CPU.

    `stored`: bytes of weights that stay as the file has them. `quantize`: what a framework keeps matrices in.
    """
    from .integers import weight_bytes
    from .tensors import parameters

    itemsize = 2 if dtype == "bfloat16" or stored is not None else 4
    weights = parameters(config) * itemsize if quantize is None else weight_bytes(config, quantize, itemsize)
    return (weights if stored is None else stored) + config.kv_bytes(min(config.context, tokens), itemsize)

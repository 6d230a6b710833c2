"""`geode run`: one prompt in, one answer out.

How the answer comes about is not known here.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter
from typing import Any

from ..errors import OptionError
from . import options, screen

RAW_TOKENS = 256  # a pretrained model seldom ends by itself


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "run",
        help="answer or continue one prompt",
        description="Continues a text, or answers it where the checkpoint brings a chat template. The text goes to "
        f"stdout, the speed to stderr. Raw text ends after {RAW_TOKENS} tokens unless --max-tokens says otherwise.",
    )
    options.add_model(parser)
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="the text; `-`, or no word at all, stands for what stdin holds"
    )
    parser.add_argument("--ids", type=_ids, metavar="2,818,...", help="token ids as the prompt, instead of a text")
    parser.add_argument("--system", metavar="TEXT", help="a system message; implies --chat")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--chat", action="store_true", help="as a conversation (default where there is a template)")
    shape.add_argument("--raw", action="store_true", help="as plain text to be continued (default where there is none)")
    options.add_sampling(parser)
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="show each token's log-probability and N alternatives"
    )
    parser.add_argument("--quiet", action="store_true", help="do not show the speed")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")


def main(args: argparse.Namespace) -> None:
    given = args.ids if args.ids is not None else _text(args.prompt)
    begun = perf_counter()
    lm = options.load(args)
    loaded = perf_counter() - begun
    chat = not isinstance(given, list) and _is_chat(args, lm)
    asked = options.sampling(args) | {"logprobs": args.logprobs}
    if asked["max_tokens"] is None and not chat:
        asked["max_tokens"] = RAW_TOKENS
    stream = lm.stream(_messages(args.system, given) if chat else given, **asked)
    if args.json:
        return screen.dump(_document(args.model, stream.result(), loaded))
    _show(stream, lm, args.logprobs is not None)
    if not args.quiet:
        screen.note(speed(stream.usage, loaded))
        if stream.finish_reason == "length":
            screen.note(f"Stopped after {stream.usage.completion_tokens} tokens; --max-tokens sets how many may come.")


def speed(usage: Any, loaded: float | None = None) -> str:
    """One line for people: tokens, tokens per second, seconds to load."""
    parts = [
        f"prompt {usage.prompt_tokens} tokens, {usage.prompt_speed:.1f} tokens/s",
        f"answer {usage.completion_tokens} tokens, {usage.speed:.1f} tokens/s",
    ]
    return " · ".join(parts + ([] if loaded is None else [f"loaded in {loaded:.2f} s"]))


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None


def _text(words: list[str]) -> str:
    """The words of the command line, stdin in the place of `-`."""
    if not words and sys.stdin.isatty():
        raise OptionError(
            'There is no prompt. Write it after the model, in quotes: geode run MODEL "Once upon a time".'
        )
    pieces = [_stdin() if word == "-" else word for word in words or ["-"]]
    text = " ".join(pieces)
    if not text.strip():
        raise OptionError("The prompt is empty. Write it after the model, in quotes, or send it through stdin.")
    return text


def _stdin() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise OptionError(
            "What came through stdin is not UTF-8 text. Convert it first, for instance with iconv."
        ) from None


def _is_chat(args: argparse.Namespace, lm: Any) -> bool:
    if args.raw and args.system is not None:
        raise OptionError("--system belongs to a conversation and --raw is none. Leave one of them out.")
    if args.raw or args.chat or args.system is not None:
        return not args.raw
    return bool(lm.own_template)


def _messages(system: str | None, text: Any) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def _show(stream: Any, lm: Any, logprobs: bool) -> None:
    """The pieces as they come; ids where the model has no tokenizer, a line for each token where numbers are wanted."""
    for piece in stream:
        if logprobs:
            screen.write(_row(piece, lm) + "\n" if piece.logprob is not None else "")  # a server's last word has none
        elif lm.tokenizer is None:
            screen.write(f"{piece.token} ")
        else:
            screen.write(piece.text)
    screen.write("" if logprobs else "\n")


def _row(piece: Any, lm: Any) -> str:
    """`" Paris"  -0.2581    " Paris" -0.2581  " the" -2.7407`"""
    others = "  ".join(f"{_spell(token, lm)} {logprob:.4f}" for token, logprob in piece.top_logprobs)
    return f"{_spell(piece.token, lm):<16} {piece.logprob:9.4f}    {others}".rstrip()


def _spell(token: int, lm: Any) -> str:
    return str(token) if lm.tokenizer is None else repr(lm.detokenize([token]))


def _document(model: str, result: Any, loaded: float) -> dict[str, Any]:
    usage = result.usage
    document = {
        "model": model,
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
        "seconds": {"load": loaded, "prompt": usage.prompt_seconds, "completion": usage.completion_seconds},
        "tokens_per_second": {"prompt": usage.prompt_speed, "completion": usage.speed},
    }
    if result.logprobs is not None:
        document |= {"logprobs": result.logprobs, "top_logprobs": result.top_logprobs}
    return document

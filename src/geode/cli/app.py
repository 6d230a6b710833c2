"""The command `geode`: finds the verb, runs it, and turns what went wrong into one paragraph and an exit code.

What the verbs do is not known here. Exit codes: 0 done, 1 the work failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import GeodeError
from .screen import complain

VERBS = (
    "run",
    "chat",
    "serve",
    "pull",
    "list",
    "remove",
    "info",
    "convert",
    "merge",
    "tune",
    "verify",
    "imatrix",
    "perplexity",
    "bench",
    "doctor",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (sys.argv where None) and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a letter shows "?"
    try:
        args = _parse(words)
    except SystemExit as done:  # argparse has printed its help or its complaint
        return int(done.code or 0)
    try:
        code = int(args.main(args) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read us has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        complain("interrupted.")
        return 130
    except Exception as error:
        return _failed(error, args.debug)


def _failed(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if isinstance(error, GeodeError):
        complain(str(error))
        return error.exit_code
    hint = "" if debug else " Run the same command with --debug to see where."
    complain(f"the work failed: {type(error).__name__}: {str(error).rstrip('.')}.{hint}")
    return 1


def _parse(words: list[str]) -> argparse.Namespace:
    """Options may stand before, between and after a verb's words; argparse's subparsers alone would not take that."""
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), None)
    if at is not None and (verb := words[at]) in VERBS:
        _, verbs = _parsers((verb,))  # the others are not even imported
        return verbs[verb].parse_intermixed_args(words[:at] + words[at + 1 :])
    parser, _ = _parsers(VERBS)
    if not words:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    return parser.parse_args(words)


def _parsers(names: Sequence[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="geode", description="Opens language models: run, tune, judge and ship them.")
    parser.add_argument("--version", action="version", version=f"geode {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", required=True)
    for name in names:
        module = import_module(f".{name}", __package__)
        module.add(verbs)
        verbs.choices[name].set_defaults(main=module.main)
        verbs.choices[name].add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, dict(verbs.choices)

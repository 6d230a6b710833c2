"""`geode imatrix`: which columns of a model's matrices count, learnt from a text, for `geode convert --quant`.

How that is measured is not known here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

from ..errors import OptionError
from . import options, screen
from .perplexity import read_text

SAVE_EVERY = 10  # chunks: what an interrupted run leaves


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "imatrix",
        help="learn from a text which weights count, for quantising",
        description="Runs a text through a model and keeps, for every matrix, how large each column of its input is. "
        "`geode convert --quant … --imatrix FILE` then spends its precision there, which the low-bit types gain most "
        "from; llama.cpp's llama-quantize reads the file, too. Some hundred chunks of text like what the model will "
        "meet are enough.",
    )
    options.add_model(parser)
    parser.add_argument("file", metavar="FILE", help="the text, in UTF-8; `-` stands for stdin")
    parser.add_argument("-o", "--output", metavar="FILE", default="imatrix.gguf", help="default imatrix.gguf")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a chunk (default 512)")
    parser.add_argument("--chunks", type=int, metavar="N", help="only the first N chunks")
    parser.add_argument("--head", action="store_true", help="collect for the head, too")


def main(args: argparse.Namespace) -> None:
    from .. import imatrix

    if args.on not in ("auto", "native"):
        raise OptionError(f"Importance matrices are collected by the native engine; --on {args.on} was given.")
    text = read_text(args.file)
    args.on = "native"
    lm = options.load(args)
    context = imatrix.CONTEXT if args.context is None else args.context
    begun = perf_counter()
    for found in imatrix.progress(lm, text, context, args.chunks, head=args.head):
        found.texts = [] if args.file == "-" else [Path(args.file).name]
        if found.chunks % SAVE_EVERY == 0:
            found.write(args.output)
        print(f"[{found.chunks}]", end="", flush=True)
    found.write(args.output)
    print(f"\n{args.output}: {len(found.sums)} matrices, {found.chunks} chunks, {perf_counter() - begun:.1f} s")
    screen.note(f"Use it: geode convert {args.model} DST --to gguf --quant q4_0 --imatrix {args.output}")

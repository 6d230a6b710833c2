"""`geode perplexity`: how well a model predicts a text, and how far it is from another one.

How that is measured is not known here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from . import options, screen

if TYPE_CHECKING:
    from ..perplexity import Divergence, Estimate, Mean


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "perplexity",
        help="measure how well a model predicts a text",
        description="Measures perplexity as llama.cpp's llama-perplexity does, with the same chunks, so that figures "
        "compare: the second half of every chunk is scored. Prints the running figure chunk by chunk. With "
        "--kl-divergence it compares the model with another one, whose logits were saved for the same text.",
    )
    options.add_model(parser)
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="the text, in UTF-8; `-` stands for stdin. Saved logits bring their own"
    )
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a chunk (default 512)")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="windows N tokens apart, the last N of each scored (--ppl-stride)"
    )
    parser.add_argument("--chunks", type=int, metavar="N", help="only the first N chunks")
    parser.add_argument("--save-logits", metavar="FILE", help="keep the logits, in llama.cpp's format")
    parser.add_argument("--exact", action="store_true", help="keep them in float32, twice the bytes, in Geode's format")
    parser.add_argument("--kl-divergence", metavar="FILE", help="compare with the logits that this file keeps")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")


def main(args: argparse.Namespace) -> None:
    _check(args)
    text = None if args.file is None else read_text(args.file)
    lm = options.load(args)
    begun, last, running = perf_counter(), None, []
    for estimate in _estimates(args, lm, text):
        last = estimate
        running.append(estimate.ppl.value)
        if not args.json:
            _show(estimate, perf_counter() - begun)
    assert last is not None  # a plan has one chunk at least
    if args.json:
        return screen.dump(_document(args, last, running, perf_counter() - begun))
    print("\n\n" + "\n".join(_page(last)))


def _check(args: argparse.Namespace) -> None:
    if args.file is None and args.kl_divergence is None:
        raise OptionError("There is no text. Name a file after the model, or `-` for what stdin holds.")
    if args.kl_divergence is not None and (args.stride, args.context, args.save_logits) != (None, None, None):
        raise OptionError(
            "--kl-divergence takes its chunks from the file of logits: leave out --context, --stride and --save-logits."
        )
    if args.exact and args.save_logits is None:
        raise OptionError("--exact says how logits are kept, and none are: add --save-logits FILE.")


def _estimates(args: argparse.Namespace, lm: Any, text: str | None) -> Iterator[Estimate]:
    from .. import perplexity

    if args.kl_divergence is not None:
        return perplexity.compare(lm, args.kl_divergence, text=text, chunks=args.chunks)
    context = perplexity.CONTEXT if args.context is None else args.context
    how = {"context": context, "stride": args.stride, "chunks": args.chunks}
    return perplexity.measure(lm, text or "", **how, save=args.save_logits, exact=args.exact)


def read_text(name: str) -> str:
    """The text as llama.cpp reads it: lines end as the file has them, but for one newline at the very end."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{'What came through stdin' if name == '-' else name} is not UTF-8 text (byte {error.start}). "
            "Convert it first, for instance with iconv."
        ) from None
    except OSError as error:
        raise OptionError(f"The text {name} cannot be read: {error.strerror}. Name a file that is there.") from None


def _show(estimate: Estimate, seconds: float) -> None:
    if estimate.done == 1:
        minutes = seconds * estimate.chunks / 60
        screen.note(f"{estimate.chunks} chunks, {seconds:.1f} s for the first, about {minutes:.1f} minutes in all.")
    print(f"[{estimate.done}]{estimate.ppl.value:.4f},", end="", flush=True)


def _page(last: Estimate) -> list[str]:
    from ..perplexity import Divergence

    lines = [f"Final estimate: PPL = {last.ppl.value:.4f} +/- {last.ppl.error:.5f}"]
    return lines + _divergence(last) if isinstance(last, Divergence) else lines


def _divergence(d: Divergence) -> list[str]:
    """The names and the order are llama.cpp's."""

    def row(name: str, mean: Mean, scale: float = 1, unit: str = "") -> str:
        return f"{name:<24}{scale * mean.value:>11.6f} ± {scale * mean.error:.6f}{unit}"

    quantiles = [
        f"{'Maximum' if share == 1 else 'Median' if share == 0.5 else f'{share:.1%}'} KLD".ljust(24) + f"{value:>11.6f}"
        for share, value in d.quantiles.items()
    ]
    return [
        "",
        row("Mean PPL(base)", d.base_ppl),
        row("Mean ln(PPL/PPL(base))", d.log_ratio),
        row("Mean PPL/PPL(base)", d.ratio),
        "",
        row("Mean KLD", d.mean_kld),
        *quantiles,
        "",
        row("Mean Δp", d.mean_dp, 100, " %"),
        row("RMS Δp", d.rms_dp, 100, " %"),
        row("Same top p", d.same_top, 100, " %"),
    ]


def _document(args: argparse.Namespace, last: Estimate, running: list[float], seconds: float) -> dict[str, Any]:
    from ..perplexity import Divergence

    document = {
        "model": args.model,
        "chunks": last.done,
        "scored": len(last.nll),
        "perplexity": last.ppl._asdict(),
        "running": running,
        "seconds": seconds,
    }
    if isinstance(last, Divergence):
        names = ("base_ppl", "log_ratio", "ratio", "mean_kld", "mean_dp", "rms_dp", "same_top")
        document["divergence"] = {name: getattr(last, name)._asdict() for name in names} | {
            "quantiles": {f"{share:g}": value for share, value in last.quantiles.items()}
        }
    return document

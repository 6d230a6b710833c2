"""`geode convert`: any checkpoint into any format, with proof that nothing changed on the way.

How formats are read and written is not known here.
"""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, Any

from ..io.progress import size
from . import screen

if TYPE_CHECKING:
    from ..conversion import Result


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "convert",
        help="convert a model into another format, and prove the result",
        description="Reads a checkpoint of any format that Geode knows and writes it in another. The result is read "
        "back and compared with the source, tensor by tensor and by the logits of built-in prompts; only then it gets "
        "its name. A manifest beside it says what it was made from. An adapter is written merged into its base model, "
        "or with --to peft and --to lora as what it is, a PEFT directory or a file for llama.cpp's --lora.",
    )
    parser.add_argument("source", metavar="SRC", help="a model's name, hf:owner/repo, a file or a directory")
    parser.add_argument("target", metavar="DST", help="the file (NAME.gguf, NAME.ckpt …) or directory to write")
    parser.add_argument("--to", metavar="FORMAT", help="the format's name; without it DST's suffix tells, else hf")
    parser.add_argument("--formats", action=_Formats, nargs=0, help="list the formats and exit")
    parser.add_argument("--base", metavar="MODEL", help="SRC is an adapter, and MODEL what it is for")
    add_weights(parser)
    add_how(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """What becomes of the weights."""
    group = parser.add_argument_group("weights")
    group.add_argument("--quant", metavar="TYPE", help="gguf: pack them: q8_0, q6_k, q5_k_m, q4_k_m, q4_0, q2_k …")
    group.add_argument("--imatrix", metavar="FILE", help="an importance matrix for --quant, from `geode imatrix`")
    group.add_argument("--dtype", metavar="TYPE", help="float32, bfloat16 or float16; without it each keeps its own")
    group.add_argument("--max-shard-size", metavar="SIZE", help="hf, gguf: cut into files of at most 5GB, 500MB …")
    group.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="trtllm: split over N ranks")
    group.add_argument("--unscanned", action="store_true", help="maxtext: one entry a layer instead of stacked ones")
    group.add_argument("--text-only", action="store_true", help="leaving out a vision tower is meant")


def add_how(parser: argparse.ArgumentParser) -> None:
    """How the work is done, and what it may do."""
    group = parser.add_argument_group("how")
    group.add_argument("--no-verify", action="store_true", help="do not read the result back and compare")
    group.add_argument("--allow-loss", action="store_true", help="go on where something would be lost")
    group.add_argument("--force", action="store_true", help="replace what is at DST")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group.add_argument("--json", action="store_true", help="the result as JSON")


class _Formats(argparse.Action):
    """Prints what `--to` takes."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .. import formats

        for one in formats.every():
            print(f"{one.name:<14}{one.about}{'' if one.write else ' (read only)'}")
        parser.exit()


def main(args: argparse.Namespace) -> None:
    from ..conversion import convert

    signal.signal(signal.SIGTERM, interrupt)
    result = convert(
        args.source,
        args.target,
        args.to,
        quant=args.quant,
        dtype=args.dtype,
        imatrix=args.imatrix,
        max_shard_size=args.max_shard_size,
        tensor_parallel=args.tensor_parallel,
        scanned=not args.unscanned,
        text_only=args.text_only,
        base=args.base,
        threads=args.threads,
        check=not args.no_verify,
        allow_loss=args.allow_loss,
        force=args.force,
        quiet=args.quiet,
    )
    show(result, args.json)


def interrupt(*_: object) -> None:
    """A polite kill is an interruption: what was begun is removed."""
    raise KeyboardInterrupt


def show(result: Result, as_json: bool) -> None:
    """What was made, and how far it is from its source."""
    if as_json:
        report = result.report.summary() if result.report else None
        return screen.dump(
            {
                "path": str(result.path),
                "format": result.format,
                "bytes": result.nbytes,
                "seconds": result.seconds,
                "losses": list(result.losses),
                "verification": report,
            }
        )
    for loss in result.losses:
        print(f"Lost: {loss}")
    print(f"Wrote {result.path} ({result.format}, {size(result.nbytes)}) in {result.seconds:.1f} s.")
    if result.report is not None:
        from .verify import page

        print("\n".join(page(result.report)))

"""`geode merge`: one model made of others: adapters merged in or taken out, models mixed, vocabularies changed.

What each method computes is not known here, nor how formats are written.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from . import screen
from .convert import add_how, add_weights, interrupt, show

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..merge import Extracted, Made

METHODS = ("linear", "slerp", "ties", "dare")
WAYS = """\
geode merge BASE DST --adapter DIR[:WEIGHT] …            adapters merged into their base model
geode merge BASE TUNED DST --extract --rank 16           an adapter that turns BASE into TUNED, nearly
geode merge DST --method linear --model A:0.7 --model B:0.3
geode merge DST --method slerp --model A --model B --t 0.4
geode merge DST --method ties --base BASE --model A --model B:0.5 --density 0.3     (dare likewise)
geode merge MODEL DST --add-token "<|tool|>"             tokens added; --trim-vocab N leaves the last ones out
"""


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "merge",
        help="merge adapters, extract them, mix models, change a vocabulary",
        description="Makes one model of others, tensor by tensor, and writes it in any format.\n\n" + WAYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="what goes in, as above, and DST as the last")
    parser.add_argument(
        "--to", metavar="FORMAT", help="the format's name (an adapter's: peft, gguf); else DST's suffix"
    )
    parser.add_argument("--adapter", action="append", metavar="DIR[:W]", help="a PEFT directory or GGUF adapter")
    parser.add_argument("--extract", action="store_true", help="write an adapter, the difference of two models")
    parser.add_argument("--rank", type=int, default=16, metavar="N", help="of the adapter extracted (default 16)")
    _add_mixing(parser)
    _add_words(parser)
    add_weights(parser)
    add_how(parser)


def _add_mixing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("mixing models of one shape")
    group.add_argument("--method", choices=METHODS, help="how")
    group.add_argument("--model", action="append", metavar="MODEL[:W]", help="one of them, and its weight (default 1)")
    group.add_argument("--base", metavar="MODEL", help="ties, dare: the model that all were tuned from")
    group.add_argument("--t", type=float, default=0.5, help="slerp: how far from the first model to the second")
    group.add_argument("--density", type=float, default=0.5, help="ties, dare: share of each change that is kept")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="dare: the same seed drops the same numbers")
    group.add_argument("--elect", action="store_true", help="dare: elect signs as ties does")


def _add_words(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vocabulary")
    group.add_argument("--add-token", action="append", metavar="TEXT", help="add a control token")
    group.add_argument("--add-word", action="append", metavar="TEXT", help="add a token that is found in any text")
    group.add_argument("--trim-vocab", metavar="N", help="keep the first N rows; `tokens` keeps those of the tokenizer")
    group.add_argument("--pad-vocab", type=int, metavar="N", help="make the number of rows a multiple of N")


def main(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, interrupt)
    work = _way(args)
    *sources, target = args.paths
    work(args, sources, Path(target))


Work = Callable[[argparse.Namespace, Sequence[str], Path], None]


def _way(args: argparse.Namespace) -> Work:
    """The one thing that is asked for, with as many paths as it takes."""
    words = args.add_token or args.add_word or args.trim_vocab or args.pad_vocab
    ways: dict[str, tuple[Any, Work, str]] = {
        "--adapter": (args.adapter, _adapters, "BASE DST"),
        "--extract": (args.extract, _extract, "BASE TUNED DST"),
        "--method": (args.method, _mix, "DST"),
        "--add-token, --add-word, --trim-vocab, --pad-vocab": (words, _words, "MODEL DST"),
    }
    asked = [flag for flag, (given, _, _) in ways.items() if given]
    if len(asked) != 1:
        got = " and ".join(asked) or "none of them"
        raise OptionError(f"Say one of {'; '.join(ways)}. Got {got}. Ways to merge:\n{WAYS}")
    _, work, paths = ways[asked[0]]
    if len(args.paths) != len(paths.split()):
        raise OptionError(f"{asked[0]} takes the paths {paths}; {len(args.paths)} were given: {' '.join(args.paths)}.")
    return work


def _adapters(args: argparse.Namespace, sources: Sequence[str], target: Path) -> None:
    from .. import adapters, merge

    base = _open(sources[0])
    given = [(adapters.open(path, base), weight) for path, weight in map(_weighted, args.adapter)]
    _write(args, merge.adapters(base, given), target, {"base": sources[0], "adapters": args.adapter})


def _mix(args: argparse.Namespace, sources: Sequence[str], target: Path) -> None:
    from .. import merge

    names = [_weighted(word) for word in args.model or []]
    models, weights = [_open(name) for name, _ in names], [weight for _, weight in names]
    if args.method == "slerp" and len(models) != 2:
        raise OptionError(f"slerp lies between two models; {len(models)} were given. Say --model A --model B.")
    if (args.base is not None) != (args.method in ("ties", "dare")):
        raise OptionError("ties and dare mix changes from --base MODEL; linear and slerp have no base.")
    ways: dict[str, Callable[[], Made]] = {
        "linear": lambda: merge.linear(models, weights),
        "slerp": lambda: merge.slerp(models[0], models[1], args.t),
        "ties": lambda: merge.ties(_open(args.base), models, weights, args.density),
        "dare": lambda: merge.dare(_open(args.base), models, weights, args.density, args.seed, elect=args.elect),
    }
    options = {key: getattr(args, key) for key in ("method", "model", "base", "t", "density", "seed", "elect")}
    _write(args, ways[args.method](), target, options)


def _words(args: argparse.Namespace, sources: Sequence[str], target: Path) -> None:
    from .. import merge

    if args.add_token and args.add_word:
        raise OptionError("Add control tokens (--add-token) or words (--add-word) in one go, not both.")
    base, keep = _open(sources[0]), None
    if args.trim_vocab is not None:
        tokens = base.tokenizer.size if base.tokenizer and args.trim_vocab == "tokens" else None
        if tokens is None and not args.trim_vocab.isdigit():
            raise OptionError(f"--trim-vocab is a number of rows, or `tokens` with a tokenizer; got {args.trim_vocab}.")
        keep = int(args.trim_vocab) if tokens is None else tokens
    new = args.add_token or args.add_word or []
    multiple = 1 if args.pad_vocab is None else args.pad_vocab
    made = merge.vocabulary(base, new, control=not args.add_word, keep=keep, multiple=multiple)
    _write(args, made, target, {"model": sources[0], "added": new, "kept": keep, "multiple": multiple})


def _extract(args: argparse.Namespace, sources: Sequence[str], target: Path) -> None:
    from .. import adapters, merge

    found = merge.extract(_open(sources[0]), _open(sources[1]), args.rank)
    to = adapters.write(found.adapter, target, args.to, force=args.force)
    if args.json:
        return screen.dump({"path": str(target), "format": to, "residuals": dict(found.residuals)})
    print(f"Wrote {target} ({to}, {found.adapter.parameters / 1e6:,.2f} million numbers).")
    print(_told(found))


def _told(found: Extracted) -> str:
    adapter, left = found.adapter, found.residuals
    whole = f" {len(adapter.replaced)} norms and biases are kept whole." if len(adapter.replaced) else ""
    if not left:
        return f"No matrix differs.{whole}"
    worst = max(left, key=lambda name: left[name])
    mean = sum(left.values()) / len(left)
    return (
        f"{len(left)} matrices differ. Pairs of rank {adapter.rank} leave out {mean:.1%} of a difference on average, "
        f"{left[worst]:.1%} of {worst}.{whole}"
    )


def _open(name: str) -> Checkpoint:
    from .. import checkpoint
    from ..io import hub

    return checkpoint.open(hub.resolve(name))


def _weighted(word: str) -> tuple[str, float]:
    """ "NAME:0.5" as name and weight; a colon that no number follows belongs to the name."""
    name, colon, weight = word.rpartition(":")
    if not colon or Path(word).exists():
        return word, 1.0
    try:
        return name, float(weight)
    except ValueError:
        return word, 1.0


def _write(args: argparse.Namespace, made: Made, target: Path, notes: dict[str, Any]) -> None:
    from ..conversion import asked, write

    given = (args.quant, args.dtype, args.imatrix, args.max_shard_size, args.tensor_parallel, not args.unscanned)
    result = write(
        made,
        target,
        args.to,
        asked(*given, args.threads),
        check=not args.no_verify,
        allow_loss=args.allow_loss,
        force=args.force,
        quiet=args.quiet,
        text_only=args.text_only,
        notes={"merged": notes},
    )
    show(result, args.json)
    if not args.json:
        print("\n".join(made.report()))

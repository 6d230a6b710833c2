"""`geode verify`: whether two checkpoints are the same model, and where they part.

What is compared, and how, is not known here.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from . import screen

if TYPE_CHECKING:
    from ..verify import LogitDifference, Report

SHOWN = 8  # tensors


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "verify",
        help="compare two checkpoints: config, tokenizer, tensors, logits",
        description="Compares two checkpoints of any formats: the configurations, the tokens of built-in texts, every "
        "tensor, and the logits of built-in prompts, with the block where the first difference arises. Exit code 0: "
        "the same, but for the rounding of their types; 1: not.",
    )
    parser.add_argument("a", metavar="A", help="a model's name, a file or a directory: the one that is right")
    parser.add_argument("b", metavar="B", help="the one to compare with it")
    parser.add_argument("--layers", action="store_true", help="show the error after every block")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--no-logits", action="store_true", help="do not run the networks")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    from .. import checkpoint, verify
    from ..io import hub

    a, b = (checkpoint.open(hub.resolve(name)) for name in (args.a, args.b))
    report = verify.compare(a, b, logits=not args.no_logits, threads=args.threads)
    if args.json:
        screen.dump(_document(report))
    else:
        print("\n".join(page(report, args.tensors, args.layers)))
    return 0 if report.ok else 1


def page(report: Report, tensors: bool = False, layers: bool = False) -> list[str]:
    """The report for people, the verdict last."""
    lines = [*report.config, *report.tokenizer]
    lines += _tensors(report, tensors)
    if report.logits is not None:
        lines += _logits(report.logits, layers)
    return [*lines, *report.notes, _verdict(report)]


def _tensors(report: Report, every: bool) -> list[str]:
    if not report.tensors:
        return []
    equal = sum(one.equal for one in report.tensors)
    worst = sorted(report.tensors, key=lambda one: -one.error)
    lines = [f"Tensors: {equal} of {len(report.tensors)} are equal to the last bit."]
    shown = report.tensors if every else [one for one in worst[:SHOWN] if not one.equal]
    rows = [
        (one.name, " -> ".join(dict.fromkeys(one.types)), f"{one.error:.3g}", f"{one.largest:.3g}") for one in shown
    ]
    if rows:
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines.append(f"  {'tensor'.ljust(widths[0])}  {'types'.ljust(widths[1])}  relative error  largest")
        lines += [f"  {n.ljust(widths[0])}  {t.ljust(widths[1])}  {e:>14}  {m:>7}" for n, t, e, m in rows]
    return lines


def _logits(found: LogitDifference, layers: bool) -> list[str]:
    lines = [
        f"Logits of {found.prompts} prompts, {found.tokens} tokens: largest difference {found.largest:.3g}, "
        f"KL divergence {found.divergence:.3g}, same first choice {found.same_top:.1%}."
    ]
    if found.first:
        lines.append(f"The first difference arises in {found.first}.")
    if layers:
        names = ["the embedding", *(f"block {i}" for i in range(len(found.layers) - 1))]
        lines += [f"  after {name}: {error:.3g}" for name, error in zip(names, found.layers, strict=True)]
    return lines


def _verdict(report: Report) -> str:
    if report.equal:
        return "The same model, to the last bit of every number."
    if report.ok:
        return "The same model, but for the rounding of the types."
    return "Not the same model."


def _document(report: Report) -> dict[str, Any]:
    tensors = [
        {"name": one.name, "types": one.types, "relative_error": one.error, "largest": one.largest, "ok": one.ok}
        for one in report.tensors
    ]
    found = report.summary() | {"every_tensor": tensors}
    return found | ({"layers": list(report.logits.layers)} if report.logits else {})

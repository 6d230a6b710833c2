"""`geode remove`: deletes models that were pulled.

Files that Geode did not bring are not its to delete.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import screen


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "remove",
        help="delete a pulled model",
        description="Deletes models that were pulled, or what an interrupted pull left. Never touches files of yours.",
    )
    parser.add_argument("model", nargs="+", metavar="MODEL", help="a name, as `geode list` shows it")


def main(args: argparse.Namespace) -> None:
    from ..io import hub
    from ..io.progress import size

    for name in args.model:
        screen.note(f"Removed {name}; {size(hub.remove(name))} are free again.")

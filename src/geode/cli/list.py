"""`geode list`: the models on this disk, and those a name would bring.

What is in them is not known here.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import screen


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "list",
        help="show the models that are here",
        description="Shows the models that were pulled, and where they lie.",
    )
    parser.add_argument("--all", action="store_true", help="also the names that could be pulled")
    parser.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> None:
    rows = _rows(args.all)
    if args.json:
        return screen.dump(rows)
    if not rows:
        return screen.note("No model is here yet. `geode list --all` shows names; `geode pull NAME` brings one.")
    from ..io.progress import size

    lines = [(row["name"], size(row["size"]), row["type"], row["path"] or "(not pulled)") for row in rows]
    print(screen.table([("name", "size", "type", "path"), *lines], right=[1]))


def _rows(everything: bool) -> list[dict[str, Any]]:
    from ..io import catalogue, hub

    rows: list[dict[str, Any]] = [
        {"name": model.name, "size": model.size, "type": model.kind, "path": str(model.path)}
        for model in hub.installed()
    ]
    here = {row["name"] for row in rows}
    for row in catalogue.PACKAGED:
        folder = hub.packaged(row.name)
        if folder is not None and (everything or row.base in here):
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            rows.append({"name": row.name, "size": size, "type": f"adapter of {row.base}", "path": str(folder)})
    if everything:
        rows += [
            {"name": item.name, "size": item.size, "type": "gguf", "path": None}
            for item in catalogue.CATALOGUE
            if item.name not in here
        ]
    return rows

"""`geode info`: what a model is, told from its headers.

How it would answer is not known here, and no weight is read unless --check asks for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelNotFound, TensorError
from . import screen

if TYPE_CHECKING:
    from ..config import Config
    from ..merge import Adapted
    from ..tokenizer import Tokenizer

CONTEXTS = (2_048, 8_192, 32_768, 131_072)
TEMPLATE_LINES = 20


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "info",
        help="tell what a model is",
        description="Draws the architecture and tells parameters, bytes, memory, tokenizer, template and licence. "
        "Reads headers only, so it answers at once for files of any size.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name, a .gguf file or a directory")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument(
        "--template", action="store_true", help=f"show the chat template's first {TEMPLATE_LINES} lines"
    )
    parser.add_argument("--check", action="store_true", help="read all weights and report those that are not finite")
    parser.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> None:
    from ..io import catalogue, hub

    path = hub.find(args.model)
    if path is None:
        item = catalogue.find(args.model)
        document = _offer(item) if item else {"name": args.model}
        return screen.dump(document) if args.json else print(_offered(document))
    if (lone := _without_base(path)) is not None:
        return screen.dump(lone) if args.json else print(_needed(lone))
    document = facts(path, tensors=args.tensors or args.json, check=args.check)
    if args.json:
        screen.dump(document)
    else:
        print(_page(document, args))
    if document.get("not_finite"):
        raise TensorError(_broken(document["not_finite"]))


def facts(path: Path, tensors: bool = False, check: bool = False) -> dict[str, Any]:
    """Everything that `info` tells, for machines. Raises FormatError, ConfigError, TensorError."""
    from .. import checkpoint
    from ..io import hub
    from ..merge import Adapted
    from ..quant import find_nonfinite
    from ..tensors import parameters
    from . import draw

    opened = checkpoint.open(path)
    config, licence = opened.config, hub.licence(opened.path)
    entries = opened.stored.entries
    document = {
        "path": str(path),
        "format": opened.format,
        "family": opened.family.name,
        "parameters": parameters(config),
        "bytes": opened.stored.nbytes,
        "types": _types(entries.values()),
        "config": dataclasses.asdict(config),
        "drawing": draw.network(config),
        "memory": _memory(config, opened.stored.nbytes),
        "tokenizer": _tokenizer(opened.tokenizer),
        "template": opened.template,
        "licence": dataclasses.asdict(licence) if licence else None,
    }
    if isinstance(opened, Adapted):
        document |= {"format": opened.sources[0].format, "adapter": _adapter(opened)}
    if tensors:
        document["tensors"] = [
            {"name": name, "shape": list(entry.shape), "type": entry.type, "bytes": entry.nbytes}
            for name, entry in entries.items()
        ]
    if check:
        document["not_finite"] = find_nonfinite(opened.stored)
    return document


def _adapter(opened: Adapted) -> dict[str, Any]:
    """What was added to the base model."""
    given = opened.adapter
    return {
        "base": str(opened.path),
        "rank": given.rank,
        "matrices": len(given.pairs),
        "whole": len(given.replaced),
        "parameters": given.parameters,
    }


def _without_base(path: Path) -> dict[str, Any] | None:
    """What can be told of an adapter whose base model would have to be fetched first; None of all else."""
    from .. import adapters

    if not path.is_dir() or not adapters.claims(path):
        return None
    name = adapters.base_name(path)
    try:
        adapters.base_of(path, fetch=False)
    except ModelNotFound:
        return {"path": str(path), "adapter": {"base": name}, "bytes": (path / adapters.WEIGHTS).stat().st_size}
    return None


def _needed(document: dict[str, Any]) -> str:
    name = document["adapter"]["base"]
    return f"{document['path']} is an adapter for {name}, which is not here yet. `geode pull {name}` brings it."


def _types(entries: Any) -> dict[str, dict[str, int]]:
    """Tensors and bytes of each type, most bytes first."""
    found: dict[str, dict[str, int]] = {}
    for entry in entries:
        row = found.setdefault(entry.type, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += entry.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _memory(config: Config, stored: int) -> list[dict[str, int]]:
    """Bytes at some context lengths: of keys and values in 16 bits, and of all with the weights in three forms."""
    from ..lm import memory_needed

    return [
        {
            "context": tokens,
            "kv": config.kv_bytes(tokens),
            "as_stored": stored + config.kv_bytes(tokens),
            "bfloat16": memory_needed(config, "bfloat16", tokens),
            "float32": memory_needed(config, "float32", tokens),
        }
        for tokens in sorted({*(length for length in CONTEXTS if length < config.context), config.context})
    ]


def _tokenizer(tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    return None if tokenizer is None else {"kind": type(tokenizer).__name__, "size": tokenizer.size}


def _broken(names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{len(names)} tensors hold numbers that are not finite: {shown}. Fetch or convert the model again."


def _page(facts: dict[str, Any], args: argparse.Namespace) -> str:
    parts = [_head(facts), facts["drawing"], _type_table(facts["types"]), _memory_table(facts["memory"]), _text(facts)]
    if args.template:
        parts.append("\n".join((facts["template"] or "(no template)").splitlines()[:TEMPLATE_LINES]))
    if args.tensors:
        parts.append(_tensor_table(facts["tensors"]))
    if args.check and not facts["not_finite"]:
        parts.append("All weights are finite numbers.")
    return "\n\n".join(parts)


def _head(facts: dict[str, Any]) -> str:
    from ..io.progress import size

    head = (
        f"{facts['path']}\n{facts['family']}, {facts['parameters'] / 1e6:,.1f} million parameters, "
        f"{size(facts['bytes'])} of weights, {facts['format']}"
    )
    if (added := facts.get("adapter")) is None:
        return head
    return (
        f"{head}\nan adapter of rank {added['rank']} on {added['matrices']} matrices, "
        f"{added['parameters'] / 1e6:,.1f} million parameters, merged into {added['base']}"
    )


def _type_table(types: dict[str, dict[str, int]]) -> str:
    from ..io.progress import size

    rows = [(name, str(row["tensors"]), size(row["bytes"])) for name, row in types.items()]
    return screen.table([("type", "tensors", "bytes"), *rows], right=[1, 2])


def _memory_table(rows: list[dict[str, int]]) -> str:
    from ..io.progress import size

    head = ("memory at", "keys, values", "all, as stored", "in bfloat16", "in float32")
    lines = [
        (f"{row['context']:,} tokens", *(size(row[key]) for key in ("kv", "as_stored", "bfloat16", "float32")))
        for row in rows
    ]
    return screen.table([head, *lines], right=[0, 1, 2, 3, 4])


def _text(facts: dict[str, Any]) -> str:
    """Tokenizer, template, licence: a line each."""
    tokenizer, template, licence = facts["tokenizer"], facts["template"], facts["licence"]
    lines = [
        f"tokenizer  {tokenizer['kind']}, {tokenizer['size']:,} tokens" if tokenizer else "tokenizer  none",
        f"template   {f'{len(template)} characters' if template else 'none: continues text, does not chat'}",
        "licence    "
        + (f"{licence['name']}, {licence['url']}" if licence else "not known: ask where the file came from"),
    ]
    if licence:
        lines += [screen.paragraph(licence["notice"], sys.stdout), *licence["files"]]
    return "\n".join(lines)


def _tensor_table(tensors: list[dict[str, Any]]) -> str:
    from ..io.progress import size

    rows = [(t["name"], " × ".join(map(str, t["shape"])), t["type"], size(t["bytes"])) for t in tensors]
    return screen.table([("tensor", "shape", "type", "bytes"), *rows], right=[3])


def _offer(item: Any) -> dict[str, Any]:
    """What the catalogue knows of a model that is not here."""
    return {
        "name": item.name,
        "about": item.about,
        "path": None,
        "bytes": item.size,
        "download": item.download,
        "source": item.source,
        "licence": dataclasses.asdict(item.licence),
    }


def _offered(document: dict[str, Any]) -> str:
    from ..io.progress import size

    name = document["name"]
    if "about" not in document:
        return f"{name} is not here yet. `geode pull {name}` brings it."
    licence = document["licence"]
    return (
        f"{name}: {document['about']}\n"
        f"{size(document['bytes'])} on disk, {size(document['download'])} to download from the {document['source']}\n"
        f"licence {licence['name']}, {licence['url']}\n{licence['notice']}\n"
        f"It is not here yet. `geode pull {name}` brings it."
    )

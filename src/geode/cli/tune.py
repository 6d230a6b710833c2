"""`geode tune`: a model and data, or a recipe's file, into an adapter or a model that serves.

How a run goes is not known here.
"""

from __future__ import annotations

import argparse
import inspect
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, ModelNotFound, OptionError
from . import screen

if TYPE_CHECKING:
    from ..tune.recipe import Recipe

METHODS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "qlora": {"quantize": "int4"},
}


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "tune",
        help="fine-tune a model on your data",
        description="Tunes MODEL on DATA (JSONL, JSON, CSV, Parquet, Arrow, text; files, directories or hf:owner/name) "
        "and writes an adapter, or with --method full a model, that serves as it is: geode run DIR. What the rows are "
        "is recognised and shown first. A run that was stopped goes on where it was, with the same bits, by the same "
        "command. In place of MODEL a recipe's file (.py or .json) describes a run completely.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name, hf:owner/repo, file or directory; or a recipe")
    parser.add_argument("places", metavar="DATA", nargs="*", help="what to learn from")
    parser.add_argument("--out", metavar="DIR", help="the run's directory: the result, its log, its checkpoints")
    parser.add_argument("--data", metavar="DIR", help="what a recipe's file is given as its data")
    parser.add_argument("--valid", metavar="DATA", action="append", default=[], help="measure on this; repeatable")
    parser.add_argument("--method", choices=[*METHODS, "full"], help="what is trained (lora)")
    parser.add_argument("--on", choices=["auto", "jax", "torch", "tensorflow"], help="the framework (auto)")
    parser.add_argument("--long", choices=["drop", "split", "error"], help="documents longer than a row (drop)")
    parser.add_argument("--set", metavar="A.B=C", action="append", default=[], help="a leaf of the recipe; repeatable")
    group = parser.add_argument_group("instead of a run")
    group.add_argument("--plan", action="store_true", help="memory and time that the run would take")
    group.add_argument("--preview", type=int, metavar="N", help="the first N documents, learnt tokens in colour")
    group.add_argument("--show", action="store_true", help="the recipe as JSON, every leaf that --set knows")
    group = parser.add_argument_group("how")
    group.add_argument("--force", action="store_true", help="replace what an earlier run left in --out")
    group.add_argument("--quiet", action="store_true", help="no progress")
    group.add_argument("--json", action="store_true", help="the result as JSON")


def main(args: argparse.Namespace) -> int:
    recipe = described(args)
    if args.show:
        from ..tune.recipe import to_dict

        screen.dump(to_dict(recipe))
        return 0
    if args.preview is not None:
        print(_preview(recipe, args.preview))
        return 0
    if args.plan:
        from ..tune.plan import plan_of

        plan = plan_of(recipe)
        screen.dump(plan.as_dict()) if args.json else print(plan.text())
        return 0
    if not args.out:
        raise OptionError("Name the directory that the run fills: --out DIR.")
    return _run(recipe, args)


def _run(recipe: Recipe, args: argparse.Namespace) -> int:
    from ..tune.run import tune
    from .tune_screen import Screen

    display = Screen(quiet=args.quiet)
    result = tune(recipe, args.out, listeners=[display], force=args.force, say=display.note)
    if args.json:
        values = {name: getattr(result, name) for name in ("reason", "steps", "loss", "best", "best_step")}
        screen.dump({"out": str(result.out), **values})
    elif result.reason == "interrupted":
        print(f"Stopped after step {result.steps}; the same command goes on from there.")
    else:
        print(f'Wrote {result.out}. Try it: geode run {result.out} "…"')
    return 130 if result.reason == "interrupted" else 0


# The recipe


def described(args: argparse.Namespace) -> Recipe:
    """The recipe that the command line means. Raises OptionError, ModelNotFound, FormatError."""
    from ..tune.recipe import Recipe, check, override

    if Path(args.model).suffix in (".py", ".json"):
        recipe = _from_file(Path(args.model), args)
    else:
        if args.data:
            raise OptionError("--data is what a recipe's file is given. Name data after the model: MODEL DATA.")
        recipe = Recipe(model=args.model)
    if args.places:
        recipe = replace(recipe, data=replace(recipe.data, train=tuple(args.places)))
    if args.valid:
        recipe = replace(recipe, data=replace(recipe.data, valid=tuple(args.valid)))
    if args.long:
        recipe = replace(recipe, data=replace(recipe.data, long=args.long))
    if args.on:
        recipe = replace(recipe, run=replace(recipe.run, on=args.on))
    recipe = override(_with_method(recipe, args.method), args.set)
    check(recipe)
    return recipe


def _with_method(recipe: Recipe, name: str | None) -> Recipe:
    from ..tune.recipe import Full, Lora

    if name is None:
        return recipe
    if name == "full":
        return replace(recipe, method=recipe.method if isinstance(recipe.method, Full) else Full())
    before = recipe.method if isinstance(recipe.method, Lora) else Lora()
    return replace(recipe, method=replace(before, **METHODS[name]))  # type: ignore[arg-type]


def _from_file(path: Path, args: argparse.Namespace) -> Recipe:
    from ..tune.recipe import Recipe, from_dict

    if not path.is_file():
        raise ModelNotFound(f"There is no recipe {path}: expected a .py file with a function recipe, or a .json file.")
    if path.suffix == ".json":
        try:
            return from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as problem:
            raise FormatError(f"{path} is not valid JSON ({problem}). `geode tune … --show` writes one.") from None
    sys.path.insert(0, str(path.parent))
    try:
        made = runpy.run_path(str(path)).get("recipe")
    finally:
        sys.path.remove(str(path.parent))
    if not callable(made):
        raise FormatError(f"{path} has no function recipe, which should give a geode.tune.recipe.Recipe.")
    wants_data = "data" in inspect.signature(made).parameters
    if wants_data and not args.data:
        raise OptionError(f"{path} needs data: say --data DIR.")
    if args.data and not wants_data:
        raise OptionError(
            f"The function recipe in {path} takes no data. Leave --data out, or name data after {path.name}."
        )
    recipe = made(data=Path(args.data)) if wants_data else made()
    if not isinstance(recipe, Recipe):
        raise FormatError(f"The function recipe in {path} gave a {type(recipe).__name__}, and no Recipe.")
    return recipe


def _preview(recipe: Recipe, count: int) -> str:
    from .. import checkpoint
    from ..io import hub
    from ..tune import corpus, preview

    found = checkpoint.open(hub.resolve(recipe.model))
    template, tokenizer = corpus.words(recipe, found)
    texts = corpus.gather(recipe, tokenizer, template)
    shown = preview.of_documents(texts.train.items, tokenizer, count, colour=sys.stdout.isatty())
    return f"{texts.text()}\n\n{shown}"

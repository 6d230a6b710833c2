"""README.md of an output directory: what was tuned, on what, how, and what came out; and the NOTICE that goes with it.

How the weights beside it are written is not known here, and no figure is made here: all come from the run's events.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .. import __version__
from ..io import plain_yaml
from ..io.catalogue import Licence
from ..io.progress import clock_time
from .curve import NAME as PICTURE
from .events import Evaluation, Event, Finished, Sample, Started, Step
from .recipe import Lora, Recipe, to_dict

__all__ = ["NAME", "DataFile", "Facts", "Table", "card", "notice", "shared", "write"]

NAME = "README.md"
HUB_ID = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)")
# What the Hub calls the licences it knows and we meet; any other is "other" with its name and link.
# huggingface.co/docs/hub/repositories-licenses
HUB_LICENCES = {
    **{name: name for name in "apache-2.0 mit gemma llama2 llama3 llama3.1 llama3.2 cc-by-4.0 cc-by-sa-4.0".split()},
    "gemma terms of use": "gemma",
    "apache license 2.0": "apache-2.0",
}


@dataclass(frozen=True)
class DataFile:
    """One file, or a set on the Hub, that examples came from."""

    name: str
    sha256: str = ""
    examples: int = 0
    use: str = "training"  # or "validation"
    licence: str = ""


@dataclass(frozen=True)
class Table:
    """Further figures: a heading, the names of the columns, rows of cells, and a remark below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""


@dataclass(frozen=True)
class Facts:
    """What a card tells beside the events of its run."""

    recipe: Recipe
    base: str = ""  # the base model's id on the Hub, where it has one that `recipe.model` is not
    title: str = ""
    about: str = ""  # a paragraph below the title
    licence: Licence | None = None  # of the base model, which the tuned weights come under
    terms: Sequence[Path] = ()  # licence files beside the base model, which are passed on
    data: Sequence[DataFile] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # "examples dropped, too long": 12
    tables: Sequence[Table] = ()


def write(folder: Path, facts: Facts, events: Iterable[Event]) -> None:
    """Writes README.md, and where there is a licence NOTICE and the terms' own files. Raises OSError."""
    _replace(folder / NAME, card(facts, events, picture=(folder / PICTURE).exists()))
    if facts.licence is None:
        return
    for file in [*map(Path, facts.licence.files), *facts.terms]:
        if file.is_absolute() and file.is_file() and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    text, place = notice(facts, facts.licence), folder / "NOTICE"
    there = place.read_text(encoding="utf-8") if place.exists() else ""
    if text not in there:  # one that came with the base model stays, ours follows it
        _replace(place, f"{there.rstrip()}\n\n{text}" if there else text)


def card(facts: Facts, events: Iterable[Event], picture: bool = True) -> str:
    """The text of README.md: YAML front matter as the Hub reads it, then Markdown."""
    events = list(events)
    sections = [
        f"---\n{plain_yaml.dumps(_front(facts))}---\n",
        f"# {facts.title or f'{_base(facts)}, tuned'}\n",
        f"{facts.about}\n" if facts.about else "",
        _what(facts, events),
        _licence(facts),
        _use(facts),
        _results(facts, events, picture),
        _data(facts),
        _recipe(facts),
        _samples(events),
        f"Written by Geode {__version__}. Everything about this run is in geode.json and log.jsonl.\n",
    ]
    return "\n".join(filter(None, sections))


def notice(facts: Facts, licence: Licence) -> str:
    """The text of NOTICE: the base model's terms, and that these weights are changed ones."""
    return f"{licence.notice}\n{licence.url}\n\nThe weights here were modified: {_base(facts)} was fine-tuned.\n"


# The front matter


def _front(facts: Facts) -> dict[str, Any]:
    """Only ids that the Hub can have: it refuses a card whose base_model or datasets are none."""
    lora = isinstance(facts.recipe.method, Lora)
    values: dict[str, Any] = {}
    if base := HUB_ID.fullmatch(_base(facts)):
        values["base_model"] = base[1]
    values["library_name"] = "peft" if lora else "transformers"
    values |= _licence_words(facts.licence) if facts.licence else {}
    if sets := _sets(facts.recipe):
        values["datasets"] = sets
    values["pipeline_tag"] = "text-generation"
    values["tags"] = ["geode", facts.recipe.objective.name, *_method_words(facts.recipe)]
    return values


def _licence_words(licence: Licence) -> dict[str, str]:
    known = HUB_LICENCES.get(licence.name.lower())
    return (
        {"license": known} if known else {"license": "other", "license_name": licence.name, "license_link": licence.url}
    )


def _sets(recipe: Recipe) -> list[str]:
    """The data sets on the Hub: `hf:owner/name/config:split` without what follows the name."""
    found = [re.match(r"hf:([\w.-]+/[\w.-]+)", place) for place in (*recipe.data.train, *recipe.data.valid)]
    return list(dict.fromkeys(one[1] for one in found if one))


def _method_words(recipe: Recipe) -> list[str]:
    method = recipe.method
    if not isinstance(method, Lora):
        return []
    return ["lora"] + ["dora"] * method.dora + ["rslora"] * method.rslora + ["qlora"] * (method.quantize is not None)


# Sections


def _what(facts: Facts, events: Sequence[Event]) -> str:
    started = next((event for event in reversed(events) if isinstance(event, Started)), None)
    finished = next((event for event in reversed(events) if isinstance(event, Finished)), None)
    lines = [f"- Base model: {_code(_base(facts))}", f"- Method: {_method(facts.recipe)}"]
    if started and started.trained:
        share = f" of {started.parameters:,} ({started.trained / started.parameters:.2%})" if started.parameters else ""
        lines.append(f"- Trained numbers: {started.trained:,}{share}")
    if started and started.backend:
        lines.append(f"- Made with: {started.backend}")
    if steps := _steps(events):
        learnt, spent = sum(step.learnt for step in steps), sum(step.seconds for step in steps)
        lines.append(f"- Steps: {steps[-1].step:,}, {learnt:,} tokens learnt, {clock_time(spent)} in steps")
    if finished:
        lines.append(f"- End: {ENDS[finished.reason]}{f' ({finished.message})' if finished.message else ''}")
    return "\n".join(lines) + "\n"


ENDS = {
    "done": "all steps done",
    "early": "stopped early, as the validation loss went down no more; the best weights are kept",
    "interrupted": "interrupted before all steps were done",
    "failed": "failed",
}


def _method(recipe: Recipe) -> str:
    method, objective = recipe.method, recipe.objective.name
    if not isinstance(method, Lora):
        return f"all tensors that match {', '.join(map(_code, method.targets))}, {objective}"
    names = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA", "qlora": f"base kept in {method.quantize}"}
    words = [names[word] for word in _method_words(recipe)]
    alpha = 2 * method.rank if method.alpha is None else method.alpha
    return f"{', '.join(words)}, rank {method.rank}, alpha {alpha:g}, {objective}"


def _licence(facts: Facts) -> str:
    if facts.licence is None:
        return ""
    told = f"{facts.licence.name}, <{facts.licence.url}>. {facts.licence.notice}"
    return f"## Licence\n\n{told}\n\nNOTICE, in this folder, goes with the weights wherever they go.\n"


def _use(facts: Facts) -> str:
    text = '## Use\n\nIn this folder:\n\n```\ngeode run . "..."\n```\n'
    if isinstance(facts.recipe.method, Lora):
        text += "\nThe adapter has PEFT's layout: `PeftModel.from_pretrained(base, folder)` reads it too.\n"
    return text


def _results(facts: Facts, events: Sequence[Event], picture: bool) -> str:
    parts = ["## Results\n"]
    if measured := _measured(events):
        best = min(measured, key=lambda one: one.loss)
        named = {"before": measured[0] if measured[0].step == 0 else None, "best": best}
        named |= {"last": measured[-1]} if measured[-1] is not best else {}
        extras = list(dict.fromkeys(name for one in measured for name in one.metrics))
        tokenwise = facts.recipe.objective.name == "sft"  # of other losses, e to their power means nothing
        parts.append(
            _table(
                ["validation", "step", "loss", "perplexity", "tokens", *extras],
                [[label, *_figures(one, extras, tokenwise)] for label, one in named.items() if one],
            )
        )
    else:
        parts.append("Nothing was validated.\n")
    parts += [f"![Loss over steps]({PICTURE})\n"] if picture else []
    for table in facts.tables:
        parts += [f"### {table.title}\n", _table(table.head, table.rows), f"{table.remark}\n" if table.remark else ""]
    return "\n".join(filter(None, parts))


def _figures(one: Evaluation, extras: Sequence[str], tokenwise: bool) -> list[str]:
    perplexity = f"{math.exp(min(one.loss, 99)):.4g}" if tokenwise else ""
    metrics = [f"{one.metrics[name]:.4g}" if name in one.metrics else "" for name in extras]
    return [f"{one.step:,}", f"{one.loss:.4f}", perplexity, f"{one.tokens:,}", *metrics]


def _data(facts: Facts) -> str:
    parts = ["## Data\n"]
    if facts.data:
        rows = [
            [_code(_public(file.name)), file.use, f"{file.examples:,}", file.licence, _code(file.sha256)]
            for file in facts.data
        ]
        parts.append(_table(["file", "for", "examples", "licence", "sha256"], rows))
    if facts.counts:
        parts.append("\n".join(f"- {name}: {count:,}" for name, count in facts.counts.items()) + "\n")
    return "\n".join(parts) if len(parts) > 1 else ""


def _recipe(facts: Facts) -> str:
    text = json.dumps(to_dict(shared(facts.recipe)), indent=2, ensure_ascii=False)
    return f"## Recipe\n\n{_fenced(text, 'json')}"


def _samples(events: Sequence[Event]) -> str:
    """The answers of the last evaluation that had some."""
    samples = [event for event in events if isinstance(event, Sample)]
    last = [sample for sample in samples if sample.step == samples[-1].step]
    latest = {sample.prompt: sample for sample in last}
    if not latest:
        return ""
    parts = [f"{_fenced(one.prompt)}\n{_fenced(one.text)}" for one in latest.values()]
    heading = f"## Samples\n\nUnedited, after step {last[0].step:,}; the prompt above, the answer below it.\n"
    return "\n".join([heading, "\n---\n\n".join(parts)])


# Words


def _base(facts: Facts) -> str:
    return facts.base or _public(facts.recipe.model)


def _public(text: str) -> str:
    """Of a path on somebody's machine, the last name only: the card may be published."""
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute() or text.startswith("~"):
            return path.name
    return text


def shared(recipe: Recipe) -> Recipe:
    """The recipe without the folders of this machine."""
    data, objective = recipe.data, recipe.objective
    return replace(
        recipe,
        model=_public(recipe.model),
        data=replace(
            data,
            train=tuple(map(_public, data.train)),
            valid=tuple(map(_public, data.valid)),
            template=data.template and _public(data.template),
        ),
        objective=replace(objective, teacher=objective.teacher and _public(objective.teacher)),
    )


def _steps(events: Iterable[Event]) -> list[Step]:
    """Of a step that a resumed run took again, the later one."""
    found = {event.step: event for event in events if isinstance(event, Step)}
    return [found[i] for i in sorted(found)]


def _measured(events: Iterable[Event]) -> list[Evaluation]:
    found = {event.step: event for event in events if isinstance(event, Evaluation) and math.isfinite(event.loss)}
    return [found[i] for i in sorted(found)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Without columns in which no row says anything."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [[head[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _fenced(text: str, language: str = "") -> str:
    """As it is, within a fence longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}\n"


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)

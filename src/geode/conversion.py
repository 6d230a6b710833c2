"""Any checkpoint into any format: written beside, read back, verified, and only then given its name.

How a format is written is `formats`'s business, what is compared afterwards `verify`'s. Nothing is left behind by work
that fails or is interrupted.
"""

from __future__ import annotations

import copy
import glob
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from . import artefact, formats, manifest, verify
from . import checkpoint as checkpoints
from .errors import ConversionError, LossError, OptionError
from .formats import Checkpoint, Format, Target
from .io.catalogue import GEMMA_TERMS, Licence
from .io.progress import Progress
from .merge import Adapted
from .tensors import Entry, Tensors

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "f32": "F32", "f16": "F16", "bf16": "BF16"}
TERMS = ("LICEN[SC]E*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Result:
    """What was made. `report` is None where verification was not wanted; `losses` were allowed."""

    path: Path
    format: str
    nbytes: int
    seconds: float  # of writing
    losses: tuple[str, ...]
    report: verify.Report | None


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    quant: str | None = None,
    dtype: str | None = None,
    imatrix: str | Path | None = None,
    max_shard_size: int | str | None = None,
    tensor_parallel: int = 1,
    scanned: bool = True,
    text_only: bool = False,
    base: str | Path | None = None,
    threads: int | None = None,
    check: bool = True,
    allow_loss: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> Result:
    """Converts a model: `source` is whatever `geode.load` takes, `to` a format's name (else `target`'s suffix tells).
    An adapter (PEFT, GGUF) is written merged into its base model, or as it is where `to` is "peft" or "lora".

    quant            GGUF: a mix or a block type, "q4_k_m", "q8_0"; `imatrix` is a file of `geode imatrix`
    dtype            "float32", "bfloat16" or "float16" for what stays float; None keeps each tensor's own
    max_shard_size   bytes, or "5GB"
    tensor_parallel  ranks that a TensorRT-LLM checkpoint is split over
    scanned          MaxText: layers stacked
    text_only        leaving out a vision tower is meant
    base             the model that an adapter is for, where its own files do not lead there
    check            reads the result back and compares it with the source: `verify.compare`
    allow_loss       goes on where something would be lost that nobody asked to give up
    force            replaces an artefact that is there

    Raises LossError, ConversionError where the result is not the source, and what opening a model raises.
    """
    from . import adapters
    from .io import hub

    source, target = hub.resolve(source), Path(target)
    wanted = asked(quant, dtype, imatrix, max_shard_size, tensor_parallel, scanned, threads)
    is_adapter = adapters.claims(source)
    if to in ADAPTERS:
        if not is_adapter:
            raise OptionError(f"{to} is a format of adapters, and {source} is none. `geode merge --extract` makes one.")
        return _adapter(source, target, to, wanted, base, force)
    how = {"check": check, "allow_loss": allow_loss, "force": force, "quiet": quiet, "text_only": text_only}
    opened = _merged(source, target, to, wanted, base) if is_adapter else checkpoints.open(source)
    return write(opened, target, to, wanted, **how, notes={"name": source.name})


def asked(
    quant: str | None = None,
    dtype: str | None = None,
    imatrix: str | Path | None = None,
    max_shard_size: int | str | None = None,
    tensor_parallel: int = 1,
    scanned: bool = True,
    threads: int | None = None,
) -> Target:
    """The options of `convert` that are about weights. Raises OptionError for names and sizes that mean nothing."""
    return Target(
        dtype=_dtype(dtype),
        quant=quant,
        imatrix=None if imatrix is None else Path(imatrix),
        max_shard_bytes=_bytes(max_shard_size),
        parallel=tensor_parallel,
        scanned=scanned,
        threads=threads,
    )


ADAPTERS = {"peft": "peft", "lora": "gguf"}
"""What an adapter is written as by itself: PEFT's directory, and the GGUF file that llama.cpp takes as --lora."""


def _merged(source: Path, target: Path, to: str | None, wanted: Target, base: str | Path | None) -> Checkpoint:
    """An adapter with its base model. Where nobody asks for other types, changed tensors are what `geode.load` has."""
    from .io import hub

    kept = _format(target, to).name == "gguf" and wanted.quant is None and wanted.dtype is None
    if base is None:
        return checkpoints.open(source, exact=not kept)
    return checkpoints.open(hub.resolve(base), source, exact=not kept)


def _adapter(source: Path, target: Path, to: str, wanted: Target, base: str | Path | None, force: bool) -> Result:
    """A low-rank adapter from one of its two formats into the other."""
    from . import adapters
    from .io import hub

    if wanted != Target():
        raise OptionError(f"{source} is an adapter, which is converted as it is: leave out options about weights.")
    begun = perf_counter()
    opened = None if base is None else checkpoints.open(hub.resolve(base))
    made = adapters.write(adapters.open(source, opened), target, ADAPTERS[to], force=force)
    files = [target] if target.is_file() else [file for file in target.rglob("*") if file.is_file()]
    return Result(target, made, sum(file.stat().st_size for file in files), perf_counter() - begun, (), None)


def write(
    checkpoint: Checkpoint,
    path: Path,
    to: str | None = None,
    target: Target | None = None,
    *,
    check: bool = True,
    allow_loss: bool = False,
    force: bool = False,
    quiet: bool = False,
    text_only: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> Result:
    """Writes an opened checkpoint, or one that is computed from others, as `convert` does.

    `notes` go into the manifest, under "source".
    """
    target = target or Target()
    chosen = _format(path, to)
    _check_options(chosen, target)
    losses = _losses(checkpoint, chosen, target, text_only)
    if losses and not allow_loss:
        raise LossError(
            f"Converting to {chosen.name} would lose something: {' '.join(losses)} Say --allow-loss "
            "(allow_loss=True) if that is meant."
        )
    for place in ([checkpoint.place] if isinstance(checkpoint, Adapted) else []) + [checkpoint.path]:
        artefact.check(path, place, bool(chosen.suffix), force)
    values = _about(checkpoint, chosen, target, losses)
    begun = perf_counter()
    with manifest.Sources(checkpoint.files()) as sources, artefact.workshop(path) as folder:
        with artefact.disk(path):
            made = _fill(checkpoint, folder, path.name, chosen, target, quiet)
            manifest.write(made, values)  # some formats say nothing of their network, and are read with it
        sources.check()
        seconds = perf_counter() - begun
        report = _verified(checkpoint, made, chosen, target) if check else None
        sources.check()
        values["source"] = {"format": checkpoint.format, "files": sources.listed(), **(notes or {})}
        values["verification"] = report.summary() if report else "not wanted"
        with artefact.disk(path):
            manifest.write(made, values)
            nbytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            artefact.publish(folder, path, bool(chosen.suffix))
    return Result(path, chosen.name, nbytes, seconds, tuple(losses), report)


# What is asked for


def _format(path: Path, to: str | None) -> Format:
    if to is not None:
        chosen = formats.by_name(to)
    else:
        suffixes = {one.suffix: one for one in formats.every() if one.suffix and one.write}
        chosen = suffixes.get(path.suffix, formats.by_name("hf"))
    if chosen.write is None:
        known = ", ".join(one.name for one in formats.every() if one.write)
        raise OptionError(f"{chosen.name} is a format that is read only. Those that can be written are {known}.")
    if chosen.suffix and path.suffix != chosen.suffix:
        raise OptionError(f"{chosen.name} is one file, NAME{chosen.suffix}; {path.name!r} was given. Name it so.")
    return chosen


def _check_options(chosen: Format, target: Target) -> None:
    plain = Target()
    for option in fields(Target):
        given = option.name in _SPELT and getattr(target, option.name) != getattr(plain, option.name)
        if given and option.name not in chosen.options:
            takers = ", ".join(one.name for one in formats.every() if option.name in one.options)
            raise OptionError(f"{chosen.name} has no use for {_SPELT[option.name]}; {takers or 'no format'} has.")
    if target.quant is not None and target.dtype is not None:
        raise OptionError("--quant says every tensor's type, and so does --dtype. Give one of them.")
    if target.imatrix is not None and target.quant is None:
        raise OptionError("An importance matrix serves --quant, which is not there. Add it, or leave --imatrix out.")
    if target.parallel < 1:
        raise OptionError(f"Tensors are split over 1 rank or more; {target.parallel} were asked for.")


_SPELT = {"dtype": "--dtype", "quant": "--quant", "imatrix": "--imatrix", "max_shard_bytes": "--max-shard-size"}
_SPELT |= {"parallel": "--tensor-parallel", "scanned": "--unscanned"}


def _dtype(name: str | None) -> str | None:
    if name is None:
        return None
    if name.lower() not in DTYPES:
        raise OptionError(f"--dtype is float32, bfloat16 or float16; {name!r} was given.")
    return DTYPES[name.lower()]


def _bytes(size: int | str | None) -> int | None:
    """5000000 or "5GB", "500MB", "2GiB" as a number of bytes."""
    if size is None or isinstance(size, int):
        return size
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", size.strip(), re.IGNORECASE)
    if not found:
        raise OptionError(f"A size is a number of bytes, or like 500MB, 5GB, 2GiB; {size!r} was given.")
    power = " KMGT".index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def _losses(checkpoint: Checkpoint, chosen: Format, target: Target, text_only: bool) -> list[str]:
    if (reason := chosen.refuses(checkpoint, target)) is not None:
        raise OptionError(
            f"This {checkpoint.family.name} model cannot be written as {chosen.name}: {reason.rstrip('.')}."
        )
    return ([] if text_only else checkpoint.left_out()) + chosen.losses(checkpoint, target)


# The work


def _fill(checkpoint: Checkpoint, folder: Path, name: str, chosen: Format, target: Target, quiet: bool) -> Path:
    """Writes the artefact's files into `folder`; returns the file or folder that opens it."""
    assert chosen.write is not None  # `_format` sees to it
    with Progress(f"Writing {chosen.name}", checkpoint.tensors.nbytes, quiet=quiet) as progress:
        chosen.write(_counted(checkpoint, progress), folder, name, target)
    if chosen.suffix:
        return _first_part(folder / name)
    for file in terms_of(checkpoint):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    licence = licence_of(checkpoint)
    if licence is not None and not (folder / "NOTICE").exists():
        (folder / "NOTICE").write_text(f"{licence.notice}\n{licence.url}\n", encoding="utf-8")
    return folder


def _first_part(path: Path) -> Path:
    if path.exists():
        return path
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}-00001-of-*{path.suffix}"))[0]


def _counted(checkpoint: Checkpoint, progress: Progress) -> Checkpoint:
    """The same checkpoint, whose tensors move the progress bar when they are first read."""
    seen: set[str] = set()

    def counted(name: str, entry: Entry) -> Entry:
        def load() -> Any:
            if name not in seen:
                seen.add(name)
                progress.add(entry.nbytes)
            return entry.load()

        return replace(entry, load=load)

    twin = copy.copy(checkpoint)
    twin.tensors = Tensors({name: counted(name, entry) for name, entry in checkpoint.tensors.entries.items()})
    return twin


def terms_of(checkpoint: Checkpoint) -> list[Path]:
    """Licence files beside the source."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return [file for pattern in TERMS for file in sorted(folder.glob(pattern)) if file.is_file()]


def licence_of(checkpoint: Checkpoint) -> Licence | None:
    """The terms that go with the weights: those they were pulled under, and Gemma's with every Gemma."""
    from .io import hub

    found = hub.licence(checkpoint.path)
    return found or (GEMMA_TERMS if checkpoint.family.gemma_terms else None)


def _verified(checkpoint: Checkpoint, made: Path, chosen: Format, target: Target) -> verify.Report:
    report = verify.compare(checkpoint, chosen.open(made), threads=target.threads)
    if not report.ok:
        raise ConversionError(
            f"What was written as {chosen.name} is not what was read, so it was thrown away: {_told(report)} "
            "Please report this with the model's name; --no-verify keeps the files."
        )
    return report


def _told(report: verify.Report) -> str:
    wrong = [f"{one.name} is off by {one.error:.2g} of its size." for one in report.wrong[:3]]
    return " ".join([*report.config, *report.tokenizer, *wrong]) or "its logits are not finite."


def _about(checkpoint: Checkpoint, chosen: Format, target: Target, losses: list[str]) -> dict[str, Any]:
    """What the manifest can say before anything is written."""
    licence, plain = licence_of(checkpoint), Target()
    given = {f.name: getattr(target, f.name) for f in fields(Target)}
    given = {name: value for name, value in given.items() if value != getattr(plain, name)}
    values: dict[str, Any] = {"format": chosen.name, "family": checkpoint.family.name}
    values["options"] = {name: value.name if isinstance(value, Path) else value for name, value in given.items()}
    values |= {"losses": losses} if losses else {}
    values |= {"licence": {"name": licence.name, "url": licence.url, "notice": licence.notice}} if licence else {}
    if checkpoint.family.spells(checkpoint.config):
        values["config"] = checkpoint.family.config_to_hf(checkpoint.config)
    return values

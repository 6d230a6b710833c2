"""The flags that verbs share: which model, on what, and how to sample.

What the values do is the model's business, and so is refusing bad ones.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Knob:
    """One sampling option: a flag of `run` and `chat`, and a name for /params. The defaults are llama.cpp's."""

    name: str
    kind: type
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


KNOBS = (
    Knob("max_tokens", int, None, "stop after so many tokens"),
    Knob("temperature", float, 0.8, "0 always takes the likeliest token (greedy)"),
    Knob("top_k", int, 40, "choose among the k likeliest tokens; 0 is off"),
    Knob("top_p", float, 0.95, "choose among the likeliest tokens that make up this probability; 1 is off"),
    Knob("min_p", float, 0.05, "drop tokens less likely than this share of the likeliest; 0 is off"),
    Knob("repetition_penalty", float, 1.0, "make tokens that are there already less likely; 1 is off"),
    Knob("presence_penalty", float, 0.0, "lower the logit of generated tokens once; 0 is off"),
    Knob("frequency_penalty", float, 0.0, "lower it with each time they were generated; 0 is off"),
    Knob("seed", int, None, "the same seed gives the same text"),
)


def add_model(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The model and how it is opened; with a `default` nobody has to name one."""
    told = "a name (geode list), hf:owner/repo, a .gguf file, a directory, or that of an adapter"
    if default is None:
        parser.add_argument("model", metavar="MODEL", help=told)
    else:
        parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{told} (default {default})")
    group = parser.add_argument_group("how the model is opened")
    group.add_argument("--adapter", metavar="DIR", help="a LoRA adapter for it: a PEFT directory or a GGUF file")
    group.add_argument("--on", default="auto", metavar="BACKEND", help="native, torch, jax, tensorflow or auto")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16 or auto")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument(
        "--kv-type", metavar="TYPE", help="what native keeps keys and values in: float32, float16, bfloat16, q8_0"
    )
    group.add_argument(
        "--quantize",
        metavar="TYPE",
        help="pack float weights while native loads them: q8_0, q4_0, q4_k_m; "
        "or keep all matrices as integers on a framework: int8, int4",
    )
    group.add_argument("--check", action="store_true", help="refuse weights that are not finite numbers")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen and where the text ends."""
    group = parser.add_argument_group("sampling", "The defaults are llama.cpp's. `--temperature 0` is repeatable.")
    for knob in KNOBS:
        shown = "" if knob.default is None else f" (default {knob.default})"
        group.add_argument(knob.flag, type=knob.kind, default=knob.default, metavar="N", help=knob.help + shown)
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given again")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling flags as options of `lm.stream`."""
    return {knob.name: getattr(args, knob.name) for knob in KNOBS} | {"stop": args.stop}


def load(args: argparse.Namespace) -> Any:
    """The model of the flags, opened."""
    from .. import lm

    return lm.open(
        args.model,
        on=args.on,
        dtype=args.dtype,
        adapter=args.adapter,
        threads=args.threads,
        kv_type=args.kv_type,
        quantize=args.quantize,
        check=args.check,
    )

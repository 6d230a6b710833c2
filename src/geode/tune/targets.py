"""Which tensors a method trains: patterns against the names that the network's tensors have, ours and Hugging Face's.

What training does with them is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..config import Config
from ..dialects import peft
from ..errors import OptionError
from ..families import Family
from ..tensors import shapes

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def matrices(config: Config, family: Family, patterns: Sequence[str], field: str = "method.targets") -> list[str]:
    """The matrices that any pattern means, in the network's order. Raises OptionError for a pattern that means none."""
    names = [name for name, shape in shapes(config).items() if len(shape) == 2 and "norm" not in name]
    return _chosen(config, family, names, patterns, field)


def tensors(config: Config, family: Family, patterns: Sequence[str], field: str) -> list[str]:
    """The tensors of any kind that any pattern means. Raises OptionError for a pattern that means none."""
    return _chosen(config, family, list(shapes(config)), patterns, field)


def _chosen(config: Config, family: Family, names: list[str], patterns: Sequence[str], field: str) -> list[str]:
    if not patterns:
        raise OptionError(f"{field} is empty, so nothing would be trained. Name matrices, such as blk.* or q_proj.")
    known = _spellings(config, family, names)
    found: set[str] = set()
    for pattern in patterns:
        meant = {name for name in names if any(fnmatchcase(spelling, pattern) for spelling in known[name])}
        if not meant:
            raise OptionError(f"{field}: {pattern!r} means no tensor of this model. {_advice(config, known, pattern)}")
        found |= meant
    return [name for name in names if name in found]


def _spellings(config: Config, family: Family, names: Sequence[str]) -> dict[str, list[str]]:
    """All that a tensor may be called: blk.0.attn_q.weight, blk.0.attn_q, attn_q, and Hugging Face's three likewise."""
    found = {name: _shorter(name) for name in names}
    for rule in peft.hf_rules(config, family):
        for ours in rule.ours:
            if ours in found:
                found[ours] += [spelling for theirs in rule.theirs for spelling in _shorter(theirs)]
    return found


def _shorter(name: str) -> list[str]:
    module = name.removesuffix(".weight")
    return [name, module, module.rsplit(".", 1)[-1]]


def _advice(config: Config, known: dict[str, list[str]], pattern: str) -> str:
    if config.tied and any(fnmatchcase(name, pattern) for name in ("output.weight", "output", "lm_head")):
        return "Its head is its embedding: name that, token_embd, and both change."
    short = dict.fromkeys(spellings[2] for spellings in known.values())
    theirs = dict.fromkeys(spellings[-1] for spellings in known.values() if len(spellings) > 3)
    also = f" (as Hugging Face has them: {', '.join(theirs)})" if theirs else ""
    return f"Its tensors are {', '.join(short)}{also}; blk.* means all in blocks."

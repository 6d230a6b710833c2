"""A base model and an adapter's files opened as one: weights merged, and what lies beside the adapter about text.

Where either comes from is not known here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .. import adapters
from ..adapters import Adapter
from ..formats import Checkpoint
from ..formats.base import beside_template, end_ids, read_json, tokenizer_files
from ..tensors import Entry
from . import added
from .computed import Made
from .words import FORMAT

if TYPE_CHECKING:
    from ..tokenizer import Roles, Tokenizer, Vocabulary

GENERATION = "generation_config.json"


@dataclass(kw_only=True)
class Adapted(Made):
    """The base, `sources[0]`, with the adapter at `place` merged in.

    A directory's own tokenizer, chat template and end tokens, which tuning may have changed, go before the base's.
    """

    adapter: Adapter
    place: Path

    def files(self) -> list[Path]:
        return super().files() + self._beside

    def left_out(self) -> list[str]:
        return super().left_out() + list(self.adapter.left_out)

    def tokenizer_files(self) -> list[Path]:
        """The base's, unless the words are a mixture of both."""
        return [] if self._has_words else super().tokenizer_files()

    @cached_property
    def _beside(self) -> list[Path]:
        if not self.place.is_dir():
            return [self.place]
        known = [self.place / name for name in (adapters.CONFIG, adapters.WEIGHTS, GENERATION)]
        return [file for file in known if file.is_file()] + tokenizer_files(self.place)

    @property
    def _has_words(self) -> bool:
        return self.place.is_dir() and bool((self.place / GENERATION).is_file() or tokenizer_files(self.place))

    def _tokenizer(self) -> Tokenizer | None:
        from .. import tokenizer

        found = (tokenizer.load(self.place) if self._has_words else None) or super()._tokenizer()
        if found is None or self._own_ends <= found.ends:
            return found
        twin = copy.copy(found)  # the base's own stays as it is
        twin.roles, twin.ends = self._with_ends(found.roles), found.ends | self._own_ends
        return twin

    def _vocabulary(self) -> Vocabulary | None:
        from .. import tokenizer

        found = (tokenizer.vocabulary(self.place) if self._has_words else None) or super()._vocabulary()
        return found and replace(found, roles=self._with_ends(found.roles))

    def _template(self) -> str | None:
        own = beside_template(self.place) if self._has_words else None
        return own or super()._template()

    def _ends(self) -> frozenset[int]:
        return self._own_ends or super()._ends()

    def _with_ends(self, roles: Roles) -> Roles:
        return replace(roles, ends=tuple(sorted({*roles.ends, *self._own_ends})))

    @cached_property
    def _own_ends(self) -> frozenset[int]:
        return end_ids(read_json(self.place / GENERATION)) if self._has_words else frozenset()


def adapted(base: Checkpoint, path: Path, types: Callable[[Entry], str] = added.roomy) -> Adapted:
    """The base with the adapter at `path`, a PEFT directory or a GGUF file; `types` is what changed tensors become.

    Reads the adapter, and of the base headers only. Raises as `adapters.open` and `added.adapters` do.
    """
    path = path.parent if path.name == adapters.CONFIG else path
    adapter = adapters.open(path, base)
    merged = added.adapters(base, [(adapter, 1.0)], types, measure=False)
    found = Adapted(**{f.name: getattr(merged, f.name) for f in fields(merged)}, adapter=adapter, place=path)
    return replace(found, format=FORMAT) if found._has_words else found

"""What writing a `Vocabulary` in a format leaves out: a sentence each, none for a faithful write.

What cannot be written at all is not said here: the writers raise TokenizerError for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import OptionError
from . import cuts, tiktoken
from .patterns import CUTS, Cut
from .spm import CONTROL, NORMAL, USER_DEFINED
from .vocabulary import Ranked, Scored, Vocabulary
from .write_files import unfit_for_sentencepiece
from .write_gguf import ends_of, unknown_ends


def losses(vocabulary: Vocabulary, form: str) -> list[str]:
    """What `form` ("gguf", "hf", "sentencepiece", "tiktoken", "llama2c") does not hold of a vocabulary.

    Raises OptionError for another form.
    """
    if form not in FORMS:
        raise OptionError(f"Tokenizers are written as {', '.join(FORMS)}; {form!r} is none of them.")
    return FORMS[form](vocabulary)


def _gguf(vocabulary: Vocabulary) -> list[str]:
    found = list(vocabulary.beyond)
    named = ends_of(vocabulary)
    missing = set(unknown_ends(vocabulary)) - {named.get("eot"), named.get("eom")}
    if missing:
        found.append(
            f"GGUF names two more ends of a turn besides EOS; {_texts(vocabulary, missing)} would not end one."
        )
    if isinstance(vocabulary, Ranked) and not vocabulary.pre and vocabulary.cut:
        found += _cut(vocabulary.cut, cuts.nearest_name(vocabulary.cut))
    return found


def _cut(cut: Cut, name: str | None) -> list[str]:
    if name is None or cuts.name_of(cut):
        return []
    named = CUTS[name]
    found = [f"GGUF has this way to cut words as {name!r} only, which "]
    if named.nfc != cut.nfc:
        found.append(f"{'makes' if named.nfc else 'does not make'} texts NFC first")
    if named.whole != cut.whole:
        found.append(f"{'takes' if named.whole else 'does not take'} words that are tokens whole")
    return [found[0] + " and ".join(found[1:]) + "."]


def _hf(vocabulary: Vocabulary) -> list[str]:
    if "tokenizer.json" in vocabulary.originals:
        return []
    found = list(vocabulary.beyond)
    spelt = set(vocabulary.pieces)
    if double := len(vocabulary.pieces) - len(spelt):
        found.append(f"{double} tokens share their text with another, and tokenizer.json gives each text one id.")
    return found + _scored(vocabulary) if isinstance(vocabulary, Scored) else found


def _scored(vocabulary: Scored) -> list[str]:
    """Where merges do not join as scores do."""
    found = []
    types = np.asarray(vocabulary.types)
    normal = np.flatnonzero(types == NORMAL).tolist()
    scores = np.asarray(vocabulary.scores)
    joined = [i for i in normal if len(vocabulary.pieces[i]) > 1]
    # Llama 2 gives its runs of spaces one score. A run comes out the same in whatever order its parts are joined.
    mixed = [i for i in joined if len(set(vocabulary.pieces[i])) > 1]
    if equal := len(mixed) - len(np.unique(scores[mixed])):
        found.append(f"{equal} tokens have the score of another, of which merges put one before the other.")
    letters = {vocabulary.pieces[i] for i in normal}
    if lost := [i for i in joined if not letters.issuperset(vocabulary.pieces[i])]:
        found.append(f"{len(lost)} tokens hold characters that are none themselves; merges do not make them.")
    symbols = vocabulary.of_types(USER_DEFINED)
    if vocabulary.prefix and symbols:
        found.append(
            f"A symbol that is a whole text, one of its {len(symbols)} user-defined ones, gets no space before it."
        )
    if problem := unfit_for_sentencepiece(vocabulary):
        found.append(f"No tokenizer.model is written, for SentencePiece would not load it: {problem}.")
    return found


def _sentencepiece(vocabulary: Vocabulary) -> list[str]:
    if not isinstance(vocabulary, Scored):
        return []
    roles = vocabulary.roles
    found = list(vocabulary.beyond)
    if not roles.adds_bos or roles.adds_eos:
        put = [name for name, adds in (("BOS", roles.adds_bos), ("EOS", roles.adds_eos)) if adds]
        found.append(f"A .model does not say what is put around a text, here {' and '.join(put) or 'nothing'}.")
    return found + _ends(vocabulary)


def _tiktoken(vocabulary: Vocabulary) -> list[str]:
    if not isinstance(vocabulary, Ranked):
        return []
    control = vocabulary.of_types(CONTROL)
    count = int((np.asarray(vocabulary.types) == NORMAL).sum())
    known = tiktoken.KNOWN.get(count)
    alike = known and vocabulary.cut and cuts.same(vocabulary.cut.patterns, (known[0],))
    found = list(vocabulary.beyond)
    if not alike or not known or known[1] != control:
        found.append(f"A tiktoken file holds ranks only: not how words are cut, nor the {len(control)} control tokens.")
    if added := vocabulary.of_types(USER_DEFINED):
        found.append(f"A tiktoken file holds no added tokens, and here are {len(added)}.")
    if vocabulary.cut and vocabulary.cut.nfc:
        found.append("A tiktoken file does not say that texts are made NFC first.")
    return found


def _llama2c(vocabulary: Vocabulary) -> list[str]:
    if not isinstance(vocabulary, Scored):
        return []
    found = list(vocabulary.beyond)
    if not vocabulary.prefix:
        found.append("llama2.c puts a space before every text, and this vocabulary has none there.")
    if not vocabulary.roles.adds_bos:
        found.append("llama2.c puts a BOS before every text, and this vocabulary has none there.")
    special = [i for i in vocabulary.of_types(CONTROL, USER_DEFINED).values() if i > 2]
    if special:
        found.append(
            f"llama2.c's tokenizer.bin has no control or added tokens, and {len(special)} become plain pieces."
        )
    return found + _ends(vocabulary)


def _ends(vocabulary: Vocabulary) -> list[str]:
    ends = unknown_ends(vocabulary)
    return [f"It does not say that {_texts(vocabulary, set(ends))} ends a turn."] if ends else []


def _texts(vocabulary: Vocabulary, tokens: set[int]) -> str:
    return ", ".join(repr(vocabulary.pieces[token]) for token in sorted(tokens))


FORMS: dict[str, Callable[[Vocabulary], list[str]]] = {
    "gguf": _gguf,
    "hf": _hf,
    "sentencepiece": _sentencepiece,
    "tiktoken": _tiktoken,
    "llama2c": _llama2c,
}

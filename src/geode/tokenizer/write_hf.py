"""A `Vocabulary` as the tokenizer files of a Hugging Face directory.

Nothing is written here: file names with their bytes are returned. What the parts of tokenizer.json do is defined by
github.com/huggingface/tokenizers; which of them stand for SentencePiece follows convert_slow_tokenizer.py in
github.com/huggingface/transformers.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from ..errors import TokenizerError
from . import cuts
from .merges import by_score
from .spm import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from .vocabulary import Ranked, Scored, Vocabulary
from .write_files import to_sentencepiece, unfit_for_sentencepiece

UNLIMITED = int(1e30)  # what transformers writes for a length that nobody set
CLASS = "PreTrainedTokenizerFast"  # takes tokenizer.json as it stands, where classes of a family build their own
SPACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
UNSPACED = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}


def to_hf(vocabulary: Vocabulary, template: str | None = None, context: int | None = None) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, and where they apply tokenizer.model and chat_template.jinja.

    `template` is the chat template, `context` how many tokens the model sees. Files that came from such a directory
    are given back as they were. Raises TokenizerError for what tokenizer.json cannot say.
    """
    chat = {"chat_template.jinja": template.encode()} if template else {}
    if "tokenizer.json" in vocabulary.originals:
        return _originals(vocabulary, template) | chat
    files = {
        "tokenizer.json": _bytes(_tokenizer_json(vocabulary)),
        "tokenizer_config.json": _bytes(_config(vocabulary, context), indent=2),
    }
    if isinstance(vocabulary, Scored) and not unfit_for_sentencepiece(vocabulary):
        files["tokenizer.model"] = to_sentencepiece(vocabulary)
    return files | chat


def _originals(vocabulary: Vocabulary, template: str | None) -> dict[str, bytes]:
    """The source's files, without what names code or a template that does not come along."""
    files = {name: path.read_bytes() for name, path in vocabulary.originals.items()}
    if "tokenizer_config.json" not in files:
        return files
    config = json.loads(files["tokenizer_config.json"])
    changed = dict(config)
    if changed.pop("auto_map", None):
        changed["tokenizer_class"] = CLASS
    if template and isinstance(changed.get("chat_template"), str):
        del changed["chat_template"]
    return files if changed == config else files | {"tokenizer_config.json": _bytes(changed, indent=2)}


def _bytes(data: Any, indent: int | None = None) -> bytes:
    try:
        return json.dumps(data, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError as problem:
        raise TokenizerError(
            f"A token holds bytes that are no UTF-8 ({problem}), and JSON cannot say them. Keep the format it is in."
        ) from None


# tokenizer.json


def _tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    parts = _spm_parts(vocabulary) if isinstance(vocabulary, Scored) else _byte_parts(vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        **parts,
    }


def _spm_parts(vocabulary: Scored) -> dict[str, Any]:
    decoders: list[dict[str, Any]] = [UNSPACED, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer: dict[str, Any] = SPACED
    if vocabulary.prefix:
        decoders = [*decoders, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        normalizer = {"type": "Sequence", "normalizers": [_prepended(vocabulary), SPACED]}
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": _template(vocabulary),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _spm_model(vocabulary),
    }


def _prepended(vocabulary: Scored) -> dict[str, Any]:
    """The step that puts a space before a text.

    SentencePiece puts it where a text begins, which is also after BOS and EOS, but not after tokens like [INST].
    Tokens that are "normalized" are looked for when this step is done, the others before, each then setting a text
    apart. So BOS and EOS are not, all others are; and the step leaves a text alone that begins with a control token.
    The library passes the added tokens' own texts through this step as well: symbols must come out as they are.
    """
    first = "|".join(re.escape(vocabulary.pieces[i]) for i in _going_on(vocabulary))
    whole = "|".join(map(re.escape, vocabulary.of_types(USER_DEFINED)))
    but = "|".join([*([first] if first else []), *([rf"(?:{whole})\z"] if whole else [])])
    if not but:
        return {"type": "Prepend", "prepend": SPACE}
    return {"type": "Replace", "pattern": {"Regex": rf"\A(?!{but})"}, "content": SPACE}


def _going_on(vocabulary: Scored) -> list[int]:
    """Control tokens after which a text goes on and does not begin anew."""
    roles = vocabulary.roles
    return sorted({*vocabulary.of_types(CONTROL).values()} - {roles.bos, roles.eos, roles.pad, roles.unk})


def _spm_model(vocabulary: Scored) -> dict[str, Any]:
    pieces, types = list(vocabulary.pieces), np.asarray(vocabulary.types)
    normal = np.flatnonzero(types == NORMAL)
    known = {pieces[i] for i in normal.tolist()}
    best = normal[np.argsort(-np.asarray(vocabulary.scores)[normal], kind="stable")]
    return _model(
        vocabulary,
        merges=by_score((pieces[i] for i in best.tolist()), known),
        unk_token=vocabulary.text(vocabulary.roles.unk),
        fuse_unk=True,
        byte_fallback=bool((types == BYTE).sum() == 256),
        ignore_merges=False,
    )


def _byte_parts(vocabulary: Vocabulary) -> dict[str, Any]:
    assert isinstance(vocabulary, Ranked)
    cut = vocabulary.cut
    if cut is None:
        raise TokenizerError(f"How this tokenizer cuts words is not known here. {' '.join(vocabulary.beyond)}".strip())
    merges = [tuple(each.split(" ", 1)) for each in vocabulary.merges]
    _check_merges(merges, vocabulary)
    model = _model(
        vocabulary, merges=merges, unk_token=None, fuse_unk=False, byte_fallback=False, ignore_merges=cut.whole
    )
    template = _template(vocabulary)
    plain = cuts.byte_level()
    return {
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": cuts.pre_tokenizer(cut),
        "post_processor": {"type": "Sequence", "processors": [plain, template]} if template else plain,
        "decoder": plain,
        "model": model,
    }


def _model(vocabulary: Vocabulary, merges: list[Any], **settings: Any) -> dict[str, Any]:
    """The model; added tokens at the vocabulary's end stand in `added_tokens` only, as in the files of most models."""
    types = np.asarray(vocabulary.types)
    own = np.flatnonzero(~np.isin(types, (CONTROL, UNKNOWN, USER_DEFINED)))
    vocab = {text: i for i, text in enumerate(vocabulary.pieces[: int(own[-1]) + 1 if len(own) else 0])}
    return {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        **settings,
        "vocab": vocab,
        "merges": merges,
    }


def _check_merges(merges: list[Any], vocabulary: Vocabulary) -> None:
    known = set(vocabulary.pieces)
    for pair in merges:
        if len(pair) != 2 or not known.issuperset((*pair, "".join(pair))):
            raise TokenizerError(
                f"Every merge joins two tokens into a third, and {' '.join(pair)!r} names one that the vocabulary does "
                "not have. The source is damaged: fetch or convert it again."
            )


def _added(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [{"id": token, **flags} for token, flags in _flags(vocabulary, CONTROL, UNKNOWN, USER_DEFINED).items()]


def _flags(vocabulary: Vocabulary, *kinds: int) -> dict[int, dict[str, Any]]:
    """The added tokens of these types by id, as the files describe them."""
    found = sorted(vocabulary.of_types(*kinds).values())
    late = _late(vocabulary) if isinstance(vocabulary, Scored) else set()
    return {
        token: {
            "content": vocabulary.pieces[token],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": token in late,
            "special": bool(vocabulary.types[token] != USER_DEFINED),
        }
        for token in found
    }


def _late(vocabulary: Scored) -> set[int]:
    """The "normalized" tokens, which are looked for after spaces have become ▁ and one was put before the text."""
    symbols = set(vocabulary.of_types(USER_DEFINED).values())
    return symbols.union(_going_on(vocabulary)) if vocabulary.prefix else symbols


def _template(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """The post-processor that puts BOS before and EOS after each text; None where neither is put."""
    roles = vocabulary.roles
    bos = roles.bos if roles.adds_bos else None
    eos = roles.eos if roles.adds_eos else None
    names = {vocabulary.pieces[token]: token for token in (bos, eos) if token is not None}

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": kind}}
        first, last = (
            [{"SpecialToken": {"id": vocabulary.pieces[token], "type_id": kind}}] if token is not None else []
            for token in (bos, eos)
        )
        return [*first, text, *last]

    if not names:
        return None
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]} for text, token in names.items()},
    }


# tokenizer_config.json


def _config(vocabulary: Vocabulary, context: int | None) -> dict[str, Any]:
    roles = vocabulary.roles
    ids = {"bos": roles.bos, "eos": roles.eos, "pad": roles.pad, "unk": roles.unk}
    ids |= {"mask": vocabulary.named.get("mask"), "cls": vocabulary.named.get("cls")}
    return {
        "added_tokens_decoder": {str(i): flags for i, flags in _flags(vocabulary, CONTROL, USER_DEFINED).items()},
        **{f"{name}_token": vocabulary.pieces[token] for name, token in ids.items() if token is not None},
        "add_bos_token": roles.adds_bos and roles.bos is not None,
        "add_eos_token": roles.adds_eos and roles.eos is not None,
        "add_prefix_space": isinstance(vocabulary, Scored) and vocabulary.prefix,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context or UNLIMITED,
        "tokenizer_class": CLASS,
    }

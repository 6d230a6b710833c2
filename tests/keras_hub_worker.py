"""Our presets in keras_hub, and keras_hub's presets here: largest differences of logits, what is tokenized and generated.

Arguments: a folder to work in. Prints one JSON object. KERAS_BACKEND is torch, which transformers, the reference, needs too.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

SIZES = {"vocabulary_size": 96, "num_layers": 3, "hidden_dim": 48, "intermediate_dim": 80}
GQA = SIZES | {"num_query_heads": 4, "num_key_value_heads": 2}
WIDE = GQA | {"head_dim": 32}
POST = {"use_post_ffw_norm": True, "use_post_attention_norm": True}
WINDOW = {"use_sliding_window_attention": True, "sliding_window_size": 8}
BANDS = {
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 64,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", WIDE | {"num_key_value_heads": 1}),
    "gemma2": ("Gemma", WIDE | POST | WINDOW | {"attention_logit_soft_cap": 50.0, "final_logit_soft_cap": 30.0}),
    "gemma3": (
        "Gemma3",
        WIDE | POST | WINDOW | {"num_layers": 7, "image_size": 896, "global_rope_scaling_factor": 8.0},
    ),
    "llama": ("Llama", GQA | {"layer_norm_epsilon": 1e-5}),
    "llama3": ("Llama3", GQA | BANDS | {"rope_max_wavelength": 5e5, "tie_word_embeddings": True}),
    "mistral": ("Mistral", GQA | {"sliding_window": 8}),
    "mistral-nemo": ("Mistral", WIDE | {"sliding_window": None, "rope_scaling_factor": 2.0}),
    "gpt_neox": ("GPTNeoX", SIZES | {"num_heads": 2, "rotary_percentage": 0.5, "max_sequence_length": 256}),
    "qwen2": ("Qwen", GQA | {"rope_max_wavelength": 1e6, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", WIDE | {"rope_max_wavelength": 1e6, "sliding_window_size": None}),
}
"""keras_hub's classes and arguments, one network a class at least."""

OURS = {
    "Gemma 1 2B": {},
    "Gemma 2 2B, 9B": {},
    "Gemma 3 4B, 12B": {"query_pre_attn_scalar": 32},
    "Llama 2": {},
    "Llama 3.1, 3.2": {},
    "Mistral 7B v0.1": {},
    "Mistral Nemo": {},
    "Qwen 2, 2.5": {},
    "Qwen 3": {},
    "GPT-NeoX, Pythia, oasst-sft": {"hidden_act": "gelu_new", "tie_word_embeddings": True},
}
"""Variants that keras_hub has classes for, and what must change for that."""

TEXT = "the quick brown fox"
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
SPECIAL += ("<|start_header_id|>", "<|end_header_id|>")


def main(folder: Path) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)  # more only wait for each other in networks of this size
    ids = list(range(3, 43))
    ours = {name: from_ours(name, changes, folder / "ours" / str(i)) for i, (name, changes) in enumerate(OURS.items())}
    theirs = {name: from_theirs(name, ids, folder / "theirs" / name) for name in NETWORKS}
    return {"ours": ours, "theirs": theirs, "forms": forms(folder)}


# Ours in keras_hub


def from_ours(name: str, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A variant of transformers, written by us, computed by keras_hub."""
    import dataclasses

    import torch
    from variants import VARIANTS, build, text_ids

    import geode.checkpoint
    from geode import formats

    known = next(one for one in VARIANTS if one.name == name)
    variant = dataclasses.replace(known, options=known.options | changes)
    model, ids = build(variant), text_ids(variant)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    model.save_pretrained(folder / "hf")
    spell(name, folder / "hf")
    checkpoint = geode.checkpoint.open(folder / "hf")
    (folder / "keras").mkdir()
    formats.by_name("keras").write(checkpoint, folder / "keras", "keras", formats.Target())
    found: dict[str, Any] = {"losses": formats.by_name("keras").losses(checkpoint, formats.Target())}
    loaded = preset(folder / "keras")
    found |= {"class": type(loaded).__name__, "difference": difference(logits(loaded, ids), wanted)}
    if loaded.preprocessor is not None:
        found |= strings(loaded, model, checkpoint)
    return found


def spell(name: str, folder: Path) -> None:
    """Adds the kind of tokenizer that the variant's models have."""
    from tiny import TEMPLATE

    from geode import tokenizer

    scored = name.startswith(("Gemma", "Mistral 7B", "Llama 2"))
    words = toy_scored(name.startswith("Gemma")) if scored else toy_ranked(name.split(",", maxsplit=1)[0])
    for file, data in tokenizer.to_hf(words, TEMPLATE, 1024).items():
        (folder / file).write_bytes(data)


def toy_scored(gemma: bool) -> Any:
    """Letters and a few pieces; Gemma's control tokens or Llama 2's."""
    import tiny

    from geode.strings import pack
    from geode.tokenizer import Roles

    words: Any = tiny.scored()
    control = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>"]
    roles = Roles(pad=0, eos=1, bos=2, unk=3, adds_bos=True) if gemma else Roles(unk=0, bos=1, eos=2, adds_bos=True)
    pieces = [*control, *list(words.pieces)[4:]]
    types = [*([3, 3, 3, 2] if gemma else [2, 3, 3]), *[1] * (len(pieces) - len(control))]
    return replaced(words, pieces=pack(pieces), types=types, scores=words.scores[: len(pieces)], roles=roles)


def toy_ranked(name: str) -> Any:
    """Letters and a few merges, the control tokens of all the classes, and how the family cuts words."""
    import tiny

    from geode.strings import pack
    from geode.tokenizer import Roles
    from geode.tokenizer.patterns import CUTS

    words: Any = tiny.ranked()
    normal = [text for text in list(words.pieces)[4:] if len(text) > 1 or not text.isdigit()]
    pieces = [*SPECIAL, *normal][:96]
    merges = [
        merge for merge in words.merges if all(part in pieces for part in (*merge.split(), merge.replace(" ", "")))
    ]
    cut, roles = {
        "Llama 3.1": ("llama-bpe", Roles(bos=2, eos=4, adds_bos=True)),
        "Mistral Nemo": ("tekken", Roles(bos=2, eos=3, adds_bos=True)),
        "GPT-NeoX": ("olmo", Roles(bos=0, eos=0)),
        "Qwen 2": ("qwen2", Roles(eos=0)),
        "Qwen 3": ("qwen2", Roles(eos=1, pad=0)),
    }[name]
    if name == "Mistral Nemo":
        pieces[2:4] = ["<s>", "</s>"]
    types = [3] * len(SPECIAL) + [1] * (len(pieces) - len(SPECIAL))
    return replaced(words, pieces=pack(pieces), types=types, merges=pack(merges), roles=roles, cut=CUTS[cut])


def replaced(words: Any, types: list[int], **changes: Any) -> Any:
    import dataclasses

    import numpy as np

    return dataclasses.replace(words, types=np.array(types, np.int32), **changes)


def strings(loaded: Any, model: Any, checkpoint: Any) -> dict[str, Any]:
    """Ids of a text there and here; six tokens after it, there by `generate` and in transformers by argmax; as texts."""
    import numpy as np
    import torch

    words, before = checkpoint.tokenizer, loaded.preprocessor
    packed = before.generate_preprocess([TEXT], sequence_length=24)
    count = int(np.asarray(packed["padding_mask"]).sum())
    ids = np.asarray(packed["token_ids"])[0, :count].tolist()
    more = list(ids)
    with torch.no_grad():
        while len(more) < 24:
            more.append(int(model(torch.tensor([more])).logits[0, -1].argmax()))
    loaded.compile(sampler="greedy")
    text = loaded.generate(TEXT, max_length=24)
    ended = next((i for i in range(count, 24) if more[i] in words.ends), 24)
    found = {
        "tokens": [np.asarray(before.tokenizer(TEXT)).tolist(), words.encode(TEXT, bos=False)],
        "packed": [ids, words.encode(TEXT)],
        "text": [text, words.decode(more[:ended])],
    }
    if not hasattr(loaded.backbone, "vision_encoder"):  # Gemma 3's class adds images of None, and fails over them
        loaded.preprocessor = None
        made = loaded.generate(packed, stop_token_ids=None)["token_ids"]
        found["generated"] = [np.asarray(made)[0].tolist(), more]
    return found


# keras_hub's here


def from_theirs(name: str, ids: list[int], folder: Path) -> dict[str, Any]:
    """A preset that keras_hub saves, opened by us, written for transformers, computed there."""
    import keras_hub
    import torch
    import transformers

    import geode.checkpoint
    from geode import formats

    stem, arguments = NETWORKS[name]
    backbone = randomized(getattr(keras_hub.models, f"{stem}Backbone")(**arguments))
    words = toy_words(stem)
    before = getattr(keras_hub.models, f"{stem}CausalLMPreprocessor")(words)
    made = getattr(keras_hub.models, f"{stem}CausalLM")(backbone=backbone, preprocessor=before)
    made.save_to_preset(str(folder / "keras"))
    opened = geode.checkpoint.open(folder / "keras")
    (folder / "hf").mkdir()
    formats.by_name("hf").write(opened, folder / "hf", "hf", formats.Target())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "hf", attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        found = model.eval()(torch.tensor([ids])).logits[0].numpy()
    import numpy as np

    tokens = [np.asarray(words(TEXT)).tolist(), opened.tokenizer.encode(TEXT, bos=False) if opened.tokenizer else None]
    roles = [words.start_token_id, opened.tokenizer.bos if opened.tokenizer else None]
    return {"difference": difference(found, logits(made, ids)), "tokens": tokens, "bos": roles}


def toy_words(stem: str) -> Any:
    import keras_hub

    from geode.tokenizer import to_sentencepiece

    kind = getattr(keras_hub.models, f"{stem}Tokenizer")
    if stem in ("Gemma", "Gemma3", "Llama", "Mistral"):
        told = {"has_vision_tokens": False} if stem == "Gemma3" else {}
        return kind(to_sentencepiece(toy_scored(stem.startswith("Gemma"))), **told)
    words = toy_ranked({"Llama3": "Llama 3.1", "GPTNeoX": "GPT-NeoX"}.get(stem, "Qwen 2"))
    vocabulary = {piece: i for i, piece in enumerate(words.pieces)}
    return kind(vocabulary, list(words.merges))


def randomized(backbone: Any) -> Any:
    """Weights that reach every corner; Keras draws them small, and norms as ones."""
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = []
    for weight in backbone.weights:
        noise = rng.standard_normal(weight.shape).astype("float32")
        fan = weight.shape[-2] if weight.name == "kernel" and len(weight.shape) > 1 else 1
        plain = len(weight.shape) == 1 or "bias" in weight.name
        drawn.append(0.3 * noise + (weight.name in ("scale", "gamma")) if plain else noise * {1: 0.3}.get(fan, 0.15))
    backbone.set_weights(drawn)
    return backbone


# Shards, bfloat16, weights without a preset


def forms(folder: Path) -> dict[str, Any]:
    """keras_hub reads our shards and our bfloat16; we read its shards, its bfloat16, and a bare weights file."""
    import keras_hub
    import numpy as np

    import geode.checkpoint
    from geode import formats

    keras = formats.by_name("keras")
    ids, source = list(range(3, 43)), geode.checkpoint.open(folder / "theirs" / "llama" / "keras")
    wanted = logits(preset(folder / "theirs" / "llama" / "keras"), ids)
    found: dict[str, Any] = {}
    for name, target in {
        "shards": formats.Target(max_shard_bytes=30_000),
        "narrow": formats.Target(dtype="BF16"),
    }.items():
        (folder / name).mkdir()
        keras.write(source, folder / name, name, target)
        found[name] = difference(logits(preset(folder / name), ids), wanted)
    stem, arguments = NETWORKS["qwen3"]
    narrow = randomized(getattr(keras_hub.models, f"{stem}Backbone")(**arguments, dtype="bfloat16"))
    narrow.save_to_preset(str(folder / "theirs-narrow"), max_shard_size=2e-5)
    opened = geode.checkpoint.open(folder / "theirs-narrow")
    embedding = np.asarray(narrow.token_embedding.embeddings.value.detach().float().cpu())
    same = np.array_equal(opened.tensors["token_embd.weight"].astype(np.float32), embedding)
    found["theirs_narrow"] = [sorted({entry.type for entry in opened.stored.entries.values()}), bool(same)]
    found["theirs_shards"] = len(list((folder / "theirs-narrow").glob("model_*.weights.h5")))
    narrow.save_weights(str(folder / "theirs-narrow" / "mine.weights.h5"))
    bare = geode.checkpoint.open(folder / "theirs-narrow" / "mine.weights.h5")
    found["bare"] = all(bare.tensors[name].tobytes() == opened.tensors[name].tobytes() for name in opened.tensors)
    return found


def preset(folder: Path) -> Any:
    import keras_hub

    return keras_hub.models.CausalLM.from_preset(str(folder), dtype="float32")


def logits(model: Any, ids: list[int]) -> Any:
    """(T, V)"""
    import keras
    import numpy as np

    tokens = np.array([ids], "int32")
    hidden = model.backbone({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    return keras.ops.convert_to_numpy(model.backbone.token_embedding(hidden, reverse=True))[0]


def difference(found: Any, wanted: Any) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    import numpy as np

    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    sys.stdout, printed = io.StringIO(), sys.stdout
    report = main(Path(sys.argv[1]))
    print(json.dumps(report), file=printed)

"""Meta's own Llama checkpoints: consolidated.0N.pth, one a rank, and params.json. Read only.

Tensor names are the dialect's business, the pickles `io.torch_pickle`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import families
from ..config import Config
from ..dialects import parallel
from ..dialects import torch_ckpt as dialect
from ..dialects.parallel import even
from ..errors import ConfigError, FormatError, ModelNotFound
from ..keys import whole
from ..tensors import Tensors
from .base import Checkpoint, Format, read_json

FILES = "consolidated.*.pth"


class Meta(Checkpoint):
    """A directory of params.json and the ranks' files."""

    def _tensors(self) -> Tensors:
        return dialect.read_meta(self.stored, self.config)


def claims(path: Path) -> bool:
    """A directory with consolidated.00.pth and params.json, or one of the ranks' files."""
    if path.is_dir():
        return (path / "params.json").is_file() and any(path.glob(FILES))
    return path.suffix == ".pth" and path.name.startswith("consolidated.")


def open(path: Path) -> Meta:
    """Opens a directory, or the one that a rank's file lies in."""
    from ..io import torch_zip

    path = path if path.is_dir() else path.parent
    files = sorted(path.glob(FILES))
    names = [f"consolidated.{rank:02}.pth" for rank in range(len(files))]
    if [file.name for file in files] != names:
        raise ModelNotFound(f"{path} holds {', '.join(file.name for file in files)}; {', '.join(names)} were expected.")
    values = read_json(path / "params.json")
    if not values:
        raise ModelNotFound(f"{path} has no params.json, so what the weights beside it compute is not known.")
    ranks = [torch_zip.tensors(torch_zip.load(file), str(file)) for file in files]
    config = _config(values, str(path / "params.json"), ranks)
    return Meta(path, "meta", families.LLAMA, config, parallel.joined(ranks, _cuts(config, ranks)), values)


def _config(values: Mapping[str, Any], what: str, ranks: list[Tensors]) -> Config:
    try:
        embeddings, gate = (ranks[0].entries[name].shape for name in ("tok_embeddings.weight", _GATE))
        width = whole(values.get("dim"), "dim", what)
        rows = embeddings[0] * (len(ranks) if embeddings[1] == width else 1)
        ffn = gate[0] * len(ranks)
    except (KeyError, IndexError) as lacking:
        raise FormatError(f"{what}: the weights beside it lack {lacking}, which every Llama has.") from None
    if values.get("moe") or values.get("quantization_args"):
        raise ConfigError(f"{what} describes experts or quantised weights, which are not read.")
    found = {theirs: values[name] for name, theirs in KEYS.items() if values.get(name) is not None}
    found |= {"vocab_size": rows, "intermediate_size": ffn, "tie_word_embeddings": _HEAD not in ranks[0].entries}
    scaled = bool(values.get("use_scaled_rope"))
    found["max_position_embeddings"] = 131_072 if scaled else 8192 if rows > 100_000 else 4096
    if scaled:
        found["rope_scaling"] = BANDS | {"factor": float(values.get("rope_scaling_factor") or 8)}
    return families.LLAMA.config_from_hf(found, what)


_GATE, _HEAD = "layers.0.feed_forward.w1.weight", "output.weight"
KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}
"""params.json -> Hugging Face's keys."""

BANDS = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""`apply_scaling` of llama-models' models/llama3/model.py: the same for every published size."""


def _cuts(config: Config, ranks: list[Tensors]) -> dict[str, parallel.Cut]:
    """fairscale's layers: columns of `wo`, `w2` and of Llama 2's embeddings, rows of all other matrices."""
    count = len(ranks)
    by_row = ranks[0].entries["tok_embeddings.weight"].shape[1] == config.width
    found = {_HEAD: even(config.vocab, count)}
    found["tok_embeddings.weight"] = even(config.vocab if by_row else config.width, count, 0 if by_row else 1)
    sizes = {"wq": config.q_width, "wk": config.kv_width, "wv": config.kv_width, "w1": config.ffn, "w3": config.ffn}
    for layer in range(config.depth):
        for name, size in sizes.items():
            module = "attention" if name[1] in "qkv" else "feed_forward"
            found[f"layers.{layer}.{module}.{name}.weight"] = even(size, count)
        found[f"layers.{layer}.attention.wo.weight"] = even(config.q_width, count, 1)
        found[f"layers.{layer}.feed_forward.w2.weight"] = even(config.ffn, count, 1)
    return found


FORMAT = Format(
    name="meta",
    about="Meta's Llama: consolidated.00.pth, params.json",
    claims=claims,
    open=open,
    options=frozenset(),
)

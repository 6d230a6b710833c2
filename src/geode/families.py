"""Model families as data: the only code that knows their names.

A family is a few differences from a Llama-shaped default: constants of its mathematics, how its Hugging Face and GGUF
keys are spelled, how its tensors are named, and which chat format it speaks when the checkpoint brings none.
What the mathematics means is in `config`; how tensors are fused or permuted is in `dialects`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import keys, positions
from .config import Config, Norm
from .errors import ConfigError
from .keys import Derived, Fixed, Implied, Key, Part, Source, truth, whole

ChatFormats = tuple[tuple[str, str], ...]  # (a control token that must exist or "", name of a built-in format)


@dataclass(frozen=True)
class Family:
    """Everything about one family that is not its numbers."""

    name: str
    hf_types: tuple[str, ...]  # `model_type`s read; the first is written
    hf_class: str  # `architectures` when writing
    gguf_arch: str
    constants: Mapping[str, Any]
    hf_keys: tuple[Part, ...]
    gguf_keys: tuple[Part, ...]
    names: Mapping[str, str]  # canonical stem -> Hugging Face stem; {} is the layer
    names_by_block: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    gguf_names_by_block: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    norm_plus_one: bool = False  # Hugging Face stores norms as their distance from one
    fused_qkv: bool = False  # attn_qkv: per key/value head in Hugging Face, [q; k; v] in GGUF
    gguf_pairs_adjacent: bool = False  # GGUF rotates neighbours (0,1)(2,3)…, so rows of q and k are permuted
    optional: tuple[str, ...] = ()  # canonical patterns of tensors that may be absent and are then zero
    renames: tuple[tuple[str, str], ...] = ()  # prefixes of Hugging Face names, as found -> as in `names`
    ignore: tuple[str, ...] = ()  # patterns of harmless tensors
    vision: tuple[str, ...] = ()  # patterns of tensors of a vision tower, which the text half does without
    chat: ChatFormats = (("", "plain"),)
    eight_bit_head: bool = False  # llama.cpp's mixes keep this family's head in Q8_0
    gemma_terms: bool = False  # weights of this family come under the Gemma Terms, and pass them on

    def names_for(self, config: Config) -> dict[str, str]:
        return dict(self.names) | dict(self.names_by_block.get(config.block, {}))

    def config_from_hf(self, values: Mapping[str, Any], what: str = "config.json") -> Config:
        """A Config from config.json's keys. Raises ConfigError for keys missing, unhandled or impossible."""
        return keys.read(self.hf_keys, Source(values, what), self.constants, HARMLESS_HF_KEYS)

    def config_to_hf(self, config: Config) -> dict[str, Any]:
        """config.json of the network: every key that reads back as `config`."""
        head = {"architectures": [self.hf_class], "model_type": self.hf_types[0]}
        return head | keys.write(self.hf_keys, config)

    def spells(self, config: Config) -> bool:
        """Whether config.json of this family can say all of a network."""
        try:
            return self.config_from_hf(self.config_to_hf(config)).same(config)
        except ConfigError:
            return False

    def config_from_gguf(
        self, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], rope_freqs: Any = None
    ) -> Config:
        """A Config from a GGUF file's metadata and the shapes of its tensors."""
        prefix = self.gguf_arch + "."
        own = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
        own = own if rope_freqs is None else own | {"rope_freqs": rope_freqs}
        source = Source({name: _shortest(value) for name, value in own.items()}, "the GGUF file", tensors)
        return keys.read(self.gguf_keys, source, self.constants, HARMLESS_GGUF_KEYS)

    def config_to_gguf(self, config: Config) -> dict[str, Any]:
        """The architecture's keys, prefixed; `rope_freqs`, if there, is a tensor to be written and not a key."""
        written = keys.write(self.gguf_keys, config)
        freqs = {"rope_freqs": written.pop("rope_freqs")} if "rope_freqs" in written else {}
        return {f"{self.gguf_arch}.{name}": value for name, value in written.items() if value is not None} | freqs


def by_model_type(model_type: str) -> Family:
    """The family that reads this `model_type` of config.json."""
    for family in FAMILIES:
        if model_type in family.hf_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.hf_types)
    raise ConfigError(f"config.json has model_type {model_type!r}; no family here reads it. Known are: {known}.")


def by_gguf_arch(arch: str) -> Family:
    """The family that reads this `general.architecture`."""
    for family in FAMILIES:
        if arch == family.gguf_arch:
            return family
    known = ", ".join(dict.fromkeys(family.gguf_arch for family in FAMILIES))
    raise ConfigError(f"general.architecture is {arch!r}; no family here reads it. Known are: {known}.")


def spelling(config: Config, family: Family) -> Family:
    """`family`, or one of the same GGUF architecture whose config.json says more: "llama" may be a windowed Mistral."""
    alike = [one for one in FAMILIES if one.gguf_arch == family.gguf_arch]
    return next((one for one in (family, *alike) if one.spells(config)), family)


def by_name(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def _shortest(value: Any) -> Any:
    """A float32 as the number somebody wrote: 9.99999997e-07 was 1e-06."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


# What training, saving and generation code leaves in config.json and no network's mathematics depends on.
HARMLESS_HF_KEYS = frozenset(
    """
    architectures model_type transformers_version torch_dtype dtype use_cache auto_map _name_or_path
    _attn_implementation _attn_implementation_autoset attn_implementation cache_implementation initializer_range
    attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop bos_token_id eos_token_id
    pad_token_id unk_token_id sep_token_id decoder_start_token_id id2label label2id num_labels is_decoder
    is_encoder_decoder output_attentions output_hidden_states return_dict problem_type chunk_size_feed_forward
    pretraining_tp torchscript gradient_checkpointing use_bfloat16 tie_encoder_decoder cross_attention_hidden_size
    add_cross_attention pruned_heads finetuning_task tokenizer_class prefix task_specific_params unsloth_version
    unsloth_fixed max_length min_length do_sample num_beams temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size num_return_sequences early_stopping bad_words_ids suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty diversity_penalty num_beam_groups encoder_no_repeat_ngram_size
    return_dict_in_generate output_scores tf_legacy_loss rotary transformers.js_config is_llama_config
    attention_probs_dropout_prob hidden_dropout_prob
    """.split()
)
HARMLESS_GGUF_KEYS = frozenset("vocab_size tensor_data_layout rope.scaling.finetuned".split())

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATIONS |= {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}


def _head_dim(draft: keys.Draft) -> int:
    if draft["width"] % draft["heads"]:
        raise ConfigError(
            f"{draft['width']} channels cannot be cut into {draft['heads']} heads evenly, and no key gives "
            "the width of a head."
        )
    return int(draft["width"] // draft["heads"])


def _integer(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _heads(draft: keys.Draft) -> int:
    return int(draft["heads"])


# ----------------------------------------------------------------------------------------------- Llama, the default
# github.com/huggingface/transformers src/transformers/models/llama/modeling_llama.py

_SIZES: tuple[Part, ...] = (
    Key("vocab_size", "vocab"),
    Key(("hidden_size", "n_embed"), "width"),
    Key(("num_hidden_layers", "n_layer"), "depth"),
    Key(("num_attention_heads", "n_head"), "heads"),
    Key("max_position_embeddings", "context"),
)

LLAMA_KEYS: tuple[Part, ...] = (
    *_SIZES,
    Key("num_key_value_heads", "kv_heads", _heads),
    Key("head_dim", "head_dim", _head_dim),
    Key("intermediate_size", "ffn"),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("hidden_act", "activation", "silu", ACTIVATIONS),
    Key("tie_word_embeddings", "tied", False),
    Key("attention_bias", ("qkv_bias", "out_bias"), False),
    Key("mlp_bias", "ffn_bias", False),
    Fixed("rope_interleaved", (False,), written=False),
    positions.HfPositions(),
)


def _rows(source: Source, draft: keys.Draft) -> int:
    shape = source.tensors.get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise ConfigError(f"{source.what} has no matrix token_embd.weight, so the size of its vocabulary is not known.")
    return shape[0]


def _has(name: str) -> Any:
    return lambda source, draft: name in source.tensors


LLAMA_GGUF_KEYS: tuple[Part, ...] = (
    Derived("vocab", _rows),
    Key("embedding_length", "width"),
    Key("block_count", "depth"),
    Key("attention.head_count", "heads"),
    Key("attention.head_count_kv", "kv_heads", _heads),
    Key("attention.key_length", "head_dim", _head_dim),
    # Values are as wide as keys in every family here; a file that says otherwise fails at the shape of attn_v.
    Key("attention.value_length", "head_dim", lambda draft: draft["head_dim"]),
    Key("feed_forward_length", "ffn"),
    Key("context_length", "context"),
    Key("attention.layer_norm_rms_epsilon", "norm.eps"),
    Derived("tied", lambda source, draft: "output.weight" not in source.tensors),
    Derived("qkv_bias", _has("blk.0.attn_q.bias")),
    Derived("out_bias", _has("blk.0.attn_output.bias")),
    Derived("ffn_bias", _has("blk.0.ffn_up.bias")),
    Implied("activation", lambda draft: "silu"),
    Fixed("expert_count", (0,), written=False),
    Fixed("expert_used_count", (0,), written=False),
    positions.GgufPositions(),
)

LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}

LLAMA = Family(
    name="llama",
    hf_types=("llama",),
    hf_class="LlamaForCausalLM",
    gguf_arch="llama",
    constants={"norm": Norm("rms", cast_first=True)},
    hf_keys=LLAMA_KEYS,
    gguf_keys=LLAMA_GGUF_KEYS,
    names=LLAMA_NAMES,
    gguf_pairs_adjacent=True,
    ignore=("*.rotary_emb.inv_freq",),
    chat=(("<|start_header_id|>", "llama3"), ("<|im_start|>", "chatml"), ("", "llama2")),
)

# ---------------------------------------------------------------------------------------------------------- Mistral
# v0.1 has a window of 4096 on every layer, later ones none; Nemo's heads are 128 wide whatever the model's width.

MISTRAL = replace(
    LLAMA,
    name="mistral",
    hf_types=("mistral",),
    hf_class="MistralForCausalLM",
    hf_keys=keys.override(LLAMA_KEYS, positions.HfPositions(windowed=positions.everywhere, window=4096)),
    chat=(("", "mistral"),),
)

# ------------------------------------------------------------------------------------------------------------ Gemma
# github.com/google-deepmind/gemma gemma/gm/nn; transformers models/gemma*/modeling_gemma*.py

# "gelu" in the first published configs meant the tanh formula: huggingface/transformers#29402
_GEMMA_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh", "gelu_new": "gelu_tanh"}
_GEMMA_KEYS = (
    Key("head_dim", "head_dim", 256),
    Key("tie_word_embeddings", "tied", True),
    Fixed("use_bidirectional_attention", (False,), written=False),
)
_GEMMA_ACTIVATION = Key(
    "hidden_activation", "activation", lambda draft: draft.get("activation", "gelu_tanh"), _GEMMA_ACTIVATIONS
)

_GEMMA_GGUF_ACTIVATION = Implied("activation", lambda draft: "gelu_tanh")

GEMMA = replace(
    LLAMA,
    name="gemma",
    hf_types=("gemma",),
    hf_class="GemmaForCausalLM",
    gguf_arch="gemma",
    constants={"norm": Norm("rms"), "scale_embedding": True, "activation": "gelu_tanh"},
    hf_keys=keys.override(
        LLAMA_KEYS, Key("hidden_act", "activation", "gelu_tanh", _GEMMA_ACTIVATIONS), _GEMMA_ACTIVATION, *_GEMMA_KEYS
    ),
    gguf_keys=keys.override(LLAMA_GGUF_KEYS, _GEMMA_GGUF_ACTIVATION),
    norm_plus_one=True,
    gguf_pairs_adjacent=False,
    chat=(("", "gemma"),),
    gemma_terms=True,
)

# The 27B models of both generations divide scores by sqrt(width / heads), which GGUF does not say: llama.cpp#13951
_BY_WIDTH = {46: 4608, 62: 5376}


def _gemma_gguf_scalar(draft: Mapping[str, Any]) -> float:
    if _BY_WIDTH.get(draft["depth"]) == draft["width"]:
        return float(draft["width"] // draft["heads"])
    return float(draft["head_dim"])


_GEMMA2_HF_KEYS = keys.override(
    tuple(part for part in LLAMA_KEYS if getattr(part, "theirs", "") not in ("hidden_act", "mlp_bias")),
    # From here on "gelu" means what it says, and hidden_act, which the files still have, means nothing.
    Key("hidden_activation", "activation", "gelu_tanh", ACTIVATIONS),
    Fixed("hidden_act", tuple(_GEMMA_ACTIVATIONS), written=False),
    *_GEMMA_KEYS,
    Key("query_pre_attn_scalar", "query_scalar", 256.0, spell=_integer),  # transformers takes no 256.0
    Key("attn_logit_softcapping", "attn_softcap", 50.0, null=None),
    Key("final_logit_softcapping", "final_softcap", 30.0, null=None),
    positions.HfPositions(windowed=positions.alternating, window=4096),
)
_GEMMA2_GGUF_KEYS = keys.override(LLAMA_GGUF_KEYS, _GEMMA_GGUF_ACTIVATION, Implied("query_scalar", _gemma_gguf_scalar))

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    hf_types=("gemma2",),
    hf_class="Gemma2ForCausalLM",
    gguf_arch="gemma2",
    constants={**GEMMA.constants, "block": "sandwich"},
    hf_keys=_GEMMA2_HF_KEYS,
    gguf_keys=keys.override(
        _GEMMA2_GGUF_KEYS,
        Key("attn_logit_softcapping", "attn_softcap", 50.0),
        Key("final_logit_softcapping", "final_softcap", 30.0),
        positions.GgufPositions(windowed=positions.alternating),
    ),
    names=LLAMA_NAMES
    | {
        "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
        "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
    },
)

GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    hf_types=("gemma3_text",),
    hf_class="Gemma3ForCausalLM",
    gguf_arch="gemma3",
    constants={**GEMMA2.constants, "qk_norm": "shared"},
    hf_keys=keys.override(
        _GEMMA2_HF_KEYS,
        # The multimodal files leave out what is as in transformers' class.
        Key("vocab_size", "vocab", 262_208),
        Key("num_attention_heads", "heads", 8),
        Key("num_key_value_heads", "kv_heads", 4),
        Key("max_position_embeddings", "context", 131_072),
        Key("attn_logit_softcapping", "attn_softcap", None),
        Key("final_logit_softcapping", "final_softcap", None),
        positions.HfPositions(1_000_000.0, windowed=positions.five_of_six, window=4096, local_theta=10_000.0),
    ),
    gguf_keys=keys.override(
        _GEMMA2_GGUF_KEYS,
        Key("attn_logit_softcapping", "attn_softcap", None, when=lambda c: c.attn_softcap is not None),
        Key("final_logit_softcapping", "final_softcap", None, when=lambda c: c.final_softcap is not None),
        positions.GgufPositions(1_000_000.0, positions.five_of_six, local_theta=10_000.0),
    ),
    # The text half of the multimodal checkpoints, by its old and its new spelling.
    renames=(
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    vision=("vision_tower.*", "multi_modal_projector.*", "model.vision_tower.*", "model.multi_modal*"),
)

# ----------------------------------------------------------------------------------------------------------- Falcon


@dataclass(frozen=True)
class FalconHeads:
    """multi_query, new_decoder_architecture, num_ln_in_parallel_attn: two generations of one block."""

    def read(self, source: Source, draft: keys.Draft) -> None:
        what = source.what
        first_40b = source.values.get("model_type") == "RefinedWeb"  # whose own code knew the new block only
        new = truth(source.take("new_decoder_architecture", first_40b), "new_decoder_architecture", what)
        given = whole(source.take(("num_kv_heads", "n_head_kv"), draft["heads"]), "num_kv_heads", what)
        one = truth(source.take("multi_query", True), "multi_query", what)
        draft["kv_heads"] = given if new else 1 if one else draft["heads"]
        usual = 2 if new else 1
        norms = whole(source.take("num_ln_in_parallel_attn", usual), "num_ln_in_parallel_attn", what, most=usual)
        draft["block"] = "parallel" if norms == 2 else "parallel_shared"

    def write(self, config: Config, out: dict[str, Any]) -> None:
        new = config.block == "parallel" or config.kv_heads not in (1, config.heads)
        out |= {"new_decoder_architecture": new, "multi_query": config.kv_heads == 1, "num_kv_heads": config.kv_heads}
        out["num_ln_in_parallel_attn"] = 2 if config.block == "parallel" else 1


_LAYER_NORM = Norm("layer", bias=True)
_GGUF_LAYER_NORM = Key("attention.layer_norm_epsilon", "norm.eps")
_LAYER_NORM_GGUF_KEYS = tuple(
    _GGUF_LAYER_NORM if getattr(part, "ours", "") == "norm.eps" else part for part in LLAMA_GGUF_KEYS
)
_FUSED_GGUF_KEYS = keys.override(
    _LAYER_NORM_GGUF_KEYS,
    Derived("qkv_bias", _has("blk.0.attn_qkv.bias")),
    Implied("activation", lambda draft: "gelu"),
)

FALCON = Family(
    name="falcon",
    hf_types=("falcon", "RefinedWeb", "RefinedWebModel"),
    hf_class="FalconForCausalLM",
    gguf_arch="falcon",
    constants={"norm": _LAYER_NORM, "gated": False, "activation": "gelu"},
    hf_keys=(
        *_SIZES[:-1],
        Key("max_position_embeddings", "context", 2048),
        FalconHeads(),
        Derived("head_dim", lambda source, draft: _head_dim(draft)),
        Key("ffn_hidden_size", "ffn", lambda draft: 4 * draft["width"]),
        Key("layer_norm_epsilon", "norm.eps", 1e-5),
        Key("activation", "activation", "gelu", ACTIVATIONS),
        Key("bias", ("qkv_bias", "out_bias", "ffn_bias"), False),
        Key("tie_word_embeddings", "tied", True),
        Fixed("parallel_attn", (True,)),
        Fixed("alibi", (False,)),
        Fixed("apply_residual_connection_post_layernorm", (False,), written=False),
        positions.HfPositions(),
    ),
    gguf_keys=keys.override(
        _FUSED_GGUF_KEYS,
        Derived("block", lambda s, d: "parallel" if "blk.0.attn_norm_2.weight" in s.tensors else "parallel_shared"),
    ),
    names={
        "token_embd": "transformer.word_embeddings",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "blk.{}.attn_norm": "transformer.h.{}.input_layernorm",
        "blk.{}.attn_qkv": "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_output": "transformer.h.{}.self_attention.dense",
        "blk.{}.ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
    },
    names_by_block={
        "parallel": {
            "blk.{}.attn_norm": "transformer.h.{}.ln_attn",
            "blk.{}.ffn_norm": "transformer.h.{}.ln_mlp",
        }
    },
    gguf_names_by_block={"parallel": {"blk.{}.attn_norm": "blk.{}.attn_norm_2", "blk.{}.ffn_norm": "blk.{}.attn_norm"}},
    fused_qkv=True,
    ignore=("*.rotary_emb.inv_freq", "*.maybe_rotary.inv_freq"),
    chat=(("", "falcon"),),
    eight_bit_head=True,
)

# ------------------------------------------------------------------------------- GPT-NeoX, Pythia, Open-Assistant

NEOX = Family(
    name="gpt_neox",
    hf_types=("gpt_neox",),
    hf_class="GPTNeoXForCausalLM",
    gguf_arch="gptneox",
    constants={"norm": _LAYER_NORM, "gated": False, "ffn_bias": True},
    hf_keys=(
        *_SIZES,
        Derived("kv_heads", lambda source, draft: _heads(draft)),
        Derived("head_dim", lambda source, draft: _head_dim(draft)),
        Key("intermediate_size", "ffn"),
        Key("layer_norm_eps", "norm.eps", 1e-5),
        Key("hidden_act", "activation", "gelu", ACTIVATIONS),
        Key("attention_bias", ("qkv_bias", "out_bias"), True),
        Key("use_parallel_residual", "block", "parallel", {True: "parallel", False: "pre"}),
        Key("tie_word_embeddings", "tied", False),
        positions.HfPositions(theta_key="rotary_emb_base", fraction=0.25, fraction_keys=("rotary_pct",)),
    ),
    gguf_keys=keys.override(
        _FUSED_GGUF_KEYS,
        Key("use_parallel_residual", "block", "parallel", {True: "parallel", False: "pre"}),
    ),
    names={
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
        "blk.{}.attn_norm": "gpt_neox.layers.{}.input_layernorm",
        "blk.{}.attn_qkv": "gpt_neox.layers.{}.attention.query_key_value",
        "blk.{}.attn_output": "gpt_neox.layers.{}.attention.dense",
        "blk.{}.ffn_norm": "gpt_neox.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    },
    fused_qkv=True,
    renames=(("lm_head.", "embed_out."),),  # transformers 5 writes lm_head
    ignore=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    chat=(("<|prompter|>", "oasst"), ("<|USER|>", "stablelm_alpha"), ("", "plain")),
)

# ------------------------------------------------------------------------------------------------------------- OLMo

OLMO = replace(
    LLAMA,
    name="olmo",
    hf_types=("olmo",),
    hf_class="OlmoForCausalLM",
    gguf_arch="olmo",
    constants={"norm": Norm("layer", eps=1e-5, weight=False)},
    hf_keys=keys.override(
        tuple(part for part in LLAMA_KEYS if getattr(part, "theirs", "") not in ("rms_norm_eps", "mlp_bias")),
        Key("clip_qkv", "clip_qkv", None),
    ),
    gguf_keys=keys.override(
        _LAYER_NORM_GGUF_KEYS,
        Key("attention.clamp_kqv", "clip_qkv", None, when=lambda config: config.clip_qkv is not None),
    ),
    chat=(("", "tulu"),),
)

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    hf_types=("olmo2",),
    hf_class="Olmo2ForCausalLM",
    gguf_arch="olmo2",
    constants={"norm": Norm("rms"), "block": "post", "qk_norm": "whole"},
    hf_keys=keys.override(
        tuple(part for part in LLAMA_KEYS if getattr(part, "theirs", "") != "mlp_bias"),
        Key("rms_norm_eps", "norm.eps", 1e-5),
    ),
    names=LLAMA_NAMES
    | {
        "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
    },
    gguf_pairs_adjacent=False,
    chat=(("", "tulu"),),
)

# --------------------------------------------------------------------------------------------------------- StableLM

_STABLE_BLOCKS = {False: "pre", True: "parallel_shared"}

STABLELM = replace(
    LLAMA,
    name="stablelm",
    hf_types=("stablelm", "stablelm_epoch"),
    hf_class="StableLmForCausalLM",
    gguf_arch="stablelm",
    constants={"norm": _LAYER_NORM},
    hf_keys=(
        *keys.override(_SIZES, Key(("num_attention_heads", "num_heads"), "heads")),
        Key("num_key_value_heads", "kv_heads", _heads),
        Derived("head_dim", lambda source, draft: _head_dim(draft)),
        Key("intermediate_size", "ffn"),
        Key(("layer_norm_eps", "norm_eps"), "norm.eps", 1e-5),
        Key("hidden_act", "activation", "silu", ACTIVATIONS),
        Key("use_qkv_bias", "qkv_bias", False),
        Key("qk_layernorm", "qk_norm", "none", {False: "none", True: "per_head"}),
        Key("use_parallel_residual", "block", "pre", _STABLE_BLOCKS),
        Key("tie_word_embeddings", "tied", False),
        Fixed("rotary_scaling_factor", (1.0,), written=False),
        positions.HfPositions(fraction=0.25, fraction_keys=("partial_rotary_factor", "rope_pct")),
    ),
    gguf_keys=keys.override(
        _LAYER_NORM_GGUF_KEYS,
        Derived("qk_norm", lambda s, d: "per_head" if "blk.0.attn_q_norm.weight" in s.tensors else "none"),
        Derived("block", lambda s, d: "pre" if "blk.0.ffn_norm.weight" in s.tensors else "parallel_shared"),
        Key("use_parallel_residual", "block", lambda draft: draft["block"], _STABLE_BLOCKS),
    ),
    names=LLAMA_NAMES
    | {
        "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_layernorm",
        "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_layernorm",
    },
    gguf_pairs_adjacent=False,
    optional=("*norm.bias",),  # some published checkpoints have no bias in their norms
    chat=(("", "zephyr"),),
)

# ------------------------------------------------------------------------------------------------------------- Qwen

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    hf_types=("qwen2",),
    hf_class="Qwen2ForCausalLM",
    gguf_arch="qwen2",
    constants={**LLAMA.constants, "qkv_bias": True},
    hf_keys=keys.override(
        tuple(part for part in LLAMA_KEYS if getattr(part, "theirs", "") not in ("attention_bias", "mlp_bias")),
        Fixed("use_mrope", (False,), written=False),
        positions.HfPositions(gate=True, window=4096),
    ),
    gguf_pairs_adjacent=False,
    chat=(("", "qwen"),),
)

# No biases, each head of queries and keys normed, heads 128 wide: transformers models/qwen3/modeling_qwen3.py
QWEN3 = replace(
    QWEN2,
    name="qwen3",
    hf_types=("qwen3",),
    hf_class="Qwen3ForCausalLM",
    gguf_arch="qwen3",
    constants={**LLAMA.constants, "qk_norm": "shared"},
    hf_keys=keys.override(
        QWEN2.hf_keys,
        Key("head_dim", "head_dim", 128),
        Key("attention_bias", ("qkv_bias", "out_bias"), False),
    ),
    chat=(("", "chatml"),),
)

FAMILIES: tuple[Family, ...] = (
    *(LLAMA, MISTRAL, GEMMA, GEMMA2, GEMMA3, FALCON, NEOX, OLMO, OLMO2, STABLELM, QWEN2, QWEN3),
)

"""config.json of published models, as their owners put them on the hub, with the odd keys of their time.

`PUBLISHED` names each with its trained numbers: the counts that the cards print, or that transformers gives on its
meta device (tied weights once). Keys that only training, saving and generating read are thinned out, not the others.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def _hf(model_type: str, architecture: str, **keys: Any) -> Json:
    common = {"initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16"}
    return common | {"architectures": [architecture], "model_type": model_type} | keys


def _sizes(width: int, ffn: int, depth: int, heads: int, kv_heads: int | None = None, **keys: Any) -> Json:
    found = {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": depth, "num_attention_heads": heads}
    return found | ({} if kv_heads is None else {"num_key_value_heads": kv_heads}) | keys


GEMMA = _hf("gemma", "GemmaForCausalLM", attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1,
            pad_token_id=0, head_dim=256, max_position_embeddings=8192, rms_norm_eps=1e-06, rope_scaling=None,
            rope_theta=10000.0, transformers_version="4.38.0.dev0", vocab_size=256000)  # fmt: skip
GEMMA2 = _hf("gemma2", "Gemma2ForCausalLM", attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=50.0,
             bos_token_id=2, cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=30.0, head_dim=256,
             hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", max_position_embeddings=8192,
             pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096,
             transformers_version="4.42.0.dev0", vocab_size=256000)  # fmt: skip
GEMMA3 = _hf("gemma3_text", "Gemma3ForCausalLM", attention_bias=False, attention_dropout=0.0, bos_token_id=2,
             attn_logit_softcapping=None, final_logit_softcapping=None, head_dim=256, pad_token_id=0,
             hidden_activation="gelu_pytorch_tanh", max_position_embeddings=32768, query_pre_attn_scalar=256,
             rms_norm_eps=1e-06, rope_scaling=None, sliding_window=512, vocab_size=262144)  # fmt: skip


def _gemma3_multimodal(**text: Any) -> Json:
    """What the multimodal ones say, which is little: every other setting is a default of transformers' class."""
    scaling = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text"} | scaling | text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_hidden_layers": 27,
                          "model_type": "siglip_vision_model", "num_attention_heads": 16, "patch_size": 14,
                          "vision_use_head": False},
    }  # fmt: skip


LLAMA = _hf("llama", "LlamaForCausalLM", hidden_act="silu", pretraining_tp=1, tie_word_embeddings=False)
LLAMA2 = LLAMA | {"_name_or_path": "meta-llama/Llama-2-7b-hf", "bos_token_id": 1, "eos_token_id": 2, "rope_scaling": None,
                  "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "torch_dtype": "float16",
                  "transformers_version": "4.31.0.dev0", "vocab_size": 32000}  # fmt: skip
LLAMA3 = LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001,
                  "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0,
                  "transformers_version": "4.40.0.dev0", "vocab_size": 128256}  # fmt: skip


def _llama31(factor: float) -> Json:
    scaling = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
               "original_max_position_embeddings": 8192}  # fmt: skip
    return LLAMA3 | {"max_position_embeddings": 131072, "mlp_bias": False, "rope_scaling": scaling}


FALCON3 = LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 11, "head_dim": 256,
                   "mlp_bias": False, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000042,
                   "transformers_version": "4.46.1", "vocab_size": 131072}  # fmt: skip
SMOLLM2 = LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0,
                   "is_llama_config": True, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05,
                   "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
                   "transformers_version": "4.40.1", "vocab_size": 49152}  # fmt: skip
MISTRAL = _hf("mistral", "MistralForCausalLM", bos_token_id=1, eos_token_id=2, hidden_act="silu", rms_norm_eps=1e-05,
              max_position_embeddings=32768, rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False,
              attention_dropout=0.0, transformers_version="4.36.0", vocab_size=32000)  # fmt: skip

FALCON = _hf("falcon", "FalconForCausalLM", alibi=False, apply_residual_connection_post_layernorm=False,
             attention_dropout=0.0, bias=False, bos_token_id=11, eos_token_id=11, hidden_dropout=0.0,
             layer_norm_epsilon=1e-05, parallel_attn=True, vocab_size=65024)  # fmt: skip


def _refined_web(model_type: str, **keys: Any) -> Json:
    """Falcon before transformers knew it, with its code beside the weights."""
    maps = {"AutoConfig": "configuration_RW.RWConfig", "AutoModelForCausalLM": "modelling_RW.RWForCausalLM"}
    return FALCON | {"architectures": ["RWForCausalLM"], "auto_map": maps, "model_type": model_type,
                     "transformers_version": "4.27.4"} | keys  # fmt: skip


OLMO = _hf("olmo", "OlmoForCausalLM", attention_bias=False, attention_dropout=0.0, clip_qkv=None, eos_token_id=50279,
           hidden_act="silu", max_position_embeddings=2048, pad_token_id=1, rope_scaling=None, rope_theta=10000.0,
           tie_word_embeddings=False, transformers_version="4.40.0.dev0", vocab_size=50304)  # fmt: skip
OLMO2 = _hf("olmo2", "Olmo2ForCausalLM", attention_bias=False, attention_dropout=0.0, eos_token_id=100257,
            hidden_act="silu", max_position_embeddings=4096, pad_token_id=100277, rms_norm_eps=1e-06, rope_scaling=None,
            rope_theta=500000, tie_word_embeddings=False, transformers_version="4.47.0.dev0",
            vocab_size=100352)  # fmt: skip

STABLELM = _hf("stablelm", "StableLmForCausalLM", bos_token_id=0, eos_token_id=0, hidden_act="silu",
               layer_norm_eps=1e-05, max_position_embeddings=4096, partial_rotary_factor=0.25, rope_theta=10000,
               tie_word_embeddings=False, transformers_version="4.38.0", use_qkv_bias=False,
               vocab_size=50304)  # fmt: skip
STABLELM_EPOCH = _hf("stablelm_epoch", "StableLMEpochForCausalLM", bos_token_id=0, eos_token_id=0, hidden_act="silu",
                     auto_map={"AutoConfig": "configuration_stablelm_epoch.StableLMEpochConfig",
                               "AutoModelForCausalLM": "modeling_stablelm_epoch.StableLMEpochForCausalLM"},
                     max_position_embeddings=4096, norm_eps=1e-05, num_heads=32, rope_pct=0.25, rope_theta=10000,
                     rotary_scaling_factor=1.0, tie_word_embeddings=False, transformers_version="4.33.2",
                     vocab_size=50304)  # fmt: skip
QWEN2 = _hf("qwen2", "Qwen2ForCausalLM", attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643,
            hidden_act="silu", max_position_embeddings=32768, rms_norm_eps=1e-06, rope_theta=1000000.0,
            sliding_window=32768, tie_word_embeddings=False, transformers_version="4.37.0", use_sliding_window=False,
            vocab_size=151936)  # fmt: skip
TIED = {"tie_word_embeddings": True}
QWEN3 = _hf("qwen3", "Qwen3ForCausalLM", attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
            eos_token_id=151645, head_dim=128, hidden_act="silu", max_position_embeddings=40960, rms_norm_eps=1e-06,
            rope_scaling=None, rope_theta=1000000, sliding_window=None, transformers_version="4.51.0", use_cache=True,
            use_sliding_window=False, vocab_size=151936)  # fmt: skip
LONG = {"max_position_embeddings": 131072, "sliding_window": 131072}

NEOX = _hf("gpt_neox", "GPTNeoXForCausalLM", bos_token_id=0, eos_token_id=0, hidden_act="gelu", layer_norm_eps=1e-05,
           max_position_embeddings=2048, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False,
           torch_dtype="float16", transformers_version="4.24.0", use_parallel_residual=True,
           vocab_size=50304)  # fmt: skip
NEOX_20B = NEOX | {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "hidden_act": "gelu_fast",
                   "vocab_size": 50432, "transformers_version": "4.19.0.dev0"}  # fmt: skip
del NEOX_20B["use_parallel_residual"]  # came later; its absence means True

_TYPES_270M = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(18)]

PUBLISHED: dict[str, tuple[int, Json]] = {
    "gemma-2b": (2_506_172_416, GEMMA | _sizes(2048, 16384, 18, 8, 1, hidden_act="gelu", hidden_activation=None)),
    "gemma-7b": (8_537_680_896, GEMMA | _sizes(3072, 24576, 28, 16, 16, hidden_act="gelu_pytorch_tanh",
                                               hidden_activation="gelu_pytorch_tanh")),
    "gemma-7b-first": (8_537_680_896, GEMMA | _sizes(3072, 24576, 28, 16, 16, hidden_act="gelu")),
    "gemma-2-2b": (2_614_341_888, GEMMA2 | _sizes(2304, 9216, 26, 8, 4)),
    "gemma-2-9b": (9_241_705_984, GEMMA2 | _sizes(3584, 14336, 42, 16, 8, sliding_window_size=4096)),
    "gemma-2-27b": (27_227_128_320, GEMMA2 | _sizes(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144,
                                                    sliding_window_size=4096, _attn_implementation="eager")),
    "gemma-3-270m": (268_098_176, GEMMA3 | _sizes(640, 2048, 18, 4, 1, _sliding_window_pattern=6, eos_token_id=1,
                                                  layer_types=_TYPES_270M, rope_local_base_freq=10000.0,
                                                  rope_theta=1000000.0, use_bidirectional_attention=False)),
    "gemma-3-1b": (999_885_952, GEMMA3 | _sizes(1152, 6912, 26, 4, 1, cache_implementation="hybrid",
                                                eos_token_id=[1, 106], rope_local_base_freq=10000, rope_theta=1000000,
                                                sliding_window_pattern=6)),
    "gemma-3-4b": (3_880_263_168, _gemma3_multimodal(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34)),
    "gemma-3-12b": (11_766_034_176, _gemma3_multimodal(**_sizes(3840, 15360, 48, 16, 8))),
    "gemma-3-27b": (27_009_346_304, _gemma3_multimodal(**_sizes(5376, 21504, 62, 32, 16), head_dim=128,
                                                       query_pre_attn_scalar=168)),
    "llama-2-7b": (6_738_415_616, LLAMA2 | _sizes(4096, 11008, 32, 32, 32)),
    "llama-2-13b": (13_015_864_320, LLAMA2 | _sizes(5120, 13824, 40, 40, 40)),
    "llama-2-70b": (68_976_648_192, LLAMA2 | _sizes(8192, 28672, 80, 64, 8)),
    "llama-3-8b": (8_030_261_248, LLAMA3 | _sizes(4096, 14336, 32, 32, 8)),
    "llama-3.1-8b": (8_030_261_248, _llama31(8.0) | _sizes(4096, 14336, 32, 32, 8)),
    "llama-3.2-1b": (1_235_814_400, _llama31(32.0) | TIED | _sizes(2048, 8192, 16, 32, 8, head_dim=64)),
    "llama-3.2-3b": (3_212_749_824, _llama31(32.0) | TIED | _sizes(3072, 8192, 28, 24, 8, head_dim=128)),
    "falcon3-1b": (1_669_408_768, FALCON3 | _sizes(2048, 8192, 18, 8, 4, max_position_embeddings=8192)),
    "falcon3-7b": (7_455_550_464, FALCON3 | _sizes(3072, 23040, 28, 12, 4, max_position_embeddings=32768)),
    "smollm2-135m": (134_515_008, SMOLLM2 | _sizes(576, 1536, 30, 9, 3, initializer_range=0.041666666666666664)),
    "smollm2-360m": (361_821_120, SMOLLM2 | _sizes(960, 2560, 32, 15, 5)),
    "smollm2-1.7b": (1_711_376_384, SMOLLM2 | _sizes(2048, 8192, 24, 32, 32, rope_theta=130000)),
    "mistral-7b-v0.1": (7_241_732_096, MISTRAL | _sizes(4096, 14336, 32, 32, 8, rope_theta=10000.0, sliding_window=4096)),
    "mistral-7b-v0.2": (7_241_732_096, MISTRAL | _sizes(4096, 14336, 32, 32, 8)),
    "mistral-7b-v0.3": (7_248_023_552, MISTRAL | _sizes(4096, 14336, 32, 32, 8, vocab_size=32768)),
    "mistral-nemo": (12_247_782_400, MISTRAL | _sizes(5120, 14336, 40, 32, 8, head_dim=128, vocab_size=131072,
                                                      max_position_embeddings=128000)),
    "falcon-7b-first": (6_921_720_704, _refined_web("RefinedWebModel", hidden_size=4544, n_head=71, n_layer=32,
                                                    multi_query=True)),
    "falcon-7b": (6_921_720_704, FALCON | {"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32,
                                               "multi_query": True, "new_decoder_architecture": False}),
    "falcon-40b-first": (41_303_293_952, _refined_web("RefinedWeb", hidden_size=8192, n_head=128, n_head_kv=8,
                                                      n_layer=60)),
    "falcon-40b": (41_303_293_952, FALCON | {"hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60,
                                                 "num_kv_heads": 8, "new_decoder_architecture": True}),
    "olmo-1b": (1_176_764_416, OLMO | TIED | _sizes(2048, 8192, 16, 16, 16)),
    "olmo-7b": (6_888_095_744, OLMO | _sizes(4096, 11008, 32, 32, 32)),
    "olmo-7b-0424": (6_888_095_744, OLMO | _sizes(4096, 11008, 32, 32, 32, clip_qkv=8.0, max_position_embeddings=4096)),
    "olmo-2-1b": (1_484_916_736, OLMO2 | _sizes(2048, 8192, 16, 16, 16)),
    "olmo-2-7b": (7_298_617_344, OLMO2 | _sizes(4096, 11008, 32, 32, 32)),
    "olmo-2-13b": (13_716_198_400, OLMO2 | _sizes(5120, 13824, 40, 40, 40)),
    "stablelm-alpha-3b": (3_637_321_728, NEOX | _sizes(4096, 16384, 16, 32, max_position_embeddings=4096,
                                                       vocab_size=50688)),
    "stablelm-alpha-7b": (7_868_755_968, NEOX | _sizes(6144, 24576, 16, 48, max_position_embeddings=4096,
                                                       vocab_size=50432)),
    "stablelm-3b-4e1t-first": (2_795_443_200, STABLELM_EPOCH | _sizes(2560, 6912, 32, 32, 32)),
    "stablelm-3b-4e1t": (2_795_443_200, STABLELM | _sizes(2560, 6912, 32, 32, 32)),
    "stablelm-2-1.6b-first": (1_644_515_328, STABLELM_EPOCH | _sizes(2048, 5632, 24, 32, 32, use_qkv_bias=True,
                                                                     vocab_size=100352)),
    "stablelm-2-1.6b": (1_644_515_328, STABLELM | _sizes(2048, 5632, 24, 32, 32, use_qkv_bias=True, vocab_size=100352)),
    "stablelm-2-12b": (12_143_185_920, STABLELM | _sizes(5120, 13824, 40, 32, 8, attention_dropout=0.0, rope_scaling=None,
                                                         hidden_dropout=0.0, qk_layernorm=True, vocab_size=100352,
                                                         use_parallel_residual=True)),
    "qwen1.5-0.5b": (463_987_712, QWEN2 | TIED | _sizes(1024, 2816, 24, 16, 16, max_window_layers=21)),
    "qwen1.5-1.8b": (1_836_828_672, QWEN2 | _sizes(2048, 5504, 24, 16, 16, max_window_layers=21)),
    "qwen1.5-7b": (7_721_324_544, QWEN2 | _sizes(4096, 11008, 32, 32, 32, max_window_layers=28)),
    "qwen2-0.5b": (494_032_768, QWEN2 | TIED | LONG | _sizes(896, 4864, 24, 14, 2, max_window_layers=24)),
    "qwen2-1.5b": (1_543_714_304, QWEN2 | TIED | LONG | _sizes(1536, 8960, 28, 12, 2, max_window_layers=28)),
    "qwen2-7b": (7_615_616_512, QWEN2 | LONG | _sizes(3584, 18944, 28, 28, 4, max_window_layers=28, vocab_size=152064)),
    "qwen2.5-0.5b": (494_032_768, QWEN2 | TIED | _sizes(896, 4864, 24, 14, 2, max_window_layers=24, use_mrope=False)),
    "qwen2.5-1.5b": (1_543_714_304, QWEN2 | TIED | LONG | _sizes(1536, 8960, 28, 12, 2, max_window_layers=28,
                                                                 use_mrope=False)),
    "qwen2.5-7b": (7_615_616_512, QWEN2 | LONG | _sizes(3584, 18944, 28, 28, 4, max_window_layers=28, use_mrope=False,
                                                        vocab_size=152064)),
    "qwen3-0.6b": (596_049_920, QWEN3 | TIED | _sizes(1024, 3072, 28, 16, 8, max_window_layers=28)),
    "pythia-70m": (70_426_624, NEOX | _sizes(512, 2048, 6, 8)),
    "pythia-160m": (162_322_944, NEOX | _sizes(768, 3072, 12, 12)),
    "pythia-410m": (405_334_016, NEOX | _sizes(1024, 4096, 24, 16)),
    "pythia-1b": (1_011_781_632, NEOX | _sizes(2048, 8192, 16, 8)),
    "pythia-1.4b": (1_414_647_808, NEOX | _sizes(2048, 8192, 24, 16)),
    "pythia-2.8b": (2_775_208_960, NEOX | _sizes(2560, 10240, 32, 32)),
    "pythia-6.9b": (6_857_302_016, NEOX | _sizes(4096, 16384, 32, 32, vocab_size=50432)),
    "pythia-12b": (11_846_072_320, NEOX | _sizes(5120, 20480, 36, 40, vocab_size=50688)),
    "oasst-sft-4-pythia-12b": (11_841_976_320, NEOX | _sizes(5120, 20480, 36, 40, vocab_size=50288,
                                                             transformers_version="4.28.0.dev0")),
    "gpt-neox-20b": (20_554_567_680, NEOX_20B | _sizes(6144, 24576, 44, 64)),
}  # fmt: skip

"""Mixes against what llama.cpp chose for real files, and against its rules."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from geode import checkpoint, mixes
from geode.config import Config
from geode.errors import OptionError
from geode.quant import row_bytes
from geode.tensors import shapes

MISTRAL = Config(
    vocab=32000, width=4096, depth=32, heads=32, kv_heads=8, head_dim=128, ffn=14336, context=8192, qkv_bias=True
)


def layers(plan: dict[str, str], stem: str, kind: str) -> list[int]:
    """The layers whose `stem` has that type."""
    return [
        int(name.split(".")[1]) for name, found in plan.items() if name.endswith(f"{stem}.weight") and found == kind
    ]


@pytest.mark.parametrize(("name", "mix"), [("gemma3:270m", "q4_k_m"), ("smollm2:135m-instruct", "q4_1")])
def test_the_plan_is_what_llama_cpp_made(real_model: Callable, name: str, mix: str) -> None:
    opened = checkpoint.open(real_model(name))
    assert mixes.plan(opened.config, mix) == {name: entry.type for name, entry in opened.tensors.entries.items()}


SMALL: dict[str, Any] = {"vocab": 512, "width": 256, "depth": 32, "heads": 8, "kv_heads": 2, "head_dim": 32, "ffn": 512}
FUSED: dict[str, Any] = {"fused_qkv": True, "gated": False}
FALCON: dict[str, Any] = FUSED | {"eight_bit_head": True}
LLAMA_CPPS = {  # networks, and CRC-32 of what `llama-quantize --dry-run` printed for them: see `choices`
    "gemma": ({"tied": True, "depth": 18, "kv_heads": 1}, 0xD80D1FC0),
    "gemma 3": ({"tied": True, "depth": 26, "kv_heads": 4, "ffn": 576}, 0x1BF651FE),
    "llama, values shared by four": ({}, 0xB4AF0277),
    "llama 70b": ({"depth": 80}, 0x7A1B5D72),
    "llama, rows of no whole 256": ({"kv_heads": 8, "width": 288, "head_dim": 36}, 0x90CADD35),
    "llama, rows of no whole 32": ({"width": 240, "head_dim": 30, "depth": 16}, 0xB12744B5),
    "falcon 7b": (FALCON | {"block": "parallel_shared", "kv_heads": 1}, 0xE76ADD3E),
    "falcon 40b": (FALCON | {"block": "parallel", "depth": 60, "tied": True}, 0x943591D6),
    "gpt-neox": (FUSED | {"block": "parallel", "kv_heads": 8, "depth": 24}, 0x346733D3),
    "qwen2": ({"depth": 28}, 0x760EEF67),
    "qwen2 72b": ({"depth": 80, "kv_heads": 1}, 0x7A1B5D72),
}


def choices(config: Config, **family: bool) -> Iterator[str]:
    """Each mix, without and with an importance matrix, and the type of each matrix, q, k and v apart."""
    for mix in mixes.MIXES:
        for imatrix in (False, True) if mixes.MIXES[mix].blind else (True,):
            for name, kind in mixes.plan(config, mix, imatrix=imatrix, **family).items():
                if name.endswith(".weight") and "norm" not in name:
                    yield f"{mix} {imatrix} {name} {kind}"


@pytest.mark.parametrize("network", LLAMA_CPPS)
def test_every_mix_is_llama_cpps(network: str) -> None:
    given, expected = LLAMA_CPPS[network]
    family = {name: given[name] for name in ("fused_qkv", "eight_bit_head") if name in given}
    config = Config(context=256, **SMALL | {name: value for name, value in given.items() if name not in family})
    assert zlib.crc32("\n".join(sorted(choices(config, **family))).encode()) == expected


def test_an_importance_matrix_lets_the_first_layers_keep_a_minimum() -> None:
    plan = mixes.plan(MISTRAL, "q4_0", imatrix=True)
    assert layers(plan, "ffn_down", "Q4_1") == [0, 1, 2, 3]
    assert "Q4_1" not in mixes.plan(MISTRAL, "q4_0").values()
    assert set(mixes.plan(MISTRAL, "q4_k_m", imatrix=True).items()) == set(mixes.plan(MISTRAL, "q4_k_m").items())
    with pytest.raises(OptionError, match="geode imatrix"):
        mixes.plan(MISTRAL, "q2_k_s")


def test_a_head_of_eight_bits_costs_the_feed_forward_some() -> None:
    plan = mixes.plan(MISTRAL, "q4_k_m", eight_bit_head=True, fused_qkv=True)
    assert plan["output.weight"] == "Q8_0"
    assert layers(plan, "ffn_down", "Q6_K") == [0, 1]
    assert layers(plan, "ffn_down", "Q5_K") == [2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers(plan, "attn_v", "Q6_K") == layers(mixes.plan(MISTRAL, "q4_k_m"), "attn_v", "Q6_K")


def test_q4_k_m_gives_sensitive_layers_more_bits() -> None:
    plan = mixes.plan(MISTRAL, "Q4_K_M")
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers(plan, "attn_v", "Q6_K") == layers(plan, "ffn_down", "Q6_K") == more
    assert plan["token_embd.weight"] == "Q4_K"
    assert plan["output.weight"] == "Q6_K"
    assert plan["output_norm.weight"] == plan["blk.3.attn_v.bias"] == "F32"
    assert Counter(plan.values())["Q6_K"] == 2 * len(more) + 1


@pytest.mark.parametrize(
    ("mix", "embedding", "output", "gate"),
    [("q8_0", "Q8_0", "Q8_0", "Q8_0"), ("q4_0", "Q4_0", "Q6_K", "Q4_0"), ("q5_k_m", "Q5_K", "Q6_K", "Q5_K")],
)
def test_head_and_embedding(mix: str, embedding: str, output: str, gate: str) -> None:
    plan = mixes.plan(MISTRAL, mix)
    assert (plan["token_embd.weight"], plan["output.weight"], plan["blk.5.ffn_gate.weight"]) == (
        embedding,
        output,
        gate,
    )
    tied = mixes.plan(MISTRAL.replace(tied=True), mix)
    assert tied["token_embd.weight"] == output
    assert "output.weight" not in tied


@pytest.mark.parametrize(
    ("width", "expected"), [(256, "Q4_K Q6_K"), (288, "Q5_0 Q8_0"), (48, "F16 F16")], ids=lambda value: str(value)
)
def test_rows_that_do_not_fit_get_narrower_blocks(width: int, expected: str) -> None:
    plan = mixes.plan(MISTRAL.replace(width=width), "q4_k_m")
    assert f"{plan['blk.0.attn_q.weight']} {plan['blk.0.attn_v.weight']}" == expected


def test_layers_are_counted_from_the_first() -> None:
    small = mixes.plan(MISTRAL, "q4_k_s")
    assert layers(small, "attn_v", "Q5_K") == layers(small, "ffn_down", "Q5_K") == [0, 1, 2, 3]
    middle = mixes.plan(MISTRAL, "q3_k_m")
    assert layers(middle, "attn_v", "Q5_K") == layers(middle, "ffn_down", "Q5_K") == [0, 1]
    assert set(layers(middle, "attn_output", "Q4_K")) == set(range(32))


def test_values_that_many_queries_share_are_worth_bits() -> None:
    assert mixes.plan(MISTRAL, "q2_k")["blk.0.attn_v.weight"] == "Q4_K"
    assert mixes.plan(MISTRAL.replace(kv_heads=32), "q2_k")["blk.0.attn_v.weight"] == "Q3_K"
    large = mixes.plan(MISTRAL.replace(depth=80), "q4_k_m")
    assert {large[f"blk.{i}.attn_v.weight"] for i in range(80)} == {"Q5_K", "Q6_K"}


def test_a_fused_projection_has_one_type() -> None:
    plan = mixes.plan(MISTRAL, "q4_k_m", fused_qkv=True)
    assert all(len({plan[f"blk.{i}.attn_{part}.weight"] for part in "qkv"}) == 1 for i in range(32))
    assert plan["blk.0.attn_q.weight"] == "Q6_K"


@pytest.mark.parametrize("mix", mixes.MIXES)
def test_every_planned_tensor_can_be_packed(mix: str) -> None:
    wanted = shapes(MISTRAL)
    plan = mixes.plan(MISTRAL, mix, imatrix=not mixes.MIXES[mix].blind)
    assert list(plan) == list(wanted)
    assert all(row_bytes(kind, wanted[name]) > 0 for name, kind in plan.items() if kind != "F32")
    assert plan["blk.9.ffn_up.weight"] == mixes.MIXES[mix].base


def test_an_unknown_mix_names_those_there_are() -> None:
    with pytest.raises(OptionError, match=r"'q4_k_xl'.*q8_0, q4_0.*q4_k_m"):
        mixes.plan(MISTRAL, "q4_k_xl")

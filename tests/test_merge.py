"""Models made of models: each method against its definition written out, errors stated truly, tokenizers in step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from geode import adapters, checkpoint, families, merge, tensors, tokenizer
from geode.adapters import Adapter, Pair
from geode.checkpoint import Checkpoint
from geode.cli.app import main as geode
from geode.config import Config
from geode.dialects import hf as hf_dialect
from geode.errors import ConfigError, OptionError, TokenizerError
from geode.formats.base import floats
from geode.io import safetensors
from geode.merge.taken import _low_rank
from geode.native import extension
from geode.quant import QTensor, quantize, to_float32
from geode.strings import pack
from geode.tensors import Tensors, from_arrays
from geode.tokenizer import Ranked, Roles, Scored, Vocabulary
from geode.tokenizer.bytebpe import GPT2_ALPHABET
from geode.tokenizer.patterns import CUTS

LLAMA, GEMMA = families.by_name("llama"), families.by_name("gemma")
CONFIG = Config(96, 64, 2, 4, 2, 16, 96, 128, norm=LLAMA.constants["norm"])
TIED = CONFIG.replace(tied=True)
Q, EMBEDDING, HEAD = "blk.1.attn_q.weight", "token_embd.weight", "output.weight"


def drawn(seed: int, config: Config = CONFIG, near: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Random weights; those of a tuned model lie near others."""
    random = np.random.default_rng(seed)
    found = {n: random.standard_normal(s).astype(np.float32) for n, s in tensors.shapes(config).items()}
    return found if near is None else {name: near[name] + np.float32(0.1) * array for name, array in found.items()}


def save(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    config: Config = CONFIG,
    family: families.Family = LLAMA,
    dtype: str = "F32",
    words: Vocabulary | None = None,
) -> Checkpoint:
    """A Hugging Face directory."""
    folder.mkdir()
    safetensors.write(folder, hf_dialect.write(floats(from_arrays(arrays), dtype), config, family))
    (folder / "config.json").write_text(json.dumps(family.config_to_hf(config)))
    for name, data in (tokenizer.to_hf(words) if words else {}).items():
        (folder / name).write_bytes(data)
    return checkpoint.open(folder)


@dataclasses.dataclass
class InMemory(Checkpoint):
    """A checkpoint that lies in no file: packed tensors beside plain ones."""

    def files(self) -> list[Path]:
        return []

    def _tensors(self) -> Tensors:
        return self.stored

    def _vocabulary(self) -> Any:
        return None


def in_memory(arrays: Mapping[str, Any], config: Config = CONFIG) -> Checkpoint:
    return InMemory(Path("nowhere"), "hf", LLAMA, config, from_arrays(arrays), {})


def packed(arrays: Mapping[str, np.ndarray], kind: str, config: Config = CONFIG) -> Checkpoint:
    return in_memory({n: quantize(a, kind) if a.ndim == 2 else a for n, a in arrays.items()}, config)


def lora(names: tuple[str, ...] = (Q,), config: Config = CONFIG, size: float = 1.0, rank: int = 4) -> Adapter:
    random = np.random.default_rng(9)
    shapes = {**tensors.shapes(config), HEAD: (config.vocab, config.width)}

    def one(out: int, width: int) -> Pair:
        a, b = random.standard_normal((rank, width)), random.standard_normal((out, rank))
        return Pair(np.float32(size * a), b.astype(np.float32), 0.5)

    return Adapter(LLAMA, config, {name: one(*shapes[name]) for name in names}, from_arrays({}))


def change(pair: Pair) -> np.ndarray:
    return pair.scale * (pair.b.astype(np.float64) @ pair.a.astype(np.float64))


# ---------------------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_is_added_to_what_it_touches_alone() -> None:
    arrays, given = drawn(0), lora((Q, "blk.0.ffn_down.weight"))
    made = merge.adapter(in_memory(arrays), given, 0.25)
    for name, array in made.tensors.items():
        if name in given.pairs:
            expected = arrays[name] + 0.25 * change(given.pairs[name])
            np.testing.assert_allclose(np.asarray(array), expected, rtol=1e-5, atol=1e-5)
        else:
            assert array is arrays[name]
    assert set(made.shifts) == set(given.pairs)
    assert all(shift.largest == 0 and shift.survived == pytest.approx(1) for shift in made.shifts.values())


def test_several_adapters_are_rounded_once() -> None:
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in drawn(0).items()}
    one, two = lora(size=0.01), lora(size=0.003)
    made = merge.adapters(in_memory(arrays), [(one, 1.0), (two, -2.0)])
    exact = arrays[Q].astype(np.float64) + change(one.pairs[Q]) - 2 * change(two.pairs[Q])
    assert np.array_equal(np.asarray(made.tensors[Q]), exact.astype(np.float32).astype(ml_dtypes.bfloat16))


def test_the_error_of_bfloat16_is_stated() -> None:
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in drawn(0).items()}
    given = lora(size=0.01)
    made = merge.adapter(in_memory(arrays), given)
    stored = np.asarray(made.tensors[Q]).astype(np.float64)
    before = arrays[Q].astype(np.float64)
    exact = before + change(given.pairs[Q])
    shift = made.shifts[Q]
    assert shift.type == "BF16"
    assert shift.largest == pytest.approx(np.abs(stored - exact).max(), rel=1e-3)
    assert 0 < shift.largest <= np.abs(exact).max() / 256
    assert shift.error == pytest.approx(np.sqrt(((stored - exact) ** 2).sum() / (exact**2).sum()), rel=1e-3)
    want = ((stored - before) * (exact - before)).sum() / ((exact - before) ** 2).sum()
    assert shift.survived == pytest.approx(want, rel=1e-3)
    (told,) = made.report()
    assert told.startswith("1 tensors computed and stored as BF16: largest |Δ|")
    assert f"{shift.survived:.1%} survived" in told


@pytest.mark.parametrize(("kind", "least"), [("Q8_0", 0.99), ("Q4_0", 0.8)])
def test_packed_weights_are_packed_again_and_the_shift_is_told(kind: str, least: float) -> None:
    arrays, given = drawn(0), lora((Q, EMBEDDING))
    base = packed(arrays, kind)
    made = merge.adapter(base, given)
    for name in given.pairs:
        found, before = made.tensors[name], to_float32(base.tensors[name])
        assert isinstance(found, QTensor)
        assert found.type == kind
        exact = before + change(given.pairs[name]).astype(np.float32)
        np.testing.assert_array_equal(to_float32(found), to_float32(quantize(exact, kind)))
        shift = made.shifts[name]
        assert shift.survived is not None
        assert least < shift.survived < 2 - least
        off = to_float32(found) - exact
        assert shift.error == pytest.approx(np.sqrt((off**2).mean() / (exact**2).mean()), rel=1e-3)
    assert made.tensors["blk.0.attn_q.weight"] is base.tensors["blk.0.attn_q.weight"]


def test_a_change_smaller_than_a_step_is_lost_and_that_is_told() -> None:
    """A change of one matrix by far less than Q4_0's step cannot move most numbers."""
    made = merge.adapter(packed(drawn(0), "Q4_0"), lora(size=1e-4))
    made.tensors[Q]
    shift = made.shifts[Q]
    assert shift.survived is not None
    assert shift.survived < 0.05
    assert "of the change 0.0% survived" in made.report()[0]


def test_magnitudes_set_the_length_of_rows() -> None:
    arrays, one = drawn(0), lora().pairs[Q]
    length = np.abs(np.random.default_rng(3).standard_normal(64)).astype(np.float32) + 1
    given = Adapter(LLAMA, CONFIG, {Q: dataclasses.replace(one, magnitude=length)}, from_arrays({}))
    made = np.asarray(merge.adapter(in_memory(arrays), given).tensors[Q])
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), length, rtol=1e-5)
    direction = arrays[Q] + change(one)
    np.testing.assert_allclose(
        made / length[:, None], direction / np.linalg.norm(direction, axis=1)[:, None], atol=1e-5
    )


def test_replaced_tensors_come_in_their_bits() -> None:
    arrays, new = drawn(0), np.random.default_rng(4).standard_normal(64).astype(np.float32)
    given = Adapter(LLAMA, CONFIG, {}, from_arrays({"output_norm.weight": new}))
    whole = merge.adapter(in_memory(arrays), given).tensors["output_norm.weight"]
    assert np.asarray(whole).tobytes() == new.tobytes()
    half = merge.adapter(in_memory(arrays), given, 0.5).tensors["output_norm.weight"]
    np.testing.assert_allclose(np.asarray(half), (arrays["output_norm.weight"] + new) / 2, atol=1e-6)


@pytest.mark.parametrize("side", [EMBEDDING, HEAD])
def test_a_tied_head_is_untied_where_one_side_changes(side: str) -> None:
    arrays, given = drawn(0, TIED), lora((side,), TIED)
    made = merge.adapter(in_memory(arrays, TIED), given)
    assert not made.config.tied
    assert any("no longer tied" in remark for remark in made.report())
    expected = arrays[EMBEDDING] + change(given.pairs[side])
    np.testing.assert_allclose(np.asarray(made.tensors[side]), expected, atol=1e-5)
    (other,) = {EMBEDDING, HEAD} - {side}
    assert made.tensors[other] is arrays[EMBEDDING]


def test_a_tied_head_stays_tied_where_both_sides_change_alike() -> None:
    given = lora((EMBEDDING,), TIED)
    both = dataclasses.replace(given, pairs={EMBEDDING: given.pairs[EMBEDDING], HEAD: given.pairs[EMBEDDING]})
    made = merge.adapter(in_memory(drawn(0, TIED), TIED), both)
    assert made.config.tied
    assert HEAD not in made.tensors


def test_adapters_for_other_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="for the model that it is merged into"):
        merge.adapter(in_memory(drawn(0)), lora(config=CONFIG.replace(depth=3)))
    with pytest.raises(OptionError, match="at least one"):
        merge.adapters(in_memory(drawn(0)), [])


# -------------------------------------------------------------------------------------------------------------- extraction


def test_what_was_merged_can_be_taken_out_again(tmp_path: Path) -> None:
    arrays, given = drawn(0), lora((Q, "blk.0.ffn_up.weight", EMBEDDING, HEAD))
    norm = {"blk.0.ffn_norm.weight": arrays["blk.0.ffn_norm.weight"] + 1}
    given = dataclasses.replace(given, replaced=from_arrays(norm))
    base = in_memory(arrays)
    found = merge.extract(base, merge.adapter(base, given), 4)
    assert found.adapter.pairs.keys() == given.pairs.keys()
    assert set(found.adapter.replaced) == set(norm)
    assert max(found.residuals.values()) < 1e-5
    for name, one in given.pairs.items():
        assert found.adapter.pairs[name].rank == 4
        np.testing.assert_allclose(change(found.adapter.pairs[name]), change(one), atol=1e-4)


def test_the_residual_is_what_is_left(tmp_path: Path) -> None:
    base, tuned = drawn(0), drawn(1, near=drawn(0))
    found = merge.extract(in_memory(base), in_memory(tuned), 8)
    difference = (tuned[Q] - base[Q]).astype(np.float64)
    singular = np.linalg.svd(difference, compute_uv=False)
    assert found.residuals[Q] == pytest.approx(np.sqrt((singular[8:] ** 2).sum() / (singular**2).sum()), rel=1e-4)
    assert found.adapter.rank == 8


def test_extraction_of_equal_models_finds_nothing() -> None:
    found = merge.extract(in_memory(drawn(0)), in_memory(drawn(0)), 4)
    assert not found.adapter.pairs
    assert not found.residuals


def test_extraction_of_a_tied_model_keeps_it_tied() -> None:
    base = in_memory(drawn(0, TIED), TIED)
    tuned = dict(base.tensors) | {EMBEDDING: base.tensors[EMBEDDING] + change(lora((HEAD,), TIED).pairs[HEAD])}
    found = merge.extract(base, in_memory({n: np.float32(a) for n, a in tuned.items()}, TIED), 4)
    made = merge.adapter(base, found.adapter)
    assert made.config.tied
    np.testing.assert_allclose(np.asarray(made.tensors[EMBEDDING]), tuned[EMBEDDING], atol=1e-4)


def test_large_matrices_are_taken_apart_nearly_as_well() -> None:
    """A random projection leaves hardly more than the best pair does."""
    random = np.random.default_rng(0)
    u, v = random.standard_normal((2, 1100, 40))
    matrix = ((u * 0.7 ** np.arange(40)) @ v.T + 0.02 * random.standard_normal((1100, 1100))).astype(np.float32)
    pair, rest = _low_rank(matrix, 8)
    singular = np.linalg.svd(matrix, compute_uv=False).astype(np.float64)
    best = np.sqrt((singular[8:] ** 2).sum() / (singular**2).sum())
    assert best <= rest * (1 + 1e-5) <= best * 1.001
    left = np.linalg.norm(matrix - pair.b @ pair.a) / np.linalg.norm(matrix)
    assert rest == pytest.approx(float(left), rel=1e-4)


def test_ranks_that_cannot_be() -> None:
    with pytest.raises(OptionError, match="1 or more"):
        merge.extract(in_memory(drawn(0)), in_memory(drawn(1)), 0)


# ------------------------------------------------------------------------------------------------------------------ mixing


def test_linear_is_the_weighted_mean() -> None:
    models = [drawn(seed) for seed in range(3)]
    made = merge.linear([in_memory(model) for model in models], [2, 1, 1])
    plain = merge.linear([in_memory(model) for model in models], [2, 1, 1], normalize=False)
    for name in models[0]:
        total = 2 * models[0][name] + models[1][name] + models[2][name]
        np.testing.assert_allclose(np.asarray(made.tensors[name]), total / 4, atol=1e-6)
        np.testing.assert_allclose(np.asarray(plain.tensors[name]), total, atol=1e-5)
    assert set(made.shifts) == set(models[0])


def test_slerp_goes_along_the_arc() -> None:
    """Between tensors of one length the length stays, and equal steps are equal angles."""
    a, b = drawn(0), drawn(1)
    b = {name: array * np.float32(np.linalg.norm(a[name]) / np.linalg.norm(array)) for name, array in b.items()}
    size = np.linalg.norm(a[Q])

    def angle(t: float) -> float:
        found = np.asarray(merge.slerp(in_memory(a), in_memory(b), t).tensors[Q])
        assert np.linalg.norm(found) == pytest.approx(size, rel=1e-5)
        return float(np.arccos(np.clip(np.vdot(found, a[Q]) / size**2, -1, 1)))

    whole = angle(1.0)
    assert angle(0.25) == pytest.approx(whole / 4, rel=1e-3)
    assert angle(0.5) == pytest.approx(whole / 2, rel=1e-3)
    near = {name: array * np.float32(3) for name, array in a.items()}
    straight = merge.slerp(in_memory(a), in_memory(near), 0.5).tensors[Q]
    np.testing.assert_allclose(np.asarray(straight), 2 * a[Q], rtol=1e-5)


def ties_of_papers(base: Any, models: list[Any], weights: list[float], density: float) -> np.ndarray:
    """Trim, elect, and the mean of those that agree, number by number (arxiv.org/abs/2306.01708, algorithm 1)."""
    deltas = []
    for model in models:
        delta = (model - base).astype(np.float64)
        edge = np.sort(np.abs(delta), axis=None)[::-1][int(density * delta.size) - 1]
        deltas.append(np.where(np.abs(delta) >= edge, delta, 0))
    out = base.astype(np.float64)
    for at in np.ndindex(base.shape):
        parts = [(weight, weight * delta[at]) for weight, delta in zip(weights, deltas, strict=True)]
        sign = 1 if sum(part for _, part in parts) >= 0 else -1
        agree = [(weight, part) for weight, part in parts if part * sign > 0]
        out[at] += sum(part for _, part in agree) / (sum(weight for weight, _ in agree) or 1)
    return out


@pytest.mark.parametrize(("weights", "density"), [([1.0, 1.0, 1.0], 0.3), ([0.5, 2.0, 1.0], 0.7), ([1, 1, 1], 1.0)])
def test_ties_follows_the_paper(weights: list[float], density: float) -> None:
    base = drawn(0)
    models = [drawn(seed, near=base) for seed in (1, 2, 3)]
    made = merge.ties(in_memory(base), [in_memory(model) for model in models], weights, density)
    for name in (Q, "output_norm.weight"):
        expected = ties_of_papers(base[name], [model[name] for model in models], weights, density)
        np.testing.assert_allclose(np.asarray(made.tensors[name]), expected, atol=1e-5)
    half = merge.ties(in_memory(base), [in_memory(model) for model in models], weights, density, scale=0.5)
    expected = (ties_of_papers(base[Q], [model[Q] for model in models], weights, density) + base[Q]) / 2
    np.testing.assert_allclose(np.asarray(half.tensors[Q]), expected, atol=1e-5)


def test_dare_drops_and_rescales() -> None:
    base = drawn(0)
    one = drawn(1, near=base)
    made = merge.dare(in_memory(base), [in_memory(one)], None, 0.25, seed=5)
    moved = np.asarray(made.tensors[EMBEDDING]) - base[EMBEDDING]
    delta = one[EMBEDDING] - base[EMBEDDING]
    kept = np.abs(moved) > np.abs(delta)  # four times its size, or nothing
    assert kept.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(moved[kept], 4 * delta[kept], atol=1e-5)
    assert not moved[~kept].any()


def test_dare_is_repeatable_and_seeds_differ() -> None:
    base, models = in_memory(drawn(0)), [in_memory(drawn(seed)) for seed in (1, 2)]
    one, again, other = (merge.dare(base, models, None, 0.5, seed).tensors[Q] for seed in (1, 1, 2))
    assert np.array_equal(np.asarray(one), np.asarray(again))
    assert not np.array_equal(np.asarray(one), np.asarray(other))
    whole = np.asarray(merge.dare(base, models, [0.5, 0.25], 1.0).tensors[Q])
    expected = base.tensors[Q] + 0.5 * (models[0].tensors[Q] - base.tensors[Q])
    np.testing.assert_allclose(whole, expected + 0.25 * (models[1].tensors[Q] - base.tensors[Q]), atol=1e-5)


def test_dare_with_an_election_keeps_what_agrees() -> None:
    base = drawn(0)
    up = {name: array + np.float32(1) for name, array in base.items()}
    down = {name: array - np.float32(0.25) for name, array in base.items()}
    models = [in_memory(up), in_memory(down)]
    made = merge.dare(in_memory(base), models, None, 1.0, elect=True)
    np.testing.assert_allclose(np.asarray(made.tensors[Q]), base[Q] + 1, atol=1e-6)
    plain = merge.dare(in_memory(base), models, None, 1.0)
    np.testing.assert_allclose(np.asarray(plain.tensors[Q]), base[Q] + 0.75, atol=1e-6)


def test_mixed_models_have_the_first_ones_types() -> None:
    """A packed one beside a plain one; what rounding did is told."""
    one, two = drawn(0), drawn(1)
    made = merge.linear([packed(one, "Q8_0"), in_memory(two)])
    found = made.tensors[Q]
    assert isinstance(found, QTensor)
    assert found.type == "Q8_0"
    assert np.abs(to_float32(found) - (one[Q] + two[Q]) / 2).max() < 0.05
    assert made.shifts[Q].survived is None
    assert 0 < made.shifts[Q].error < 0.01
    other = merge.linear([in_memory(two), packed(one, "Q8_0")])
    assert np.asarray(other.tensors[Q]).dtype == np.float32


def test_models_of_other_shapes_are_refused() -> None:
    deep = CONFIG.replace(depth=3)
    with pytest.raises(ConfigError, match=r"differ in depth \(2 and 3\)"):
        merge.linear([in_memory(drawn(0)), in_memory(drawn(0, deep), deep)])
    other = InMemory(Path("elsewhere"), "hf", GEMMA, CONFIG, from_arrays(drawn(0)), {})
    with pytest.raises(ConfigError, match="elsewhere is gemma"):
        merge.slerp(in_memory(drawn(0)), other, 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda one: merge.linear([one, one], [1]), "2 models need as many weights"),
        (lambda one: merge.linear([one, one], [1, -1]), "sum to 0"),
        (lambda one: merge.linear([one], [float("nan")]), "finite"),
        (lambda one: merge.linear([]), "at least one"),
        (lambda one: merge.slerp(one, one, 1.5), "between 0"),
        (lambda one: merge.ties(one, [one], density=0), "density"),
        (lambda one: merge.dare(one, [one], density=1.5), "density"),
        (lambda one: merge.dare(one, [one], seed=-1), "seed"),
    ],
)
def test_options_outside_their_range(call: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        call(in_memory(drawn(0)))


# -------------------------------------------------------------------------------------------------------------- vocabulary


def scored() -> Scored:
    """<unk>, <s>, </s>, bytes, then letters: 285 pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklmnopqrstuvwxyz"]
    types = [2, 3, 3, *[6] * 256, *[1] * 26]
    roles = Roles(bos=1, eos=2, unk=0, adds_bos=True)
    return Scored(
        pieces=pack(pieces),
        types=np.array(types, np.int32),
        roles=roles,
        scores=-np.arange(len(pieces), dtype=np.float32),
        prefix=False,
    )


def ranked() -> Ranked:
    letters = list(GPT2_ALPHABET)
    pieces = [*letters, "ab", "abc", "abcd", "<|end|>"]
    return Ranked(
        pieces=pack(pieces),
        types=np.array([*[1] * 259, 3], np.int32),
        roles=Roles(eos=259),
        merges=pack(["a b", "ab c", "abc d"]),
        cut=CUTS["gpt-2"],
    )


WORDS = CONFIG.replace(vocab=288)  # three rows of padding after 285 pieces


@pytest.fixture
def worded(tmp_path: Path) -> Checkpoint:
    return save(tmp_path / "base", drawn(0, WORDS), WORDS, words=scored())


def test_new_tokens_have_mean_rows_and_are_in_the_tokenizer(worded: Checkpoint) -> None:
    made = merge.vocabulary(worded, ["<|tool|>", "<|call|>"], multiple=32)
    assert made.config.vocab == 288
    old, new = worded.tensors, made.tensors
    for name in (EMBEDDING, HEAD):
        assert np.array_equal(np.asarray(new[name])[:285], np.asarray(old[name])[:285])
        mean = np.asarray(old[name])[:285].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(np.asarray(new[name])[285:], np.tile(mean, (3, 1)), atol=1e-6)
    assert made.tokenizer is not None
    assert made.tokenizer.control["<|tool|>"] == 285
    assert made.tokenizer.encode("ab<|call|>c", special=True, bos=False)[-2:] == [286, 259 + 2]
    assert made.tokenizer.encode("ab<|call|>c", bos=False) != made.tokenizer.encode(
        "ab<|call|>c", special=True, bos=False
    )
    assert merge.vocabulary(worded, ["<|tool|>"]).config.vocab == 288  # padding stays
    more = merge.vocabulary(worded, [f"<{i}>" for i in range(10)], multiple=32)
    assert more.config.vocab == 320
    assert more.tensors[EMBEDDING].shape == (320, 64)
    assert "had 288" in more.report()[0]


def test_words_are_found_in_any_text(worded: Checkpoint) -> None:
    made = merge.vocabulary(worded, ["cabbage"], control=False)
    assert made.tokenizer is not None
    assert made.tokenizer.encode("acabbageb", bos=False)[1:-1] == [285]
    assert made.tokenizer.decode([285]) == "cabbage"


def test_packed_rows_keep_their_bits() -> None:
    base = packed(drawn(0), "Q8_0")
    base.__dict__["vocabulary"] = Scored(
        pieces=pack([f"w{i}" for i in range(96)]),
        types=np.ones(96, np.int32),
        roles=Roles(),
        scores=np.zeros(96, np.float32),
        prefix=False,
    )
    made = merge.vocabulary(base, ["x"])
    found, old = made.tensors[EMBEDDING], base.tensors[EMBEDDING]
    assert isinstance(found, QTensor)
    assert isinstance(old, QTensor)
    assert found.shape == (97, 64)
    assert np.array_equal(found.data[:96], old.data)
    entry = made.tensors.entries[EMBEDDING]
    assert (entry.type, entry.nbytes) == ("Q8_0", found.nbytes)


def test_padding_alone_is_trimmed_with_the_tokenizer_as_it_is(worded: Checkpoint) -> None:
    made = merge.vocabulary(worded, keep=285)
    assert made.config.vocab == 285
    assert made.format == "hf"
    assert np.array_equal(np.asarray(made.tensors[HEAD]), np.asarray(worded.tensors[HEAD])[:285])
    wide = merge.vocabulary(worded, multiple=64)
    assert wide.config.vocab == 320


def test_tokens_are_trimmed_from_the_tokenizer_too(worded: Checkpoint) -> None:
    made = merge.vocabulary(worded, keep=270)
    assert made.config.vocab == 270
    assert made.tokenizer is not None
    assert made.tokenizer.size == 270
    assert made.tokenizer.encode("az", bos=False)[0] == 259
    with pytest.raises(TokenizerError, match="that every text needs"):
        merge.vocabulary(worded, keep=100)


def test_merges_of_tokens_that_go_go_too(tmp_path: Path) -> None:
    config = CONFIG.replace(vocab=260)
    words = dataclasses.replace(ranked(), roles=Roles())
    base = in_memory(drawn(0, config), config)
    base.__dict__["vocabulary"] = words
    made = merge.vocabulary(base, keep=258)
    assert isinstance(made.vocabulary, Ranked)
    assert list(made.vocabulary.merges) == ["a b", "ab c"]
    assert made.tokenizer is not None
    assert [made.tokenizer.piece(i) for i in made.tokenizer.encode("abcd")] == [b"abc", b"d"]
    base.__dict__["vocabulary"] = ranked()
    with pytest.raises(TokenizerError, match="end"):
        merge.vocabulary(base, keep=258)


def test_vocabularies_that_cannot_be(worded: Checkpoint) -> None:
    for token in ("a", "<s>", ""):
        with pytest.raises(TokenizerError, match=r"Choose another text"):
            merge.vocabulary(worded, [token])
    with pytest.raises(TokenizerError, match="Choose another text"):
        merge.vocabulary(worded, ["new", "new"])
    for options in ({"keep": 0}, {"keep": 289}, {"multiple": 0}):
        with pytest.raises(OptionError, match="1 to 288"):
            merge.vocabulary(worded, **options)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        merge.vocabulary(in_memory(drawn(0)), ["x"])


# ------------------------------------------------------------------------------------------------------- the command line


def run(*words: str | Path) -> int:
    checks = [] if extension.is_there() else ["--no-verify"]
    return geode(["merge", *map(str, words), "--quiet", *checks])


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Checkpoint]:
    base = drawn(0)
    tuned = {name: drawn(seed, near=base) for seed, name in ((1, "a"), (2, "b"))}
    return {name: save(tmp_path / name, arrays) for name, arrays in ({"base": base} | tuned).items()}


def test_adapters_from_the_command_line(models: dict[str, Checkpoint], tmp_path: Path, capsys: Any) -> None:
    given = dataclasses.replace(lora(size=0.1), base=str(tmp_path / "base"))
    adapters.write(given, tmp_path / "one")
    adapters.write(given, tmp_path / "two.gguf")
    two = f"{tmp_path / 'two.gguf'}:0.5"
    assert run(tmp_path / "base", tmp_path / "out", "--adapter", tmp_path / "one", "--adapter", two) == 0
    assert "stored as F32" in capsys.readouterr().out
    found = checkpoint.open(tmp_path / "out").tensors
    expected = models["base"].tensors[Q] + 1.5 * change(given.pairs[Q])
    np.testing.assert_allclose(np.asarray(found[Q]), expected, atol=1e-5)
    assert run(tmp_path / "base", tmp_path / "out.gguf", "--adapter", tmp_path / "one", "--to", "gguf") == 0
    packed = checkpoint.open(tmp_path / "out.gguf").tensors
    expected = models["base"].tensors[Q] + change(given.pairs[Q])
    np.testing.assert_allclose(np.asarray(packed[Q]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ("linear --model {a}:3 --model {b}", lambda m: merge.linear([m["a"], m["b"]], [3, 1])),
        ("slerp --model {a} --model {b} --t 0.3", lambda m: merge.slerp(m["a"], m["b"], 0.3)),
        (
            "ties --base {base} --model {a} --model {b}:2 --density 0.2",
            lambda m: merge.ties(m["base"], [m["a"], m["b"]], [1, 2], 0.2),
        ),
        (
            "dare --base {base} --model {a} --model {b} --seed 3 --elect",
            lambda m: merge.dare(m["base"], [m["a"], m["b"]], None, 0.5, 3, elect=True),
        ),
    ],
)
def test_mixing_from_the_command_line(
    options: str, made: Any, models: dict[str, Checkpoint], tmp_path: Path, capsys: Any
) -> None:
    words = options.format(**{name: tmp_path / name for name in models}).split()
    assert run(tmp_path / "out", "--method", *words) == 0
    found, expected = checkpoint.open(tmp_path / "out").tensors, made(models).tensors
    for name in expected:
        assert np.array_equal(np.asarray(found[name]), np.asarray(expected[name])), name


def test_extraction_from_the_command_line(models: dict[str, Checkpoint], tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path / "base", tmp_path / "a", tmp_path / "lora", "--extract", "--rank", "64") == 0
    assert "leave out 0.0%" in capsys.readouterr().out
    found = adapters.open(tmp_path / "lora")
    made = merge.adapter(models["base"], found).tensors
    for name, array in models["a"].tensors.items():
        np.testing.assert_allclose(np.asarray(made[name]), np.asarray(array), atol=1e-4)


def test_vocabulary_from_the_command_line(worded: Checkpoint, tmp_path: Path, capsys: Any) -> None:
    assert run(worded.path, tmp_path / "out.gguf", "--add-token", "<|tool|>") == 0
    found = checkpoint.open(tmp_path / "out.gguf")
    assert found.tokenizer is not None
    assert found.tokenizer.control["<|tool|>"] == 285
    assert run(worded.path, tmp_path / "out", "--add-token", "<|tool|>", "--pad-vocab", "32") == 0
    again = checkpoint.open(tmp_path / "out")
    assert again.tokenizer is not None
    assert again.tokenizer.control["<|tool|>"] == 285
    assert run(worded.path, tmp_path / "less", "--trim-vocab", "tokens") == 0
    assert checkpoint.open(tmp_path / "less").config.vocab == 285


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{base} {out}", "none of them"),
        ("{base} {out} --adapter x --extract", "--adapter and --extract"),
        ("{base} {a} {out} --adapter x", "BASE DST"),
        ("{out} --method slerp --model {a}", "between two models"),
        ("{out} --method ties --model {a}", "--base MODEL"),
        ("{out} --method linear --model {a} --base {base}", "--base MODEL"),
        ("{base} {out} --add-token x --add-word y", "not both"),
        ("{base} {out} --trim-vocab tokens", "number of rows"),
        ("{base} {out} --trim-vocab many", "number of rows"),
        ("{base} {a} {out} --extract --to onnx", "peft"),
        ("{base} {out} --adapter {base}", "it is no adapter"),
    ],
)
def test_wrong_usage(words: str, told: str, models: dict[str, Checkpoint], tmp_path: Path, capsys: Any) -> None:
    paths = {name: tmp_path / name for name in models} | {"out": tmp_path / "out"}
    assert run(*words.format(**paths).split()) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

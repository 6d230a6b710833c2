"""Perplexity and divergence against the plainest loops, the files of logits byte by byte, and the verb."""

from __future__ import annotations

import io
import json
import math
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from geode import Fake, lm, perplexity
from geode.cli import main
from geode.config import Config
from geode.errors import CapacityError, ContextError, FormatError, ModelNotFound, OptionError, TensorError
from geode.io import logits as files

VOCAB, BOS = 37, 3


class Toy:
    """A network whose logits depend on the token, the one before it, and the position; rows come in odd chunks."""

    def __init__(self, vocab=VOCAB, context=64, noise=0.0):
        self.config = Config(vocab, width=1, depth=1, heads=1, kv_heads=1, head_dim=1, ffn=1, context=context)
        random = np.random.default_rng(7)
        self.table = random.normal(0, 3, (2, vocab, vocab)) + noise * np.random.default_rng(8).normal(
            0, 1, (2, vocab, vocab)
        )
        self.asked = []

    def row(self, ids, i):
        before = self.table[1, ids[i - 1]] if i else 0
        return (self.table[0, ids[i]] + before + np.sin(np.arange(self.config.vocab) * i)).astype(np.float32)

    def rows(self, ids, start=0):
        self.asked.append((list(ids), start))
        every = np.stack([self.row(ids, i) for i in range(start, len(ids))])
        for at in range(0, len(every), 5):
            yield every[at : at + 5]


def model(adds_bos=True, **how):
    tokenizer = SimpleNamespace(
        bos=BOS, adds_bos=adds_bos, size=VOCAB, ends=frozenset(), encode=lambda text, bos: [BOS] * bos + text_ids(text)
    )
    return lm.Local(Toy(**how), tokenizer)


def text_ids(text):
    return [ord(letter) % VOCAB for letter in text]


TEXT = np.random.default_rng(1).integers(0, VOCAB, 83).tolist()


def logprobs(toy, ids):
    """Every row's log-probabilities, in float64."""
    rows = np.stack([toy.row(ids, i) for i in range(len(ids))]).astype(np.float64)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def plain(toy, ids, starts, window, scored, bos=None):
    """llama.cpp's procedure, spelled out: (log-probabilities of the row, token) for each scored token."""
    found = []
    for start in starts:
        chunk = list(ids[start : start + window])
        seen = chunk if bos is None else [bos, *chunk[1:]]
        rows = logprobs(toy, seen)
        found += [(rows[at - 1], chunk[at]) for at in range(window - scored, window)]
    return found


# --- perplexity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("context", "scored"), [(16, 7), (15, 7), (4, 1), (40, 19)])
def test_perplexity_is_the_plain_loops(bos, context, scored):
    it = model(bos)
    expected = plain(
        it.executor, TEXT, range(0, len(TEXT) - context + 1, context), context, scored, BOS if bos else None
    )
    nll = np.array([-row[token] for row, token in expected])
    estimates = list(perplexity.measure(it, TEXT, context=context))
    assert [e.done for e in estimates] == list(range(1, len(TEXT) // context + 1))
    np.testing.assert_allclose(estimates[-1].nll, nll, rtol=1e-6, atol=1e-6)
    for e in estimates:
        assert e.chunks == len(estimates) and len(e.nll) == e.done * scored
        assert e.ppl.value == pytest.approx(math.exp(nll[: e.done * scored].mean()), rel=1e-6)
    mean, square, count = nll.mean(), (nll**2).mean(), len(nll)
    error = math.exp(mean) * math.sqrt((square - mean**2) / max(count - 1, 1))
    assert estimates[-1].ppl.error == pytest.approx(error, rel=1e-5)


def test_a_window_computes_only_what_is_scored():
    it = model()
    list(perplexity.measure(it, TEXT, context=16, chunks=2))
    assert it.executor.asked == [([BOS, *TEXT[1:15]], 8), ([BOS, *TEXT[17:31]], 8)]


@pytest.mark.parametrize("stride", [1, 4, 7, 16])
def test_strides_score_every_token_once(stride):
    it = model(adds_bos=False)
    window = 16 + stride // 2
    count = math.ceil((len(TEXT) - window) / stride)
    expected = plain(it.executor, TEXT, range(0, count * stride, stride), window, stride)
    *_, last = perplexity.measure(it, TEXT, context=16, stride=stride)
    assert last.chunks == count
    np.testing.assert_allclose(last.nll, [-row[token] for row, token in expected], rtol=1e-6, atol=1e-6)


def test_a_text_is_tokenised_once_with_bos():
    it = model()
    text = "a geode is a stone with a hollow heart"
    (one,) = perplexity.measure(it, text, context=16, chunks=1)
    (same,) = perplexity.measure(it, [BOS, *text_ids(text)], context=16, chunks=1)
    assert (one.nll == same.nll).all()


def test_small_blocks_change_nothing(monkeypatch):
    whole = [e.ppl for e in perplexity.measure(model(), TEXT, context=16)]
    monkeypatch.setattr(perplexity, "BLOCK", 2 * VOCAB)
    assert [e.ppl for e in perplexity.measure(model(), TEXT, context=16)] == whole


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        (dict(context=50), OptionError, ["83 tokens", "at least 100"]),
        (dict(context=65), ContextError, ["65 tokens", "holds 64"]),
        (dict(context=60, stride=10), ContextError, ["65 tokens", "holds 64"]),
        (dict(context=16, stride=17), OptionError, ["stride is 17", "context 16"]),
        (dict(context=3), OptionError, ["context", "4 or more", "3"]),
        (dict(context=True), OptionError, ["context", "True"]),
        (dict(context=16, stride=0), OptionError, ["stride", "0"]),
        (dict(context=16, chunks=0), OptionError, ["chunks", "0"]),
        (dict(context=16, stride=4, save="x"), OptionError, ["stride"]),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(how, error, said):
    with pytest.raises(error) as told:
        perplexity.measure(model(), TEXT, **how)
    assert all(part in str(told.value) for part in said)


def test_ids_that_the_model_lacks_are_refused():
    with pytest.raises(OptionError, match="0 to 36"):
        perplexity.measure(model(), [*TEXT, VOCAB], context=16)


# --- saved logits ------------------------------------------------------------------------------------------------


def saved(path, exact, **how):
    """The file of a model's logits over TEXT, and the model."""
    it = model(**how)
    for _ in perplexity.measure(it, TEXT, context=16, save=path, exact=exact):
        pass
    return it


def test_llama_cpps_file_is_read_as_its_source_says(tmp_path):
    """With an odd vocabulary, whose records are padded."""
    it = saved(tmp_path / "base", exact=False)
    data = (tmp_path / "base").read_bytes()
    assert data[:8] == b"_logits_" and struct.unpack_from("<Iii", data, 8) == (16, VOCAB, 5)
    assert list(struct.unpack_from("<80i", data, 20)) == TEXT[:80]
    at, expected = 20 + 80 * 4, plain(it.executor, TEXT, range(0, 80, 16), 16, 7, BOS)
    for row, _ in expected:
        scale, lowest = struct.unpack_from("<ff", data, at)
        levels = np.frombuffer(data, "<u2", VOCAB, at + 8)
        assert levels.max() == 65535 and scale == pytest.approx(min(row.max() - row.min(), 16) / 65535, rel=1e-5)
        clipped = np.maximum(row, row.max() - 16)
        np.testing.assert_allclose(scale * levels + lowest, clipped, atol=scale / 2 + 2e-6)
        at += 8 + 2 * (VOCAB + 1)
    assert at == len(data)


def test_the_exact_file_is_as_documented(tmp_path):
    it = saved(tmp_path / "base", exact=True)
    data = (tmp_path / "base").read_bytes()
    assert data[:8] == b"logits32" and len(data) == 20 + 80 * 4 + 35 * VOCAB * 4
    expected = plain(it.executor, TEXT, range(0, 80, 16), 16, 7, BOS)
    rows = np.frombuffer(data, "<f4", offset=20 + 80 * 4).reshape(35, VOCAB)
    np.testing.assert_allclose(rows, [row for row, _ in expected], atol=2e-6)


def test_one_level_for_all_tokens_of_a_flat_distribution():
    layout = files.Layout(False, 4, np.zeros((1, 8), np.int32))
    flat = np.full((2, 4), -math.log(4), np.float32)
    packed = np.frombuffer(layout.pack(flat), np.uint8)
    assert (layout.unpack(packed) == flat).all()


def test_a_model_beside_itself(tmp_path):
    it = saved(tmp_path / "base", exact=True)
    *_, last = perplexity.compare(it, tmp_path / "base")
    assert last.done == last.chunks == 5 and (last.kld == 0).all() and last.same_top == (1, 0)
    assert last.ratio.value == pytest.approx(1, abs=1e-6) and last.rms_dp.value < 1e-6
    assert last.base_ppl.value == pytest.approx(last.ppl.value, rel=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_divergence_is_the_plain_sums(tmp_path, exact):
    base = saved(tmp_path / "base", exact)
    other = model(noise=0.3)
    estimates = list(perplexity.compare(other, tmp_path / "base", text=TEXT))
    last = estimates[-1]
    starts = range(0, 80, 16)
    p, q = (plain(it.executor, TEXT, starts, 16, 7, BOS) for it in (base, other))
    theirs, mine = (np.stack([row for row, _ in rows]) for rows in (p, q))
    target = (np.arange(35), [token for _, token in p])
    if not exact:
        theirs = np.maximum(theirs, theirs.max(axis=1, keepdims=True) - 16)  # what is so unlikely is forgotten
    tight = 1e-5 if exact else 3e-4
    counted = np.where(theirs > (-np.inf if exact else -16), np.exp(theirs) * (theirs - mine), 0)
    np.testing.assert_allclose(last.kld, counted.sum(axis=1), atol=tight)
    np.testing.assert_allclose(last.nll, -mine[target], atol=1e-5)
    np.testing.assert_allclose(last.base, -theirs[target], atol=tight)
    np.testing.assert_allclose(last.dp, np.exp(mine[target]) - np.exp(theirs[target]), atol=tight)
    assert last.same.tolist() == (mine.argmax(axis=1) == theirs.argmax(axis=1)).tolist() and not last.same.all()
    assert [len(e.kld) for e in estimates] == [7, 14, 21, 28, 35]


class Sure(Toy):
    """Certain of token 0; all others are `depth` nats less likely."""

    def __init__(self, depth):
        super().__init__(vocab=5001)
        self.depth = depth

    def row(self, ids, i):
        return np.where(np.arange(5001), -self.depth, 0).astype(np.float32)


def test_what_llama_cpps_file_forgets_counts_for_nothing(tmp_path):
    """Its 5,000 tokens at -16 would weigh 0.1 nats, which neither model thinks."""
    zeros = [0] * 32
    list(perplexity.measure(lm.Local(Sure(40.0)), zeros, context=16, save=tmp_path / "base"))
    *_, last = perplexity.compare(lm.Local(Sure(200.0)), tmp_path / "base")
    assert last.kld == pytest.approx(0, abs=1e-6)


def test_one_saved_chunk_is_enough(tmp_path):
    list(perplexity.measure(model(), TEXT, context=16, chunks=1, save=tmp_path / "base", exact=True))
    (only,) = perplexity.compare(model(), tmp_path / "base")
    assert (only.done, only.chunks, len(only.kld)) == (1, 1, 7) and (only.kld == 0).all()


def test_the_statistics_are_llama_cpps():
    """Its formulas for uncertainties, from sums; its percentiles, by interpolation."""
    random = np.random.default_rng(3)
    nll, base, kld = random.gamma(2, 1, (3, 200))
    same = random.random(200) < 0.9
    d = perplexity.Divergence(1, 1, nll, base, kld, same)

    def sums(a, b):
        return ((a * b).mean() - a.mean() * b.mean()) / 199

    assert d.mean_kld == pytest.approx((kld.mean(), math.sqrt(sums(kld, kld))))
    assert d.log_ratio == pytest.approx(
        (nll.mean() - base.mean(), math.sqrt(sums(nll, nll) + sums(base, base) - 2 * sums(nll, base)))
    )
    assert d.ratio == pytest.approx((math.exp(d.log_ratio.value), math.exp(d.log_ratio.value) * d.log_ratio.error))
    dp = np.exp(-nll) - np.exp(-base)
    rms = math.sqrt((dp**2).mean())
    assert d.mean_dp == pytest.approx((dp.mean(), math.sqrt(sums(dp, dp))))
    assert d.rms_dp == pytest.approx((rms, 0.5 / rms * math.sqrt(sums(dp**2, dp**2))))
    share = same.mean()
    assert d.same_top == pytest.approx((share, math.sqrt(share * (1 - share) / 199)))
    ordered, at = np.sort(kld), 0.999 * 199
    assert d.quantiles[0.999] == pytest.approx((1 - at % 1) * ordered[int(at)] + at % 1 * ordered[int(at) + 1])
    assert d.quantiles[1] == kld.max() and d.quantiles[0.5] == pytest.approx(np.median(kld))


def test_a_file_is_there_only_when_it_is_whole(tmp_path):
    file = tmp_path / "base"
    running = perplexity.measure(model(), TEXT, context=16, save=file)
    next(running)
    running.close()
    assert list(tmp_path.iterdir()) == []
    it = model()
    it.executor.table[:] = np.nan
    with pytest.raises(TensorError, match="NaN"):
        list(perplexity.measure(it, TEXT, context=16, save=file))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="Cannot write"):
        list(perplexity.measure(model(), TEXT, context=16, save=tmp_path / "no" / "such" / "place"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(CapacityError, match="free"):
        list(perplexity.measure(model(), TEXT, context=16, save=tmp_path / "base"))


def test_only_the_same_text_and_vocabulary_compare(tmp_path):
    file = tmp_path / "base"
    saved(file, exact=False)
    with pytest.raises(OptionError, match="over 37 tokens, and this model has 41"):
        perplexity.compare(model(vocab=41), file)
    with pytest.raises(ContextError, match="16 tokens and the model's context holds 8"):
        perplexity.compare(model(context=8), file)
    with pytest.raises(OptionError, match="number 5"):
        perplexity.compare(model(), file, text=[*TEXT[:5], (TEXT[5] + 1) % VOCAB, *TEXT[6:]])
    with pytest.raises(OptionError, match="number 79"):
        perplexity.compare(model(), file, text=TEXT[:79])
    assert len(list(perplexity.compare(model(), file, text=TEXT, chunks=2))) == 2


def head(context, vocab, chunks, tokens=(), magic=b"_logits_"):
    return magic + struct.pack("<Iii", context, vocab, chunks) + struct.pack(f"<{len(tokens)}i", *tokens)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begin with"),
        (b"_logits_", "begin with"),
        (head(4, 4, 1, magic=b"GGUF1234"), "begin with"),
        (head(0, 4, 1), "cannot be"),
        (head(4, -1, 1), "cannot be"),
        (head(4, 4, 0), "cannot be"),
        (head(4, 2**31 - 1, 1), "cannot be"),
        (head(2**32 - 1, 2**24, 2**31 - 1), "promises"),
        (head(4, 4, 1, [0, 1, 2]), "promises"),
        (head(4, 4, 1, [0, 1, 2, 3]) + bytes(15), "promises"),
        (head(4, 4, 1, [0, 1, 2, 3]) + bytes(17), "promises"),
        (head(4, 4, 1, [0, 1, 2, 4]) + bytes(16), "token 4"),
        (head(4, 4, 1, [0, -1, 2, 3]) + bytes(16), "token -1"),
    ],
)
def test_damaged_files_are_told(tmp_path, data, said):
    file = tmp_path / "base"
    file.write_bytes(data)
    with pytest.raises(FormatError, match=said):
        files.read(file)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelNotFound):
        perplexity.compare(model(), tmp_path / "none")


# --- the verb ----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """What the commands open: a model that is sure of "abcabc…" and of nothing else."""
    it = Fake(lambda prompt: "abc" * 40)
    monkeypatch.setattr(lm, "open", lambda *_, **__: it)
    return it


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"abc" * 30 + b"\r\n\n")
    return str(file)


def test_the_verb_prints_as_llama_perplexity(opened, text, capsys):
    assert main(["perplexity", "m", text, "--context", "16", "--chunks", "2"]) == 0
    told = capsys.readouterr()
    running, final = told.out.strip().split("\n\n")
    (last,) = list(perplexity.measure(opened, "abc" * 30, context=16, chunks=2))[1:]
    assert running.startswith("[1]") and running.endswith(f"[2]{last.ppl.value:.4f},")
    assert final == f"Final estimate: PPL = {last.ppl.value:.4f} +/- {last.ppl.error:.5f}"
    assert "2 chunks" in told.err


def test_the_verb_reads_stdin_and_drops_one_last_newline(opened, text, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(opened, "tokenize", lambda text, bos: asked.append((text, bos)) or [256, *text.encode()])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(text).read_bytes())))
    assert main(["perplexity", "m", "-", "--context", "16", "--json", "--stride", "8"]) == 0
    assert asked == [("abc" * 30 + "\r\n", True)]
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "m" and document["chunks"] == len(document["running"]) == math.ceil((93 - 20) / 8)
    assert document["scored"] == 8 * document["chunks"]
    assert document["perplexity"]["value"] == document["running"][-1] and document["perplexity"]["error"] > 0


def test_the_verb_saves_and_compares(opened, text, capsys, tmp_path):
    base = str(tmp_path / "base")
    assert main(["perplexity", "m", text, "--context", "16", "--save-logits", base, "--exact"]) == 0
    assert files.read(base).layout.exact
    capsys.readouterr()
    assert main(["perplexity", "m", "--kl-divergence", base]) == 0
    page = capsys.readouterr().out
    for name in (
        "Mean PPL(base)",
        "Mean PPL/PPL(base)",
        "Mean KLD",
        "Maximum KLD",
        "99.9% KLD",
        "Median KLD",
        "RMS Δp",
    ):
        assert name in page
    assert "Same top p               100.000000 ± 0.000000 %" in page
    assert main(["perplexity", "m", text, "--kl-divergence", base, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["divergence"]
    assert found["mean_kld"] == {"value": 0, "error": 0} and set(found["quantiles"]) == {
        *("1", "0.999", "0.99", "0.95", "0.9", "0.5")
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "There is no text"),
        (["no/such.txt"], "cannot be read"),
        (["{text}", "--exact"], "--save-logits"),
        (["{text}", "--kl-divergence", "x", "--context", "9"], "leave out --context"),
        (["{text}"], "at least 1024"),
        (["{bad}"], "not UTF-8"),
    ],
)
def test_the_verb_refuses(opened, text, tmp_path, capsys, words, said):
    bad = tmp_path / "bad"
    bad.write_bytes(b"ab\xff")
    assert main(["perplexity", "m", *(word.format(text=text, bad=bad) for word in words)]) == 2
    assert said in capsys.readouterr().err

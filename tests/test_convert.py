"""`geode convert`: all or nothing, nothing silently lost, a manifest on everything, and proof at the end."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geode import checkpoint, conversion, families, manifest, tensors
from geode.cli.app import main as geode
from geode.config import Attn, Bands, Config, Rope
from geode.dialects import gguf as gguf_dialect
from geode.dialects import hf as hf_dialect
from geode.errors import CapacityError, ConversionError, FormatError, GeodeError, LossError, OptionError
from geode.formats import by_name
from geode.io import gguf, safetensors
from geode.tensors import from_arrays

LLAMA = families.by_name("llama")
GEMMA = families.by_name("gemma")
CONFIG = Config(96, 64, 2, 4, 2, 16, 96, 128, norm=LLAMA.constants["norm"])


def save(folder: Path, family: families.Family = LLAMA, config: Config = CONFIG, dtype: str = "F32") -> Path:
    """A Hugging Face directory of random weights."""
    random = np.random.default_rng(0)
    shapes = tensors.shapes(config)
    arrays = {n: random.standard_normal(s).astype(np.float32) * 0.3 + ("norm" in n) for n, s in shapes.items()}
    from geode.formats.base import floats

    folder.mkdir(parents=True)
    safetensors.write(folder, hf_dialect.write(floats(from_arrays(arrays), dtype), config, family))
    (folder / "config.json").write_text(json.dumps(family.config_to_hf(config)))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "source")


def convert(source: Path, target: Path, to: str | None = None, **options: Any) -> conversion.Result:
    return conversion.convert(source, target, to, quiet=True, **options)


def refused(kind: type[GeodeError], words: str, source: Path, target: Path, to: str | None = None, **how: Any) -> None:
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(kind) as problem:
        convert(source, target, to, **how)
    message = str(problem.value)
    assert all(word in message for word in words.split(" | ")), message
    assert "\n" not in message
    assert sorted(target.parent.rglob("*")) == before  # nothing was left, nothing taken away


# ---------------------------------------------------------------------------------------------------------- what is made


def test_there_and_back_is_bitwise(source: Path, tmp_path: Path) -> None:
    one = convert(source, tmp_path / "model.gguf")
    two = convert(tmp_path / "model.gguf", tmp_path / "again")
    assert one.report is not None and one.report.equal
    assert two.report is not None and two.report.equal
    first, last = checkpoint.open(source), checkpoint.open(tmp_path / "again")
    assert first.config == last.config
    assert all(np.array_equal(first.stored[name], last.stored[name]) for name in first.stored)


def test_the_suffix_tells_the_format(source: Path, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "a.gguf").format == "gguf"
    assert convert(source, tmp_path / "a").format == "hf"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_what_floats_become(source: Path, tmp_path: Path, dtype: str) -> None:
    result = convert(source, tmp_path / "out", dtype=dtype)
    opened = checkpoint.open(tmp_path / "out")
    assert {entry.type for entry in opened.stored.entries.values()} == {"BF16" if dtype == "bfloat16" else "F16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype
    assert result.report is not None and result.report.ok and not result.report.equal


def test_the_manifest_tells_all(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "model.gguf", quant="q8_0")
    found = json.loads((tmp_path / "model.gguf.geode.json").read_text())
    assert manifest.read(tmp_path / "model.gguf") == found
    assert found["tool"].startswith("geode ")
    assert found["options"] == {"quant": "q8_0"}
    weights = next(file for file in found["source"]["files"] if file["name"] == "model.safetensors")
    assert weights["size"] == (source / "model.safetensors").stat().st_size
    assert len(weights["sha256"]) == 64
    assert found["verification"]["ok"] and found["verification"]["logits"]["tokens"] > 0
    assert LLAMA.config_from_hf(found["config"]) == CONFIG


def test_packed_weights_are_what_the_mix_says(source: Path, tmp_path: Path) -> None:
    result = convert(source, tmp_path / "model.gguf", quant="q4_0")
    kinds = {name: entry.type for name, entry in checkpoint.open(tmp_path / "model.gguf").stored.entries.items()}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert result.report is not None and result.report.logits is not None
    assert 0 < result.report.logits.divergence < 3  # bits are missed most where weights are random


def test_packed_numbers_unpacked_and_packed_again_are_the_same(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "one.gguf", quant="q4_0")
    convert(tmp_path / "one.gguf", tmp_path / "floats")
    convert(tmp_path / "floats", tmp_path / "two.gguf", quant="q4_0")
    one, two = (gguf.read(tmp_path / name).tensors for name in ("one.gguf", "two.gguf"))
    for name in one:
        a, b = one[name], two[name]
        same = np.array_equal(a.dequantize(), b.dequantize()) if hasattr(a, "dequantize") else np.array_equal(a, b)
        assert same, name


def test_shards(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "hf", max_shard_size="100KB")
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 1
    convert(source, tmp_path / "model.gguf", max_shard_size="100KB")
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) > 1
    first = checkpoint.open(parts[0])
    whole = checkpoint.open(source)
    assert all(np.array_equal(first.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert manifest.place(parts[0]).exists()


def test_gemma_takes_its_terms_along(tmp_path: Path) -> None:
    source = save(tmp_path / "g", GEMMA, CONFIG.replace(**GEMMA.constants, tied=True))
    convert(source, tmp_path / "out")
    assert "Gemma Terms of Use" in (tmp_path / "out" / "NOTICE").read_text()
    convert(source, tmp_path / "out.gguf")
    assert "Gemma Terms" in json.loads((tmp_path / "out.gguf.geode.json").read_text())["licence"]["name"]


def test_licence_files_come_along(source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").write_text("do as you like")
    (source / "NOTICE").write_text("made by Ada")
    convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "do as you like"
    assert (tmp_path / "out" / "NOTICE").read_text() == "made by Ada"


# ------------------------------------------------------------------------------------------------------------ what is refused


def test_bad_wishes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(OptionError, "no format 'onnx' | hf | gguf", source, out, "onnx")
    refused(OptionError, "NAME.gguf", source, out, "gguf")
    refused(OptionError, "hf has no use for --quant | gguf has", source, out, "hf", quant="q8_0")
    refused(OptionError, "'q9' is no way to quantise", source, tmp_path / "o.gguf", quant="q9")
    refused(OptionError, "--dtype is float32, bfloat16 or float16", source, out, dtype="int3")
    refused(OptionError, "--quant | --dtype", source, tmp_path / "o.gguf", quant="q8_0", dtype="float32")
    refused(OptionError, "like 500MB", source, out, max_shard_size="much")
    refused(OptionError, "no directory", source, tmp_path / "no" / "out")
    refused(OptionError, "source itself", source, source, force=True)
    refused(OptionError, "importance matrix", source, tmp_path / "o.gguf", imatrix="x")


def test_what_is_there_stays(source: Path, tmp_path: Path) -> None:
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "diary.txt").write_text("dear")
    refused(OptionError, "there already", source, kept)
    refused(OptionError, "holds no checkpoint", source, kept, force=True)
    convert(source, tmp_path / "out")
    refused(OptionError, "--force", source, tmp_path / "out")
    convert(source, tmp_path / "out", force=True, dtype="bfloat16")
    assert checkpoint.open(tmp_path / "out").stored.entries["lm_head.weight"].type == "BF16"


def test_force_replaces_like_by_like(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    refused(OptionError, "is a file", source, tmp_path / "file", force=True)
    convert(source, tmp_path / "m[1].gguf", max_shard_size="100KB")
    refused(OptionError, "m[1]-00001-of-", source, tmp_path / "m[1].gguf")


def test_a_vision_tower_is_not_dropped_silently(tmp_path: Path) -> None:
    gemma3 = families.by_name("gemma3")
    config = CONFIG.replace(**gemma3.constants, tied=True, query_scalar=16.0)
    source = save(tmp_path / "g", gemma3, config)
    stored = safetensors.read(source)
    with_eyes = {**stored, "vision_tower.patch.weight": np.ones((4, 4), np.float32)}
    safetensors.write(source / "model.safetensors", with_eyes)
    refused(LossError, "vision tower | --allow-loss", source, tmp_path / "out")
    assert convert(source, tmp_path / "out", text_only=True).losses == ()
    assert convert(source, tmp_path / "out2", allow_loss=True).losses


def test_packing_twice_needs_permission(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "one.gguf", quant="q8_0")
    refused(LossError, "packed again | Q8_0 to Q4_0", tmp_path / "one.gguf", tmp_path / "two.gguf", quant="q4_0")
    result = convert(tmp_path / "one.gguf", tmp_path / "two.gguf", quant="q4_0", allow_loss=True)
    assert "packed again" in result.losses[0]


def test_text_only_permits_nothing_else(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "one.gguf", quant="q8_0")
    how = {"quant": "q4_0", "text_only": True}
    refused(LossError, "packed again", tmp_path / "one.gguf", tmp_path / "two.gguf", **how)


def test_threads_are_everybodys(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out", threads=1).report
    assert report is not None and report.equal


def test_a_network_that_config_json_cannot_say(source: Path, tmp_path: Path) -> None:
    """A GGUF file with rotary factors of no known rule is packed like any other, and refused as Hugging Face."""
    convert(source, tmp_path / "plain.gguf")
    file = gguf.read(tmp_path / "plain.gguf")
    odd = {**file.tensors, "rope_freqs.weight": np.array([1, 3, 2, 5, 1, 7, 2, 1], np.float32)}
    gguf.write(tmp_path / "odd.gguf", file.metadata, odd, file.types)
    result = convert(tmp_path / "odd.gguf", tmp_path / "packed.gguf", quant="q8_0")
    assert result.report is not None and result.report.ok
    refused(OptionError, "cannot be written as hf | per-channel factors", tmp_path / "odd.gguf", tmp_path / "out")


def test_llama_3_keeps_its_rotary_factors(tmp_path: Path) -> None:
    rope = Rope(5e5, scaling=Bands(8.0, 1.0, 4.0, 64))
    source = save(tmp_path / "source", config=CONFIG.replace(pattern=(Attn(None, rope),)))
    for made, kind in (("one.gguf", None), ("two.gguf", "q8_0")):  # from a directory, and from a file
        convert(source, tmp_path / made, quant=kind)
        source = tmp_path / made
        assert "rope_freqs.weight" in gguf.read(source).tensors
        assert checkpoint.open(source).config.pattern[0].rope == rope


def test_outliers_are_no_fault(tmp_path: Path) -> None:
    """Rounding is at its worst where one number of a block is far larger than all others."""
    source = save(tmp_path / "source")
    stored = dict(safetensors.read(source))
    name = "model.layers.0.mlp.up_proj.weight"
    sharp = np.random.default_rng(1).standard_normal(stored[name].shape).astype(np.float32) * 0.05
    sharp[:, ::32] = 1.0
    safetensors.write(source / "model.safetensors", {**stored, name: sharp})
    for kind in ("q8_0", "q5_0", "q4_0", "q4_1"):
        assert convert(source, tmp_path / f"{kind}.gguf", quant=kind).report is not None


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def full(file: Any, name: str, entry: Any) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.write(b"\0" * entry.nbytes)

    monkeypatch.setattr(gguf, "write_tensor", full)
    refused(CapacityError, "No room", source, tmp_path / "o.gguf")


def test_an_interruption_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "write_tensor", stop)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "o.gguf")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_process_left_goes(source: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the work: no half artefact under the name, and the next run clears the rest away."""
    script = "import sys, time; from geode.io import gguf; from geode import conversion; gguf.write_tensor = "
    script += "lambda *a: time.sleep(60); conversion.convert(sys.argv[1], sys.argv[2], quiet=True)"
    process = subprocess.Popen([sys.executable, "-c", script, str(source), str(tmp_path / "o.gguf")])
    while not list(tmp_path.glob(".o.gguf.*.part/.o.gguf.*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "o.gguf").exists()
    convert(source, tmp_path / "o.gguf")
    assert not list(tmp_path.glob(".*.part"))


def test_a_source_that_changes_is_noticed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensor = gguf.write_tensor

    def meddle(*arguments: Any) -> None:
        with (source / "model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"abcd")
        os.utime(source / "model.safetensors", ns=(1, 1))
        write_tensor(*arguments)

    monkeypatch.setattr(gguf, "write_tensor", meddle)
    refused(FormatError, "changed while it was read", source, tmp_path / "o.gguf")


def test_a_wrong_result_is_thrown_away(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer with the classic mistake: rows of q and k left as they were."""
    right, straight = gguf_dialect.write, dataclasses.replace(LLAMA, gguf_pairs_adjacent=False)
    monkeypatch.setattr(gguf_dialect, "write", lambda canonical, config, family: right(canonical, config, straight))
    refused(ConversionError, "is not what was read | attn_", source, tmp_path / "o.gguf")
    assert convert(source, tmp_path / "o.gguf", check=False).report is None


# ----------------------------------------------------------------------------------------------------------- the command


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert geode(["convert", str(source), str(tmp_path / "m.gguf"), "--quant", "q8_0", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Wrote" in said and "Logits of" in said
    assert geode(["verify", str(source), str(tmp_path / "m.gguf")]) == 0
    assert "The same model, but for the rounding" in capsys.readouterr().out
    assert geode(["convert", str(source), str(tmp_path / "m.gguf"), "--quiet"]) == 2
    assert geode(["convert", "--formats"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("hf", "gguf"))


def test_the_command_in_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert geode(["convert", str(source), str(tmp_path / "out"), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "hf" and found["verification"]["equal"] is True


def test_by_name_lists_the_formats() -> None:
    assert by_name("gguf").suffix == ".gguf"
    with pytest.raises(OptionError, match=r"There are: .*gguf"):
        by_name("?")

"""Meshes of devices on JAX: eight simulated ones against one, two processes against one, and the cuts themselves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, worker

from geode.config import Config
from geode.errors import OptionError
from geode.network.axes import Cuts, Mesh, mesh_of
from geode.tensors import shapes

NETWORK = Config(96, width=64, depth=1, heads=4, kv_heads=1, head_dim=16, ffn=128, context=64, qkv_bias=True)
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def devices(count: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={count} {QUICK}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.fixture(scope="module")
def found(once: Callable[..., Path]) -> Any:
    pytest.importorskip("jax")
    pytest.importorskip("keras")

    def make(folder: Path) -> None:
        (folder / "found.json").write_text(json.dumps(worker("layout_worker.py", "meshes", env=devices(8))))

    return json.loads((once("layout", make) / "found.json").read_text())


def test_losses_are_those_of_one_device(found: Any) -> None:
    for name, runs in found.items():
        for title, run in runs.items():
            if name == "errors" or title == "one":
                continue
            for figure in ("loss", "norm"):
                assert run[figure] == pytest.approx(runs["one"][figure], rel=1e-5), (name, title, figure)
            assert len(run["loss"]) == 6 and len(set(run["loss"])) == 6


def test_tensors_are_cut(found: Any) -> None:
    full, packed = found["gemma full floats"], found["llama lora int4"]
    parts = {title: full[title]["parts"] for title in ("fsdp", "all")}
    assert parts["fsdp"]["attn_q"] == [64, 8] and parts["fsdp"]["ffn_down"] == [8, 128]
    assert parts["all"]["embedding"] == [48, 32] and parts["all"]["ffn_down"] == [32, 64]
    assert parts["all"]["blk_0_attn_q_weight_m"] == parts["all"]["attn_q"] == [32, 32]
    assert full["fsdp"]["share"] < 0.14 and full["all"]["share"] < 0.26
    assert packed["tensor"]["parts"]["blk_0_attn_q_weight_q"] == [32, 32]
    assert packed["tensor"]["parts"]["blk_0_attn_q_weight_lora_b_v"] == [32, 4]
    for name, title in (("gemma full floats", "all"), ("llama lora int4", "tensor")):
        assert found[name][title]["astray"] == []


def test_what_a_mesh_cannot_do(found: Any) -> None:
    errors = found["errors"]
    assert "16 devices; JAX has 8" in errors["too many"] and errors["too many"].startswith("BackendError")
    assert "data 4 × fsdp 1 × tensor 1 = 4 devices; JAX has 8" in errors["too few"]
    assert "12 rows" in errors["rows"] and "multiple of 8" in errors["rows"]
    assert errors["axis"].startswith("OptionError: A mesh has the axes data, fsdp, tensor; run.mesh names model")
    assert "run.mesh.data" in errors["size"]


def test_two_processes_are_as_one(found: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = {"PYTHONPATH": str(HERE), "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, str(HERE / "layout_worker.py"), "process"]
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | devices(2) | others | {"JAX_PROCESS_ID": str(number)},
        )
        for number in range(2)
    ]
    told = [process.communicate() for process in running]
    for process, (_, error) in zip(running, told, strict=True):
        assert process.returncode == 0, error[-4000:]
    first, second = (json.loads(text.strip().splitlines()[-1]) for text, _ in told)
    assert first["processes"] == 2 and first["here"] == 2 and first["all"] == 4
    assert first == second
    one = found["llama lora int4"]["one"]
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_axes_by_name() -> None:
    cuts = Cuts(NETWORK.replace(kv_heads=2), Mesh(2, 2, 2))
    assert cuts.named["blk.0.attn_q.weight"] == ("tensor", "fsdp")
    assert cuts.named["blk.0.ffn_down.weight"] == ("fsdp", "tensor")
    assert cuts.named["token_embd.weight"] == cuts.named["output.weight"] == ("tensor", "fsdp")
    assert cuts.named["blk.0.attn_q.bias"] == ("tensor",)
    assert cuts.named["blk.0.attn_norm.weight"] == (None,)
    assert cuts.notes == []


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("lora_a", (4, 128), (None, "tensor")),
        ("lora_b", (64, 4), ("fsdp", None)),
        ("lora_b_m", (64, 4), ("fsdp", None)),
        ("q", (64, 64), ("fsdp", "tensor")),
        ("scale", (64,), ("fsdp",)),
        ("scale", (64, 4), ("fsdp", "tensor")),
        ("scale", (64, 3), ("fsdp", None)),
        ("squares", (64,), ("fsdp",)),
        ("lora_magnitude_v", (64,), ("fsdp",)),
        ("m8", (32, 256), (("fsdp", "tensor"), None)),
        ("r_top", (32, 1), (("fsdp", "tensor"), None)),
        ("rows", (64,), ("fsdp",)),
        ("columns", (128,), ("tensor",)),
        ("mean", (64, 128), ("fsdp", "tensor")),
    ],
)
def test_what_is_derived_lies_as_its_tensor(name: str, shape: tuple[int, ...], axes: Any) -> None:
    assert Cuts(NETWORK, Mesh(1, 2, 2)).of(f"blk_0_ffn_down_weight_{name}", shape) == axes


def test_what_cannot_be_shared_stays_whole_and_is_named() -> None:
    cuts = Cuts(NETWORK, Mesh(1, 5, 2))
    assert cuts.named["blk.0.attn_k.weight"] == (None, None)
    assert cuts.of("blk_0_attn_k_weight_lora_b", (16, 4)) == (None, None)
    assert cuts.part("blk.0.attn_q.weight", (64, 64)) == (32, 64)
    assert any("attn_k" in note and "1 heads" in note for note in cuts.notes)
    assert any("ffn_up" in note and "64 channels" in note and "'fsdp'" in note for note in cuts.notes)
    assert cuts.of("steps", ()) == () and cuts.of("nobody", (8, 8)) == (None, None)
    whole = Cuts(NETWORK, Mesh())
    assert all(set(whole.named[name]) == {None} for name in shapes(NETWORK)) and not whole.notes


def test_meshes() -> None:
    assert mesh_of({"fsdp": 4}) == Mesh(1, 4, 1) and Mesh(2, 2, 2).count == 8 and Mesh(2, 3, 5).rows == 6
    for values in ({"rows": 2}, {"data": 0}, {"data": 1.5}, {"data": True}):
        with pytest.raises(OptionError):
            mesh_of(values)  # type: ignore[arg-type]

"""What the owners' own programs do with Orbax checkpoints, in a process of its own since they bring JAX. Prints JSON.

python orbax_worker.py save FOLDER          writes `tree()` there in every way that Orbax has
python orbax_worker.py restore FOLDER ...   restores each with Orbax's checkpointers: names, dtypes, shapes and digests
python orbax_worker.py gemma FOLDER         restores with `gemma` and prints its network's logits for FOLDER/case.json
python orbax_worker.py maxtext FOLDER       MaxText's own conversion of FOLDER/case.npz: names and digests
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np


def tree() -> dict[str, Any]:
    """Arrays of every float type at several depths, keys with slashes in them, one array of zeros."""
    noise = np.random.default_rng(5)
    return {
        "transformer/layer_0/attn/q_einsum": {"w": noise.standard_normal((2, 3, 4)).astype(np.float32)},
        "transformer/final_norm": {"scale": noise.standard_normal(5).astype(ml_dtypes.bfloat16)},
        "other": {
            "deep": {"half": noise.standard_normal((4, 5)).astype(np.float16), "zero": np.zeros((3, 2), np.float32)}
        },
        "ids": np.arange(7, dtype=np.int32),
    }


def flattened(value: Any, keys: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    if isinstance(value, dict):
        return {name: array for key in value for name, array in flattened(value[key], (*keys, str(key))).items()}
    return {"/".join(keys): np.asarray(value)}


def digest(array: np.ndarray) -> list[Any]:
    array = np.asarray(array)
    return [array.dtype.name, list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]


def digests(value: Any) -> dict[str, list[Any]]:
    return {name: digest(array) for name, array in flattened(value).items()}


def save(folder: Path) -> dict[str, str]:
    import orbax.checkpoint as ocp

    ocp.StandardCheckpointer().save(folder / "standard", tree())
    for name, options in {
        "plain": {"use_ocdbt": False},
        "zarr3": {"use_zarr3": True},
        "plain3": {"use_ocdbt": False, "use_zarr3": True},
    }.items():
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(folder / name, tree())
    for name, save_args in {
        "steps": lambda t: ocp.args.StandardSave(t),
        "items": lambda t: ocp.args.Composite(items=ocp.args.PyTreeSave(t)),
    }.items():
        with ocp.CheckpointManager(folder / name) as manager:
            manager.save(3, args=save_args({"old": np.zeros(2)}))
            manager.save(20, args=save_args(tree()))
    return {"saved": ocp.__version__}


def restore(folders: list[str]) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    found = {}
    for folder in map(Path, folders):
        standard = digests(ocp.StandardCheckpointer().restore(folder))
        assert standard == digests(ocp.PyTreeCheckpointer().restore(folder))
        found[str(folder)] = standard
    return found


def gemma(folder: Path) -> dict[str, Any]:
    """The network's numbers come from the test as its own `TransformerConfig`'s fields."""
    import jax.numpy as jnp
    from gemma import gm
    from gemma.gm.nn import _config, _modules

    case = json.loads((folder / "case.json").read_text())
    fields = dict(case["config"])
    fields["attention_types"] = tuple(_modules.AttentionType[name] for name in fields["attention_types"])
    fields["query_pre_attn_norm"] = _config.QueryPreAttentionNormalisation[fields["query_pre_attn_norm"]]
    network = gm.nn.Transformer(config=_config.TransformerConfig(**fields), dtype=jnp.float32)
    params = gm.ckpts.load_params(folder / "checkpoint")
    logits = network.apply({"params": params}, jnp.asarray([case["ids"]])).logits[0]
    return {"logits": np.asarray(logits, np.float64).tolist()}


def maxtext(folder: Path) -> dict[str, Any]:
    """As maxtext/checkpoint_conversion/to_maxtext.py does, from its own tables, one model after the other."""
    from maxtext.checkpoint_conversion.utils.param_mapping import HOOK_FNS, PARAM_MAPPING
    from maxtext.checkpoint_conversion.utils.tensor_handling import apply_hook_fns

    made = {}
    for case in json.loads((folder / "cases.json").read_text()):
        stored, shapes = np.load(folder / case["arrays"]), case["shapes"]
        scanned, values = case["scanned"], case["values"]
        names = PARAM_MAPPING[case["model"]](values, None, scanned)
        hooks = HOOK_FNS[case["model"]](values, None, scanned, saving_to_hf=False)
        found = {}
        for theirs, ours in names.items():
            name = "params/" + theirs.replace("-", "/")
            if name not in shapes:  # a vision tower's, or a head of its own where it is tied
                continue
            shape = tuple(shapes[name])
            if isinstance(ours, list):
                part = (shape[0], *shape[2:])
                pieces = [apply_hook_fns(stored[one], part, hooks.get(theirs)) for one in ours]
                found[name] = np.stack(pieces, axis=1)
            else:
                found[name] = np.asarray(apply_hook_fns(stored[ours], shape, hooks.get(theirs)))
        np.savez(folder / f"{case['name']}.npz", **found)
        made[case["name"]] = sorted(found)
    return made


if __name__ == "__main__":
    what, rest = sys.argv[1], sys.argv[2:]
    print(json.dumps(restore(rest) if what == "restore" else globals()[what](Path(rest[0]))))

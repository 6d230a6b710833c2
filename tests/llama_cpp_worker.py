"""llama.cpp (xllamacpp) on GGUF files: for each, the log-probabilities after its ids, and what it would say greedily.

python llama_cpp_worker.py REQUEST.json     [{"path": …, "ids": […], "words": 4, "top": 96}, …]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import xllamacpp as xlc


def ask(request: dict[str, Any]) -> dict[str, Any]:
    params = xlc.CommonParams()
    params.model.path = request["path"]
    params.n_ctx = max(256, len(request["ids"]) + request["words"] + 8)
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = -1
    params.cpuparams.n_threads = request.get("threads", 1)
    params.cache_type_k = params.cache_type_v = xlc.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xlc.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if "lora" in request:
        adapter = xlc.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = request["lora"], 1.0
        params.lora_adapters = [adapter]
    server = xlc.Server(params)
    answer = server.handle_completions(
        {
            "prompt": request["ids"],
            "n_predict": request["words"],
            "n_probs": request["top"],
            "temperature": 0,
            "cache_prompt": False,
        }
    )
    if "choices" not in answer:
        raise SystemExit(f"{request['path']}: {answer}")
    steps = answer["choices"][0]["logprobs"]["content"]
    top = {str(one["id"]): one["logprob"] for one in steps[0]["top_logprobs"]}
    return {"ids": [step["id"] for step in steps], "logprobs": [step["logprob"] for step in steps], "top": top}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(json.dumps([ask(request) for request in json.load(file)]))

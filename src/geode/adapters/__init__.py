"""LoRA adapters: small changes to a base model's matrices, read and written as PEFT directories and as GGUF files.

How an adapter is merged is not known here, nor the layouts of its tensors: `dialects.peft` knows those.

    peft.py   adapter_config.json and adapter_model.safetensors        gguf.py   one file for llama.cpp's --lora
    origin.py the base model that an adapter names, and whether another one is it
"""

from .base import CONFIG, Adapter, Pair, claims, open
from .gguf import write_gguf
from .origin import base_name, base_of, other_base
from .peft import WEIGHTS, write_peft
from .write import write

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "Pair", "base_name", "base_of", "claims", "open", "other_base"]
__all__ += ["write", "write_gguf", "write_peft"]

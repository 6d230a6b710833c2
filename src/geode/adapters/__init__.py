"""LoRA adapters: small changes to a base model's matrices, read and written as PEFT directories and as GGUF files.

How an adapter is merged is not known here, nor the layouts of its tensors: `dialects.peft` knows those.

    peft.py   adapter_config.json and adapter_model.safetensors        gguf.py   one file for llama.cpp's --lora
"""

from .base import Adapter, Pair, claims, open
from .gguf import write_gguf
from .peft import write_peft
from .write import write

__all__ = ["Adapter", "Pair", "claims", "open", "write", "write_gguf", "write_peft"]

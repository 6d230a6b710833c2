"""What the shapes of the published Gemmas do not tell, for formats that hold weights and nothing else.

No format is known here.
"""

from __future__ import annotations

from typing import Any

_SMALL3 = {"sliding_window": 512, "max_position_embeddings": 32_768, "query_pre_attn_scalar": 256}
_LARGE3 = {
    "sliding_window": 1024,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
_GEMMA2 = {"sliding_window": 4096, "query_pre_attn_scalar": 256}
PUBLISHED: dict[tuple[str, int, int], dict[str, Any]] = {
    ("gemma", 18, 2048): {},
    ("gemma", 28, 3072): {},
    ("gemma2", 26, 2304): _GEMMA2,
    ("gemma2", 42, 3584): _GEMMA2,
    ("gemma2", 46, 4608): _GEMMA2 | {"head_dim": 128, "query_pre_attn_scalar": 144},
    ("gemma3", 18, 640): _SMALL3,
    ("gemma3", 26, 1152): _SMALL3,
    ("gemma3", 34, 2560): _LARGE3,
    ("gemma3", 48, 3840): _LARGE3,
    ("gemma3", 62, 5376): _LARGE3 | {"head_dim": 128, "query_pre_attn_scalar": 168},
}
"""Family, layers and width of each published size -> what its shapes do not tell (gemma/config.py)."""

"""Models made of models, tensor by tensor: an adapter added or taken out, several mixed, a vocabulary changed.

How files are read and written is not known here: results are checkpoints whose tensors are computed when asked for.

    computed.py   the checkpoint that is computed, and what storing did to it
    added.py      adapters merged in          mixed.py   linear, slerp, ties, dare
    taken.py      an adapter extracted        words.py   rows of a vocabulary added or left out
    adapted.py    a base and an adapter's files as one checkpoint
"""

from .adapted import Adapted, adapted
from .added import adapter, adapters, exact, kept, roomy
from .computed import Made, Shift
from .mixed import dare, linear, slerp, ties
from .taken import Extracted, extract
from .words import vocabulary

__all__ = [
    "Adapted",
    "Extracted",
    "Made",
    "Shift",
    "adapted",
    "adapter",
    "adapters",
    "dare",
    "exact",
    "extract",
    "kept",
    "linear",
    "roomy",
    "slerp",
    "ties",
    "vocabulary",
]

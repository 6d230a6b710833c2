"""The tuned assistant into the package: python recipes/assistant_ship.py OUT, after assistant_eval.py has measured it.

What goes with the adapter is its manifest, its notice and its card, with the measured tables; the log stays behind.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HOME = Path(__file__).parents[1] / "src" / "geode" / "assistant"
FILES = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "generation_config.json")
BESIDE = ("geode.json", "recipe.json", "NOTICE", "loss.svg", "results.json")
LIMIT = 16_000_000  # bytes of weights that the repository takes


def ship(out: Path, home: Path = HOME) -> None:
    """Copies what is needed. Raises SystemExit where the run has not been measured, or is too large."""
    missing = [name for name in (*FILES, *BESIDE, "RESULTS.md", "README.md") if not (out / name).is_file()]
    if missing:
        raise SystemExit(f"{out} has no {', '.join(missing)}. Tune first, then run assistant_eval.py.")
    if (size := (out / FILES[1]).stat().st_size) > LIMIT:
        raise SystemExit(f"The adapter has {size:,} bytes; at most {LIMIT:,} go into the repository.")
    home.mkdir(exist_ok=True)
    for name in (*FILES, *BESIDE):
        shutil.copyfile(out / name, home / name)
    card = (out / "README.md").read_text(encoding="utf-8").replace(" and log.jsonl.", ".")
    head, rest = card.split("\n## Data\n", 1)
    measured = (out / "RESULTS.md").read_text(encoding="utf-8").strip()
    (home / "README.md").write_text(f"{head}\n{measured}\n\n## Data\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(str(__doc__))
    ship(Path(sys.argv[1]))

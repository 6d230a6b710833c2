"""Runs recipes on one framework, in a process of its own: python tune_worker.py FRAMEWORK FOLDER < lines of JSON.

Each line is {"recipe": …, "out": …} and answered by the losses of the run's log.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(on: str) -> None:
    from geode.network import backend

    backend.select(on)
    if on == "torch":
        import torch

        torch.set_num_threads(1)
    from geode.errors import GeodeError
    from geode.tune import tune
    from geode.tune.events import Evaluation, Step
    from geode.tune.logs import read
    from geode.tune.recipe import from_dict

    for line in sys.stdin:
        asked = json.loads(line)
        said: list[str] = []
        try:
            result = tune(from_dict(asked["recipe"]), asked["out"], say=said.append, force=asked.get("force", False))
        except GeodeError as error:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
            continue
        events = list(read(Path(asked["out"]) / "log.jsonl"))
        answer = {
            "reason": result.reason,
            "losses": [event.loss for event in events if isinstance(event, Step)],
            "norms": [event.norm for event in events if isinstance(event, Step)],
            "tokens": [event.tokens for event in events if isinstance(event, Step)],
            "measured": [event.loss for event in events if isinstance(event, Evaluation)],
            "said": said,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

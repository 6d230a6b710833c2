"""Loads a checkpoint natively, answers, and prints, as JSON, the process's peak memory before and after, in bytes.

python memory_worker.py CHECKPOINT
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import geode
import geode.chat
import geode.checkpoint
import geode.lm
from geode.io import hub
from geode.native import executor, extension

PROMPT, ANSWER = 300, 16


def peak() -> int:
    """The most that was ever resident, files' pages included."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    extension.module()
    before = peak()
    lm = geode.load(hub.resolve(sys.argv[1]), on="native", threads=2)
    ids = [2 + i % 1000 for i in range(PROMPT)]
    lm.generate(ids, max_tokens=ANSWER, temperature=0)
    state = lm.executor._begin([PROMPT], ANSWER)
    pages = range(len(executor.groups(lm.config)))
    cache = sum(state.cache.pages(group) * state.cache.page_bytes(group) for group in pages)
    facts = lm.executor.facts()
    print(json.dumps({"baseline": before, "peak": peak(), "weights": facts["weights_bytes"], "cache": cache}))

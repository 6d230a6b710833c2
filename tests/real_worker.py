"""Runs a real checkpoint on one framework and prints, as JSON, what it makes of the reference prompt.

python real_worker.py CHECKPOINT FRAMEWORK
"""

from __future__ import annotations

import json
import sys

import numpy as np

import geode

PROMPT = "The capital of France is"


def main(path: str, on: str) -> dict[str, object]:
    lm = geode.load(path, on=on, dtype="float32")
    ids = lm.tokenize(PROMPT)
    last = lm.logits(ids)[-1].astype(np.float64)
    logprobs = last - last.max() - np.log(np.exp(last - last.max()).sum())
    top = np.argsort(-logprobs)[:3].tolist()
    answer = lm.generate(PROMPT, max_tokens=12, temperature=0, logprobs=2)
    pair = lm.generate([PROMPT, "Once upon a time, in a land far away,"], max_tokens=12, temperature=0)
    streamed = "".join(piece.text for piece in lm.stream(PROMPT, max_tokens=12, temperature=0))
    score = lm.score(PROMPT, " Paris")
    return {
        "ids": ids,
        "top": [[lm.detokenize([i]), float(logprobs[i])] for i in top],
        "text": answer.text,
        "first": answer.logprobs[0],
        "streamed": streamed,
        "batched": pair[0].text,
        "other": pair[1].text,
        "other_alone": lm.generate("Once upon a time, in a land far away,", max_tokens=12, temperature=0).text,
        "score": score.logprob,
        "sampled": [lm.generate(PROMPT, max_tokens=8, temperature=1.0, seed=7).text for _ in range(2)],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))

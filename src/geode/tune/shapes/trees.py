"""Makers of Open-Assistant's trees: every way from the first prompt to a last answer, each answer learnt once.

Ways share their beginnings; what a way before has taught is context in the next one. How files hold trees is not known
here. github.com/LAION-AI/Open-Assistant, oasst-data; huggingface.co/datasets/OpenAssistant/oasst1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..examples import Conversation
from .turns import Misfit, conversation, speaker, talk

Node = Mapping[str, Any]
READY = "ready_for_export"  # trees in other states were given up, or wait for messages and for review


def every(found: Mapping[str, Any], source: str) -> list[Conversation]:
    """All answers that were not deleted and not turned down by their reviewers."""
    return _conversations(found, source, best=False)


def best(found: Mapping[str, Any], source: str) -> list[Conversation]:
    """Of each prompt's answers only the one that people ranked first."""
    return _conversations(found, source, best=True)


def is_tree(value: Any) -> bool:
    return isinstance(value, Mapping) and "replies" in value and speaker(value) is not None


def _conversations(found: Mapping[str, Any], source: str, best: bool) -> list[Conversation]:
    state = found.get("tree_state")
    if state is not None and state != READY:
        raise Misfit("a tree that is not finished", f"its state is {state!r}, not {READY!r}")
    if not is_tree(found["prompt"]):
        raise Misfit("no tree", "expected an object with a role, a text and replies")
    made, learnt = [], set[int]()
    for way in _ways(found["prompt"], best):
        fresh = [i for i, node in enumerate(way) if node["role"] == "assistant" and id(node) not in learnt]
        if fresh:  # always the last answers of the way
            learnt.update(id(way[i]) for i in fresh)
            turns = [{"role": node["role"], "content": node.get("text")} for node in way]
            made.append(conversation(talk(turns), None, source, first=fresh[0]))
    if not made:
        raise Misfit("no answer of an assistant", "none that was reviewed and is not deleted")
    return made


def _ways(node: Any, best: bool, before: tuple[Node, ...] = ()) -> Iterator[tuple[Node, ...]]:
    """The ways through a node, each up to its last answer: nothing is learnt from a prompt that nobody answered."""
    if not isinstance(node, Mapping) or node.get("deleted") or node.get("review_result") is False:
        return
    way = (*before, node)
    ways = [each for reply in _replies(node, best) for each in _ways(reply, best, way)]
    if ways:
        yield from ways
    elif node.get("role") == "assistant":
        yield way


def _replies(node: Node, best: bool) -> list[Any]:
    replies = [reply for reply in node.get("replies") or [] if isinstance(reply, Mapping)]
    if not best or node.get("role") == "assistant":
        return replies
    kept = [reply for reply in replies if not reply.get("deleted") and reply.get("review_result") is not False]
    return sorted(kept, key=lambda reply: reply["rank"] if reply.get("rank") is not None else len(kept))[:1]

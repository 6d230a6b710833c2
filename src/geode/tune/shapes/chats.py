"""Makers of what is learnt as it stands: conversations, instructions, questions and answers, completions, text.

Each takes the columns that were found, by our names, and the row's source. What they were called is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..examples import Completion, Conversation, Text
from .turns import Misfit, conversation, first_speaker, listed, talk, text

Found = Mapping[str, Any]


def chat(found: Found, source: str) -> list[Conversation]:
    """Turns of any spelling."""
    return [conversation(talk(found["messages"], found.get("system")), found.get("tools"), source)]


def instruction(found: Found, source: str) -> list[Conversation]:
    """Alpaca's: an instruction, what it is to be done with, and the output; maybe turns that went before."""
    turns = [*asked(found), _turn("assistant", found["output"], "the output")]
    return [conversation(talk(turns, found.get("system")), None, source)]


def question(found: Found, source: str) -> list[Conversation]:
    """A question and its answer as one exchange of a conversation."""
    turns = [_turn("user", found["prompt"], "the question"), _turn("assistant", found["completion"], "the answer")]
    return [conversation(talk(turns, found.get("system")), None, source)]


def completion(found: Found, source: str) -> list[Completion | Conversation]:
    """A prompt and how it goes on: plain text as it stands; messages as a conversation of which the end is learnt."""
    if all(isinstance(found[name], str) and first_speaker(found[name]) is None for name in ("prompt", "completion")):
        prompt, answer = text(found["prompt"], "the prompt"), text(found["completion"], "the completion")
        if not prompt.strip() or not answer.strip():
            raise Misfit("an empty text", f"the {'completion' if prompt.strip() else 'prompt'} says nothing")
        return [Completion(prompt, answer, source)]
    before = turns_of(found["prompt"], "user")
    messages = talk([*before, *turns_of(found["completion"], "assistant")])
    return [conversation(messages, found.get("tools"), source, first=len(talk(before)))]


def plain(found: Found, source: str) -> list[Text]:
    """A text, all of it."""
    if not text(found["text"], "the text").strip():
        raise Misfit("an empty text")
    return [Text(found["text"], source)]


def asked(found: Found) -> list[Any]:
    """The user's side of an instruction, after the turns that went before."""
    parts = [text(found["instruction"], "the instruction"), text(found.get("input") or "", "the input")]
    words = "\n\n".join(part for part in parts if part.strip())
    return [*_history(found.get("history")), _turn("user", words, "the instruction")]


def turns_of(value: Any, role: str) -> list[Any]:
    """A list of turns, from such a list, from one turn, or from what `role` says."""
    if isinstance(value, Mapping):
        return [value]
    turns = listed(value) if first_speaker(value) is not None else None
    return turns or [_turn(role, value, f"what the {role} says")]


def _history(pairs: Any) -> list[Any]:
    """LLaMA-Factory's history: pairs of an instruction and its output."""
    turns: list[Any] = []
    for pair in listed(pairs or []) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Misfit("a history that cannot be read", f"expected pairs of texts; got {str(pair)[:60]}")
        turns += [_turn("user", pair[0], "the history"), _turn("assistant", pair[1], "the history")]
    return turns


def _turn(role: str, words: Any, what: str) -> dict[str, str]:
    return {"role": role, "content": text(words, what)}

"""Examples: what a row of data says, whatever its columns were called.

Tokens and templates are not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Completion", "Conversation", "Example", "Labelled", "Message", "Messages", "Preference", "Text", "Tools"]

Message = Mapping[str, Any]  # {"role", "content", "tool_calls"?}, as chat.Template takes them
Messages = Sequence[Message]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Conversation:
    """Turns of one talk. `learn`: places of the assistant's messages that carry loss; None is all of them."""

    messages: Messages
    tools: Tools | None
    source: str
    learn: frozenset[int] | None = None


@dataclass(frozen=True)
class Text:
    """Plain text, each token of which is learnt."""

    text: str
    source: str


@dataclass(frozen=True)
class Completion:
    """A prompt, plain or as messages, and the answer to it, which alone is learnt."""

    prompt: str | Messages
    completion: str
    source: str


@dataclass(frozen=True)
class Preference:
    """Two ways to go on from one prompt, the first liked better; each is the messages that follow the prompt."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    source: str


@dataclass(frozen=True)
class Labelled:
    """One way to go on from a prompt, and whether it was found good."""

    prompt: Messages
    answer: Messages
    good: bool
    source: str


Example = Conversation | Text | Completion | Preference | Labelled

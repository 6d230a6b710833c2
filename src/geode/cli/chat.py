"""`geode chat`: a conversation at the terminal, or through a pipe.

What the model makes of the messages is not known here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ChatError, ContextError, GeodeError, OptionError
from . import options, screen

ASSISTANT = "assistant"
"""The model of whoever names none: an adapter that comes with Geode."""
FENCE = '"""'
HELP = """\
/system TEXT        set the system message (without TEXT: show it)
/reset              forget the conversation, keep the system message
/save FILE          write the conversation and its settings as JSON
/load FILE          read it back
/params [NAME VALUE]  show the sampling settings, or change one
/help               this list
/exit               leave; so does Ctrl-D
A line that ends in \\ goes on in the next one; \"\"\" begins and ends a text of many lines.
Ctrl-C stops an answer; at the prompt it leaves when pressed twice."""


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "chat",
        help="talk with a model",
        description="A conversation: type, read, /help for what else can be done. Works with piped lines too.",
    )
    options.add_model(parser, default=ASSISTANT)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    options.add_sampling(parser)


def main(args: argparse.Namespace) -> int:
    name = args.model or ASSISTANT
    args.model = args.model or _assistant()
    lm = options.load(args)
    if lm.template is None:
        raise ChatError(
            f"{name} brings no chat template: it was trained to continue text, not to talk. "
            f'Use `geode run {name} "..."`, or chat with an instruction-tuned model such as smollm2.'
        )
    if not lm.own_template:
        screen.note(f"{name} brings no chat template of its own, so it was hardly tuned to talk; expect odd answers.")
    chat = Chat(lm, name, options.sampling(args), args.system)
    if not sys.stdin.isatty():
        return chat.loop(lambda prompt: next(sys.stdin).removesuffix("\n"))
    screen.note(f"{name}, {chat.lm.context} tokens of context. /help tells what can be done; Ctrl-D leaves.")
    with _history():
        return chat.loop(input)


def _assistant() -> str:
    """Where it lies: a file of that name in the working directory is not meant."""
    from ..io import hub

    found = hub.packaged(ASSISTANT)
    if found is None:
        raise OptionError("There is no model to talk with. Name one, as in `geode chat smollm2`.")
    return str(found)


@dataclass
class Chat:
    """One conversation: the messages so far, and the settings of the answers to come."""

    lm: Any
    model: str
    params: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    code: int = 0  # of the last error
    interrupted: bool = False  # the last thing that happened was Ctrl-C

    def loop(self, ask: Callable[[str], str]) -> int:
        """Reads and answers until the end. Returns the exit code: an error's where nobody was there to see it."""
        while True:
            try:
                text = _read(ask)
                self.interrupted = False
                if text.startswith("/") and "\n" not in text:
                    if self.command(text):
                        break
                elif text.strip():
                    self.turn(text)
            except (EOFError, StopIteration):
                break
            except KeyboardInterrupt:
                if self.interrupted:
                    break
                self.interrupted = True
                screen.note("\nCtrl-C again, or Ctrl-D, leaves.")
            except GeodeError as error:
                self.code = error.exit_code
                screen.complain(str(error))
        return 0 if sys.stdin.isatty() else self.code

    def turn(self, text: str) -> None:
        """One message and its answer; an answer cut short by Ctrl-C stays as far as it came."""
        self.messages.append({"role": "user", "content": text})
        answer = ""
        try:
            stream = self.lm.stream(self._prompt(), **self.params)
            for piece in stream:
                answer += piece.text
                screen.write(piece.text)
            screen.write("\n")
            self._remark(stream)
        except KeyboardInterrupt:
            self.interrupted = True
            screen.note("\n[stopped]")
        except ContextError as error:
            raise ContextError(f"{error} /reset begins a new conversation.") from None
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()

    def command(self, line: str) -> bool:
        """Does what a /line says. True where it says to leave."""
        name, _, rest = line[1:].partition(" ")
        if name in ("exit", "quit", "bye"):
            return True
        if name not in COMMANDS:
            raise OptionError(
                f"There is no command /{name}. The commands are {', '.join('/' + c for c in COMMANDS)}, /exit."
            )
        COMMANDS[name](self, rest.strip())
        return False

    def _prompt(self) -> list[dict[str, str]]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.messages]

    def _remark(self, stream: Any) -> None:
        if stream.finish_reason == "length":
            screen.note("[the answer is cut: the context is full or --max-tokens is reached]")
        if sys.stdin.isatty():
            screen.note(f"[{stream.usage.completion_tokens} tokens, {stream.usage.speed:.1f} tokens/s]")


def _set_system(chat: Chat, text: str) -> None:
    if text:
        chat.system = text
    else:
        screen.note(chat.system or "No system message is set.")


def _reset(chat: Chat, _: str) -> None:
    chat.messages.clear()
    screen.note("The conversation begins anew.")


def _save(chat: Chat, name: str) -> None:
    path = _path(name, "/save")
    document = {"model": chat.model, "system": chat.system, "messages": chat.messages, "params": chat.params}
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise OptionError(
            f"The conversation cannot be written to {path}: {error.strerror}. Name another file."
        ) from None
    screen.note(f"Saved {len(chat.messages)} messages in {path}.")


def _load(chat: Chat, name: str) -> None:
    path = _path(name, "/load")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in document["messages"]]
        system, params = document.get("system"), _checked(chat.params | document.get("params", {}))
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}. Name a file that /save wrote.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OptionError(f"{path} is not a conversation. Name a file that /save wrote.") from None
    chat.messages, chat.system, chat.params = messages, system, params
    screen.note(f"Loaded {len(messages)} messages from {path}.")


def _params(chat: Chat, rest: str) -> None:
    if not rest:
        return screen.note("\n".join(f"{name} {_shown(value)}" for name, value in chat.params.items()))
    name, _, text = rest.partition(" ")
    knob = next((knob for knob in options.KNOBS if knob.name == name.replace("-", "_")), None)
    if knob is None:
        raise OptionError(f"There is no setting '{name}'. The settings are {', '.join(k.name for k in options.KNOBS)}.")
    try:
        value = None if text in ("off", "none") and knob.default is None else knob.kind(text)
    except ValueError:
        raise OptionError(
            f"{knob.name} is a number, as in `/params {knob.name} {knob.default or 100}`; got '{text}'."
        ) from None
    chat.params = _checked(chat.params | {knob.name: value})
    screen.note(f"{knob.name} {_shown(value)}")


def _help(_: Chat, __: str) -> None:
    print(HELP)


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "system": _set_system,
    "reset": _reset,
    "save": _save,
    "load": _load,
    "params": _params,
    "help": _help,
}


def _checked(params: dict[str, Any]) -> dict[str, Any]:
    """The settings, once the model's own rules have passed them."""
    from ..generate import Options

    try:
        Options(**params)
    except TypeError:
        raise OptionError(
            f"Of {', '.join(params)} not all are sampling settings. /params shows those there are."
        ) from None
    return params


def _path(name: str, command: str) -> Path:
    if not name:
        raise OptionError(f"{command} needs the name of a file, as in `{command} talk.json`.")
    return Path(name).expanduser()


def _shown(value: Any) -> str:
    return "off" if value is None else str(value)


def _read(ask: Callable[[str], str]) -> str:
    """One message: a line, lines joined by a trailing backslash, or all between two fences."""
    line = ask(">>> ")
    if line.startswith(FENCE):
        return _fenced(line.removeprefix(FENCE), ask)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(ask("... "))
    return "\n".join(lines)


def _fenced(line: str, ask: Callable[[str], str]) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(ask("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines).strip("\n")


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Arrow keys bring back what was typed, also in earlier conversations."""
    try:
        import readline
    except ImportError:  # Windows edits lines by itself
        yield
        return
    from ..io.hub import home

    path = home() / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

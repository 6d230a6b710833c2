"""Examples to documents: what is learnt, what is split and how, what is left out and what is said of it; the preview."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geode.chat import Template, builtin
from geode.errors import ChatError, FormatError, OptionError
from geode.tokenizer import Roles, Tokenizer
from geode.tokenizer.bytebpe import GPT2_ALPHABET, ByteBPE
from geode.tokenizer.patterns import CUTS
from geode.tokenizer.rust import Rust
from geode.tokenizer.spm import SPM
from geode.tune import batches, preview
from geode.tune.documents import Document, Judged, Paired, prepare
from geode.tune.examples import Completion, Conversation, Example, Labelled, Preference, Text

CONTROL = ["<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"]


def bytewise(bos: bool = True) -> ByteBPE:
    """Bytes as tokens, and control tokens from 256 on."""
    ids = {text: 256 + i for i, text in enumerate(CONTROL)}
    roles = Roles(bos=256 if bos else None, eos=257, adds_bos=bos)
    vocab = {each: i for i, each in enumerate(GPT2_ALPHABET)}
    pieces = [*vocab]
    cut = CUTS["gpt-2"]
    return ByteBPE(
        vocab.get, pieces.__getitem__, lambda left, right: None, cut, roles, size=256 + len(ids), control=ids
    )


def piecewise(prefix: bool) -> SPM:
    """Letters and what they make, with a space before words."""
    words = ["a", "b", "▁", "▁a", "▁b", "ab", "▁ab", "ba", "aba", "\n"]
    pieces = ["<unk>", *CONTROL, *words]
    scores = [0.0] * 7 + [-float(len(words) - i) for i in range(len(words))]
    return SPM(pieces, scores, [2] + [3] * 6 + [1] * len(words), Roles(bos=1, eos=2, unk=0, adds_bos=True), prefix)


BYTES, BARE = bytewise(), bytewise(bos=False)
GEMMA = Template(builtin("gemma"), BYTES)
CHATML = Template(builtin("chatml"), BARE)
UNTOLD = Template(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    BARE,
)


def talk(*texts: str, system: str | None = None, learn: frozenset[int] | None = None) -> Conversation:
    """Turns of user and assistant, by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages, None, "talk.jsonl:1", learn)


def shown(ids: Any, tokenizer: Tokenizer = BYTES) -> str:
    return b"".join(tokenizer.piece(token) for token in ids).decode()


def learnt(document: Document, tokenizer: Tokenizer = BYTES) -> str:
    """What is learnt; its runs divided by |."""
    runs = np.split(np.arange(len(document)), np.flatnonzero(np.diff(document.loss)) + 1)
    return "|".join(shown(document.ids[run], tokenizer) for run in runs if len(run) and document.loss[run[0]])


# Texts and completions


def test_a_text_begins_and_ends_as_texts_do() -> None:
    (document,) = prepare([Text("Hi there", "a.txt:1")], BYTES)
    assert shown(document.ids) == "<s>Hi there</s>"
    assert learnt(document) == "Hi there</s>"
    assert (document.ids.dtype, document.loss.dtype) == (np.int32, bool)
    (bare,) = prepare([Text("Hi there", "a.txt:1")], BARE)
    assert (shown(bare.ids), learnt(bare)) == ("Hi there</s>", "i there</s>")  # nothing stands before the H


def test_a_completion_is_learnt_from_the_token_that_the_prompt_does_not_hold() -> None:
    (document,) = prepare([Completion("Q: a? A:", " yes", "a.csv:2")], BYTES)
    assert shown(document.ids) == "<s>Q: a? A: yes</s>"
    assert learnt(document) == " yes</s>"
    words = piecewise(prefix=False)
    (document,) = prepare([Completion("b a", "b a", "a.csv:2")], words)
    assert [words.piece(token).decode() for token in document.ids] == ["<s>", "b", " ab", " a", "</s>"]
    assert learnt(document, words) == " ab a</s>"  # the token that both share is the answer's
    (everything,) = prepare([Completion("Q", "A", "a.csv:2")], BYTES, learn="all")
    assert learnt(everything) == "QA</s>"


def test_a_completion_of_messages_is_a_conversation() -> None:
    prompt = talk("a", "b", "c").messages
    (document,) = prepare([Completion(prompt, "d", "x:1")], BYTES, GEMMA)
    assert learnt(document) == "d<end_of_turn>"
    assert shown(document.ids).startswith("<s><start_of_turn>user\na<end_of_turn>\n")


# Conversations


@pytest.mark.parametrize("template", [GEMMA, CHATML, UNTOLD])
def test_a_conversation_is_what_the_template_writes_up_to_what_is_learnt(template: Template) -> None:
    end = "<end_of_turn>" if template is GEMMA else "<|im_end|>"
    example = talk("one", "two", "three", "four", "five")
    (document,) = prepare([example], template.tokenizer, template)
    ids, mask = template.training(example.messages)
    assert document.ids.tolist() == ids[: len(document)]
    assert document.loss.tolist() == [bool(own) for own in mask[: len(document)]]
    assert not any(mask[len(document) :])
    assert learnt(document, template.tokenizer) == f"two{end}|four{end}"


@pytest.mark.parametrize("template", [GEMMA, CHATML, UNTOLD])
def test_some_answers_are_learnt(template: Template) -> None:
    end = "<end_of_turn>" if template is GEMMA else "<|im_end|>"
    words = template.tokenizer
    texts = ("one", "two", "three", "four")

    def of(example: Conversation, **options: Any) -> str:
        (document,) = prepare([example], words, template, **options)
        return learnt(document, words)

    assert of(talk(*texts), learn="last") == f"four{end}"
    assert of(talk(*texts, learn=frozenset({1}))) == f"two{end}"
    assert of(talk(*texts, learn=frozenset({1})), learn="last") == f"two{end}"
    assert of(talk(*texts, learn=frozenset({1})), system="Be kind.") == f"two{end}"  # the places move by one
    everything = of(talk(*texts, learn=frozenset({1})), learn="all")
    assert everything.endswith(f"four{end}\n")
    assert "one" in everything


def test_training_marks_the_answers_that_are_asked_for() -> None:
    twice = (  # a template that marks thoughts and words apart
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}<|im_start|>"
        "{% generation %}!<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    template = Template(twice, BARE)
    messages = talk("q", "aa", "r", "bb").messages
    ids, mask = template.training(messages, answers=[3])
    assert shown([token for token, own in zip(ids, mask, strict=True) if own], BARE) == "bb!<|im_end|>"
    assert template.training(messages, answers=[1, 3]) == template.training(messages)
    assert not any(template.training(messages, answers=[])[1])
    with pytest.raises(ChatError, match=r"Message 2 .* its are \[1, 3\]"):
        template.training(messages, answers=[2])


def test_a_system_text_is_said_first_where_none_is() -> None:
    for example, wanted in ((talk("a", "b"), "Be kind."), (talk("a", "b", system="Be brief."), "Be brief.")):
        (document,) = prepare([example], BARE, CHATML, system="Be kind.")
        assert shown(document.ids, BARE).startswith(f"<|im_start|>system\n{wanted}<|im_end|>\n<|im_start|>user")
        assert learnt(document, BARE) == "b<|im_end|>"


def located(words: Tokenizer, text: str, places: list[int]) -> tuple[list[int], list[int]]:
    """Ids, and how many of them the text before each place, encoded by itself, has in common with them."""
    ids, bare = (words.encode(text, special=True, bos=bos, mark="\ufdd0") for bos in (words.adds_bos, False))
    counts = []
    for place in places:
        short = words.encode(text[:place], special=True, bos=len(ids) > len(bare), mark="\ufdd0")
        same = [a == b for a, b in zip(ids, short, strict=False)]
        counts.append([*same, False].index(False))
    return ids, counts


PARTS = ["a", "b", " ", "\n", "ab a", "\ufdd0", "<s>", "<end_of_turn>", "<\ufdd0s>"]


@pytest.mark.parametrize("words", [BYTES, BARE, piecewise(True), piecewise(False)])
@given(parts=st.lists(st.sampled_from(PARTS)))
@settings(max_examples=80, deadline=None)
def test_ids_before_a_place_are_those_of_the_text_before_it(words: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    places = [len("".join(parts[:i])) for i in range(len(parts) + 1)]
    assert words.located(text, places, bos=words.adds_bos, mark="\ufdd0") == located(words, text, places)


def test_places_count_the_halves_of_a_surrogate_pair() -> None:
    ids, counts = BARE.located("\ud83d\ude00a<s>", [0, 2, 3, 6])
    assert (shown(ids, BARE), counts) == ("😀a<s>", [0, 4, 5, 6])


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("text", ["ab <s> b<s>a", "<s>a b<s>", "a", "<s> <s>ab"])
def test_ids_before_a_place_where_a_library_finds_control_tokens(tmp_path: Path, single: bool, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    file = tokenizers.Tokenizer(
        tokenizers.models.BPE({"a": 0, "b": 1, " ": 2, "<": 3, "s": 4, ">": 5, "ab": 6}, [("a", "b")])
    )
    file.add_special_tokens([tokenizers.AddedToken("<s>", special=True, normalized=False, single_word=single)])
    file.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 7)])
    file.save(str(tmp_path / "tokenizer.json"))
    words = Rust(tmp_path / "tokenizer.json", {"bos_token": "<s>"})
    places = [i for i in range(len(text) + 1) if "<" not in text[max(i - 2, 0) : i]]
    assert words.located(text, places, bos=True) == located(words, text, places)


# What is too long


@given(
    text=st.text("abc", min_size=0, max_size=120), length=st.integers(4, 20), bos=st.booleans(), cut=st.integers(0, 60)
)
@settings(max_examples=150, deadline=None)
def test_every_token_of_a_split_text_is_learnt_once(text: str, length: int, bos: bool, cut: int) -> None:
    words = BYTES if bos else BARE
    example = Completion(text[:cut], text[cut:] + "!", "a:1")
    (whole,) = prepare([example], words, length=1000)
    found = prepare([example], words, length=length, long="split")
    pieces = [*found]
    assert all(2 <= len(piece) <= length for piece in pieces)
    assert np.concatenate([piece.ids[piece.loss] for piece in pieces]).tolist() == whole.ids[whole.loss].tolist()
    assert found.report.learnt == whole.learnt
    assert found.report.split == (len(whole) > length)
    for piece in pieces:
        assert not piece.loss[0]
        assert piece.loss[-1]
        assert not bos or piece.ids[0] == 256
        run = shown(piece.ids).removeprefix("<s>")
        assert run in shown(whole.ids)


def test_pieces_of_a_text_have_the_bos_and_one_token_before_what_they_learn() -> None:
    found = prepare([Text("abcdefgh", "a:1")], BYTES, length=5, long="split")
    assert [(shown(each.ids), learnt(each)) for each in found] == [
        ("<s>abcd", "abcd"),
        ("<s>defg", "efg"),
        ("<s>gh</s>", "h</s>"),
    ]
    assert [each.source for each in found] == ["a:1"] * 3


def test_a_long_conversation_is_split_between_exchanges_under_its_system_text() -> None:
    example = talk("q1", "a1", "q2", "a2", "q3", "a3", system="S")
    (whole,) = prepare([example], BARE, CHATML, length=1000)
    room = len(CHATML.tokens(talk("q1", "a1", "q2", "a2", system="S").messages, add_generation_prompt=False))
    found = prepare([example], BARE, CHATML, length=room, long="split")
    assert [learnt(each, BARE) for each in found] == ["a1<|im_end|>|a2<|im_end|>", "a3<|im_end|>"]
    assert [shown(each.ids, BARE).count("system\nS") for each in found] == [1, 1]
    assert found.report.learnt == whole.learnt
    assert "1 example longer than that was split." in found.report.text()
    one = prepare([example], BARE, CHATML, length=room - 2, long="split")
    assert [learnt(each, BARE) for each in one] == ["a1<|im_end|>", "a2<|im_end|>", "a3<|im_end|>"]


def test_tool_answers_stay_with_their_exchange() -> None:
    messages = [
        {"role": "user", "content": "u" * 20},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "welcome"},
    ]
    found = prepare([Conversation(messages, None, "t:1")], BARE, CHATML, length=80, long="split")
    assert [learnt(each, BARE) for each in found] == ["call<|im_end|>|so<|im_end|>", "welcome<|im_end|>"]


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8), length=st.integers(4, 60), last=st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_answer_of_a_split_conversation_is_learnt_once(sizes: list[int], length: int, last: bool) -> None:
    texts = [chr(ord("a") + i) * size for i, size in enumerate(sizes)]
    options: dict[str, Any] = {"learn": "last" if last else "assistant"}
    (whole,) = prepare([talk(*texts)], BYTES, GEMMA, length=10000, **options)
    found = prepare([talk(*texts)], BYTES, GEMMA, length=length, long="split", **options)
    assert all(len(each) <= length and each.ids[0] == 256 for each in found)
    assert np.concatenate([each.ids[each.loss] for each in found]).tolist() == whole.ids[whole.loss].tolist()
    assert found.report.learnt == whole.learnt


def test_long_answers_see_what_came_before() -> None:
    (first, second) = prepare([talk("q", "abcdefghijklmnopqrstuvwxyz")], BYTES, GEMMA, length=32, long="split")
    assert first.ids[0] == second.ids[0] == 256
    assert learnt(first) + learnt(second) == "abcdefghijklmnopqrstuvwxyz<end_of_turn>"
    before = shown(second.ids[~second.loss])
    assert len(second.ids[~second.loss]) == 1 + 16  # the BOS, and half a row
    assert learnt(first).endswith(before[-5:])


def test_conversations_of_which_all_is_learnt_are_split_as_texts() -> None:
    example = talk("one", "two", "three", "four")
    (whole,) = prepare([example], BYTES, GEMMA, learn="all")
    found = prepare([example], BYTES, GEMMA, learn="all", length=20, long="split")
    assert np.concatenate([each.ids[each.loss] for each in found]).tolist() == whole.ids[1:].tolist()


def test_too_long_is_dropped_and_counted_or_refused() -> None:
    texts = [Text("a" * size, f"a.jsonl:{size}") for size in (3, 40, 5, 50, 60, 70)]
    found = prepare(texts, BYTES, length=16)
    assert [each.source for each in found] == ["a.jsonl:3", "a.jsonl:5"]
    assert found.report.text() == (
        "6 examples gave 2 documents of 12 tokens, 10 of which are learnt (83%); the longest has 7 of at most 16. "
        "4 examples were left out: 4 longer than a row, up to 72 tokens (a.jsonl:40, a.jsonl:50, a.jsonl:60, …)."
    )
    with pytest.raises(OptionError, match=r"a.jsonl:40 has 42 tokens, and a row holds 16 .*drop or split"):
        prepare(texts, BYTES, length=16, long="error")
    with pytest.raises(OptionError, match=r"all were left out: 1 longer than a row.*Raise data.length, which is 16"):
        prepare(texts[-1:], BYTES, length=16)
    with pytest.raises(OptionError, match=r"data\.length is 3"):
        prepare(texts, BYTES, length=3)


# Preferences


def test_of_pairs_only_the_answers_are_learnt() -> None:
    prompt = talk("q", "a", "r").messages
    good, bad = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
    found = prepare([Preference(prompt, good, bad, "p:1"), Preference(prompt, good, good, "p:2")], BYTES, GEMMA)
    (pair,) = found
    assert isinstance(pair, Paired)
    assert [learnt(each) for each in (pair.chosen, pair.rejected)] == ["yes<end_of_turn>", "no<end_of_turn>"]
    assert found.report.dropped["with two answers that are the same"].sources == ["p:2"]
    assert found.report.learnt == len("yes") + len("no") + 2
    for long in ("drop", "split"):  # pairs cannot be split
        with pytest.raises(OptionError, match="longer than a row"):
            prepare([Preference(prompt, good, bad, "p:1")], BYTES, GEMMA, length=8, long=long)
    (judged,) = prepare([Labelled(prompt, bad, False, "k:1")], BYTES, GEMMA)
    assert isinstance(judged, Judged)
    assert (learnt(judged.document), judged.good) == ("no<end_of_turn>", False)


def test_one_kind_of_example_a_run() -> None:
    answer = [{"role": "assistant", "content": "b"}]
    mixed: list[Example] = [Text("a", "a:1"), Labelled(talk("a").messages, answer, True, "b:7")]
    with pytest.raises(FormatError, match=r"a:1 is a text or a conversation, b:7 is an answer with a label"):
        prepare(mixed, BYTES, GEMMA)
    both: list[Example] = [Text("a", "a:1"), talk("q", "a"), Completion("q", "a", "c:1")]
    assert len(prepare(both, BYTES, GEMMA)) == 3


# What cannot be learnt from


def test_what_the_template_refuses_is_counted_with_its_words() -> None:
    odd = Conversation([{"role": "assistant", "content": "a"}], None, "t:9")
    report = prepare([talk("q", "a"), odd], BYTES, GEMMA).report
    assert report.dropped["refused"].sources == ["t:9"]
    assert "1 refused (t:9): The chat template refuses this conversation: Conversation roles must" in report.text()
    with pytest.raises(OptionError, match="Mend the data"):
        prepare([odd], BYTES, GEMMA)


def test_without_an_answer_there_is_nothing_to_learn() -> None:
    some: list[Example] = [talk("q", "a"), talk("q"), Text("", "a:2"), Completion("q", "", "c:1")]
    found = prepare(some, BYTES, GEMMA)
    assert found.report.dropped["without a token to learn"].sources == ["talk.jsonl:1", "a:2", "c:1"]
    silent = Template("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", BYTES)
    with pytest.raises(OptionError, match=r"marks no answer .* data.template, or set data.learn to all"):
        prepare([talk("q", "a")], BYTES, silent)


def test_no_examples_and_no_template() -> None:
    with pytest.raises(FormatError, match="no examples"):
        prepare([], BYTES)
    with pytest.raises(OptionError, match=r"talk.jsonl:1 is a conversation, and this model has no chat template"):
        prepare([talk("q", "a")], BYTES)


def test_the_report_is_json_and_adds_up() -> None:
    some: list[Example] = [talk("q", "a"), talk("q"), Text("b" * 99, "a:2")]
    found = prepare(some, BYTES, GEMMA, length=64)
    report = json.loads(json.dumps(found.report.as_dict()))
    assert report["examples"] == report["items"] + sum(each["count"] for each in report["dropped"].values())
    assert report["tokens"] == sum(map(len, found))
    assert report["learnt"] == sum(each.learnt for each in found) == 2
    assert report["dropped"]["longer than a row"] == {"count": 1, "sources": ["a:2"], "words": "", "longest": 101}


# The preview


def plain(text: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_the_preview_marks_what_is_learnt() -> None:
    found = prepare([talk("q\x1b[2J", "ä\nb"), talk("r", "s")], BYTES, GEMMA)
    text = preview.of_documents(found.items, BYTES, 1)
    assert text == (
        "── talk.jsonl:1: 39 tokens, 5 learnt ──\n"
        "<s><start_of_turn>user↵\nq␛[2J<end_of_turn>↵\n<start_of_turn>model↵\n⟦ä↵\nb<end_of_turn>⟧"
    ).replace("39", str(len(found[0])))
    coloured = preview.of_documents(found.items, BYTES, 1, colour=True)
    assert plain(coloured) == text.replace("⟦", "").replace("⟧", "")
    learnt_part = coloured[coloured.index("model") :] if "model" in coloured else coloured
    assert re.search("\x1b\\[30;48;5;\\d+m\x1b\\[1m<end_of_turn>\x1b\\[0m$", learnt_part)
    shades = re.findall("\x1b\\[(38;5;\\d+)m", coloured)
    assert len(set(shades)) == 2


def test_the_preview_of_pairs_labels_and_rows() -> None:
    prompt = talk("q").messages
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    pairs = prepare([Preference(prompt, answers[0], answers[1], "p:1")], BYTES, GEMMA)
    text = preview.of_documents(pairs.items, BYTES)
    assert "── chosen, p:1: " in text
    assert "── rejected, p:1: " in text
    judged = prepare([Labelled(prompt, answers[0], True, "k:1")], BYTES, GEMMA)
    assert preview.of_documents(judged.items, BYTES).startswith("── good, k:1: ")
    texts = prepare([Text("one", "a:1"), Text("three", "a:2")], BYTES)
    (micro,) = batches.Steps(texts.items, length=16, rows=1).at(0)
    assert preview.of_rows(micro, BYTES) == (
        "── row 1: 16 tokens, 2 sequences, 10 learnt, 4 padding ──\n┄┄ 1\n<s>⟦three</s>⟧\n┄┄ 2\n<s>⟦one</s>⟧"
    )

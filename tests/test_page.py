"""The page at `/`, used as a person does: in headless Chromium, in front of the real server and a scripted model."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
import devtools
from devtools import CTRL, SHIFT, Browser, Tab
from fastapi import FastAPI
from live import Live, serving
from starlette.testclient import TestClient

from geode.lm import Fake
from geode.serve import keys
from geode.serve.page import FILES, page_router

pytestmark = pytest.mark.xdist_group("page")  # one browser, one server

READY = "document.documentElement?.dataset.ready !== undefined"
IDLE = "!document.querySelector('.live') && !document.querySelector('#send').classList.contains('stop')"
KEY = "amethyst-and-agate"
MARKDOWN = """\
# Geodes

A **stone**, *hollow*, with `crystals`.

- one
- two
  1. deeper

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x):  # why
    return "x"
```

> quoted <img src=x onerror=alert(1)>

[good](https://example.org/a_(b)) [bad](javascript:alert(1)) $a_1 * b_1$"""


class Scripted(Fake):
    """Says `MARKDOWN`, or goes on with what was begun. After "slow" it says a few bytes, then waits for `go`."""

    def __init__(self, name: str):
        super().__init__(lambda prompt: self.says(prompt))
        self.name = name
        self.go = threading.Event()
        self.template, self.tokenizer = _Continuable(), _Pieces()
        self.executor = _Unsure(self.executor, self.go)

    def says(self, prompt: str) -> str:
        asked = prompt.rpartition("user: ")[2].partition("\n")[0]
        begun = prompt.rpartition("assistant: ")[2]
        if begun:
            return " and so on."
        if "geodes" in asked:
            return MARKDOWN
        return f"{self.name} heard: {asked}. {'Still thinking about it.' if 'slow' in asked else ''}".strip()


class _Continuable(type(Fake().template)):  # type: ignore[misc]
    def training(self, messages: Sequence[Any], answers: Any = None, **_: Any) -> tuple[list[int], list[int]]:
        before = self.tokens(messages[:-1])
        said = list(messages[-1]["content"].encode())
        return [*before, *said, 257], [0] * len(before) + [1] * (len(said) + 1)


class _Pieces(type(Fake().tokenizer)):  # type: ignore[misc]
    def piece(self, token: int) -> bytes:
        return bytes([token] if token < 256 else [])


class _Unsure:
    """The scripted byte is the likeliest, "q" and the first byte of "é" come next. Greedy answers follow the script."""

    def __init__(self, script: Any, go: threading.Event):
        self.config, self._script, self._go = script.config, script, go

    def rows(self, *arguments: Any) -> Any:
        return self._script.rows(*arguments)

    def prefill(self, *arguments: Any) -> tuple[Any, np.ndarray]:
        state, logits = self._script.prefill(*arguments)
        return state, _doubt(logits)

    def step(self, state: Any, *arguments: Any) -> tuple[Any, np.ndarray]:
        if b"slow" in state[0][0] and state[1] > 20:
            self._go.wait(60)
        state, logits = self._script.step(state, *arguments)
        return state, _doubt(logits)


def _doubt(logits: np.ndarray) -> np.ndarray:
    doubted = logits.copy()
    for token, value in ((ord("q"), -2.0), ("é".encode()[0], -3.0)):
        doubted[:, token] = np.maximum(doubted[:, token], value)
    return doubted


@pytest.fixture(scope="module")
def models() -> dict[str, Scripted]:
    return {name: Scripted(name) for name in ("agate", "basalt")}


@pytest.fixture(scope="module")
def live(models: dict[str, Scripted]) -> Iterator[Live]:
    with serving(models) as running:
        yield running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = devtools.chromium()
    if program is None:
        pytest.skip("no Chromium is installed here (on Debian: apt-get install chromium)")
    with devtools.browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def tab(chromium: Browser, live: Live) -> Iterator[Tab]:
    """A fresh page. Whatever it logged as an error fails the test; so does a request to anywhere else."""
    with chromium.tab(f"{live.url}/", ready=READY) as page:
        greedy(page)
        yield page
        assert page.problems == []
        assert {
            url for url in page.requests if not url.startswith((f"{live.url}/", "blob:", "data:", "about:"))
        } == set()


def greedy(page: Tab) -> None:
    page.js("""(() => { const field = document.querySelector('#set-temperature'); field.value = '0';
                field.dispatchEvent(new Event('input')); })()""")


def ask(page: Tab, text: str) -> None:
    page.click("#prompt")
    page.type(text)
    page.key("Enter")
    page.wait(f"document.querySelector('#prompt').value === '' && {IDLE}")


def press(page: Tab, label: str, nth: int = 0) -> None:
    """A button of a message, by its name."""
    page.click(f".message .icon-button[aria-label={json.dumps(label)}]", nth)


def sent(page: Tab) -> list[dict[str, Any]]:
    page.js("1")  # lets events come in
    return [json.loads(body) for body in page.bodies]


# Files


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page_router())
    return TestClient(app)


def test_every_file_is_sent_under_a_strict_policy(client: TestClient) -> None:
    names = ["/", *(f"/page/{path.name}" for path in FILES.iterdir())]
    for name in names:
        answer = client.get(name)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200 and answer.content
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert client.head(name).content == b""
        again = client.get(name, headers={"if-none-match": f'"other", W/{answer.headers["etag"]}'})
        assert again.status_code == 304 and again.content == b""


@pytest.mark.parametrize(
    "name", ["..%2fpage.py", "%2e%2e/page.py", "nothing.js", "index.html%00", ".", "%5c..%5cpage.py"]
)
def test_no_other_file_is_sent(client: TestClient, name: str) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404 and b"import" not in answer.content


def test_files_name_no_other_origin_and_parse_no_html() -> None:
    for path in FILES.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|style=|<script>", text
        ), path
        assert not re.search(r"(src|href|url|import|from|fetch)\W{1,3}(https?:)?//", text), path


# Conversations


def test_an_answer_streams_in_as_markdown_and_is_kept(tab: Tab, live: Live) -> None:
    ask(tab, "Tell me of geodes")
    assert tab.texts(".assistant .prose .h1") == ["Geodes"]
    assert tab.texts(".assistant :is(strong, em, p > code)") == ["stone", "hollow", "crystals"]
    assert tab.texts(".assistant ol > li") == ["deeper"] and tab.texts("td") == ["1", "2"]
    assert tab.texts(".c-keyword") == ["def", "return"] and tab.texts(".c-comment") == ["# why"]
    assert tab.js("[...document.querySelectorAll('.prose a')].map((a) => [a.href, a.rel, a.target])") == [
        ["https://example.org/a_(b)", "noopener noreferrer nofollow", "_blank"]
    ]
    assert "<img src=x onerror=alert(1)>" in tab.text(".assistant blockquote")
    assert "$a_1 * b_1$" in tab.text(".assistant .math")
    assert re.match(r"\d+ tokens · [\d.]+ tokens/s · first after", tab.text(".figures"))
    assert tab.texts(".talk") == ["Tell me of geodes"] and tab.js("document.title") == "Tell me of geodes · Geode"
    tab.call("Page.reload")
    tab.wait(f"{READY} && document.querySelector('.assistant .h1')")
    assert tab.texts(".talk") == ["Tell me of geodes"]


def test_what_was_said_before_is_sent_again(tab: Tab) -> None:
    ask(tab, "first")
    tab.type("two")
    tab.key("Enter", SHIFT)
    assert tab.js("document.querySelector('#prompt').value") == "two\n"
    tab.type("lines")
    tab.key("Enter")
    tab.wait(f"{IDLE} && document.querySelectorAll('.assistant').length === 2")
    assert [(m["role"], m["content"]) for m in sent(tab)[-1]["messages"]] == [
        ("user", "first"), ("assistant", "agate heard: first."), ("user", "two\nlines"),
    ]  # fmt: skip


def test_escape_stops_and_the_answer_can_go_on(tab: Tab, live: Live, models: dict[str, Scripted]) -> None:
    models["agate"].go.clear()
    tab.click("#prompt")
    tab.type("slow")
    tab.key("Enter")
    tab.wait("document.querySelector('.assistant .prose')?.innerText.includes('heard')")
    assert tab.js("document.querySelector('#send').getAttribute('aria-label')") == "Stop"
    tab.key("Escape")
    tab.wait(IDLE)
    models["agate"].go.set()
    assert tab.text(".assistant .note") == "You stopped this answer."
    before = tab.text(".assistant .prose")
    press(tab, "Continue this answer")
    tab.wait(f"{IDLE} && document.querySelector('.assistant .prose').innerText.includes('and so on.')")
    assert tab.text(".assistant .prose") == f"{before} and so on."
    assert sent(tab)[-1]["continue_final_message"] is True and sent(tab)[-1]["messages"][-1]["role"] == "assistant"
    tab.wait("fetch('v1/status').then((r) => r.json()).then((s) => s.models.every((m) => !m.stats?.running))")


def test_the_button_stops_too(tab: Tab, models: dict[str, Scripted]) -> None:
    models["agate"].go.clear()
    tab.click("#prompt")
    tab.type("slow")
    tab.key("Enter")
    tab.wait("document.querySelector('#send.stop')")
    tab.click("#send")
    tab.wait(IDLE)
    models["agate"].go.set()
    assert tab.text(".assistant .note") == "You stopped this answer."


def test_answers_and_questions_branch(tab: Tab) -> None:
    ask(tab, "one")
    press(tab, "Answer again")
    tab.wait(f"{IDLE} && document.querySelector('.assistant .place')?.innerText === '2/2'")
    press(tab, "Previous branch")
    assert tab.text(".assistant .place") == "1/2"
    tab.click("#prompt")
    tab.key("ArrowUp")
    tab.wait("document.activeElement.matches('.editor textarea')")
    tab.js("document.activeElement.select()")
    tab.type("other")
    tab.key("Enter")
    tab.wait(f"{IDLE} && document.querySelector('.assistant .prose')?.innerText === 'agate heard: other.'")
    assert tab.text(".user .place") == "2/2" and tab.js("document.querySelector('.assistant .place')") is None
    press(tab, "Previous branch")
    assert tab.text(".user .body") == "one" and tab.text(".assistant .place") == "1/2"
    press(tab, "Edit this answer")
    tab.js("document.activeElement.select()")
    tab.type("My own words.")
    tab.key("Enter")
    assert tab.text(".assistant .prose") == "My own words." and tab.text(".assistant .place") == "3/3"
    tab.call("Page.reload")
    tab.wait(f"{READY} && document.querySelector('.assistant .place')?.innerText === '3/3'")


def test_a_message_is_deleted_and_comes_back(tab: Tab) -> None:
    ask(tab, "one")
    ask(tab, "two")
    press(tab, "Delete this message and what follows", 1)
    assert tab.texts(".user .body") == ["one"] and tab.texts(".assistant") == []
    tab.click(".toast button")
    assert tab.texts(".user .body") == ["one", "two"] and len(tab.texts(".assistant")) == 2


def test_settings_reach_the_request(tab: Tab) -> None:
    tab.click("#settings-open")
    wanted = {"top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7, "max_completion_tokens": 12, "presence_penalty": 0.5}
    for name, value in {"system": "Be brief.", "stop": "END\\n\nstop", **wanted}.items():
        tab.click(f"#set-{name}")
        tab.type(str(value))
    ask(tab, "Hello")
    body = sent(tab)[-1]
    assert {name: body[name] for name in wanted} == wanted
    assert body["temperature"] == 0 and body["stop"] == ["END\n", "stop"] and "frequency_penalty" not in body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert tab.text(".assistant .note") == "The answer is longer than was allowed."
    tab.click("#settings-reset")
    ask(tab, "Again")
    assert not {*wanted, "temperature", "stop"} & {*sent(tab)[-1]} and sent(tab)[-1]["messages"][0]["role"] == "user"


def test_json_mode(tab: Tab) -> None:
    tab.click("#settings-open")
    tab.click("#set-max_completion_tokens")
    tab.type("8")
    choose(tab, "#set-shape", "json_object")
    ask(tab, "Hello")
    assert sent(tab)[-1]["response_format"] == {"type": "json_object"}
    choose(tab, "#set-shape", "json_schema")
    tab.click("#set-schema")
    tab.type('{"type": "object"')
    tab.click("#prompt")
    tab.type("Hello")
    tab.key("Enter")
    assert "not valid JSON" in tab.text(".toast") and tab.js("document.querySelector('#prompt').value") == "Hello"
    tab.js("document.querySelector('#set-schema').focus()")
    tab.js("document.querySelector('#set-schema').setSelectionRange(99, 99)")
    tab.type("}")
    tab.js("document.querySelector('#prompt').value = ''")
    ask(tab, "Hello again")
    schema = {"name": "answer", "schema": {"type": "object"}}
    assert sent(tab)[-1]["response_format"] == {"type": "json_schema", "json_schema": schema}


def choose(page: Tab, selector: str, value: str) -> None:
    page.js(f"""(() => {{ const select = document.querySelector({json.dumps(selector)});
                select.value = {json.dumps(value)}; select.dispatchEvent(new Event('change', {{bubbles: true}})); }})()""")


def test_two_models_answer_side_by_side(tab: Tab) -> None:
    tab.click("#compare")
    ask(tab, "Hello")
    assert tab.texts(".assistant .prose") == ["agate heard: Hello.", "basalt heard: Hello."]
    assert [body["model"] for body in sent(tab)[-2:]] == ["agate", "basalt"]
    choose(tab, ".lane + .lane select", "agate")
    ask(tab, "And now?")
    assert tab.texts(".lane + .lane .prose") == ["basalt heard: Hello.", "agate heard: And now?."]
    tab.click("#compare")
    assert len(tab.texts(".lane")) == 1 and len(tab.texts(".talk")) == 2
    tab.click(".talk:not([aria-current])")
    assert tab.texts(".prose") == ["basalt heard: Hello.", "agate heard: And now?."]


def test_another_model(tab: Tab) -> None:
    choose(tab, "#picker select", "basalt")
    ask(tab, "Hello")
    assert tab.text(".assistant .prose") == "basalt heard: Hello."


# Tokens


def test_tokens_show_their_chances_and_lead_into_branches(tab: Tab) -> None:
    tab.click("#tokens")
    ask(tab, "Hello")
    assert "".join(tab.texts(".token")[:-1]) == "agate heard: Hello."
    doubts = tab.js(
        "[...document.querySelectorAll('.token')].map((t) => Number(t.style.getPropertyValue('--doubt-of')))"
    )
    assert all(0.1 < doubt < 0.25 for doubt in doubts)
    tab.hover(".token", 3)
    tab.wait("!document.querySelector('#alternatives').hidden")
    rows = tab.texts("#alternatives li")
    assert re.match(r"t\s+8\d %", rows[0]) and re.match(r"q\s+1\d %", rows[1])
    assert tab.js("[...document.querySelectorAll('#alternatives button')].map((b) => b.disabled)")[1]  # half of é
    tab.click("#alternatives button")
    tab.wait(f"{IDLE} && document.querySelector('.assistant .place')?.innerText === '2/2'")
    assert "".join(tab.texts(".token")[:-1]) == "agaq and so on." and tab.texts(".token.taken") == ["q"]
    body = sent(tab)[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": "agaq"} and body["continue_final_message"] is True
    tab.click("#tokens")
    assert tab.text(".assistant .prose") == "agaq and so on."


def test_tokens_by_keyboard(tab: Tab) -> None:
    tab.click("#tokens")
    ask(tab, "Hi")
    tab.js("document.querySelector('.token').focus()")
    tab.key("ArrowRight")
    tab.key("ArrowRight")
    assert tab.js("document.activeElement.dataset.at") == "2"
    tab.key("Enter")
    assert tab.js("document.activeElement.closest('#alternatives') !== null")
    tab.key("Escape")
    assert tab.js("document.activeElement.dataset.at") == "2" and tab.js(
        "document.querySelector('#alternatives').hidden"
    )
    tab.key("Enter")
    tab.key("Enter")
    tab.wait(f"{IDLE} && document.querySelector('.place')?.innerText === '2/2'")
    assert "".join(tab.texts(".token")[:-1]) == "agq and so on."


# The list, files, keys


def test_the_list_searches_names_and_deletes(tab: Tab) -> None:
    ask(tab, "Granite")
    tab.key("k", CTRL)
    assert tab.texts(".message") == [] and tab.js("document.activeElement.id") == "prompt"
    ask(tab, "Marble")
    assert tab.texts(".talk") == ["Marble", "Granite"]
    tab.click("#search")
    tab.type("heard: gran")
    assert tab.texts(".talk") == ["Granite"]
    tab.key("ArrowDown")
    tab.key("Enter")
    assert tab.text(".user .body") == "Granite"
    tab.js(
        "document.querySelector('#search').value = ''; document.querySelector('#search').dispatchEvent(new Event('input'))"
    )
    tab.click('[aria-label="Rename Granite"]')
    tab.type("Gneiss")
    tab.key("Enter")
    assert tab.text("#title") == "Gneiss" and "Gneiss" in tab.texts(".talk")
    tab.click('[aria-label="Delete Gneiss"]')
    tab.wait("document.querySelectorAll('.talk').length === 1")
    assert tab.texts(".talk") == ["Marble"] and tab.texts(".message") == []
    tab.click(".toast button")
    tab.wait("document.querySelectorAll('.talk').length === 2")
    assert tab.text(".user .body") == "Granite"


def test_conversations_go_to_files_and_come_back(tab: Tab, tmp_path: Path) -> None:
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    ask(tab, "Tell me of geodes")
    press(tab, "Answer again")
    tab.wait(f"{IDLE} && document.querySelector('.place')?.innerText === '2/2'")
    for name in ("markdown", "json"):
        tab.click("#export summary")
        tab.click(f"#export-{name}")
    markdown, file = (saved(tab, tmp_path / f"Tell me of geodes.{ending}") for ending in ("md", "json"))
    assert markdown.read_text(encoding="utf-8").startswith(
        "# Tell me of geodes\n\n**You**\n\nTell me of geodes\n\n**agate**\n\n# Geodes"
    )
    tab.click('[aria-label="Delete Tell me of geodes"]')
    tab.wait("!document.querySelector('.talk')")
    give(tab, file)
    tab.wait("document.querySelector('.place')?.innerText === '2/2'")
    assert tab.texts(".talk") == ["Tell me of geodes"] and tab.texts(".assistant .h1") == ["Geodes"]


def saved(page: Tab, file: Path) -> Path:
    page.wait(f"{json.dumps(file.name)}")
    waiting = threading.Event()
    for _ in range(2000):
        if file.exists() and file.stat().st_size:
            return file
        waiting.wait(0.02)
    raise AssertionError(f"{file.name} was not saved; there are {[p.name for p in file.parent.iterdir()]}")


def give(page: Tab, file: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)


BAD = [
    ("{", "not JSON"),
    ("[]", "no Geode conversations"),
    ('{"format": "geode-conversations", "version": 2, "conversations": []}', "newer version"),
]


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_a_file_that_is_none_of_ours_is_refused(tab: Tab, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    give(tab, tmp_path / "bad.json")
    tab.wait("document.querySelector('.toast')")
    assert reason in tab.text(".toast") and tab.texts(".talk") == []


def test_a_hostile_file_is_only_text(tab: Tab, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    nodes = {
        "a": {"role": "user", "content": evil, "id": "__proto__"},
        "b": {
            "role": "assistant",
            "content": f"{evil}\n\n[x](javascript:alert(1))",
            "model": evil,
            "tokens": [1, {}, None],
        },
        "c": {"role": "system", "content": "not taken"},
        "__proto__": {"role": "user", "content": "polluted", "polluted": True},
    }
    kids = {"": ["a", "c", "__proto__"], "a": ["b"], "b": ["a", "b"]}
    lane = {"model": evil, "tree": {"nodes": nodes, "kids": kids, "chosen": {"": "a", "a": "b"}}}
    talk = {"id": "../x", "title": evil, "settings": {"__proto__": {"x": 1}, "temperature": {}}, "lanes": [lane, None]}
    (tmp_path / "evil.json").write_text(
        json.dumps({"format": "geode-conversations", "version": 1, "conversations": [talk, 5]})
    )
    give(tab, tmp_path / "evil.json")
    tab.wait("document.querySelector('.assistant .prose')")
    assert tab.text(".user .body") == evil and evil in tab.text(".assistant .prose")
    assert tab.js("document.querySelector('main img[src=x], main a') === null && ({}).polluted === undefined")


def test_a_refusal_is_shown_and_can_be_tried_again(tab: Tab) -> None:
    ask(tab, "word " * 2000)
    tab.problems.clear()  # the browser notes each 400 by itself
    assert "4096" in tab.text(".note.error[role=alert]")
    press(tab, "Edit and branch")
    tab.js("document.activeElement.select()")
    tab.type("short")
    tab.key("Enter")
    tab.wait(f"{IDLE} && document.querySelector('.assistant .prose')?.innerText === 'agate heard: short.'")


def test_a_key_is_asked_for_and_kept_for_the_session(chromium: Browser, models: dict[str, Scripted]) -> None:
    with serving(models, keys=(keys.key("me", KEY),)) as live, chromium.tab(f"{live.url}/") as tab:
        tab.wait("document.querySelector('#key-dialog').open")
        tab.type("wrong-but-long-enough")
        tab.key("Enter")
        tab.wait("document.querySelector('#key-dialog').open")
        tab.js("document.querySelector('#key-field').value = ''")
        tab.type(KEY)
        tab.key("Enter")
        tab.wait("document.querySelector('#picker option')")
        ask(tab, "Hello")
        assert "agate heard: Hello." in tab.text(".assistant .prose") or tab.texts(".assistant .prose") != [""]
        assert tab.js("JSON.stringify(localStorage)").find(KEY) < 0 and tab.js("sessionStorage['geode-key']") == KEY
        assert all(KEY not in url for url in tab.requests)


# Status, looks, access


def test_the_status_says_what_the_server_does(tab: Tab) -> None:
    ask(tab, "Hello")
    tab.click("#status summary")
    tab.wait("document.querySelectorAll('.status-model').length === 2")
    assert tab.texts(".status-model h3") == ["agate", "basalt"]
    assert {"State", "Running", "Waiting", "Context", "Answered"} <= {*tab.texts(".status-model dt")}
    assert tab.text("#status-line") in ("ready", "1 running, 0 waiting") and "Geode" in tab.text(
        "#status-detail > .hint"
    )


def test_colours_follow_the_system_and_the_button(tab: Tab) -> None:
    ground = "getComputedStyle(document.querySelector('main')).backgroundColor"
    tab.scheme("light")
    light = tab.js(ground)
    tab.scheme("dark")
    dark = tab.js(ground)
    assert light != dark
    tab.click("#theme")
    assert tab.js(ground) == light
    tab.call("Page.reload")
    tab.wait(READY)
    assert tab.js(ground) == light
    tab.click("#theme")
    assert tab.js(ground) == dark


CONTRASTS = """[...document.querySelectorAll('p, span, button, label, h1, h2, h3, li, td, th, dt, dd, a, summary, select, kbd, input')]
    .filter((n) => n.checkVisibility({opacityProperty: true, visibilityProperty: true}) && (n.value || [...n.childNodes].some((c) => c.nodeType === 3 && c.data.trim())))
    .filter((n) => n.getBoundingClientRect().width > 1 && !n.disabled && !n.closest('.visually-hidden'))
    .map((n) => { const grounds = []; for (let at = n; at; at = at.parentElement) grounds.push(getComputedStyle(at).backgroundColor);
        return [n.textContent.trim().slice(0, 40) || n.id, getComputedStyle(n).color, grounds, n.className] })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(tab: Tab, scheme: str) -> None:
    tab.scheme(scheme)
    tab.click("#settings-open")
    tab.click("#status summary")
    ask(tab, "Tell me of geodes")
    found = [(name, contrast(colour, grounds), kind) for name, colour, grounds, kind in tab.js(CONTRASTS)]
    assert len(found) > 40 and [one for one in found if one[1] < 4.5] == []


def contrast(colour: str, grounds: list[str]) -> float:
    """WCAG's: w3.org/TR/WCAG22/#dfn-contrast-ratio. The grounds are laid over each other, the innermost first."""
    ground = np.zeros(3)
    for one in reversed([parsed(each) for each in grounds]):
        ground = one[:3] * one[3] + ground * (1 - one[3])
    front = parsed(colour)
    shades = sorted(luminance(each) for each in (ground, front[:3] * front[3] + ground * (1 - front[3])))
    return (shades[1] + 0.05) / (shades[0] + 0.05)


def parsed(colour: str) -> np.ndarray:
    parts = [float(part) for part in re.findall(r"(?<![a-z])-?[\d.]+(?:e-?\d+)?", colour.replace("srgb", ""))]
    values = np.array([*parts, 1.0][:4])
    return values if colour.startswith("color(") else np.array([*values[:3] / 255, values[3]])


def luminance(rgb: np.ndarray) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_everything_that_is_used_has_a_name(tab: Tab) -> None:
    tab.click("#tokens")
    tab.click("#settings-open")
    ask(tab, "Hello")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
    used = {"button", "textbox", "searchbox", "combobox", "spinbutton", "link", "article", "region", "dialog", "image"}
    assert [role for role, name in named if role in used and not name] == []
    assert {"navigation", "main", "complementary", "status"} <= {role for role, _ in named}
    assert ("article", "You") in named and ("article", "Answer by agate") in named
    assert tab.js("document.querySelector('#live').textContent") == "agate heard: Hello."


def test_tab_walks_through_the_page_in_order(tab: Tab) -> None:
    names = "new search theme compare tokens settings-open prompt send".split()
    tab.js("document.querySelector('.skip').focus()")
    walked = []
    for _ in range(22):
        tab.key("Tab")
        walked.append(tab.js("document.activeElement.id"))
    assert [name for name in walked if name in names][: len(names)] == names


def test_a_phone_has_room(tab: Tab) -> None:
    tab.size(360, 740, mobile=True)
    ask(tab, "Tell me of geodes")
    assert tab.js("document.documentElement.scrollWidth <= 360 && document.querySelector('.log').scrollWidth <= 360")
    tab.wait("getComputedStyle(document.querySelector('#side')).visibility === 'hidden'")
    tab.click("#menu")
    tab.wait("document.querySelector('#side').getBoundingClientRect().left === 0")
    tab.click("#new")
    tab.wait("document.querySelector('#side').getBoundingClientRect().right <= 0")
    small = "[...document.querySelectorAll('.top button, .top summary, #send')].map((n) => n.getBoundingClientRect()).filter((b) => b.width && (b.width < 24 || b.height < 24))"
    assert tab.js(small) == []  # w3.org/TR/WCAG22/#target-size-minimum


# Markdown, by itself


@pytest.fixture(scope="module")
def markdown(chromium: Browser, live: Live) -> Iterator[Callable[..., str]]:
    """HTML of a text, shown at once or growing by one character."""
    with chromium.tab(f"{live.url}/", ready=READY) as page:
        page.js("""import('/page/markdown.js').then(({ Markdown }) => { window.show = (text, grows) => {
            const place = document.createElement('div'), shown = new Markdown(place);
            if (grows) for (let i = 1; i <= text.length; i++) shown.update(text.slice(0, i), true);
            shown.update(text); return place.innerHTML } })""")
        yield lambda text, grows=False: page.js(f"show({json.dumps(text)}, {json.dumps(grows)})")


CASES = [
    ("a *b* **c** ***d*** _e_ __f__ ~~g~~", "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <em>e</em> <strong>f</strong> <del>g</del></p>"),
    ("snake_case_name 2 * 3 * 4", "<p>snake_case_name 2 * 3 * 4</p>"),
    (r"\*a\* `*b*` ``c ` d``", "<p>*a* <code>*b*</code> <code>c ` d</code></p>"),
    ("one\ntwo", "<p>one<br>two</p>"),
    ("# A #\n###### B", '<h3 class="h1">A</h3><h6 class="h6">B</h6>'),
    ("- a\n- b\n\n1. c\n2. d", "<ul><li>a</li><li>b</li></ul><ol><li>c</li><li>d</li></ol>"),
    ("3) a\n4) b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    ("- a\n  - b\n    - c\n- d", "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>"),
    ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    ("&amp; <b>x</b>", "<p>&amp;amp; &lt;b&gt;x&lt;/b&gt;</p>"),
    ("[a](javascript:alert(1))", "<p><span>a</span></p>"),
    ("[a](JaVaScRiPt:x) [b](data:text/html,x) [c](//x.y)", "<p><span>a</span> <span>b</span> <span>c</span></p>"),
    ("![p](https://x.y/z.png)", '<p><a href="https://x.y/z.png" target="_blank" rel="noopener noreferrer nofollow">p</a></p>'),
    ("see https://x.y/a.", '<p>see <a href="https://x.y/a" target="_blank" rel="noopener noreferrer nofollow">https://x.y/a</a>.</p>'),
    ("costs $5 and $6", "<p>costs $5 and $6</p>"),
    (r"\(a_1 * b\) and $$x*y*z$$", r'<p><span class="math">\(a_1 * b\)</span> and <span class="math">$$x*y*z$$</span></p>'),
    ("a | b\nnot a table", "<p>a | b<br>not a table</p>"),
    ("- [x] a\n- [ ] b", None),
    ("```js\nlet a = '<b>'; // c\n```\nafter", None),
    ("1. a\n   ```py\n   x = 1\n   ```\n2. b", None),
    ("| a | b |\n|:-:|--:|\n| `x|y` | 2 |\n| only |\n\nafter", None),
    (MARKDOWN, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "html"), CASES)
def test_markdown(markdown: Callable[..., str], text: str, html: str | None) -> None:
    whole = markdown(text)
    assert html is None or whole == html
    assert markdown(text, True) == whole, "what grew looks like what came at once"


HARD = ["*a " * 4000, "**a" * 4000, "_" * 8000, "[" * 8000, "[a](" * 3000, "`" * 8001, "`a``" * 3000, "> " * 3000 + "x",
        "- " * 3000 + "x", "$" * 7999, r"\(" * 4000, "<https://" * 2000, "|a" * 3000 + "\n" + "|-" * 3000, "~~" * 4000 + "a",
        "\n".join("  " * i + "- x" for i in range(300)), "```\n" * 2001, "https://" * 2000, "***a" * 3000]  # fmt: skip


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_no_text_is_too_hard(markdown: Callable[..., str], text: str) -> None:
    assert markdown(text).startswith("<")


EVIL = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](https://x'onclick='y)", '[a](https://x"onclick="y)',
        "```<script>\nx\n```", '```" onload="x\nx\n```', "|<svg onload=x>|\n|-|\n|<b>|", "# <iframe>", "[<img>](https://a.b)"]  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
def test_nothing_becomes_an_element_or_attribute_of_its_own(markdown: Callable[..., str], text: str) -> None:
    html = re.sub(r'="[^"]*"', "=", markdown(text))
    assert not re.search(r"<(script|img|iframe|b|svg)(?! viewBox=)\b|<[^>]*\bon\w+=", html)

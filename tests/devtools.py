"""A small client of Chromium's DevTools protocol: enough to use a page as a person does."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "k": 75}
SHIFT, CTRL = 8, 2
PATIENCE = 60.0  # seconds until something that should happen is given up; nothing is measured against it


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Browser]:
    """A headless browser with a profile of its own in `folder`."""
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars".split()
    quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-extensions".split()
    command = [program, *flags, *quiet, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Browser(_port(folder / "DevToolsActivePort", process))
    finally:
        process.terminate()
        process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        words = file.read_text().split() if file.exists() else []
        if len(words) > 1:
            return int(words[0])
        time.sleep(0.02)
    raise RuntimeError(f"Chromium did not start; it ended with {process.poll()}.")


class Browser:
    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}"
        self._socket = connect(self._json("/json/version")["webSocketDebuggerUrl"], max_size=None)
        self._count = 0

    def _json(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path) as response:
            return json.load(response)

    def _call(self, method: str, **params: Any) -> Any:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE))
            if message.get("id") == self._count:
                return message["result"]

    @contextmanager
    def tab(self, url: str, *, ready: str = "true") -> Iterator[Tab]:
        """A tab with storage of its own, once the expression `ready` is true there."""
        context = self._call("Target.createBrowserContext")["browserContextId"]
        target = self._call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        tab = Tab(f"{self.address.replace('http', 'ws')}/devtools/page/{target}")
        try:
            tab.open(url, ready)
            yield tab
        finally:
            tab.close()
            self._call("Target.disposeBrowserContext", browserContextId=context)


class Tab:
    """`problems`: whatever the page logged as an error, threw or was refused. `requests`: all addresses it asked for; `bodies`: what it sent there."""

    def __init__(self, address: str):
        self._socket = connect(address, max_size=None)
        self._count = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.bodies: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")
        self.size(1280, 860)

    def call(self, method: str, **params: Any) -> Any:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE))
            if message.get("id") == self._count:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
            self.bodies += filter(None, [params["request"].get("postData")])

    def open(self, url: str, ready: str = "true") -> None:
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState == 'complete' && ({ready})")

    def js(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        details = answer.get("exceptionDetails")
        assert not details, f"{expression}: {details and details.get('exception', {}).get('description')}"
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never came true: {expression}; on the page: {self.js(SHOWN)}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def texts(self, selector: str) -> list[str]:
        return list(self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.innerText)"))

    def click(self, selector: str, nth: int = 0) -> None:
        """A press where the element's middle is, as by a mouse: what covers it gets it."""
        find = f"document.querySelectorAll({json.dumps(selector)})[{nth}]"
        self.wait(find)
        x, y = self.js(f"(({find}).scrollIntoView({{block: 'nearest'}}), {MIDDLE})({find})")
        for kind, buttons in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)):
            button = "none" if kind == "mouseMoved" else "left"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def hover(self, selector: str, nth: int = 0) -> None:
        x, y = self.js(f"({MIDDLE})(document.querySelectorAll({json.dumps(selector)})[{nth}])")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def key(self, key: str, modifiers: int = 0) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": "\r"} if key == "Enter" else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def size(self, width: int, height: int, mobile: bool = False, scale: float = 1) -> None:
        metrics = {"width": width, "height": height, "mobile": mobile, "deviceScaleFactor": scale}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def scheme(self, name: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self._socket.close()


MIDDLE = "(node) => { const box = node.getClientRects()[0]; return [box.x + box.width / 2, box.y + box.height / 2] }"
SHOWN = "document.body.innerText.slice(0, 2000)"

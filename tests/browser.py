"""A real headless Chromium driven over its DevTools protocol, for the tests of the explorer's page."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def executable() -> str | None:
    """Return a Chromium that is installed, or nothing."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page; what it asked for and what it complained of is kept."""

    def __init__(self, size: tuple[int, int] = (1440, 900)) -> None:
        from websockets.sync.client import connect

        self._profile = tempfile.mkdtemp(prefix="chromium-")
        program = executable()
        assert program is not None
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        active = Path(self._profile) / "DevToolsActivePort"
        self._wait(lambda: active.exists() and len(active.read_text().splitlines()) == 2, 30)
        port, path = active.read_text().splitlines()
        self._open = ExitStack()
        self._socket = self._open.enter_context(connect(f"ws://127.0.0.1:{port}{path}", max_size=None))
        self._count, self._session = 0, ""
        self.requests: list[str] = []
        self.problems: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")
        self.resize(*size)

    def close(self) -> None:
        """End it."""
        self._open.close()
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str) -> None:
        """Go to an address."""
        self._send("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def dark(self, on: bool) -> None:
        """Prefer a colour scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """Evaluate a script, waiting for its promise, and return its value."""
        found = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"].get("exception", found["exceptionDetails"]))
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 20) -> None:
        """Evaluate a script until its value is true."""
        # While a page is replaced there is no document to ask.
        self._wait(lambda: self.run(f"Boolean(document.body && ({script}))"), seconds, script)

    def text(self, selector: str) -> str:
        """Return an element's text."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        self.drag(selector, 0.5, 0.5)

    def drag(
        self, selector: str, start: float, end: float, steps: int = 4, down: tuple[float, float] = (0.5, 0.5)
    ) -> None:
        """Press at one share of an element's width, and of its height, move to another, and let go."""
        found = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })()"
        )
        x, y, width, height = found

        def mouse(kind: str, share: float) -> None:
            self._send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x + share * width,
                y=y
                + height * (down[0] + (down[1] - down[0]) * (0 if start == end else (share - start) / (end - start))),
                button="none" if kind == "mouseMoved" and start == end else "left",
                buttons=0 if kind == "mouseReleased" else 1,
                clickCount=1,
            )

        mouse("mousePressed", start)
        if start != end:
            for step in range(1, steps + 1):
                mouse("mouseMoved", start + (end - start) * step / steps)
        mouse("mouseReleased", end)

    def hover(self, x: float, y: float) -> None:
        """Move the pointer to a place of what is seen."""
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="none", buttons=0)

    def press(self, x: float, y: float) -> None:
        """Click a place of what is seen."""
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type text where the focus is."""
        for letter in text:
            self._send("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            self._send("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def key(self, key: str, modifiers: int = 0) -> None:
        """Press a key: a letter, or a name such as Escape."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        named = {"windowsVirtualKeyCode": codes[key]} if key in codes else {"text": key}
        self._send("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers, **named)
        self._send("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def picture(self, file: Path) -> None:
        """Save what is seen as PNG."""
        file.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))

    def _send(self, method: str, **parameters: object) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, said: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(said["exceptionDetails"].get("exception", said["exceptionDetails"])))
        elif event == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.problems.append(str([one.get("value", one.get("description")) for one in said["args"]]))
        elif event == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.problems.append(said["entry"]["text"])

    def _wait(self, ready: Any, seconds: float, what: str = "the browser") -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = ready()
            if found:
                return found
            time.sleep(0.03)
        raise AssertionError(f"waited {seconds} s for {what}; problems: {getattr(self, 'problems', [])}")

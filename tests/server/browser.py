"""Drives a headless Chromium by its DevTools protocol over a pipe: no driver, no port, nothing installed beside it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 10.0  # seconds that something of the page may take


class Browser:
    """One process with one tab. `errors` collects what the page throws, logs as an error or breaks of its policy."""

    def __init__(self, folder: Path) -> None:
        (their_in, out), (read, their_out) = os.pipe(), os.pipe()

        def hand_over() -> None:  # Chromium reads commands from 3 and answers on 4
            spare = os.dup(their_out), os.dup(their_in)
            os.dup2(spare[1], 3)
            os.dup2(spare[0], 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--force-prefers-reduced-motion"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags, "about:blank"], preexec_fn=hand_over, close_fds=False, stdout=quiet, stderr=quiet
        )
        os.close(their_in)
        os.close(their_out)
        self._out, self._in = out, os.fdopen(read, "rb")
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends one command and returns its result; raises RuntimeError with what the browser says of a wrong one."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = json.loads(self._next())
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                result: dict[str, Any] = reply["result"]
                return result
            self._hear(reply)

    def _next(self) -> bytes:
        message = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            message += byte
        return bytes(message)

    def _hear(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    # -- what tests say ----------------------------------------------------------------------------------------------

    def open(self, url: str, *, width: int = 1360, height: int = 860, dark: bool = False, language: str = "en") -> None:
        """Opens a page anew, in a window of this size, with the reader's preferences."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        agent = self.call("Browser.getVersion")["userAgent"]
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        self.call("Page.navigate", url="about:blank")
        self.errors.clear()
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        """Gives the value of an expression in the page, a promise's when it is kept."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def until(self, expression: str) -> Any:
        """Waits until an expression is true of the page, or an element there; returns what it then is."""
        end = time.monotonic() + WAIT
        while not (value := self.js(f"(value => value instanceof Node || value)({expression})")):
            if time.monotonic() > end:
                raise AssertionError(f"{expression} is not true; errors: {self.errors}; page: {self.text()}")
            time.sleep(0.03)
        return value

    def text(self, selector: str = "body") -> str:
        """Gives the words that a reader sees in an element."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        self.until(f"document.querySelector({json.dumps(selector)})")
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        """Presses a key where the focus is."""
        text = {"Enter": "\r", "Escape": "", "Tab": ""}.get(key, key)
        code = {"Enter": 13, "Escape": 27, "Tab": 9}.get(key, ord(key[0].upper()))
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, windowsVirtualKeyCode=code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def ask(self, question: str) -> None:
        """Types a question and presses Enter, as soon as there is a document to ask."""
        self.until("document.querySelector('#question')?.disabled === false && !!document.querySelector('.is-chosen')")
        self.js("document.querySelector('#question').focus()")
        self.type(question)
        self.press("Enter")

    def picture(self, path: Path) -> None:
        """Saves what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        os.close(self._out)
        self._in.close()
        self._process.terminate()
        self._process.wait()

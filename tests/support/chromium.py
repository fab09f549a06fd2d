"""A headless Chromium for tests, driven over pipes by the DevTools protocol: messages are JSON, a NUL ends each."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 60.0
"""Seconds to wait for an answer: other processes may have the machine's cores."""


def found() -> str | None:
    """The path of a Chromium, or None where this machine has none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser started for it. `complaints` are its console's, `requests` what pages asked for."""

    def __init__(self, folder: Path):
        away, there = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in os.pipe())
        back, here = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in os.pipe())

        def at_three_and_four() -> None:
            os.dup2(away, 3)
            os.dup2(here, 4)

        options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run"]
        options += ["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")
        self.process = subprocess.Popen(
            [found() or "chromium", *options, "about:blank"],
            preexec_fn=at_three_and_four,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(away), os.close(here)
        self.to, self.fro = there, back
        self.number, self.rest, self.session = 0, b"", ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.to), os.close(self.fro)
        self.process.terminate()
        self.process.wait(TIMEOUT)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            self._notice(answer.get("method", ""), answer.get("params", {}))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT
        while b"\0" not in self.rest:
            if not select.select([self.fro], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError("Chromium says nothing")
            self.rest += os.read(self.fro, 1 << 20) or b'{"id": -1, "error": "Chromium ended"}\0'
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def _notice(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif event in ("Runtime.exceptionThrown", "Log.entryAdded") or (
            event == "Runtime.consoleAPICalled" and facts["type"] in ("error", "assert", "warning")
        ):
            self.complaints.append(json.dumps(facts))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise its outcome."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until it holds."""
        end = time.monotonic() + TIMEOUT
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def open(self, url: str) -> float:
        """Open a page and wait for its pairs; returns the seconds from the start of navigation to that."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'yes'")
        return self.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1000

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Be a window, or a narrow phone, in light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot as PNG, of the whole page if asked."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

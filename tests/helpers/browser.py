"""A headless Chromium, spoken to in its own protocol over a pair of pipes: no driver, no port, no dependency.

The protocol: JSON messages, each ended by a zero byte; file descriptor 3 is read by the browser, 4 written.
https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
# The browser wants its pipes as 3 and 4, whatever numbers they have here.
_HAND_ON = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for pipe, number in zip(pipes, (3, 4)):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One browser with one page at a time; use as a context manager."""

    def __init__(self, executable):
        self._profile = tempfile.TemporaryDirectory(prefix="anydepth-browser-", ignore_cleanup_errors=True)
        command_in, self._write = os.pipe()
        self._read, command_out = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HAND_ON, str(command_in), str(command_out), executable, *FLAGS,
             f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(command_in, command_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_in)
        os.close(command_out)
        self._pending, self._next, self._session, self._target, self.events = b"", 0, None, None, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def call(self, method, *, timeout=30, **params):
        """Send a command and return its result; what happens meanwhile is kept in `events`."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == self._next:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _receive(self, deadline, method):
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no answer to {method} in time"
            received = os.read(self._read, 1 << 20)
            assert received, f"the browser ended during {method}"
            self._pending += received
        message, self._pending = self._pending.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, *, width=1200, height=900, dark=False):
        """Open a file in a fresh page and wait until its charts are drawn."""
        before, self._target = self._target, self.call("Target.createTarget", url="about:blank")["targetId"]
        if before is not None:
            self.call("Target.closeTarget", targetId=before)  # a page behind another one gets no pointer
        self._session = self.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.scheme("dark" if dark else "light")
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait("document.readyState === 'complete' && " + ALL_DRAWN)

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def scheme(self, name):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def evaluate(self, expression):
        """The value of a JavaScript expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition):
        """Until a JavaScript expression is true."""
        self.wait_for(lambda: self.evaluate(condition), condition)

    def wait_for(self, condition, name="", timeout=15):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"never true: {name or condition}; {self.complaints()}"
            time.sleep(0.05)

    def point(self, x, y):
        """Move the pointer to a place in the viewport."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def complaints(self):
        """Errors and warnings: thrown, logged, or reported by the browser (a blocked script, say)."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append([argument.get("value", argument.get("description")) for argument in params["args"]])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif method == "Page.javascriptDialogOpening":
                found.append(params["message"])
        return found

    def requests(self):
        """Every address asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def screenshot(self, path, *, whole=True):
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole):
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}


# Every chart that is not folded away holds a picture.
ALL_DRAWN = (
    "[...document.querySelectorAll('.chart')].filter(c => !c.closest('details:not([open])'))"
    ".every(c => c.querySelector('svg.marks'))"
)

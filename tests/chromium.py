"""A headless Chromium that opens pages, looks into them and takes their pictures, over its debugging port."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-port=0"
).split()
# all elements of a page, through open shadow roots: TensorBoard's are full of them
DEEP = """
function* deep(root) {
  for (const node of root.querySelectorAll('*')) {
    yield node;
    if (node.shadowRoot) yield* deep(node.shadowRoot);
  }
}
"""


def find():
    """The browser's path, None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Chromium:
    """Context manager: one page of a browser of its own, which ends with it."""

    def __enter__(self):
        import websocket

        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [find(), *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._wait(lambda: Path(self.profile.name, "DevToolsActivePort").read_text().split()[0])
        pages = self._wait(lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json")))
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.n = 0
        size = {"width": 1500, "height": 1100, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.profile.cleanup()

    @staticmethod
    def _wait(get, seconds=30):
        end = time.monotonic() + seconds
        while True:
            try:
                return get()
            except (OSError, IndexError, ValueError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def ask(self, method, **parameters):
        """One command of the DevTools protocol and its result."""
        self.n += 1
        self.socket.send(json.dumps({"id": self.n, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.n:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, url):
        self.ask("Page.navigate", url="about:blank")  # an address that differs behind # alone would not load
        self.ask("Page.navigate", url=url)

    def evaluate(self, expression):
        """The value of a JavaScript expression; `deep(document)` walks all elements."""
        result = self.ask("Runtime.evaluate", expression=DEEP + expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def text(self):
        """All that the page shows in words."""
        return self.evaluate(
            "[...deep(document)].filter(e => e.tagName != 'STYLE').flatMap(e => [...e.childNodes])"
            ".filter(n => n.nodeType == 3).map(n => n.data.trim()).filter(Boolean).join('\\n')"
        )

    def until(self, met, what, seconds=60):
        """Wait until met() is true and return that; AssertionError saying what did not come."""
        end = time.monotonic() + seconds
        while not (value := met()):
            assert time.monotonic() < end, f"not on the page after {seconds} s: {what}"
            time.sleep(0.25)
        return value

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

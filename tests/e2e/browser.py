"""A headless Chromium, driven by chromedriver over the WebDriver protocol (https://www.w3.org/TR/webdriver2/).

By hand, since it is a dozen of requests: a client library would bring an event loop, and would download drivers.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from example_project.demo.processes import Process, free_port, poll

PATIENCE = 120
# Keys, as the protocol numbers them.
TAB, ENTER = "\ue004", "\ue007"
# What the protocol calls an element's reference.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--lang=en",
    # Nothing leaves this machine, whatever a browser likes to tell its makers.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


class Missing(Exception):
    """There is no browser on this machine."""


class WebDriverError(Exception):
    """What the driver answers if something cannot be done."""


class Browser:
    """A window with a profile of its own."""

    def __init__(self, directory: Path) -> None:
        chromium = shutil.which("chromium")
        driver = shutil.which("chromedriver")
        if chromium is None or driver is None:
            raise Missing("install chromium and chromium-driver")
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.process = Process(
            "chromedriver",
            [driver, f"--port={self.port}"],
            directory=directory,
            env={**environ, "HOME": str(directory), "TMPDIR": str(directory)},
        )
        self.session = ""
        try:
            self.process.wait_port(self.port, PATIENCE)
            options = {
                "binary": chromium,
                "args": [*FLAGS, f"--user-data-dir={directory / 'profile'}"],
            }
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"pageLoad": PATIENCE * 1000, "script": PATIENCE * 1000},
            }
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self.session = f"/session/{made['sessionId']}"
        except BaseException:
            self.process.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError, WebDriverError):
            self._ask("DELETE", self.session)
        self.process.stop()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2 * PATIENCE)
        try:
            sent = None if method in ("GET", "DELETE") else json.dumps(body or {})
            connection.request(method, path, sent, {"content-type": "application/json"})
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        finally:
            connection.close()
        if answer.status != 200:
            raise WebDriverError(f"{value['error']}: {value['message']}")
        return value

    def do(self, command: str, **body: Any) -> Any:
        """Send a command to the window."""
        return self._ask("POST", self.session + command, body)

    def open(self, url: str) -> None:
        self.do("/url", url=url)

    @property
    def url(self) -> str:
        return str(self._ask("GET", f"{self.session}/url"))

    @property
    def title(self) -> str:
        return str(self._ask("GET", f"{self.session}/title"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function body in the page; return what it returns."""
        return self.do("/execute/sync", script=script, args=list(arguments))

    def find(self, selector: str) -> str:
        """Return the first element, as soon as there is one."""
        found: list[Any] = []

        def there() -> bool:
            found[:] = self.do("/elements", using="css selector", value=selector)
            return bool(found)

        self._poll(there, f"no {selector}")
        return str(found[0][ELEMENT])

    def click(self, selector: str) -> None:
        self._act(selector, "click")

    def type(self, selector: str, text: str) -> None:
        self._act(selector, "value", text=text)

    def _act(self, selector: str, action: str, **body: Any) -> None:
        def done() -> bool:
            try:
                self.do(f"/element/{self.find(selector)}/{action}", **body)
            except WebDriverError as error:
                # The page has renewed itself meanwhile: another element stands there.
                if "stale element" in str(error):
                    return False
                raise
            return True

        assert poll(done, PATIENCE), f"{selector} never stays at {self.url}"

    def press(self, keys: str) -> None:
        """Press keys, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.do("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def focus(self, property_: str) -> str:
        """Return a property of the element that has the focus."""
        return str(self.run("return document.activeElement[arguments[0]]", property_))

    def source(self) -> str:
        """Return the document as it stands, scripts or not."""
        return str(self._ask("GET", f"{self.session}/source"))

    def settle(self) -> None:
        """Wait until what was resized is drawn anew."""
        self.do(
            "/execute/async",
            script="const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))",
            args=[],
        )

    def text(self, selector: str = "body") -> str:
        """Return the text that is shown there, or nothing."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        self._poll(condition, f"never {what}")

    def _poll(self, condition: Callable[[], object], complaint: str) -> None:
        """Ask until it holds. Between two pages there is none to ask, which the driver calls an error: not yet."""
        refused: list[WebDriverError] = []

        def holds() -> bool:
            refused.clear()
            try:
                return bool(condition())
            except WebDriverError as error:
                refused.append(error)
                return False

        if not poll(holds, PATIENCE):
            # Where the driver still refuses, it is likely to refuse this as well.
            shown = f"{refused[0]}" if refused else self.text()[:3000]
            raise AssertionError(f"{complaint} at {self.url}:\n{shown}")

    def errors(self) -> list[str]:
        """Return the errors in the console of the browser since it was last asked."""
        entries = self.do("/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def tell(self, command: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.do("/goog/cdp/execute", cmd=command, params=parameters)

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window and the colours that its user prefers."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])

    def shoot(self) -> bytes:
        """Return what is to be seen, as PNG."""
        return base64.b64decode(self._ask("GET", f"{self.session}/screenshot"))

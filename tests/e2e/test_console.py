"""The console as a person meets it: from an empty directory to the trace of the request just made, in a browser."""

from __future__ import annotations

import base64
import os
import re
import struct
import sys
import sysconfig
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest

from django_obs.server.console import words
from example_project.demo.processes import Process, free_port, poll
from example_project.demo.receiver import Receiver
from tests.e2e.browser import ENTER, TAB, Browser, Missing
from tests.e2e.project import PATIENCE, Project, Site

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
# Set to take the pictures of the documentation anew, which takes a minute: curves need traffic.
RENEW = bool(os.environ.get("OBS_SCREENSHOTS"))
# A collector that is not there, as on the first day.
NOBODY = "http://127.0.0.1:9"
WIDE, TALL = (1200, 860), (390, 844)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        window = Browser(tmp_path_factory.mktemp("browser"))
    except Missing as error:
        pytest.skip(f"service chromium: {error}")
    with window:
        yield window


@pytest.fixture(autouse=True)
def _own_errors(browser: Browser) -> None:
    """Let no test answer for the errors of another."""
    browser.errors()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with ExitStack() as stack:
        project = Project(tmp_path_factory.mktemp("console"), stack, otlp_endpoint=NOBODY)
        project.manage("migrate", "--verbosity=0")
        yield project


@pytest.fixture(scope="module")
def shop(project: Project) -> tuple[Site, Site]:
    metrics = project.serve_metrics()
    return project.serve("runserver"), metrics


def log_in(site: Site) -> str:
    """Send a login that fails, which asks the database; return its trace id."""
    if "csrftoken" not in site.cookies:
        site.request("/admin/login/")
    form = {"username": "somebody", "password": "wrong", "csrfmiddlewaretoken": site.cookies["csrftoken"]}
    response, _ = site.request("/admin/login/", form=form)
    assert response.status == 200
    return str(response.headers["x-trace-id"])


def wait_for_trace(metrics: Site, trace_id: str) -> None:
    """Wait until the console has the trace, with the queries in it and a line beside it."""

    def complete() -> bool:
        response, body = metrics.request(f"/traces/{trace_id}")
        return response.status == 200 and b"auth_user" in body and b"django_obs.access" in body

    assert poll(complete, PATIENCE), trace_id


# The pixels of a curve that are as blue as it: what is drawn on a canvas is in no document.
DRAWN = """
const canvas = document.querySelector("[data-chart=rate] canvas");
if (!canvas) return 0;
const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
copy.drawImage(canvas, 0, 0);
const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
let found = 0;
for (let i = 0; i < data.length; i += 4) found += data[i + 3] > 200 && data[i + 2] - data[i] > 80;
return found;
"""


def test_request_just_made_is_seen_with_trace_lines_and_curve(shop: tuple[Site, Site], browser: Browser) -> None:
    site, metrics = shop
    home = f"http://localhost:{metrics.port}/"
    browser.look(width=WIDE[0], height=WIDE[1])
    browser.open(home)
    assert browser.title == "Overview · shop"

    # The page renews itself; nobody reloads.
    log_in(site)
    browser.wait(lambda: "POST /admin/login/" in browser.text("#traces"), "the request was seen")

    def drawn() -> bool:
        site.request("/")
        return int(browser.run(DRAWN)) > 50

    browser.wait(drawn, "a curve was drawn")
    browser.wait(lambda: browser.text("#caption-rate b") not in ("", "0", words.NOTHING), "a rate was shown")
    browser.wait(lambda: "/admin/login/" in browser.text("#views"), "a view was shown")
    assert "web" in browser.text("#processes")
    assert "runmetrics" in browser.text("#processes")
    assert "lines" in browser.text("#pipelines")

    # Click through to the trace.
    trace_id = log_in(site)
    wait_for_trace(metrics, trace_id)
    browser.wait(
        lambda: browser.run("return !!document.querySelector(`a[href='/traces/${arguments[0]}']`)", trace_id),
        "the very request was listed",
    )
    browser.click("#pause")
    browser.click(f"a[href='/traces/{trace_id}']")
    browser.wait(lambda: browser.url == f"{home}traces/{trace_id}", "the trace was opened")
    browser.find(".waterfall .database")
    assert "auth_user" in browser.text(".waterfall .database")
    browser.click(".waterfall li:first-child summary")
    browser.wait(lambda: "http.request.method" in browser.text(".waterfall li:first-child"), "attributes were opened")

    assert "POST /admin/login/ 200" in browser.text("#lines")
    assert "django_obs.access" in browser.text("#lines")
    assert browser.errors() == []


def test_filter_changed_by_the_form_holds_in_the_workers(
    project: Project, shop: tuple[Site, Site], browser: Browser
) -> None:
    site, metrics = shop
    home = f"http://localhost:{metrics.port}/"
    # An earlier try that failed may have left an order.
    project.manage("obs", "filter", "--reset")
    browser.open(home)
    assert "from the settings" in browser.text("#filter-state")

    browser.type("#directives", "info,django.db.backends=debug")
    browser.click("#filter button[value=set]")
    browser.wait(lambda: "django.db.backends=debug" in browser.text("#filter-state"), "the filter was shown")
    browser.wait(lambda: browser.url == f"{home}#filter", "the form was come back to")
    assert "for another" in browser.text("#filter-state")

    sent: set[str] = set()

    def logged() -> bool:
        sent.add(log_in(site))
        said = (line for line in site.lines() if line.get("logger") == "django.db.backends")
        return any(line.get("trace_id") in sent for line in said)

    browser.wait(logged, "the workers obeyed")

    def shown() -> bool:
        browser.open(f"{home}lines?q=django.db.backends")
        return "auth_user" in browser.text("#lines")

    browser.wait(shown, "what the workers logged was shown")
    assert "DEBUG" in browser.text("#lines")
    assert browser.errors() == []

    browser.open(home)
    browser.click("#filter button[value=clear]")
    browser.wait(lambda: "from the settings" in browser.text("#filter-state"), "the settings held again")
    assert browser.errors() == []

    # A mistake is told beside the field, which keeps what was typed.
    browser.type("#directives", "shop=loud")
    browser.click("#filter button[value=set]")
    browser.wait(lambda: "loud" in browser.text("#filter-error"), "the mistake was told")
    assert browser.run("return document.querySelector('#directives').value") == "shop=loud"
    # That a form was refused is an error to the browser as well.
    assert all(" 400 " in error for error in browser.errors())


def test_watch_is_switched_off_and_on(project: Project, shop: tuple[Site, Site], browser: Browser) -> None:
    _, metrics = shop
    browser.open(f"http://localhost:{metrics.port}/")
    # startproject's settings have DEBUG on.
    browser.wait(lambda: browser.text("#watch-state").startswith("On"), "it was watched")
    try:
        browser.click("#watch button[value=clear]")
        browser.wait(lambda: browser.text("#watch-state").startswith("Off"), "nobody watched")
        browser.click("#watch button[value=set]")
        browser.wait(lambda: "for another" in browser.text("#watch-state"), "it was watched for a while")
    except BaseException:
        # Others, and another try, need it on; DEBUG does not switch it on again.
        project.manage("obs", "watch", "--for", "1h")
        raise
    assert browser.errors() == []


def test_keyboard_is_enough(shop: tuple[Site, Site], browser: Browser) -> None:
    site, metrics = shop
    trace_id = log_in(site)
    wait_for_trace(metrics, trace_id)
    browser.open(f"http://localhost:{metrics.port}/traces/{trace_id}")
    browser.press(TAB)
    assert browser.focus("innerText") == "Skip to the content"
    assert browser.run("return document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(ENTER)
    assert browser.focus("id") == "main"
    browser.press(TAB)
    assert browser.focus("tagName") == "SUMMARY"
    browser.press(ENTER)
    assert browser.run("return document.activeElement.parentElement.open") is True
    assert browser.errors() == []


def test_page_can_be_read_without_script(shop: tuple[Site, Site], browser: Browser) -> None:
    site, metrics = shop
    wait_for_trace(metrics, log_in(site))
    source = ""

    def drawn() -> bool:
        nonlocal source
        browser.open(f"http://localhost:{metrics.port}/")
        source = browser.source()
        return '<polyline class="curve rate"' in source

    browser.tell("Emulation.setScriptExecutionDisabled", value=True)
    try:
        # Each time that somebody looks, but for a few seconds after the last, leaves a point of the curve.
        assert poll(drawn, PATIENCE), source
    finally:
        browser.tell("Emulation.setScriptExecutionDisabled", value=False)
    assert "/admin/login/" in source
    assert "<canvas" not in source


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast_and_fits_a_phone(shop: tuple[Site, Site], browser: Browser, *, dark: bool) -> None:
    site, metrics = shop
    trace_id = log_in(site)
    wait_for_trace(metrics, trace_id)
    for width, height in (WIDE, TALL):
        browser.look(width=width, height=height, dark=dark)
        for path in ("", "traces", "lines", f"traces/{trace_id}"):
            browser.open(f"http://localhost:{metrics.port}/{path}")
            # Nothing is wider than the window, but for tables that scroll by themselves.
            assert browser.run("return document.documentElement.scrollWidth - innerWidth") <= 0, path
            assert browser.run(FAINT) == [], path
    browser.look(width=WIDE[0], height=WIDE[1])


# Texts below the contrast of WCAG 2.2, 1.4.3: 4.5 to 1 against the nearest ground that is painted.
FAINT = """
const parse = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const faint = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) faint.add(`${contrast.toFixed(2)} ${element.outerHTML.slice(0, 120)}`);
}
return [...faint];
"""


# -- The pictures of the documentation


class Market:
    """The example shop under gunicorn, sold out and broken now and then, and who visits it."""

    PAGES = ("/", "/products/leek/", "/", "/products/goat-cheese/", "/api/products/", "/", "/stock/", "/products/leek/")
    TROUBLE = ("/products/caviar/", "/broken/", "/slow/")

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.visits = 0
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_"))},
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": f"sqlite:///{directory / 'shop.sqlite3'}",
            "DJANGO_OBS_RUNTIME_DIR": str(directory / "run"),
            "DJANGO_OBS_SERVICE_NAME": "shop",
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(Receiver()).url,
            "PYTHONPATH": str(ROOT),
        }

        def start(name: str, *arguments: str) -> Process:
            command = [sys.executable, "-m", *arguments]
            return stack.enter_context(Process(name, command, directory=directory, env=env, cwd=ROOT))

        start("migrate", "django", "migrate", "--verbosity=0").finish()
        start("runmetrics", "django", "runmetrics", f"--port={self.metrics_port}").wait_port(self.metrics_port)
        server = ("gunicorn", "example_project.wsgi", f"--bind=127.0.0.1:{self.port}", "--workers=2", "--threads=2")
        start("shop", *server, "--no-control-socket").wait_port(self.port)

    def visit(self) -> None:
        """Ask for the next page, now and then one that fails, or is slow."""
        self.visits += 1
        round_, step = divmod(self.visits, 25)
        path = self.TROUBLE[round_ % 3] if not step else self.PAGES[self.visits % len(self.PAGES)]
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"connection": "close"})
            connection.getresponse().read()
        finally:
            connection.close()


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    with ExitStack() as stack:
        yield Market(tmp_path, stack)


def test_pictures_are_taken(market: Market, browser: Browser, tmp_path: Path) -> None:
    home = f"http://localhost:{market.metrics_port}/"
    browser.look(width=WIDE[0], height=WIDE[1])
    browser.open(home)
    browser.click("#watch button[value=set]")
    browser.wait(lambda: "for another" in browser.text("#watch-state"), "it was watched")
    shoot = Pictures(browser, tmp_path)

    # As long as it takes until something has failed; for the documentation until the curves have a shape.
    enough, stop = threading.Event(), threading.Event()

    def stroll() -> None:
        while not stop.is_set():
            market.visit()
            if market.visits > 50:
                enough.set()
            # A rush every now and then.
            stop.wait(0.02 + 0.1 * (market.visits // 200 % 3))

    visitors = [threading.Thread(target=stroll) for _ in range(2)]
    for visitor in visitors:
        visitor.start()
    try:
        assert enough.wait(2 * PATIENCE)
        if RENEW:
            stop.wait(150)
        browser.open(home)
        browser.wait(lambda: "failed" in browser.text("#traces"), "a failure was seen")
        browser.wait(lambda: int(browser.run(DRAWN)) > 50, "a curve was drawn")
        shoot("console", *WIDE)
        shoot("console-dark", *WIDE, dark=True)
        shoot("console-phone", *TALL)
    finally:
        stop.set()
        for visitor in visitors:
            visitor.join(PATIENCE)
    browser.look(width=WIDE[0], height=WIDE[1])

    def trace(name: str) -> None:
        def found() -> bool:
            browser.open(f"{home}traces?{urlencode({'order': 'latest', 'q': name})}")
            links = (
                "return [...document.querySelectorAll('.traces th a')].find(a => a.innerText === arguments[0])?.href"
            )
            link = browser.run(links, name)
            if link:
                browser.open(link)
            return bool(link) and bool(browser.text("#lines ol"))

        browser.wait(found, f"a trace of {name} was complete")

    trace("GET /broken/")
    browser.click(".waterfall li:first-child summary")
    shoot("console-failure", *WIDE)
    trace("GET /products/<slug:slug>/")
    browser.click(".waterfall .database")
    shoot("console-trace", 1200, 560)
    assert browser.errors() == []
    shoot.write(IMAGES if RENEW else tmp_path)
    # Each has its place in the documentation, and none there is forgotten here.
    shown = re.findall(r"\(images/([\w-]+)\.png\)", (ROOT / "docs" / "console.md").read_text())
    assert sorted(shoot.taken) == sorted(shown)


class Pictures:
    """Takes pictures, and writes them in 256 colours: a third of the bytes, and nobody sees it."""

    def __init__(self, browser: Browser, place: Path) -> None:
        self.browser = browser
        self.place = str(place)
        self.taken: dict[str, bytes] = {}

    def __call__(self, name: str, width: int, height: int, *, dark: bool = False) -> None:
        # Where the tests lie is of no interest to readers.
        self.browser.run(SHORTENED, {sysconfig.get_path("purelib"): "…", str(ROOT): "/srv/shop", self.place: "/srv"})
        self.browser.look(width=width, height=height, dark=dark)
        self.browser.settle()
        self.taken[name] = self.browser.shoot()

    def write(self, directory: Path) -> None:
        # A page of the console would not let a picture in that is none of its own.
        self.browser.open("about:blank")
        directory.mkdir(exist_ok=True)
        for name, png in self.taken.items():
            width, height, palette, pixels = self.browser.run(QUANTISED, base64.b64encode(png).decode())
            raw = base64.b64decode(pixels)
            rows = b"".join(b"\0" + raw[at : at + width] for at in range(0, len(raw), width))
            chunks = (
                (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
                (b"PLTE", bytes(palette)),
                (b"IDAT", zlib.compress(rows, 9)),
                (b"IEND", b""),
            )
            path = directory / f"{name}.png"
            path.write_bytes(
                b"\x89PNG\r\n\x1a\n"
                + b"".join(
                    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                    for kind, data in chunks
                )
            )
            assert path.stat().st_size < 150_000, name


SHORTENED = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  let text = walker.currentNode.data;
  for (const [path, short] of Object.entries(arguments[0])) text = text.replaceAll(path, short);
  if (text !== walker.currentNode.data) walker.currentNode.data = text;
}
"""

# The picture by the index of each pixel's colour, in base64, and the colours: the most frequent of those that differ.
QUANTISED = """
return (async (encoded) => {
  const bytes = Uint8Array.from(atob(encoded), (each) => each.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  const parts = (pixel) => [pixel & 255, (pixel >> 8) & 255, (pixel >> 16) & 255];
  const distance = (a, b) => (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2;
  const palette = [];
  for (const [pixel] of [...counts].sort((a, b) => b[1] - a[1])) {
    const colour = parts(pixel);
    if (palette.length < 256 && palette.every((each) => distance(each, colour) > 60)) palette.push(colour);
  }
  const nearest = new Map();
  for (const pixel of counts.keys()) {
    const colour = parts(pixel);
    let best = 0;
    palette.forEach((each, i) => { if (distance(each, colour) < distance(palette[best], colour)) best = i; });
    nearest.set(pixel, best);
  }
  let text = "";
  for (let at = 0; at < pixels.length; at += 8192) {
    text += String.fromCharCode(...Array.from(pixels.subarray(at, at + 8192), (each) => nearest.get(each)));
  }
  return [image.width, image.height, palette.flat(), btoa(text)];
})(arguments[0]);
"""

"""The pages through the admin port, with its real parts and without a socket."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from django_obs.server.console import assets
from tests.server.otlp import CLIENT, EPOCH, SECOND, logs, record, span, traces
from tests.server.test_app import Port

FORM = {"CONTENT_TYPE": "application/x-www-form-urlencoded"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 }}{% now %}&\x00\x1b[31m\ud800"
TRACE = f"{1:032x}"
PAGES = ("/", "/traces", "/lines", f"/traces/{TRACE}", "/traces/none")


class Page(HTMLParser):
    """What a browser makes of a page, as far as it matters here."""

    VOID = frozenset({"input", "meta", "link", "br", "rect", "polyline"})

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(body.decode())
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]


class Watch:
    """A watch that is switched on and off."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def read(self) -> dict[str, Any]:
        return {"watched": self.seconds is not None, "seconds": self.seconds}

    def hold(self, seconds: float) -> None:
        if seconds > 86400:
            raise ValueError("seconds must be at most 86400")
        self.seconds = seconds

    def release(self) -> None:
        self.seconds = None


@pytest.fixture
def port(tmp_path: Path) -> Port:
    return Port(tmp_path)


def fill(port: Port, text: str = "hello") -> None:
    """Send a trace of a request, a query and an exception, with a line, in which every text is this one."""
    attributes = {"db__query__text": text, "db__system__name": text, "any": [text, {text: text}]}
    query = span(1, 2, parent=1, name=text, kind=CLIENT, **attributes)
    event = query.events.add(name=text)
    for name in ("exception.message", "exception.stacktrace", text):
        event.attributes.add(key=name).value.string_value = text
    query.status.message = text
    query.status.code = 2
    port.recent.add_traces(
        traces(span(1, 1, name=text, error=True, http__response__status_code=500), query, service=text), role="web"
    )
    fields = {"exception.stacktrace": text, "exception.message": text, text: text}
    port.recent.add_logs(logs(record(text, trace=1, severity=17, **fields), service=text, logger=text), role="web")


def page(port: Port, target: str, status: int = 200, **environ: str) -> Page:
    answer = port("GET", target, **environ)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return Page(answer.body)


# -- What comes from outside


@pytest.mark.parametrize("target", [*PAGES, "/traces?q=script", "/lines?q=script&level=40"])
def test_what_senders_say_is_text_on_every_page(port: Port, target: str) -> None:
    fill(port, HOSTILE.encode("utf-8", "replace").decode())

    found = page(port, target, status=404 if target.endswith("none") else 200)

    assert {script["src"].partition("?")[0] for script in found.all("script")} == {  # type: ignore[union-attr]
        "/static/vendor/uplot/uPlot.iife.min.js",
        "/static/console.js",
    }
    assert found.all("img") == []
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("href", "src", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/", "#")), (tag, attributes)
    if "none" not in target:
        # Text to the letter, tags of a template too. No number would do: a page has process ids and times of its own.
        assert HOSTILE.partition("\0")[0] in found.text or target == "/"


def test_search_is_text_in_its_field(port: Port) -> None:
    text = '"><script>alert(1)</script>'
    for target in ("/traces", "/lines"):
        found = page(port, f"{target}?{urlencode({'q': text, 'slower': text, 'order': text, 'level': text})}")
        assert found.all("input", id="q")[0]["value"] == text
        assert len(found.all("script")) == 2


def test_trace_id_of_the_address_is_not_believed(port: Port) -> None:
    for path in ("/traces/<script>alert(1)</script>", "/traces/../../etc/passwd", "/traces/", f"/traces/{'a' * 4000}"):
        found = page(port, path, status=404)
        assert len(found.all("script")) == 2
        assert "No such trace" in found.text


@pytest.mark.parametrize("target", [*PAGES, "/history.json", "/static/console.js"])
def test_answers_allow_nothing_from_elsewhere(port: Port, target: str) -> None:
    fill(port)
    headers = port("GET", target).headers

    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == ("no-cache" if target.startswith("/static/") else "no-store")


# -- Who may see it

STRANGERS = [
    {"REMOTE_ADDR": "192.0.2.1"},
    {"HTTP_HOST": "evil.example:9000"},
    {"HTTP_HOST": ""},
    {"HTTP_X_FORWARDED_FOR": "192.0.2.1"},
    {"HTTP_ORIGIN": "http://evil.example"},
    {"HTTP_ORIGIN": "null"},
    {"HTTP_SEC_FETCH_SITE": "cross-site"},
    {"HTTP_SEC_FETCH_SITE": "same-site", "HTTP_SEC_FETCH_MODE": "no-cors", "HTTP_SEC_FETCH_DEST": "script"},
    {"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_SEC_FETCH_MODE": "navigate", "HTTP_SEC_FETCH_DEST": "iframe"},
]


@pytest.mark.parametrize("environ", STRANGERS)
@pytest.mark.parametrize("target", [*PAGES, "/history.json", "/static/console.css"])
def test_stranger_sees_nothing(port: Port, target: str, environ: dict[str, str]) -> None:
    fill(port, "something private")
    answer = port("GET", target, **environ)
    assert answer.status == 403
    assert b"private" not in answer.body
    # The scrape is for everybody whom the port lets in, as before.
    assert port("GET", "/metrics", **environ).status == 200


@pytest.mark.parametrize("environ", STRANGERS)
@pytest.mark.parametrize("target", ["/console/filter", "/console/watch"])
def test_stranger_changes_nothing(port: Port, target: str, environ: dict[str, str]) -> None:
    watch = watched(port)
    answer = port("POST", target, b"filter=off&seconds=60&action=set", **{**FORM, **environ})
    assert answer.status == 403
    port.control.poll()
    assert port.control.filter is None
    assert watch.seconds is None


def test_link_from_another_site_is_followed_and_changes_nothing(port: Port) -> None:
    link = {
        "HTTP_SEC_FETCH_SITE": "cross-site",
        "HTTP_SEC_FETCH_MODE": "navigate",
        "HTTP_SEC_FETCH_DEST": "document",
    }
    assert port("GET", "/", **link).status == 200
    assert port("POST", "/console/filter", b"filter=off&action=set", **FORM, **link).status == 403
    assert port("GET", "/console/filter", **link).status == 405


def test_user_of_the_web_config_sees_it_from_afar(tmp_path: Path) -> None:
    bcrypt = pytest.importorskip("bcrypt")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    port = Port(tmp_path, f"basic_auth_users: {{ann: {hashed}}}")
    far = {"REMOTE_ADDR": "192.0.2.1", "HTTP_HOST": "admin.example"}
    known = {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"ann:secret").decode()}
    assert port("GET", "/", **far).status == 401
    assert port("GET", "/", **far, **known).status == 200
    assert port("POST", "/console/filter", b"filter=debug&action=set", **FORM, **far, **known).status == 303
    assert port("GET", "/", **far, **known, HTTP_ORIGIN="http://evil.example").status == 403


# -- Pages


def test_pages_without_anything_say_what_to_do(port: Port) -> None:
    found = page(port, "/")
    assert "No request has been counted" in found.text
    assert "Nothing has come in yet" in found.text
    assert "shop <1> Overview Traces Lines Metrics" in found.text
    watched(port)
    for target in ("/", "/traces", "/lines"):
        assert "Nobody watches" in page(port, target).text


def test_pages_can_be_used_without_mouse_and_eyes(port: Port) -> None:
    fill(port)
    for target in PAGES:
        found = page(port, target, status=404 if target.endswith("none") else 200)
        assert found.all("html")[0]["lang"] == "en"
        assert len(found.all("h1")) == 1
        assert len(found.all("main", id="main")) == 1
        assert found.all("a", **{"class": "skip"})[0]["href"] == "#main"
        assert all(scope in ("col", "row") for scope in (cell.get("scope") for cell in found.all("th")))
        identifiers = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
        assert len(identifiers) == len(set(identifiers))
        labelled = {label["for"] for label in found.all("label")}
        for field in (*found.all("input"), *found.all("select")):
            assert field["id"] in labelled
        for _, attributes in found.tags:
            for name in ("aria-labelledby", "aria-describedby"):
                assert attributes.get(name) in (None, *identifiers)


def test_overview_shows_failed_and_slow_first(port: Port) -> None:
    port.recent.add_traces(
        traces(
            *(span(n, 1, name=f"GET /fine/{n}/", start=EPOCH + n) for n in range(10, 40)),
            span(2, 1, name="GET /slow/", seconds=2),
            span(3, 1, name="GET /broken/", error=True),
        )
    )
    rows = re.findall(r'<a href="/traces/[0-9a-f]{32}">(.*?)</a>', port("GET", "/").body.decode())
    assert rows[:3] == ["GET /broken/", "GET /slow/", "GET /fine/39/"]
    assert len(rows) == 15


def test_traces_are_found_by_name_time_and_failure(port: Port) -> None:
    port.recent.add_traces(
        traces(
            span(1, 1, name="GET /a/", seconds=0.2),
            span(2, 1, name="GET /b/", seconds=0.5, error=True),
            span(3, 1, name="POST /b/", seconds=3),
        )
    )

    def found(query: str) -> list[str]:
        return re.findall(r'<a href="/traces/[0-9a-f]{32}">(.*?)</a>', port("GET", f"/traces?{query}").body.decode())

    assert found("") == ["GET /b/", "POST /b/", "GET /a/"]
    assert found("order=latest") == ["POST /b/", "GET /b/", "GET /a/"]
    assert found("order=longest") == ["POST /b/", "GET /b/", "GET /a/"]
    assert found("q=GET+/") == ["GET /b/", "GET /a/"]
    assert found("q=post") == ["POST /b/"]
    assert found(f"q={2:032x}") == ["GET /b/"]
    assert found("errors=1") == ["GET /b/"]
    assert found("slower=300") == ["GET /b/", "POST /b/"]
    assert found("slower=nan") == found("slower=x") == found("")
    assert found("q=nothing") == []
    assert "None of the traces held matches" in page(port, "/traces?q=nothing").text


def test_trace_shows_spans_queries_and_lines(port: Port) -> None:
    port.recent.add_traces(
        traces(
            span(1, 1, name="GET /cart/", http__response__status_code=200),
            *(
                span(1, n, parent=1, kind=CLIENT, db__system__name="sqlite", db__query__text="SELECT name FROM cart")
                for n in range(2, 8)
            ),
        )
    )
    line = record("Paid", trace=1, order=7)
    line.span_id = (2).to_bytes(8, "big")
    port.recent.add_logs(logs(line))

    found = page(port, f"/traces/{TRACE}")

    assert found.text.count("SELECT name FROM cart") == 12
    assert "6 queries" in found.text
    assert "One statement was executed 6 times" in found.text
    assert "INFO Paid shop.cart" in found.text
    assert "order 7" in found.text
    (link,) = [each["href"] for each in found.all("a") if (each["href"] or "").startswith("#s-")]
    assert link == f"#s-{2:016x}"
    assert found.all("li", id=f"s-{2:016x}")
    # Upper case, as other tools may write it.
    assert port("GET", f"/traces/{TRACE.upper()}").status == 200


def test_trace_of_lines_alone_is_shown(port: Port) -> None:
    port.recent.add_logs(logs(record("Alone", trace=1)))
    found = page(port, f"/traces/{TRACE}")
    assert "Alone" in found.text
    assert "No span of this trace has come in" in found.text


def test_long_texts_and_many_lines_are_cut_and_counted(port: Port) -> None:
    long = "x" * 50_000
    fill(port, long)
    port.recent.add_logs(logs(*(record("again", trace=1, start=EPOCH + n) for n in range(400))))

    body = port("GET", f"/traces/{TRACE}").body

    assert b"(40\xe2\x80\xaf000 more characters)" in body
    assert b"101 later ones are not shown" in body
    assert body.count(b"x") < 200_000
    assert port("GET", "/lines").body.count(b"x") < 30_000


def test_trace_without_its_root_says_so(port: Port) -> None:
    port.recent.add_traces(traces(span(1, 2, parent=1, kind=CLIENT)))
    assert "has not come in" in page(port, f"/traces/{TRACE}").text


def test_lines_are_by_time_and_found_by_text_and_level(port: Port) -> None:
    port.recent.add_logs(
        logs(
            record("Late", start=EPOCH + SECOND),
            record("Early", severity=17, trace=1),
            record("Middle", start=EPOCH + 1, severity=5),
            logger="shop.cart",
        )
    )

    def found(query: str) -> list[str]:
        return re.findall(r'class="message">(.*?)</span>', port("GET", f"/lines?{query}").body.decode())

    assert found("") == ["Late", "Middle", "Early"]
    assert found("level=20") == ["Late", "Early"]
    assert found("level=40") == ["Early"]
    assert found("level=none") == found("")
    assert found("q=LATE") == ["Late"]
    assert found("q=shop") == ["Late", "Middle", "Early"]
    assert found(f"q={TRACE}") == ["Early"]


def test_curves_are_json(port: Port) -> None:
    answer = port("GET", "/history.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.body).keys() == {"time", "rate", "errors", "p50", "p95", "p99"}


def test_store_that_cannot_be_read_is_told(port: Port) -> None:
    def directory() -> Path:
        raise PermissionError(13, "Permission denied", "/somewhere")

    port.application.page.scraper.directory = directory  # type: ignore[attr-defined]
    for target in ("/", "/history.json"):
        answer = port("GET", target)
        assert answer.status == 503
        assert b"Permission denied" in answer.body
    # What was sent here is here all the same.
    assert port("GET", "/traces").status == 200


def test_scrapes_leave_samples_and_nothing_else_is_done(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    history = port.console.history
    readings = []
    read = history._read
    monkeypatch.setattr(history, "_read", lambda: readings.append(1) or read())
    now = history._clock()
    monkeypatch.setattr(history, "_clock", lambda: now)
    taken = len(history.samples)
    for _ in range(3):
        now += 15
        port("GET", "/metrics")
        port("GET", "/-/healthy")
        fill(port)
    assert len(history.samples) == taken + 3
    assert readings == []
    port("GET", "/")
    assert readings == [1]


# -- Forms


def watched(port: Port) -> Watch:
    port.console.watch = watch = Watch()
    port.console.routes["/console/watch"] = {"POST": port.console.change_watch}
    return watch


def test_filter_is_changed_by_the_form(port: Port) -> None:
    body = urlencode({"filter": "info,shop=debug", "seconds": "600", "action": "set"}).encode()
    answer = port("POST", "/console/filter", body, **FORM, HTTP_ORIGIN="http://localhost:9000")
    assert (answer.status, answer.headers["Location"]) == (303, "/#filter")
    port.control.poll()
    assert port.control.filter is not None
    assert port.control.filter.text == "info,shop=debug"
    found = page(port, "/")
    assert "info,shop=debug by runmetrics, for another" in found.text

    assert port("POST", "/console/filter", b"action=clear", **FORM).status == 303
    assert "info from the settings" in page(port, "/").text


def test_filter_may_hold_until_it_is_reset(port: Port) -> None:
    assert port("POST", "/console/filter", b"filter=debug&seconds=&action=set", **FORM).status == 303
    port.control.poll()
    assert port.control.filter is not None
    assert port.control.filter.until is None


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"filter=shop%3Dloud&seconds=600&action=set", "loud"),
        (b"filter=&seconds=600&action=set", "no directives"),
        (b"filter=debug&seconds=nan&action=set", "positive"),
        (b"filter=debug&seconds=-1&action=set", "positive"),
        (b"filter=" + b"a" * 9000, "bytes"),
        (b"\xff", ""),
    ],
)
def test_bad_filter_is_refused_beside_the_field(port: Port, body: bytes, complaint: str) -> None:
    answer = port("POST", "/console/filter", body, **FORM)
    assert answer.status == 400
    found = Page(answer.body)
    (field,) = found.all("input", id="directives")
    assert field["aria-describedby"] == "filter-error"
    assert complaint in found.text
    if b"loud" in body:
        assert field["value"] == "shop=loud"
    port.control.poll()
    assert port.control.filter is None


def test_other_content_is_no_form(port: Port) -> None:
    # What a page elsewhere may send without asking: its browser tells the origin, but be it so.
    answer = port("POST", "/console/filter", b"filter=off&action=set", CONTENT_TYPE="text/plain")
    assert answer.status == 400
    port.control.poll()
    assert port.control.filter is None


def test_watch_is_switched_by_the_form(port: Port) -> None:
    watch = watched(port)
    assert "Off" in page(port, "/").text
    answer = port("POST", "/console/watch", b"seconds=3600&action=set", **FORM)
    assert (answer.status, answer.headers["Location"]) == (303, "/#watch")
    assert watch.seconds == 3600
    assert "On , for another 1 h" in page(port, "/").text
    assert port("POST", "/console/watch", b"action=clear", **FORM).status == 303
    assert watch.seconds is None
    answer = port("POST", "/console/watch", b"seconds=999999&action=set", **FORM)
    assert answer.status == 400
    assert b"at most 86400" in answer.body


def test_form_has_no_page_to_read(port: Port) -> None:
    answer = port("GET", "/console/filter")
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"


# -- Assets


def test_assets_are_kept_by_their_version(port: Port) -> None:
    for name, asset in assets.assets().items():
        answer = port("GET", f"/static/{name}?v={asset.version}")
        assert answer.status == 200
        assert "immutable" in answer.headers["Cache-Control"]
        answer = port("GET", f"/static/{name}", HTTP_IF_NONE_MATCH=answer.headers["ETag"])
        assert (answer.status, answer.body) == (304, b"")
    assert set(assets.assets()) >= {"console.css", "console.js", "icon.svg", "vendor/uplot/uPlot.iife.min.js"}


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/none.css",
        "/static/../site.py",
        "/static/../../web_config.py",
        "/static//etc/passwd",
        "/static/vendor/uplot/LICENSE",
        "/static/console.css/",
    ],
)
def test_what_is_no_asset_is_not_served(port: Port, path: str) -> None:
    assert port("GET", path).status == 404


def test_assets_name_no_other_place() -> None:
    for name, asset in assets.assets().items():
        text = asset.body.decode()
        if not name.startswith("vendor/"):
            assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("\n  //", "").replace("// ", "")
        assert "@import" not in text
        assert "sourceMappingURL" not in text


def test_vendored_library_comes_with_version_and_licence() -> None:
    directory = assets.DIRECTORY / "vendor" / "uplot"
    assert "MIT" in (directory / "LICENSE").read_text()
    version = re.search(r"\(v(\d+\.\d+\.\d+)\)", (directory / "uPlot.iife.min.js").read_text())
    assert version is not None
    assert (directory / "VERSION").read_text().startswith(f"uPlot {version[1]},")

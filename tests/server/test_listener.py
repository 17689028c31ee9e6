from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from django_obs.server.listener import Limits, Listener
from tests.server.conftest import QUICK, ROOMY, Client, serving

Connect = Callable[[Listener], Client]


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer with what was asked."""
    body = environ["wsgi.input"].read()
    text = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']} {body.decode()}"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text.encode()]


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_request_is_answered_and_connection_kept() -> None:
    with serving(echo) as listener:
        client = http.client.HTTPConnection(listener.address, listener.port, timeout=60)
        for path in ("/a?x=1", "/b%20c"):
            client.request("GET", path)
            response = client.getresponse()
            assert response.status == 200
            assert response.getheader("Connection") == "keep-alive"
            assert response.getheader("Date")
            body = response.read()
        assert body == b"GET /b c? "
        client.close()


def test_head_has_the_length_of_the_body_and_no_body() -> None:
    with serving(echo) as listener:
        client = http.client.HTTPConnection(listener.address, listener.port, timeout=60)
        client.request("HEAD", "/a")
        response = client.getresponse()
        assert response.getheader("Content-Length") == str(len("HEAD /a? "))
        assert response.read() == b""
        client.close()


def test_body_is_read_after_continue(connect: Connect) -> None:
    with serving(echo) as listener:
        client = connect(listener)
        client.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"hello")
        assert client.read_until(b"hello").startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_are_answered_in_order(connect: Connect) -> None:
    with serving(echo) as listener:
        client = connect(listener)
        client.send(
            b"PUT /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
            b"GET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answers = client.read_all()
        assert answers.index(b"PUT /1? abc") < answers.index(b"GET /2? ")


def test_http_1_0_connection_is_closed_after_the_answer(connect: Connect) -> None:
    with serving(echo) as listener:
        answer = connect(listener).send(b"GET / HTTP/1.0\r\n\r\n").read_all()
        assert status_of(answer) == 200
        assert b"Connection: close" in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n", 413),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 5000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 5000, 431),
        (b"a" * 200_000, 431),
    ],
)
def test_bad_request_is_told_what_is_wrong(connect: Connect, request_bytes: bytes, status: int) -> None:
    with serving(echo, limits=ROOMY) as listener:
        answer = connect(listener).send(request_bytes).read_all()
        assert status_of(answer) == status
        assert answer.partition(b"\r\n\r\n")[2].strip()


@pytest.mark.parametrize(
    "beginning", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf", b""]
)
def test_endless_request_is_cut_off_in_time(connect: Connect, beginning: bytes) -> None:
    with serving(echo, limits=QUICK) as listener:
        began = time.monotonic()
        answer = connect(listener).send(beginning).read_all()
        assert time.monotonic() - began < 30
        assert status_of(answer) == 408


def test_trickle_does_not_extend_the_deadline(connect: Connect) -> None:
    with serving(echo, limits=QUICK) as listener:
        client = connect(listener)
        began = time.monotonic()
        done = threading.Event()

        def trickle() -> None:
            while not done.wait(0.05):
                try:
                    client.send(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
        thread.start()
        answer = client.read_until(b"\r\n\r\n")
        done.set()
        thread.join()
        assert status_of(answer) == 408
        assert time.monotonic() - began < 30


def test_idle_connection_is_closed_without_a_word(connect: Connect) -> None:
    with serving(echo, limits=replace(ROOMY, idle_seconds=0.6)) as listener:
        client = connect(listener).send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.read_until(b"GET /? ")
        assert client.read_all() == b""


def test_silent_connections_make_room_for_a_scrape(connect: Connect) -> None:
    with serving(echo, limits=ROOMY) as listener:
        silent = [connect(listener) for _ in range(ROOMY.connections * 5)]
        for client in silent[::2]:
            client.send(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        answer = connect(listener).send(b"GET /scrape HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").read_all()
        assert b"GET /scrape" in answer
        assert time.monotonic() - began < 30


def test_reader_that_does_not_read_is_cut_off(connect: Connect) -> None:
    body = b"x" * 50_000_000
    asked = threading.Event()

    def big(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        asked.set()
        start_response("200 OK", [])
        return [body]

    with serving(big, limits=replace(ROOMY, write_seconds=0.5)) as listener:
        client = connect(listener).send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asked.wait(60)
        wait_until(lambda: not listener._connections)
        assert len(client_read_what_is_left(client)) < len(body)


def test_requests_beyond_the_limit_are_told_so(connect: Connect) -> None:
    release = threading.Event()
    entered = threading.Semaphore(0)

    def slow(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        entered.release()
        release.wait(60)
        return echo(environ, start_response)

    with serving(slow, limits=ROOMY) as listener:
        busy = [
            connect(listener).send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            for _ in range(ROOMY.connections)
        ]
        for _ in busy:
            assert entered.acquire(timeout=60)
        refused = connect(listener).read_all()
        release.set()
        assert status_of(refused) == 503
        for client in busy:
            assert status_of(client.read_all()) == 200


def test_failing_application_is_answered_500(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    def failing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise RuntimeError("oh")

    with serving(failing) as listener:
        answer = connect(listener).send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").read_all()
        assert status_of(answer) == 500
        assert b"oh" not in answer


def test_stop_ends_at_once_whoever_is_connected(connect: Connect) -> None:
    with serving(echo, limits=Limits(request_seconds=60)) as listener:
        client = connect(listener).send(b"GET / HTTP/1.1\r\n")
        wait_until(lambda: len(listener._connections) == 1)
        began = time.monotonic()
        listener.stop()
        assert client.read_all() == b""
        assert time.monotonic() - began < 30


def test_header_with_an_underscore_cannot_pass_for_another(connect: Connect) -> None:
    def show(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ.get("HTTP_X_FORWARDED_FOR", "nothing").encode()]

    with serving(show) as listener:
        client = connect(listener)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX_Forwarded_For: evil\r\nConnection: close\r\n\r\n")
        assert client.read_all().endswith(b"nothing")


def test_taken_port_is_an_error() -> None:
    with serving(echo) as listener, pytest.raises(OSError, match="in use"):
        Listener(echo, "127.0.0.1", listener.port)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_unspecified_ipv6_address_serves_ipv4_as_well(connect: Connect) -> None:
    try:
        listener = Listener(echo, "::", 0)
    except OSError as error:
        pytest.skip(str(error))
    thread = threading.Thread(target=listener.serve)
    thread.start()
    try:
        client = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=60)
        client.request("GET", "/")
        assert client.getresponse().status == 200
        client.close()
    finally:
        listener.stop()
        thread.join(60)


def client_read_what_is_left(client: Client) -> bytes:
    try:
        return client.read_all()
    except ConnectionError:
        return b""


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "has not happened"
        time.sleep(0.005)

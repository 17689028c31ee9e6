from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from django_obs.logs.sink import ATOMIC, Sink


class Pipe:
    """A pipe as the standard output of a service: somebody else reads it, or nobody."""

    def __init__(self) -> None:
        self.readable, writable = os.pipe()
        self.stream = os.fdopen(writable, "w")
        os.set_blocking(self.readable, False)

    def read(self) -> bytes:
        found = b""
        try:
            while part := os.read(self.readable, 1 << 16):
                found += part
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        for each in (self.stream.close, lambda: os.close(self.readable)):
            with contextlib.suppress(OSError):
                each()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def test_file_gets_all_with_one_call(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        assert Sink(stream).write(b"line\n" * 100_000) == b""
    assert (tmp_path / "out").read_bytes() == b"line\n" * 100_000


def test_stream_without_descriptor_gets_text() -> None:
    stream = io.StringIO()
    assert Sink(stream).write("grün\n".encode()) == b""
    assert stream.getvalue() == "grün\n"


def test_standard_stream_is_looked_up_when_written(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink("stderr")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    sink.write(b"line\n")
    assert stream.getvalue() == "line\n"
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "__stderr__", None)
    with pytest.raises(OSError, match="there is no stderr"):
        sink.write(b"line\n")


def test_object_that_logs_what_is_printed_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxy:
        def write(self, text: str) -> None:
            raise AssertionError("our lines came back to us")

        def fileno(self) -> None:
            return None

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Proxy())
    monkeypatch.setattr(sys, "__stdout__", stream)
    assert Sink("stdout").write(b"line\n") == b""
    assert stream.getvalue() == "line\n"


def test_full_pipe_takes_what_it_can_and_the_rest_later(pipe: Pipe) -> None:
    sink = Sink(pipe.stream)
    data = b"".join(b"line %06d\n" % number for number in range(30_000))
    rest = sink.write(data)
    assert 0 < len(rest) < len(data)
    assert sink.write(rest) == rest
    found = pipe.read()
    while rest:
        rest = sink.write(rest)
        found += pipe.read()
    assert found == data


def test_pieces_for_a_pipe_are_whole_lines(pipe: Pipe) -> None:
    sink = Sink(pipe.stream)
    line = b"x" * (ATOMIC // 2 - 100) + b"\n"
    rest = sink.write(line * 64)
    assert rest
    assert pipe.read() + rest == line * 64
    assert len(rest) % len(line) == 0


def test_line_longer_than_what_is_atomic_goes_into_an_empty_pipe(pipe: Pipe) -> None:
    sink = Sink(pipe.stream)
    line = b"x" * (ATOMIC * 3) + b"\n"
    assert sink.write(b"first\n") == b""
    reader = threading.Timer(0.01, lambda: None)
    reader.start()
    assert sink.write(line) == b""
    assert pipe.read() == b"first\n" + line
    reader.join()


def test_non_blocking_pipe_is_no_error(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    sink = Sink(pipe.stream)
    data = b"line\n" * 100_000
    rest = sink.write(data)
    assert pipe.read() + rest == data


def test_broken_pipe_is_told(pipe: Pipe) -> None:
    os.close(pipe.readable)
    with pytest.raises(BrokenPipeError):
        Sink(pipe.stream).write(b"line\n")
    pipe.readable = os.open(os.devnull, os.O_RDONLY)


def test_socket_that_is_full_hands_back_the_rest() -> None:
    # systemd gives services a socket for their standard output.
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("w") as stream:
        data = b"line\n" * 200_000
        rest = Sink(stream).write(data)
        assert 0 < len(rest) < len(data)
        theirs.setblocking(False)
        assert data.startswith(theirs.recv(1 << 16))


def test_size_of_the_pipe_does_not_matter(pipe: Pipe) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(pipe.stream.fileno(), fcntl.F_SETPIPE_SZ, 4096)
    sink = Sink(pipe.stream)
    rest = b"line\n" * 5000
    found = b""
    while rest:
        rest = sink.write(rest)
        found += pipe.read()
    assert found == b"line\n" * 5000


def test_long_line_waits_for_a_reader_of_a_pipe_that_is_not_empty(pipe: Pipe) -> None:
    pipe.stream.write("x" * 10 * 4096)
    pipe.stream.flush()
    line = b"y" * 40_000 + b"\n"
    left: list[bytes] = []
    sink = Sink(pipe.stream)
    writer = threading.Thread(target=lambda: left.append(sink.write(line)), daemon=True)
    writer.start()
    writer.join(60)
    assert left == [line]
    assert pipe.read() == b"x" * 10 * 4096
    assert sink.write(line) == b""
    assert pipe.read() == line

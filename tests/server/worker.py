"""A process of the test project that does what it is told, line by line: something for the admin port to show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MAIN = """
import sys, traceback
import django
django.setup()
from django.test import Client
client = Client(raise_request_exception=False, headers={"host": "testserver"})
names = {"client": client}
for line in sys.stdin:
    try:
        exec(eval(line), names)
        print("done", flush=True)
    except BaseException:
        print(repr(traceback.format_exc()), flush=True)
"""


class Worker:
    """Runs until it is closed or killed."""

    def __init__(self, runtime_dir: Path, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "DJANGO_OBS_RUNTIME_DIR": str(runtime_dir),
                "DJANGO_OBS_TRACES_ENABLED": "false",
                "DJANGO_OBS_LOGS_FILTER": "off",
                **environ,
            },
        )

    def do(self, code: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(repr(code), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        assert answer == "done", answer

    def get(self, path: str) -> None:
        self.do(f"b''.join(client.get({path!r}))")

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
